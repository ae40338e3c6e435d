// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is meant by a name: users and groups of this machine, and the root of a user namespace, as numbers.

use std::path::Path;

use super::Error;
use super::definition::Account;
use super::definition::Attributes;
use super::definition::InstanceName;
use super::definition::Mode;
use super::definition::process_of;

/// The group whose members may acknowledge on the host's nodes, where it exists.
const HOST_GROUP: &str = "sysgenid";

/// Who owns the nodes of an instance, and who may do what with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The owner.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// The mode of `sysgenid`.
    pub sysgenid_mode: Mode,
    /// The mode of `vmgenid`.
    pub vmgenid_mode: Mode,
}

impl Attributes {
    /// Turns names into numbers. `root_of` says which user and group are root in the namespace of a process,
    /// `/proc/PID`, or why that is not known.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAccount`] and [`Error::UnknownRoot`].
    pub fn ownership(
        &self,
        name: &InstanceName,
        accounts: &Accounts,
        root_of: impl FnOnce(&Path) -> Result<(u32, u32), String>,
    ) -> Result<Ownership, Error> {
        let unknown = |kind, account: &str| Error::UnknownAccount {
            instance: name.clone(),
            kind,
            name: account.to_owned(),
        };
        let (root_user, root_group) = match &self.user_namespace {
            Some(path) if self.user.is_none() || self.group.is_none() => {
                let found = match process_of(path) {
                    Some(process) => root_of(process),
                    None => Err("it does not name a process, as /proc/PID/ns/user does".to_owned()),
                };
                found.map_err(|reason| Error::UnknownRoot {
                    instance: name.clone(),
                    path: path.clone(),
                    reason,
                })?
            }
            _ => (0, 0),
        };
        let user = match &self.user {
            Some(Account::Number(number)) => *number,
            Some(Account::Name(user)) => {
                accounts.user(user).ok_or_else(|| unknown("user", user))?
            }
            None => root_user,
        };
        let host_group = || accounts.group(HOST_GROUP).filter(|_| name.is_host());
        let (group, writes) = match &self.group {
            Some(Account::Number(number)) => (*number, true),
            Some(Account::Name(group)) => {
                let number = accounts
                    .group(group)
                    .ok_or_else(|| unknown("group", group))?;
                (number, true)
            }
            None => match host_group() {
                Some(number) => (number, true),
                None => (root_group, false),
            },
        };
        Ok(Ownership {
            user,
            group,
            // Whoever names a group means it to acknowledge, which takes the right to write.
            sysgenid_mode: self
                .sysgenid_mode
                .unwrap_or(Mode(if writes { 0o664 } else { 0o644 })),
            vmgenid_mode: self.vmgenid_mode.unwrap_or(Mode(0o600)),
        })
    }
}

/// The users and groups of this machine's files.
///
/// The C library would ask more sources, by loading libraries of its own, which a statically linked
/// daemon cannot. Whoever keeps accounts elsewhere can give numbers.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// The texts in which a name is looked for, the first before the others.
    passwd: Vec<String>,
    group: Vec<String>,
}

/// Where the files are. The second folder is that of the image's own accounts, where `/etc` has only those that
/// were added (ostree).
const FOLDERS: [&str; 2] = ["etc", "usr/lib"];

impl Accounts {
    /// Reads `passwd` and `group` of `/etc` and of `/usr/lib`; one that cannot be read has no names.
    #[must_use]
    pub fn read() -> Self {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> Self {
        let read = |name| {
            let files = FOLDERS.map(|folder| root.join(folder).join(name));
            let texts = files.iter().map(std::fs::read_to_string);
            texts.filter_map(Result::ok).collect()
        };
        Self {
            passwd: read("passwd"),
            group: read("group"),
        }
    }

    fn user(&self, name: &str) -> Option<u32> {
        self.passwd.iter().find_map(|file| third_field(file, name))
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.group.iter().find_map(|file| third_field(file, name))
    }
}

/// The number of a name: both files have `name:password:number` on each line.
fn third_field(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn accounts() -> Accounts {
        Accounts {
            passwd: vec!["root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\n".to_owned()],
            group: vec![
                "root:x:0:\nweb:x:34:\nsysgenid:x:970:alice,bob\nbad:x:nonsense:\n".to_owned(),
            ],
        }
    }

    /// For those who need not know who is root.
    fn nobody(_: &Path) -> Result<(u32, u32), String> {
        Err("nobody is".to_owned())
    }

    #[test]
    fn the_hosts_nodes_belong_to_the_group_where_it_exists() {
        let host = InstanceName::host();
        let attributes = Attributes::default();
        let with = attributes.ownership(&host, &accounts(), nobody).unwrap();
        assert_eq!((with.user, with.group), (0, 970));
        assert_eq!(with.sysgenid_mode, Mode(0o664));
        assert_eq!(with.vmgenid_mode, Mode(0o600));
        let without = attributes
            .ownership(&host, &Accounts::default(), nobody)
            .unwrap();
        assert_eq!((without.user, without.group), (0, 0));
        assert_eq!(without.sysgenid_mode, Mode(0o644));
        let other = attributes
            .ownership(&name("web"), &accounts(), nobody)
            .unwrap();
        assert_eq!((other.group, other.sysgenid_mode), (0, Mode(0o644)));
    }

    #[test]
    fn an_account_that_does_not_exist_is_an_error() {
        let mut attributes = Attributes {
            user: Some(Account::Name("web".to_owned())),
            group: Some(Account::Name("nobody-here".to_owned())),
            ..Attributes::default()
        };
        let error = attributes
            .ownership(&name("web"), &accounts(), nobody)
            .unwrap_err();
        assert!(error.to_string().contains("no group `nobody-here`"));
        attributes.group = Some(Account::Name("bad".to_owned()));
        assert!(
            attributes
                .ownership(&name("web"), &accounts(), nobody)
                .is_err()
        );
        attributes.group = Some(Account::Name("web".to_owned()));
        let found = attributes
            .ownership(&name("web"), &accounts(), nobody)
            .unwrap();
        assert_eq!((found.user, found.group), (33, 34));
    }

    #[test]
    fn the_root_of_a_namespace_owns_its_nodes() {
        let mut attributes = Attributes {
            user_namespace: Some("/proc/77/ns/user".into()),
            ..Attributes::default()
        };
        let root_of = |process: &Path| {
            assert_eq!(process, Path::new("/proc/77"));
            Ok((100_000, 200_000))
        };
        let found = attributes.ownership(&name("web"), &accounts(), root_of);
        let found = found.unwrap();
        assert_eq!((found.user, found.group), (100_000, 200_000));
        assert_eq!(found.sysgenid_mode, Mode(0o644));

        attributes.user_namespace = Some("/run/some/ns".into());
        attributes.user = Some(Account::Number(5));
        let error = attributes
            .ownership(&name("web"), &accounts(), nobody)
            .unwrap_err();
        assert!(error.to_string().contains("by number"), "{error}");
    }

    #[test]
    fn an_account_of_the_image_counts_where_etc_has_no_other_of_that_name() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/group", "web:x:34:\n");
        write("usr/lib/group", "web:x:99:\nsysgenid:x:970:\n");
        write("usr/lib/passwd", "web:x:33:33::/:/bin/false\n");
        let accounts = Accounts::read_below(root.path());
        assert_eq!(accounts.group("web"), Some(34));
        assert_eq!(accounts.group("sysgenid"), Some(970));
        assert_eq!(accounts.user("web"), Some(33));
        assert_eq!(accounts.user("root"), None);
    }
}
