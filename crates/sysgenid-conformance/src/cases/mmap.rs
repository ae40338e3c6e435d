// SPDX-License-Identifier: MIT OR Apache-2.0

//! `mmap`.

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::param::page_size;

use super::{Case, case};
use crate::abi::{PAGE_LIVE, PAGE_NOTICED};
use crate::node::Node;
use crate::outcome::{Outcome, fail, fails, holds, same, skip};
use crate::process::{Event, Process};
use crate::sys;
use crate::sys::Mapping;

pub(super) const CASES: &[Case] = &[
    case(
        "a-mapping-shows-the-live-generation",
        &["mmap-live", "native-endian"],
        a_mapping_shows_the_live_generation,
    ),
    case(
        "a-private-mapping-shows-the-live-generation",
        &["mmap-live"],
        a_private_mapping_shows_the_live_generation,
    ),
    case(
        "one-load-of-8-bytes-shows-the-generation-and-the-flags",
        &["mmap-live", "mmap-flags", "native-endian"],
        one_load_shows_generation_and_flags,
    ),
    case(
        "the-page-says-that-it-is-live",
        &["page-live"],
        the_page_says_that_it_is_live,
    ),
    case(
        "the-page-says-whether-restores-are-noticed",
        &["page-noticed"],
        the_page_says_whether_restores_are_noticed,
    ),
    case(
        "the-rest-of-the-mapped-page-is-zero",
        &["mmap-rest", "mmap-flags"],
        the_rest_of_the_page_is_zero,
    ),
    case(
        "a-mapping-of-4-bytes-outlives-its-read-only-descriptor",
        &["mmap-outlives-descriptor"],
        a_mapping_outlives_its_descriptor,
    ),
    case(
        "a-mapping-at-another-offset-is-EINVAL",
        &["mmap-offset"],
        a_mapping_at_another_offset,
    ),
    case(
        "a-mapping-of-more-than-a-page-is-EINVAL",
        &["mmap-length"],
        a_mapping_of_more_than_a_page,
    ),
    case(
        "a-writable-mapping-is-EPERM",
        &["mmap-writable"],
        a_writable_mapping,
    ),
    case(
        "a-private-writable-mapping-is-EPERM",
        &["mmap-writable"],
        a_private_writable_mapping,
    ),
    case(
        "an-executable-mapping-is-EPERM",
        &["mmap-executable"],
        an_executable_mapping,
    ),
    case(
        "a-process-whose-reads-imply-exec-gets-a-mapping-to-read",
        &["mmap-read-implies-exec"],
        a_process_whose_reads_imply_exec,
    ),
    case(
        "a-mapping-cannot-become-writable",
        &["mmap-stays-read-only"],
        a_mapping_cannot_become_writable,
    ),
    case(
        "a-mapping-cannot-become-executable",
        &["mmap-stays-read-only"],
        a_mapping_cannot_become_executable,
    ),
    case(
        "a-mapping-whose-page-was-thrown-out-shows-the-live-generation",
        &["mmap-stays"],
        a_mapping_whose_page_was_thrown_out,
    ),
    case(
        "a-mapping-is-never-dumped",
        &["mmap-not-dumped"],
        a_mapping_is_never_dumped,
    ),
    case(
        "a-mapping-never-grows",
        &["mmap-does-not-grow"],
        a_mapping_never_grows,
    ),
    case(
        "a-forked-child-inherits-the-live-mapping",
        &["mmap-inherited"],
        a_forked_child_inherits_the_mapping,
    ),
];

fn a_mapping_shows_the_live_generation(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDWR)?;
    let mapping = watcher.map()?;
    same(
        "the first look",
        mapping.generation(),
        control.generation()?,
    )?;
    for _ in 0..3 {
        let generation = control.bump()?;
        same("after a change", mapping.generation(), generation)?;
        // It is no matter of who has acknowledged.
        watcher.acknowledge(generation)?;
        same("once acknowledged", mapping.generation(), generation)?;
    }
    let generation = control.leave_room(1000)? + 1000;
    control.raise(generation)?;
    same("after a jump", mapping.generation(), generation)
}

fn a_private_mapping_shows_the_live_generation(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDONLY)?;
    let mapping = watcher.map_with(4, ProtFlags::READ, MapFlags::PRIVATE, 0)?;
    for _ in 0..3 {
        let generation = control.bump()?;
        same("after a change", mapping.generation(), generation)?;
    }
    Ok(())
}

fn the_rest_of_the_page_is_zero(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDONLY)?;
    let mapping = watcher.map_with(page_size(), ProtFlags::READ, MapFlags::SHARED, 0)?;
    for _ in 0..2 {
        let generation = control.bump()?;
        let bytes = mapping.bytes();
        same("the length", bytes.len(), page_size())?;
        same("bytes 0..4", &bytes[..4], &generation.to_ne_bytes())?;
        let flags = halves(mapping.word()).1;
        let unknown = flags & !(PAGE_LIVE | PAGE_NOTICED);
        same("flags that have no meaning", unknown, 0)?;
        same("bytes 4..8", &bytes[4..8], &flags.to_ne_bytes())?;
        let first_other = bytes[8..].iter().position(|byte| *byte != 0);
        same("the first byte after 8 that is not 0", first_other, None)?;
    }
    Ok(())
}

