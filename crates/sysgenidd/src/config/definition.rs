// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an instance is asked to be: its name, whose it is, and who may do what with its nodes.
//!
//! Nothing here opens a file or looks a name up, so that a definition is judged in the same way on every machine.

use std::fmt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;

/// What is decided for one instance; also what `sysgenidd instance add` sends.
///
/// A field that it does not know is passed over: what a newer daemon has left to this one is better served
/// without it than not at all. Where a person has written it, [`written`](Attributes::written) refuses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
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

/// [`Attributes`] of which every field must be known.
#[derive(Deserialize)]
#[serde(remote = "Attributes", deny_unknown_fields, rename_all = "kebab-case")]
struct Strict {
    #[serde(default)]
    parent: Option<Parent>,
    #[serde(default)]
    user_namespace: Option<PathBuf>,
    #[serde(default)]
    user: Option<Account>,
    #[serde(default)]
    group: Option<Account>,
    #[serde(default)]
    sysgenid_mode: Option<Mode>,
    #[serde(default)]
    vmgenid_mode: Option<Mode>,
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

/// Permission bits of a node: nobody executes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub(super) u16);

/// The name of an instance: also that of a folder, of a device in a container, and part of the name
/// of a stored file descriptor.
///
/// Lower-case letters, digits, `.`, `_` and `-`; begins and ends with a letter or digit, as devices of
/// the Container Device Interface must; at most 64 characters, so that the usual identifier of a
/// container fits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

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
        "directory {directory:?} is not an absolute path of a folder of its own"
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
            "instance {name}: user-namespace = {path:?} is not an absolute path"
        ));
    }
    Ok(())
}

impl Attributes {
    /// What somebody has just asked for, in a file or by a request: a field that is not known is refused.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn written<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Strict::deserialize(deserializer)
    }

    /// Whose changes bump the instance of this name too.
    #[must_use]
    pub fn parent_of(&self, name: &InstanceName) -> Parent {
        if name.is_host() {
            return Parent::None;
        }
        self.parent.unwrap_or(Parent::Host)
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

/// The folder of the process by which a user namespace is named: `/proc/PID` of `/proc/PID/ns/user`.
pub fn process_of(namespace: &Path) -> Option<&Path> {
    let process = namespace.parent()?.parent()?;
    let pid = process.strip_prefix("/proc").ok()?.to_str()?;
    let is_pid = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    (namespace.ends_with("ns/user") && is_pid).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
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

    #[test]
    fn a_field_of_a_newer_daemon_is_passed_over_unless_it_was_just_written() {
        let text = r#"{"parent":"none","colour":"green"}"#;
        let kept: Attributes = serde_json::from_str(text).unwrap();
        assert_eq!(kept.parent, Some(Parent::None));
        let mut written = serde_json::Deserializer::from_str(text);
        let refused = Attributes::written(&mut written).unwrap_err().to_string();
        assert!(refused.contains("colour"), "{refused}");
    }
}
