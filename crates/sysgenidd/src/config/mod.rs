// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file: which instances there are, whose nodes they have, and who notices changes.
//!
//! Parsing is pure: it resolves no name and opens no file, so that a file is judged in the same way
//! on every machine. Users and groups become numbers by [`Accounts`], when nodes are made.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use toml::Spanned;

use crate::noticing::Kind;

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/sysgenid/sysgenidd.toml";

/// The group whose members may acknowledge on the host's nodes, where it exists.
const HOST_GROUP: &str = "sysgenid";

/// Why there is no configuration to work with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {reason}; create it, correct its permissions, or name another file by --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        reason: io::Error,
    },
    /// The file was read, and does not say what it should.
    #[error("cannot use the configuration {}: {fault}; correct it, and try again", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        fault: Fault,
    },
    /// A user or group of an instance does not exist.
    #[error(
        "instance {instance}: there is no {kind} `{name}` on this machine; create it, or give its number"
    )]
    UnknownAccount {
        /// Whose attribute it is.
        instance: InstanceName,
        /// `user` or `group`.
        kind: &'static str,
        /// The name that was looked up.
        name: String,
    },
    /// An instance of another user namespace whose root is not known here.
    #[error(
        "instance {instance}: cannot tell who is root in {}: {reason}; give `user` and `group` by number", path.display()
    )]
    UnknownRoot {
        /// Whose attribute it is.
        instance: InstanceName,
        /// The namespace.
        path: PathBuf,
        /// What was missing.
        reason: String,
    },
}

/// What is wrong in the text of a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Fault {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, on one line.
    pub reason: String,
}

/// Everything that the configuration file decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the folders of the instances are mounted.
    pub directory: PathBuf,
    /// Whether `/dev/sysgenid` and `/dev/vmgenid` lead to the host's nodes.
    pub publish: bool,
    /// Whether to map the page directly where the kernel can.
    pub passthrough: bool,
    /// Who notices changes of the host.
    pub backends: Backends,
    /// The instances by name; the host's own is always among them.
    pub instances: BTreeMap<InstanceName, Attributes>,
}

/// Who notices changes of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Which to use, the preferred one first; none leaves the ioctl alone.
    pub order: Vec<Kind>,
    /// The vmclock device.
    pub vmclock: PathBuf,
    /// The kernel's log.
    pub kmsg: PathBuf,
    /// A node of another front end.
    pub parent: PathBuf,
    /// How often to look at a vmclock device that cannot tell, where `kmsg` is of no use either.
    pub vmclock_interval: Option<Duration>,
}

/// What is decided for one instance; also what `sysgenidd instance add` sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attributes {
    /// Whose changes bump this instance too; an instance says `host` unless it says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The user namespace in which the capability is judged; the daemon's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<PathBuf>,
    /// Who owns the nodes; the root of the user namespace if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Account>,
    /// The nodes' group; the root group of the user namespace if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Account>,
    /// The mode of `sysgenid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysgenid_mode: Option<Mode>,
    /// The mode of `vmgenid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmgenid_mode: Option<Mode>,
}

/// Whose changes bump an instance too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parent {
    /// The host's instance.
    Host,
    /// Nobody's.
    None,
}

/// A user or a group, by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Account {
    /// A number, as the daemon's user namespace counts.
    Number(u32),
    /// A name of `/etc/passwd` or `/etc/group`.
    Name(String),
}

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

/// Permission bits of a node: nobody executes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u16);

/// The name of an instance: also that of a folder, of a device in a container, and part of the name
/// of a stored file descriptor.
///
/// Lower-case letters, digits, `.`, `_` and `-`; begins and ends with a letter or digit, as devices of
/// the Container Device Interface must; at most 64 characters, so that the usual identifier of a
/// container fits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