/// A mapping of the 8 bytes that are stored at once.
fn map_word(node: &Node) -> Outcome<Mapping> {
    let watcher = node.open(OFlags::RDONLY)?;
    Ok(watcher.map_with(8, ProtFlags::READ, MapFlags::SHARED, 0)?)
}

/// The generation and the flags of a word.
fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    let generation = u32::from_ne_bytes([a, b, c, d]);
    (generation, u32::from_ne_bytes([e, f, g, h]))
}

fn one_load_shows_generation_and_flags(node: &Node) -> Outcome {
    let control = node.control()?;
    let mapping = map_word(node)?;
    let flags = halves(mapping.word()).1;
    // The only flag that every node has.
    same("the flags", flags & !PAGE_NOTICED, PAGE_LIVE)?;
    for _ in 0..3 {
        let generation = control.bump()?;
        let expected = (generation, flags);
        same("after a change", halves(mapping.word()), expected)?;
    }
    let generation = control.leave_room(0x0102_0304)? + 0x0102_0304;
    control.raise(generation)?;
    same("after a jump", halves(mapping.word()), (generation, flags))
}

fn the_page_says_that_it_is_live(node: &Node) -> Outcome {
    let control = node.control()?;
    let mapping = map_word(node)?;
    for when in ["at first", "after a change", "after another"] {
        let flags = halves(mapping.word()).1;
        same(when, flags & PAGE_LIVE, PAGE_LIVE)?;
        control.bump()?;
    }
    Ok(())
}

fn the_page_says_whether_restores_are_noticed(node: &Node) -> Outcome {
    if !node.is_char_device() {
        return skip("the node is not a character device");
    }
    let Ok(users) = std::fs::read_dir("/sys/module/sysgenid/holders") else {
        return skip("the driver is no module, so its backends cannot be seen");
    };
    let mut users = users.map(|user| Some(user.ok()?.file_name()));
    // This one notices as soon as it is loaded, the other one where it has a device.
    let has_notice = users.any(|user| user.is_some_and(|name| name == "sysgenid_vmfork"));
    let expected = if has_notice || has_bound_device("sysgenid_acpi") {
        PAGE_NOTICED
    } else {
        0
    };
    // It says so without a change.
    let mapping = map_word(node)?;
    let noticed = || halves(mapping.word()).1 & PAGE_NOTICED;
    same("at first", noticed(), expected)?;
    node.control()?.bump()?;
    same("after a change", noticed(), expected)
}

/// Whether a platform driver has a device.
fn has_bound_device(driver: &str) -> bool {
    let folder = format!("/sys/bus/platform/drivers/{driver}");
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    // Of the links there, only that of its module is no device.
    entries.flatten().any(|entry| {
        entry.file_type().is_ok_and(|kind| kind.is_symlink()) && entry.file_name() != "module"
    })
}

fn a_mapping_outlives_its_descriptor(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.open(OFlags::RDONLY)?;
    let mapping = watcher.map()?;
    drop(watcher);
    for _ in 0..3 {
        let generation = control.bump()?;
        same("after a change", mapping.generation(), generation)?;
    }
    // Nobody waits for a reader that can never acknowledge.
    control.counts(0, "with a mapping only")
}

fn a_mapping_at_another_offset(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDONLY)?;
    let page = page_size();
    for pages in [1, 2, 0x1000, u32::MAX] {
        let offset = u64::from(pages) * u64::try_from(page).unwrap_or(4096);
        let mapping = watcher.map_with(page, ProtFlags::READ, MapFlags::SHARED, offset);
        let what = format!("a mapping at page {pages}");
        fails(&what, mapping.map(drop), Errno::INVAL)?;
    }
    Ok(())
}

fn a_mapping_of_more_than_a_page(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDONLY)?;
    let page = page_size();
    for length in [page + 1, 2 * page, 16 * page] {
        let mapping = watcher.map_with(length, ProtFlags::READ, MapFlags::SHARED, 0);
        let what = format!("a mapping of {length} bytes");
        fails(&what, mapping.map(drop), Errno::INVAL)?;
    }
    Ok(())
}

fn a_writable_mapping(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDWR)?;
    for protection in [ProtFlags::WRITE, ProtFlags::READ | ProtFlags::WRITE] {
        let mapping = watcher.map_with(page_size(), protection, MapFlags::SHARED, 0);
        fails("the mapping", mapping.map(drop), Errno::PERM)?;
    }
    Ok(())
}

