// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's own counter of restores, where there is one.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::sys::mapping::Mapping;

/// How many devices are looked at. A machine has one; the number of a device that was removed is used again.
const MOST_DEVICES: u32 = 8;

/// Maps the page with the counter, if the machine has a device that counts restores and this process may read it. What is
/// missing or malformed is no error: the generation is noticed all the same, only later.
pub(crate) fn map_counter() -> Option<(Mapping, PathBuf)> {
    // The page is little-endian, and a smaller machine cannot read the counter at once.
    if !cfg!(all(target_pointer_width = "64", target_endian = "little")) {
        return None;
    }
    (0..MOST_DEVICES).find_map(|number| {
        let path = PathBuf::from(format!("/dev/vmclock{number}"));
        Some((map(&path)?, path))
    })
}

fn map(path: &Path) -> Option<Mapping> {
    let device = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    // By `read`, for which the driver waits until the page is whole.
    let mut start = [0; sysgenid_vmclock::SIZE];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&device, &mut start, 0)).ok()?;
    sysgenid_vmclock::parse(&start[..length]).ok()?;
    Mapping::of(device).ok()
}