impl Config {
    /// Reads the file at `path`, or the default one, which may be absent.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] and [`Error::Content`].
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => String::new(),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    reason: source,
                });
            }
        };
        Self::parse(&text).map_err(|fault| Error::Content {
            path: path.to_owned(),
            fault,
        })
    }

    /// Understands the text of a configuration file.
    ///
    /// # Errors
    ///
    /// The first fault of the text.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let file: File = toml::from_str(text).map_err(|error| Fault {
            line: line_at(text, error.span()),
            reason: error.message().replace('\n', " "),
        })?;
        let at = |span: Range<usize>, reason: String| Fault {
            line: line_at(text, Some(span)),
            reason,
        };

        let directory = file.directory.get_ref();
        check_directory(directory).map_err(|reason| at(file.directory.span(), reason))?;

        let order = file.backends.order.get_ref();
        for (index, kind) in order.iter().enumerate() {
            if order[..index].contains(kind) {
                let reason = format!("[backends] uses {kind:?} twice; name each once");
                return Err(at(file.backends.order.span(), reason));
            }
        }

        let mut instances = BTreeMap::new();
        for (name, attributes) in file.instances {
            let span = attributes.span();
            let attributes = attributes.into_inner();
            check_attributes(&name, &attributes).map_err(|reason| at(span, reason))?;
            instances.insert(name, attributes);
        }
        instances.entry(InstanceName::host()).or_default();

        let milliseconds = u64::from(file.backends.vmclock_interval_ms);
        Ok(Self {
            directory: file.directory.into_inner(),
            publish: file.publish,
            passthrough: file.passthrough,
            backends: Backends {
                order: file.backends.order.into_inner(),
                vmclock: file.backends.vmclock,
                kmsg: file.backends.kmsg,
                parent: file.backends.parent,
                vmclock_interval: (milliseconds > 0).then(|| Duration::from_millis(milliseconds)),
            },
            instances,
        })
    }
}

/// What holds without a file.
impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("an empty file has no fault")
    }
}

/// What holds for the daemon's folder, whether a file or the command line names it.
///
/// # Errors
///
/// What is wrong, on one line.
pub fn check_directory(directory: &Path) -> Result<(), String> {
    let plain = directory
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if directory.is_absolute() && plain && directory.parent().is_some() {
        return Ok(());
    }
    Err(format!(
        "directory \"{}\" is not an absolute path of a folder of its own",
        directory.display()
    ))
}

/// What holds for every instance, whether a file or a request defines it.
///
/// # Errors
///
/// What is wrong, on one line.
pub fn check_attributes(name: &InstanceName, attributes: &Attributes) -> Result<(), String> {
    if name.is_host() && attributes.parent.is_some() {
        return Err("instance host cannot have a parent; remove `parent`".to_owned());
    }
    if name.is_host() && attributes.user_namespace.is_some() {
        return Err(
            "instance host belongs to the daemon's user namespace; remove `user-namespace`"
                .to_owned(),
        );
    }
    if let Some(path) = &attributes.user_namespace
        && !path.is_absolute()
    {
        return Err(format!(
            "instance {name}: user-namespace = \"{}\" is not an absolute path",
            path.display()
        ));
    }
    Ok(())
}

