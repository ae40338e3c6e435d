// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes, and which descriptors of nodes they have.

use std::fs;
use std::path::PathBuf;

use super::owner::Owner;
use crate::front_end::Identity;

/// All processes that can be seen.
pub(crate) fn all() -> Vec<u32> {
    let mut pids: Vec<u32> = numbers("/proc");
    pids.sort_unstable();
    pids
}

/// The descriptors of a process that stand for one of these nodes, in order, with the node's name. None of a process
/// that has ended, or whose descriptors this one may not see.
pub(crate) fn descriptors(
    pid: u32,
    nodes: &[(Identity, &'static str)],
) -> Vec<(u32, &'static str)> {
    let folder = format!("/proc/{pid}/fd");
    let mut found: Vec<_> = numbers(&folder)
        .into_iter()
        .filter_map(|fd| {
            let link = PathBuf::from(format!("{folder}/{fd}"));
            // The name costs little to look at. To ask some files for more may take for ever, if their server hangs.
            let name = fs::read_link(&link).ok()?;
            let name = name.to_string_lossy();
            if !(name.starts_with("/dev/") || name.contains("sysgenid") || name.contains("vmgenid"))
            {
                return None;
            }
            let identity = Identity::of(&link).ok()?;
            let (_, node) = nodes.iter().find(|(node, _)| *node == identity)?;
            Some((fd, *node))
        })
        .collect();
    found.sort_unstable();
    found
}

/// The program of a process.
pub(crate) fn command(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// What a process was started with, the folder of its program left out.
pub(crate) fn command_line(pid: u32) -> Option<String> {
    words(&fs::read(format!("/proc/{pid}/cmdline")).ok()?)
}

/// Whose it is.
pub(crate) fn owner(pid: u32) -> Owner {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Owner::parse(&cgroup)
}

/// Reads `/proc/PID/cmdline`: arguments, each with a 0 after it. Nothing of a thread of the kernel, or of a process that
/// waits to be reaped.
fn words(arguments: &[u8]) -> Option<String> {
    let arguments = String::from_utf8_lossy(arguments);
    let mut words = arguments.trim_end_matches('\0').split('\0');
    let program = words.next().filter(|program| !program.is_empty())?;
    let program = program.rsplit('/').next().unwrap_or(program);
    let words: Vec<_> = std::iter::once(program).chain(words).collect();
    Some(words.join(" "))
}

/// The entries of a folder that are numbers.
fn numbers(folder: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_its_words_without_the_folder_of_the_program() {
        let line = |bytes: &[u8]| words(bytes);
        assert_eq!(line(b""), None);
        assert_eq!(line(b"init\0"), Some("init".to_owned()));
        assert_eq!(
            line(b"/usr/bin/sysgenctl\0wait\0--node\0/dev/sysgenid\0"),
            Some("sysgenctl wait --node /dev/sysgenid".to_owned())
        );
    }

    #[test]
    fn this_process_has_a_command_line_and_descriptors() {
        let pid = std::process::id();
        assert!(all().contains(&pid));
        assert!(command_line(pid).is_some());
        let null = fs::File::open("/dev/null").unwrap();
        let nodes = [(Identity::of("/dev/null".as_ref()).unwrap(), "sysgenid")];
        let fd = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&null)).unwrap();
        assert!(descriptors(pid, &nodes).contains(&(fd, "sysgenid")));
    }
}
