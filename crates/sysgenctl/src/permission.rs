// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who may open a node, by its group and its mode.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;
use sysgenid::{Access, Error};

/// What is wrong with a node. The words of the library for a lack of permission are for who writes programs.
pub(crate) fn explain(error: &Error) -> String {
    let Error::NoPermission { path, access } = error else {
        return error.to_string();
    };
    let advice = match group_for(path, *access) {
        _ if geteuid().is_root() => {
            "not even root may: is it read-only here, or a device that this container was not given?"
                .to_owned()
        }
        Some(group) => format!("run as root or as a member of the group {group}, which may"),
        None => "run as root".to_owned(),
    };
    format!(
        "no permission to open {} for {access}: {advice}",
        path.display()
    )
}

/// The group that may open a node in this way; nothing where only its owner may, or it cannot be seen. That of root
/// is for root alone.
pub(crate) fn group_for(path: &Path, access: Access) -> Option<String> {
    let node = fs::metadata(path).ok()?;
    if !lets_group(node.mode(), access) || node.gid() == 0 {
        return None;
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    Some(name_of(node.gid(), &groups))
}

fn lets_group(mode: u32, access: Access) -> bool {
    let needed = match access {
        Access::Read => 0o040,
        Access::ReadWrite => 0o060,
    };
    mode & needed == needed
}

/// The name of a group by the lines of `/etc/group`; its number where they do not have it.
fn name_of(gid: u32, groups: &str) -> String {
    let number = gid.to_string();
    groups
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == number).then(|| name.to_owned())
        })
        .unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_by_its_number_if_by_nothing_else() {
        let groups = "root:x:0:\n+nonsense\nsysgenid:x:993:alice,994\n";
        assert_eq!(name_of(993, groups), "sysgenid");
        assert_eq!(name_of(994, groups), "994");
        assert_eq!(name_of(993, ""), "993");
    }

    #[test]
    fn a_group_that_may_only_read_is_of_no_use_to_who_has_to_write() {
        assert!(lets_group(0o664, Access::ReadWrite));
        assert!(!lets_group(0o644, Access::ReadWrite));
        assert!(lets_group(0o640, Access::Read));
        assert!(!lets_group(0o604, Access::Read));
    }

    #[test]
    fn a_lack_of_permission_is_not_explained_to_who_writes_programs() {
        let text = explain(&Error::NoPermission {
            path: "/nowhere/sysgenid".into(),
            access: Access::ReadWrite,
        });
        let start = "no permission to open /nowhere/sysgenid for reading and writing: ";
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains("being tracked"), "{text}");
    }
}