impl Attributes {
    /// Whose changes bump the instance of this name too.
    #[must_use]
    pub fn parent_of(&self, name: &InstanceName) -> Parent {
        if name.is_host() {
            return Parent::None;
        }
        self.parent.unwrap_or(Parent::Host)
    }

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

impl Mode {
    /// The permission bits.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Rust's own parser also takes a sign.
        let octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match u16::from_str_radix(text, 8) {
            Ok(bits) if octal && bits & !0o666 == 0 => Ok(Self(bits)),
            Ok(bits) if octal && bits & !0o777 == 0 => Err(format!(
                "mode \"{text}\" lets somebody execute a node; use read (4) and write (2) only"
            )),
            _ => Err(format!("mode \"{text}\" is not octal, such as \"0644\"")),
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl InstanceName {
    const LONGEST: usize = 64;

    /// The name of the machine's own instance.
    #[must_use]
    pub fn host() -> Self {
        Self("host".to_owned())
    }

    /// Whether this is the machine's own instance.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.0 == "host"
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let letter_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = [bytes.first(), bytes.last()]
            .into_iter()
            .all(|end| end.is_some_and(|&byte| letter_or_digit(byte)));
        let rest = bytes
            .iter()
            .all(|&byte| letter_or_digit(byte) || b"._-".contains(&byte));
        if !ends || !rest || bytes.len() > Self::LONGEST {
            return Err(format!(
                "`{}` cannot name an instance; use 1 to {} of a-z, 0-9, `.`, `_`, `-`, with a letter or digit at both ends",
                text.escape_debug(),
                Self::LONGEST
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The users and groups of this machine's files.
///
/// The C library would ask more sources, by loading libraries of its own, which a statically linked
/// daemon cannot. Whoever keeps accounts elsewhere can give numbers.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group`; one that cannot be read has no names.
    #[must_use]
    pub fn read() -> Self {
        Self {
            passwd: std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
            group: std::fs::read_to_string("/etc/group").unwrap_or_default(),
        }
    }

    fn user(&self, name: &str) -> Option<u32> {
        third_field(&self.passwd, name)
    }

    fn group(&self, name: &str) -> Option<u32> {
        third_field(&self.group, name)
    }
}

/// The number of a name: both files have `name:password:number` on each line.
fn third_field(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The folder of the process by which a user namespace is named: `/proc/PID` of `/proc/PID/ns/user`.
pub fn process_of(namespace: &Path) -> Option<&Path> {
    let process = namespace.parent()?.parent()?;
    let pid = process.strip_prefix("/proc").ok()?.to_str()?;
    let is_pid = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    (namespace.ends_with("ns/user") && is_pid).then_some(process)
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    directory: Spanned<PathBuf>,
    publish: bool,
    passthrough: bool,
    backends: BackendsSection,
    instances: BTreeMap<InstanceName, Spanned<Attributes>>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct BackendsSection {
    #[serde(rename = "use")]
    order: Spanned<Vec<Kind>>,
    vmclock: PathBuf,
    kmsg: PathBuf,
    parent: PathBuf,
    vmclock_interval_ms: u32,
}

impl Default for File {
    fn default() -> Self {
        Self {
            directory: Spanned::new(0..0, PathBuf::from("/run/sysgenid")),
            publish: false,
            passthrough: true,
            backends: BackendsSection::default(),
            instances: BTreeMap::new(),
        }
    }
}

impl Default for BackendsSection {
    fn default() -> Self {
        Self {
            order: Spanned::new(0..0, Kind::ALL.to_vec()),
            vmclock: PathBuf::from("/dev/vmclock0"),
            kmsg: PathBuf::from("/dev/kmsg"),
            parent: PathBuf::from("/dev/sysgenid"),
            vmclock_interval_ms: 100,
        }
    }
}

fn line_at(text: &str, span: Option<Range<usize>>) -> usize {
    let before = span.map_or(0, |span| span.start.min(text.len()));
    let newlines = text.bytes().take(before).filter(|&byte| byte == b'\n');
    newlines.count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &str) -> (usize, String) {
        let fault = Config::parse(text).unwrap_err();
        (fault.line, fault.reason)
    }

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\n".to_owned(),
            group: "root:x:0:\nweb:x:34:\nsysgenid:x:970:alice,bob\nbad:x:nonsense:\n".to_owned(),
        }
    }

    #[test]
    fn an_empty_file_says_what_the_manual_says() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.directory, Path::new("/run/sysgenid"));
        assert!(!config.publish);
        assert!(config.passthrough);
        assert_eq!(
            config.backends.order,
            [Kind::Vmclock, Kind::Kmsg, Kind::Parent]
        );
        assert_eq!(
            config.backends.vmclock_interval,
            Some(Duration::from_millis(100))
        );
        assert_eq!(
            config.instances.into_iter().collect::<Vec<_>>(),
            [(InstanceName::host(), Attributes::default())]
        );
    }

    #[test]
    fn every_key_is_understood() {
        let config = Config::parse(
            r#"
            directory = "/srv/generations"
            publish = true
            passthrough = false
            [backends]
            use = ["kmsg"]
            vmclock = "/dev/vmclock7"
            kmsg = "/dev/log"
            parent = "/dev/other"
            vmclock-interval-ms = 0
            [instances.host]
            group = "web"
            [instances.web]
            parent = "none"
            user-namespace = "/proc/1234/ns/user"
            user = 100000
            group = "web"
            sysgenid-mode = "0640"
            vmgenid-mode = "0600"
            "#,
        )
        .unwrap();
        assert_eq!(config.directory, Path::new("/srv/generations"));
        assert!(config.publish);
        assert!(!config.passthrough);
        assert_eq!(config.backends.order, [Kind::Kmsg]);
        assert_eq!(config.backends.vmclock, Path::new("/dev/vmclock7"));
        assert_eq!(config.backends.kmsg, Path::new("/dev/log"));
        assert_eq!(config.backends.parent, Path::new("/dev/other"));
        assert_eq!(config.backends.vmclock_interval, None);
        let web = &config.instances[&name("web")];
        assert_eq!(
            web,
            &Attributes {
                parent: Some(Parent::None),
                user_namespace: Some("/proc/1234/ns/user".into()),
                user: Some(Account::Number(100_000)),
                group: Some(Account::Name("web".to_owned())),
                sysgenid_mode: Some(Mode(0o640)),
                vmgenid_mode: Some(Mode(0o600)),
            }
        );
        assert_eq!(web.parent_of(&name("web")), Parent::None);
    }

    #[test]
    fn the_example_of_the_package_is_what_holds_without_a_file() {
        let example = include_str!("../../../../packaging/sysgenidd/sysgenidd.toml");
        assert_eq!(Config::parse(example), Config::parse(""));
        // With its comments taken off, it shows keys that exist.
        let shown: String = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .flat_map(|line| [line.unwrap_or_default(), "\n"])
            .collect();
        let shown = Config::parse(&shown).unwrap();
        assert!(shown.instances.len() > 1);
    }

    #[test]
    fn a_fault_is_told_with_its_line() {
        let (line, reason) = fault("publish = true\npublsh = true\n");
        assert_eq!(line, 2);
        assert!(reason.contains("publsh"), "{reason}");

        let (line, reason) = fault("\n[instances.\"Not-A-Name\"]\nuser = 1\n");
        assert_eq!(line, 2);
        assert!(reason.contains("cannot name an instance"), "{reason}");

        let (line, reason) = fault("\n\n[instances.web]\nsysgenid-mode = \"0755\"\n");
        assert_eq!(line, 4);
        assert!(reason.contains("execute"), "{reason}");

        let (line, reason) = fault("\n[instances.host]\nparent = \"none\"\n");
        assert_eq!(line, 2);
        assert!(reason.contains("cannot have a parent"), "{reason}");

        let (line, reason) = fault("\n[backends]\nuse = [\"kmsg\", \"kmsg\"]\n");
        assert_eq!(line, 3);
        assert!(reason.contains("twice"), "{reason}");

        let (line, reason) = fault("publish = false\ndirectory = \"run\"\n");
        assert_eq!(line, 2);
        assert!(reason.contains("absolute"), "{reason}");

        let (line, _) = fault("\n[instances.web]\nparent = \"other\"\n");
        assert_eq!(line, 3);
        let (_, reason) = fault("[instances.web]\nuser-namespace = \"ns/user\"\n");
        assert!(reason.contains("absolute"), "{reason}");
        for directory in ["/", "/run/../etc"] {
            let (line, _) = fault(&format!("directory = \"{directory}\"\n"));
            assert_eq!(line, 1, "{directory}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.toml");
        let error = Config::load(Some(&absent)).unwrap_err().to_string();
        assert!(error.contains("absent.toml"), "{error}");

        let wrong = folder.path().join("wrong.toml");
        std::fs::write(&wrong, "\nx = 1\n").unwrap();
        let error = Config::load(Some(&wrong)).unwrap_err().to_string();
        assert!(error.contains("wrong.toml: line 2:"), "{error}");
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
    fn only_the_namespace_of_a_process_names_one() {
        let process = |path| process_of(Path::new(path));
        assert_eq!(process("/proc/12/ns/user"), Some(Path::new("/proc/12")));
        for path in [
            "/proc/self/ns/user",
            "/proc/1/root/ns/user",
            "/run/ns/user",
            "/proc/1/ns/pid",
            "/proc//ns/user",
            "/",
        ] {
            assert_eq!(process(path), None, "{path}");
        }
    }

    #[test]
    fn a_name_is_also_a_folder_and_a_device() {
        for good in ["host", "a", "0", "web-1.example_x", &"a".repeat(64)] {
            assert_eq!(name(good).as_str(), good);
        }
        let bad = [
            "",
            ".",
            "..",
            ".control",
            "-a",
            "a-",
            "a.",
            "A",
            "a/b",
            "a b",
            "a:b",
            "é",
            "a\n",
            &"a".repeat(65),
        ];
        for bad in bad {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mode_is_octal_and_executes_nothing() {
        assert_eq!("0644".parse(), Ok(Mode(0o644)));
        assert_eq!("600".parse(), Ok(Mode(0o600)));
        for bad in ["", "0755", "1644", "0888", "+644", "-1", "77777777", "rw"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad:?}");
        }
    }

    fn any_name() -> impl Strategy<Value = InstanceName> {
        "[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
    }

    fn any_attributes() -> impl Strategy<Value = Attributes> {
        let account = || {
            proptest::option::of(prop_oneof![
                any::<u32>().prop_map(Account::Number),
                "[a-z][a-z0-9-]{0,8}".prop_map(Account::Name),
            ])
        };
        let mode = || proptest::option::of((0u16..=0o777).prop_map(|bits| Mode(bits & 0o666)));
        let parent = prop_oneof![Just(Parent::Host), Just(Parent::None)];
        (
            proptest::option::of(parent),
            proptest::option::of("/proc/[0-9]{1,5}/ns/user".prop_map(PathBuf::from)),
            account(),
            account(),
            mode(),
            mode(),
        )
            .prop_map(
                |(parent, user_namespace, user, group, sysgenid_mode, vmgenid_mode)| Attributes {
                    parent,
                    user_namespace,
                    user,
                    group,
                    sysgenid_mode,
                    vmgenid_mode,
                },
            )
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration_or_a_fault_in_one_of_its_lines(text in any::<String>()) {
            if let Err(fault) = Config::parse(&text) {
                prop_assert!(fault.line >= 1 && fault.line <= text.matches('\n').count() + 1);
                prop_assert!(!fault.reason.contains('\n'));
            }
        }

        #[test]
        fn text_that_looks_like_a_configuration_never_panics(
            text in "((\\[(backends|instances(\\.[a-zé-]{0,3})?)\\]|(use|user|group|parent|directory|publish|sysgenid-mode) = (\\[\"kmsg\"\\]|\"[a-z0-9/]{0,5}\"|[0-9]{1,11}|true))\n){0,8}"
        ) {
            let _ = Config::parse(&text);
        }

        #[test]
        fn attributes_survive_a_request(attributes in any_attributes(), name in any_name()) {
            let text = serde_json::to_string(&(&name, &attributes)).unwrap();
            let back: (InstanceName, Attributes) = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back, (name, attributes));
        }

        #[test]
        fn attributes_survive_a_file(attributes in any_attributes(), name in any_name()) {
            prop_assume!(!name.is_host());
            let mut text = format!("[instances.\"{name}\"]\n");
            // Each value is a JSON string or number, which TOML writes in the same way.
            let value = serde_json::to_value(&attributes).unwrap();
            for (key, value) in value.as_object().unwrap() {
                text.push_str(&format!("{key} = {value}\n"));
            }
            let config = Config::parse(&text).unwrap();
            prop_assert_eq!(&config.instances[&name], &attributes);
        }

        #[test]
        fn a_mode_survives_its_text(bits in any::<u16>()) {
            let mode = Mode(bits & 0o666);
            prop_assert_eq!(mode.to_string().parse::<Mode>(), Ok(mode));
        }
    }
}
