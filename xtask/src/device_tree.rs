// SPDX-License-Identifier: MIT OR Apache-2.0

//! The generation ID of a machine that has a device tree instead of ACPI: a node `microsoft,vmgenid`.
//!
//! QEMU's `virt` machine has no such device, so this does from outside what a hypervisor would do: it keeps
//! some memory from the guest, writes the ID there while the machine stands still, and raises the node's
//! interrupt. That is the line of the machine's power key, which is the one that can be moved from outside;
//! the tree gives it to the node. The kernel's driver and its interrupt controller are the real ones.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::arch::Arch;
use crate::qemu::Vm;
use crate::tree::Tree;

/// Where the memory of a `virt` machine begins.
const MEMORY: u64 = 0x4000_0000;

/// How much at its end is kept from the guest: a page, of the largest that there are.
const KEPT: u64 = 0x1_0000;

/// The memory in which the ID of a machine is.
pub(crate) fn address(memory_mib: u32) -> u64 {
    MEMORY + (u64::from(memory_mib) << 20) - KEPT
}

/// Writes the tree of a machine with an ID to a folder.
pub(crate) fn make(
    tree: &Tree,
    folder: &Path,
    processors: &str,
    memory_mib: u32,
) -> Result<PathBuf> {
    let (dumped, compiled) = (folder.join("dumped.dtb"), folder.join("machine.dtb"));
    let arch = Arch::Arm64;
    let output = tree
        .command("sh")
        .args(["-euc", COMPILE, "compile"])
        .args([&dumped, &compiled])
        .arg(node(address(memory_mib)))
        .arg(arch.qemu())
        .args(arch.machine())
        // The kernel takes what the tree says for randomness. It would be the same each time.
        .arg("-machine")
        .arg(format!("dtb-randomness=off,dumpdtb={}", dumped.display()))
        .args(["-smp", processors, "-m", &format!("{memory_mib}M")])
        .args(["-nodefaults", "-display", "none"])
        .output()?;
    ensure!(
        output.status.success(),
        "cannot make the machine's device tree: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(compiled)
}

/// Has QEMU, the command from $4 on, write its tree to $1, and compiles that with the source $3 to $2.
const COMPILE: &str = r#"
dumped=$1 compiled=$2 node=$3
shift 3
"$@" >&2
{ dtc -q -I dtb -O dts "$dumped"; echo "$node"; } > "$compiled.dts"
dtc -q -I dts -O dtb -o "$compiled" "$compiled.dts"
"#;

/// The node, its memory, and the interrupt that was the power key's: the line 3 of the controller, which
/// is told of by a pulse.
fn node(address: u64) -> String {
    let (high, low) = (address >> 32, address & 0xffff_ffff);
    format!(
        "/delete-node/ &{{/gpio-keys}};
/ {{
    reserved-memory {{
        #address-cells = <2>;
        #size-cells = <2>;
        ranges;
        generation-id@{address:x} {{
            reg = <{high:#x} {low:#x} 0 {KEPT:#x}>;
            no-map;
        }};
    }};
    generation-id@{address:x} {{
        compatible = \"microsoft,vmgenid\";
        reg = <{high:#x} {low:#x} 0 16>;
        interrupt-parent = <&{{/pl061@9030000}}>;
        interrupts = <3 1>;
    }};
}};
&{{/pl061@9030000}} {{
    interrupt-controller;
    #interrupt-cells = <2>;
}};
"
    )
}

/// Gives a machine that stands still its ID, raises the interrupt, and lets the machine run.
pub(crate) fn resume(vm: &mut Vm, memory_mib: u32, guid: &str) -> Result<()> {
    let bytes = bytes(guid)?;
    vm.debugger()?.write(address(memory_mib), &bytes)?;
    vm.qmp.press_power_key()?;
    vm.qmp.resume().map(drop)
}

/// The 16 bytes of an ID. In a device tree it is not a GUID but only bytes.
pub(crate) fn bytes(guid: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = guid.chars().filter(|character| *character != '-').collect();
    let bytes = digits.chunks(2).map(|pair| {
        let pair: String = pair.iter().collect();
        u8::from_str_radix(&pair, 16).with_context(|| format!("{guid} is no GUID"))
    });
    let bytes: Vec<u8> = bytes.collect::<Result<_>>()?;
    ensure!(bytes.len() == 16, "{guid} is no GUID");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_at_the_end_of_the_memory() {
        assert_eq!(address(384), 0x57ff_0000);
        assert_eq!(address(4096), 0x1_3fff_0000);
        assert!(node(address(4096)).contains("reg = <0x1 0x3fff0000 0 16>;"));
    }

    #[test]
    fn a_guid_is_16_bytes() {
        let expected: Vec<u8> = (0x10..0x20).collect();
        assert_eq!(
            bytes("10111213-1415-1617-1819-1a1b1c1d1e1f").expect("it is one"),
            expected
        );
        for wrong in ["", "10", "zz111213-1415-1617-1819-1a1b1c1d1e1f"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
