// SPDX-License-Identifier: GPL-2.0-only

//! Defects in Rust code, to be found: the kernel must look at what the compiler makes of Rust just as it
//! does with C. Loading this with a kind makes it happen once. For guests in tests only.

use core::cell::UnsafeCell;
use core::hint::black_box;

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::Completion;
use kernel::workqueue;

module! {
    type: Defects,
    name: "defects_rust",
    authors: ["The sysgenid developers"],
    description: "Defects that a kernel which looks for bugs must find, in Rust",
    license: "GPL",
    params: {
        kind: u32 {
            default: 0,
            description: "Which defect: 1 use after free, 2 data race, 3 overflow, 4 broken assertion",
        },
    },
}

struct Defects;

impl kernel::Module for Defects {
    fn init(_: &'static ThisModule) -> Result<Self> {
        match module_parameters::kind.value() {
            1 => use_after_free()?,
            2 => race_in_two_threads()?,
            3 => overflow(),
            4 => debug_assert!(black_box(1) == 2, "as was wanted"),
            _ => return Err(EINVAL),
        }
        // It stays: threads may be running in it.
        Ok(Self)
    }
}

fn use_after_free() -> Result {
    let number = KBox::new(1u64, GFP_KERNEL)?;
    let address = black_box(&raw const *number);
    drop(number);
    // SAFETY: None: this is the defect.
    black_box(unsafe { *address });
    Ok(())
}

struct Racing(UnsafeCell<u64>);

// SAFETY: None: this is the defect.
unsafe impl Sync for Racing {}

static RACING: Racing = Racing(UnsafeCell::new(0));

fn race_in_two_threads() -> Result {
    let finished = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
    let other = finished.clone();
    workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
        race();
        other.complete_all();
    })?;
    race();
    finished.wait_for_completion();
    Ok(())
}

fn race() {
    for _ in 0..1_000_000 {
        let number = black_box(RACING.0.get());
        // SAFETY: None: this is the defect.
        unsafe { *number = (*number).wrapping_add(1) };
    }
}

fn overflow() {
    black_box(black_box(u32::MAX) + black_box(1));
}
