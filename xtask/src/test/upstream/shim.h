/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lets drivers/virt/vmgenid.c be built as a module for a kernel that has it built in, and therefore does not
 * export add_vmfork_randomness(): looks for that function when the driver binds.
 */
#include <linux/bug.h>
#include <linux/kprobes.h>
#include <linux/random.h>

static void (*found_add_vmfork_randomness)(const void *unique_vm_id, size_t len);

static inline void find_and_add_device_randomness(const void *buf, size_t len)
{
	struct kprobe probe = { .symbol_name = "add_vmfork_randomness" };

	if (!found_add_vmfork_randomness && !WARN_ON(register_kprobe(&probe))) {
		found_add_vmfork_randomness = (void *)probe.addr;
		unregister_kprobe(&probe);
	}
	add_device_randomness(buf, len);
}

#define add_device_randomness	find_and_add_device_randomness
#define add_vmfork_randomness	found_add_vmfork_randomness

/* The name under which the kernel's own driver is kept from the device: an init function of that name is not run. */
#define vmgenid_plaform_driver	vmgenid_module_driver