fn a_private_writable_mapping(node: &Node) -> Outcome {
    for access in [OFlags::RDWR, OFlags::RDONLY] {
        let watcher = node.open(access)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let mapping = watcher.map_with(page_size(), protection, MapFlags::PRIVATE, 0);
        fails("the mapping", mapping.map(drop), Errno::PERM)?;
    }
    Ok(())
}

fn an_executable_mapping(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDWR)?;
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        let mapping = watcher.map_with(page_size(), protection, flags, 0);
        fails("the mapping", mapping.map(drop), Errno::PERM)?;
    }
    Ok(())
}

fn a_process_whose_reads_imply_exec(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDONLY)?;
    let expected = node.map()?.generation();
    // In a process of its own, because that is what the personality belongs to.
    let child = Process::spawn(move || {
        sys::let_reads_imply_exec()?;
        for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
            let mapping = watcher.map_with(page_size(), ProtFlags::READ, flags, 0)?;
            same("what it shows", mapping.generation(), expected)?;
            let protection = MprotectFlags::READ | MprotectFlags::EXEC;
            let what = format!("mprotect of a mapping ({flags:?}) to {protection:?}");
            fails(&what, mapping.protect(protection), Errno::ACCESS)?;
            mapping.generation();
        }
        Ok(())
    })?;
    child.join("a mapping of a process whose reads imply exec")
}

fn a_mapping_cannot_become_writable(node: &Node) -> Outcome {
    cannot_become(node, MprotectFlags::READ | MprotectFlags::WRITE)
}

fn a_mapping_cannot_become_executable(node: &Node) -> Outcome {
    cannot_become(node, MprotectFlags::READ | MprotectFlags::EXEC)
}

fn cannot_become(node: &Node, protection: MprotectFlags) -> Outcome {
    for access in [OFlags::RDWR, OFlags::RDONLY] {
        for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
            let watcher = node.open(access)?;
            let mapping = watcher.map_with(4, ProtFlags::READ, flags, 0)?;
            let what = format!("mprotect of a mapping ({access:?}, {flags:?}) to {protection:?}");
            fails(&what, mapping.protect(protection), Errno::ACCESS)?;
            mapping.generation();
        }
    }
    Ok(())
}

fn a_mapping_whose_page_was_thrown_out(node: &Node) -> Outcome {
    let control = node.control()?;
    let mapping = node.map()?;
    for _ in 0..2 {
        let expected = control.bump()?;
        mapping.throw_out()?;
        // In a process of its own, because a page that does not come back is a SIGBUS.
        let child = Process::spawn(|| same("what it shows", mapping.generation(), expected))?;
        child.join("a look at the mapping")?;
        same("what it shows", mapping.generation(), expected)?;
    }
    Ok(())
}

fn a_mapping_is_never_dumped(node: &Node) -> Outcome {
    let mapping = node.map()?;
    holds("it says so", is_not_dumped(&mapping)?)?;
    // Whether asking for the opposite is an error is not the point.
    let _ = mapping.ask_to_be_dumped();
    holds("it still does when asked to", is_not_dumped(&mapping)?)
}

/// Whether the kernel says `dd` (do not dump) of a mapping.
fn is_not_dumped(mapping: &Mapping) -> Outcome<bool> {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else {
        return skip("this kernel has no /proc/PID/smaps");
    };
    let start = format!("{:x}-", mapping.address());
    let mut lines = smaps.lines().skip_while(|line| {
        // The kernel pads short addresses.
        !line.trim_start_matches('0').starts_with(&start)
    });
    if lines.next().is_none() {
        return fail("the mapping is not in /proc/self/smaps");
    }
    match lines.find_map(|line| line.strip_prefix("VmFlags:")) {
        Some(flags) => Ok(flags.split_whitespace().any(|flag| flag == "dd")),
        None => skip("this kernel has no VmFlags in /proc/PID/smaps"),
    }
}

fn a_mapping_never_grows(node: &Node) -> Outcome {
    let mut mapping = node.map()?;
    match mapping.resize(2 * page_size()) {
        Ok(()) => fail("mremap made it 2 pages long"),
        Err(_) => {
            mapping.generation();
            Ok(())
        }
    }
}

fn a_forked_child_inherits_the_mapping(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let mapping = watcher.map()?;
    drop(watcher);
    let (changed, seen) = (Event::new()?, Event::new()?);
    let expected = control.leave_room(1)? + 1;
    let child = Process::spawn(|| {
        changed.wait("the change")?;
        same("what the child sees", mapping.generation(), expected)?;
        seen.set()?;
        // Holds the mapping until it is killed.
        Event::new()?.wait("its death")
    })?;
    same("the generation", control.bump()?, expected)?;
    changed.set()?;
    if seen.wait("the child's look").is_err() {
        return child.join("the child");
    }
    same("what the parent sees", mapping.generation(), expected)?;
    control.counts(1, "with both mappings")?;
    drop(mapping);
    control.counts(1, "with the child's mapping only")?;
    child.kill()?;
    control.counts(0, "with no mapping")
}
