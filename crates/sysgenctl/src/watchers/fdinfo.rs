// SPDX-License-Identifier: MIT OR Apache-2.0

//! The watchers of the kernel module, by what `/proc/PID/fdinfo/FD` shows of each.

use std::fs;
use std::path::Path;

use super::process;
use crate::front_end::Identity;

/// The two nodes, and where the kernel says which device each is.
const NODES: [(&str, &str, &str); 2] = [
    ("sysgenid", "/dev/sysgenid", "/sys/class/misc/sysgenid/dev"),
    ("vmgenid", "/dev/vmgenid", "/sys/class/misc/vmgenid/dev"),
];

/// A descriptor of a node, and what the kernel says of its watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) pid: u32,
    pub(crate) fd: u32,
    pub(crate) node: &'static str,
    pub(crate) info: Info,
}

/// What the module adds to the lines that every file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) generation: u32,
    pub(crate) acknowledged: u32,
    pub(crate) tracked: bool,
    pub(crate) outdated: bool,
    /// When the generation changed last, in nanoseconds of `CLOCK_BOOTTIME`; 0 if never. Nothing where the module is
    /// too old to tell.
    pub(crate) changed: Option<u64>,
    /// When the watcher became outdated, likewise; 0 while it is current.
    pub(crate) outdated_since: Option<u64>,
}

impl Info {
    /// Reads it. Nothing if it is not of a node of the module.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            text.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                (found == name).then(|| value.trim())
            })
        };
        let flag = |name| match value(name)? {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        Some(Self {
            generation: value("generation")?.parse().ok()?,
            acknowledged: value("acknowledged")?.parse().ok()?,
            tracked: flag("tracked")?,
            outdated: flag("outdated")?,
            changed: value("changed").and_then(|value| value.parse().ok()),
            outdated_since: value("outdated_since").and_then(|value| value.parse().ok()),
        })
    }
}

/// All descriptors of the module's nodes that this process may see. The node at `path` counts whatever it is called.
///
/// Two of them may stand for one watcher (`dup`, `fork`): the kernel has no safe way to tell.
pub(crate) fn descriptors(path: &Path) -> Vec<Descriptor> {
    let devices = devices(path);
    process::all()
        .into_iter()
        .flat_map(|pid| of_process(pid, &devices))
        .collect()
}

/// What the kernel says of the first descriptor that this very process has of the node at a path.
pub(crate) fn own(path: &Path) -> Option<Info> {
    of_process(std::process::id(), &devices(path))
        .first()
        .map(|descriptor| descriptor.info)
}

/// The devices of the nodes, with the names of these.
fn devices(path: &Path) -> Vec<(Identity, &'static str)> {
    let mut devices: Vec<_> = NODES
        .into_iter()
        .filter_map(|(name, node, number)| {
            let device = fs::read_to_string(number)
                .ok()
                .and_then(|text| device_number(&text))
                .or_else(|| Identity::of(Path::new(node)).ok())?;
            Some((device, name))
        })
        .collect();
    if let Ok(device) = Identity::of(path)
        && !devices.iter().any(|(known, _)| *known == device)
    {
        let name = if path.ends_with("vmgenid") {
            "vmgenid"
        } else {
            "sysgenid"
        };
        devices.push((device, name));
    }
    devices.retain(|(device, _)| matches!(device, Identity::Device(_)));
    devices
}

/// Reads `major:minor`.
fn device_number(text: &str) -> Option<Identity> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(Identity::Device(rustix::fs::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    )))
}

fn of_process(pid: u32, devices: &[(Identity, &'static str)]) -> Vec<Descriptor> {
    process::descriptors(pid, devices)
        .into_iter()
        .filter_map(|(fd, node)| {
            let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
            Some(Descriptor {
                pid,
                fd,
                node,
                info: Info::parse(&text)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_EVERY_FILE: &str = "pos:\t0\nflags:\t02100002\nmnt_id:\t25\nino:\t331\n";

    #[test]
    fn the_lines_of_the_module_are_found_among_those_of_every_file() {
        let text = format!(
            "{OF_EVERY_FILE}generation:\t3\nacknowledged:\t1\ntracked:\t1\noutdated:\t1\n\
             changed:\t7290151404326\noutdated_since:\t7168440917853\nfuture:\t9\n"
        );
        let info = Info {
            generation: 3,
            acknowledged: 1,
            tracked: true,
            outdated: true,
            changed: Some(7_290_151_404_326),
            outdated_since: Some(7_168_440_917_853),
        };
        assert_eq!(Info::parse(&text), Some(info));
    }

    #[test]
    fn a_module_that_tells_no_times_is_understood() {
        let text = "generation:\t4294967295\nacknowledged:\t0\ntracked:\t0\noutdated:\t1\n";
        let info = Info::parse(text).unwrap();
        assert_eq!((info.generation, info.changed), (u32::MAX, None));
        assert_eq!((info.tracked, info.outdated_since), (false, None));
    }

    #[test]
    fn another_file_is_not_taken_for_a_watcher() {
        for text in [
            "",
            OF_EVERY_FILE,
            "generation:\t3\nacknowledged:\t1\ntracked:\t1\n",
            "generation:\t3\nacknowledged:\t1\ntracked:\tyes\noutdated:\t1\n",
            "generation:\t4294967296\nacknowledged:\t1\ntracked:\t1\noutdated:\t1\n",
        ] {
            assert_eq!(Info::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_number_is_read_as_stat_shows_it() {
        // major 10, minor 300: the minor's upper bits stand above the major.
        assert_eq!(device_number("10:300\n"), Some(Identity::Device(0x100a2c)));
        assert_eq!(device_number("10"), None);
    }
}
