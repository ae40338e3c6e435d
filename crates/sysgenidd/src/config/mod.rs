// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file: which instances there are, whose nodes they have, who notices changes, and how much
//! anybody may take.
//!
//! Parsing is pure: it resolves no name and opens no file, so that a file is judged in the same way
//! on every machine. Users and groups become numbers by [`Accounts`], when nodes are made.

pub mod accounts;
pub mod definition;
pub mod publish;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::noticing::Kind;

pub use self::accounts::Accounts;
pub use self::accounts::Ownership;
pub use self::definition::Account;
pub use self::definition::Attributes;
pub use self::definition::InstanceName;
pub use self::definition::Mode;
pub use self::definition::Parent;
pub use self::definition::check_attributes;
pub use self::definition::check_directory;
pub use self::definition::process_of;
pub use self::publish::Publish;

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/sysgenid/sysgenidd.toml";

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

impl Fault {
    /// One of what is at `span` in the text. What the reason quotes of it may have any characters: those that
    /// would begin another line of the log, or move the cursor of whoever reads it, are escaped.
    fn at(text: &str, span: Option<Range<usize>>, reason: &str) -> Self {
        let mut plain = String::with_capacity(reason.len());
        for character in reason.chars() {
            match character {
                '\n' => plain.push(' '),
                control if control.is_control() => plain.extend(control.escape_default()),
                other => plain.push(other),
            }
        }
        Self {
            line: line_at(text, span),
            reason: plain,
        }
    }
}

/// Everything that the configuration file decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the folders of the instances are mounted.
    pub directory: PathBuf,
    /// Whether `/dev/sysgenid` and `/dev/vmgenid` lead to the host's nodes.
    pub publish: Publish,
    /// Whether to map the page directly where the kernel can.
    pub passthrough: bool,
    /// Who notices changes of the host.
    pub backends: Backends,
    /// How much anybody may take.
    pub limits: Limits,
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
    /// How often to look at a vmclock device that cannot tell, where no other backend notices restores.
    pub vmclock_interval: Option<Duration>,
}

/// How much anybody may take, so that nobody pays for a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Watchers of one instance.
    pub watchers: NonZeroU32,
    /// Watchers of one user in one instance.
    pub watchers_per_user: NonZeroU32,
    /// Open `watchers`, `status` and `metrics` files of one user in one instance.
    pub reports: NonZeroU32,
    /// Instances, the host's own among them.
    pub instances: NonZeroU32,
    /// Triggers in a second of those who are not root of the machine, in one instance.
    pub tenant_triggers_a_second: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Self {
            watchers: number(1 << 20),
            watchers_per_user: number(1 << 17),
            reports: number(64),
            instances: number(10_000),
            tenant_triggers_a_second: number(20),
        }
    }
}

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
        let file: File =
            toml::from_str(text).map_err(|error| Fault::at(text, error.span(), error.message()))?;
        let at = |span: Range<usize>, reason: String| Fault::at(text, Some(span), &reason);

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
            let Section(attributes) = attributes.into_inner();
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
            limits: file.limits,
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

/// The file as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    directory: Spanned<PathBuf>,
    publish: Publish,
    passthrough: bool,
    backends: BackendsSection,
    limits: Limits,
    instances: BTreeMap<InstanceName, Spanned<Section>>,
}

#[derive(Deserialize)]
struct Section(#[serde(deserialize_with = "Attributes::written")] Attributes);

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
            publish: Publish::default(),
            passthrough: true,
            backends: BackendsSection::default(),
            limits: Limits::default(),
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

    #[test]
    fn an_empty_file_says_what_the_manual_says() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.directory, Path::new("/run/sysgenid"));
        assert_eq!(config.publish, Publish::Never);
        assert!(config.passthrough);
        assert_eq!(config.backends.order, Kind::ALL);
        assert_eq!(
            config.backends.vmclock_interval,
            Some(Duration::from_millis(100))
        );
        let limits = config.limits;
        assert_eq!(limits.watchers.get(), 1_048_576);
        assert_eq!(limits.watchers_per_user.get(), 131_072);
        assert_eq!(limits.reports.get(), 64);
        assert_eq!(limits.instances.get(), 10_000);
        assert_eq!(limits.tenant_triggers_a_second.get(), 20);
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
            publish = "always"
            passthrough = false
            [backends]
            use = ["kmsg"]
            vmclock = "/dev/vmclock7"
            kmsg = "/dev/log"
            parent = "/dev/other"
            vmclock-interval-ms = 0
            [limits]
            watchers = 1
            watchers-per-user = 2
            reports = 3
            instances = 4
            tenant-triggers-a-second = 5
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
        assert_eq!(config.publish, Publish::Always);
        assert!(!config.passthrough);
        assert_eq!(config.backends.order, [Kind::Kmsg]);
        assert_eq!(config.backends.vmclock, Path::new("/dev/vmclock7"));
        assert_eq!(config.backends.kmsg, Path::new("/dev/log"));
        assert_eq!(config.backends.parent, Path::new("/dev/other"));
        assert_eq!(config.backends.vmclock_interval, None);
        let limits = config.limits;
        let numbers = [
            limits.watchers,
            limits.watchers_per_user,
            limits.reports,
            limits.instances,
            limits.tenant_triggers_a_second,
        ];
        assert_eq!(numbers.map(NonZeroU32::get), [1, 2, 3, 4, 5]);
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
    fn what_was_a_switch_once_still_is() {
        let publish = |value: &str| {
            Config::parse(&format!("publish = {value}\n"))
                .unwrap()
                .publish
        };
        assert_eq!(publish("true"), Publish::WhereNoticed);
        assert_eq!(publish("false"), Publish::Never);
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

        let (line, reason) = fault("\npublish = \"sometimes\"\n");
        assert_eq!(line, 2);
        assert!(reason.contains("always"), "{reason}");
        let (line, reason) = fault("\n[instances.web]\ncolour = \"green\"\n");
        assert_eq!(line, 3);
        assert!(reason.contains("colour"), "{reason}");
        let (line, _) = fault("\n[limits]\nwatchers = 0\n");
        assert_eq!(line, 3);

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
    fn a_fault_is_one_line_whatever_it_quotes() {
        for text in [
            "directory = \"a\\nb\"",
            "[backends]\nuse = [\"\\u001b[2J\\nkmsg\"]",
            "[instances.web]\nuser-namespace = \"x\\r\\ny\"",
            "[instances.\"a\\nb\"]",
            "\"\\u0007\\n\" = 1",
        ] {
            let (_, reason) = fault(text);
            assert!(!reason.contains(char::is_control), "{reason:?}");
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
