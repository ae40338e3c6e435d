// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which hooks there are: the files of several folders, of which the first that has a name decides.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Where hooks are, unless somebody says otherwise. The first overrides the second.
const DEFAULTS: [&str; 2] = ["/etc/sysgenid/hooks.d", "/usr/lib/sysgenid/hooks.d"];

/// What editors and package managers leave behind, by a part of the name.
const LEFTOVERS: [&str; 3] = [".dpkg-", ".rpm", ".ucf-"];

/// Where hooks are looked for. The first folder overrides those after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folders {
    paths: Vec<PathBuf>,
    /// Nobody has named them, so one that does not exist has no hooks.
    may_be_missing: bool,
}

/// A file that is, or might have been, a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) name: OsString,
    pub(crate) path: PathBuf,
    pub(crate) state: State,
    /// The file of this name that it overrides, if there is one.
    pub(crate) overrides: Option<PathBuf>,
}

/// Whether a hook runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    /// The operator has turned it off.
    Masked,
    /// It cannot be a hook, and why.
    Skipped(&'static str),
    /// It is turned on and cannot run, and why: that is a failure.
    Broken(String),
}

/// A folder that cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot look for hooks in {}", path.display())]
pub(crate) struct Error {
    path: PathBuf,
    source: io::Error,
}

impl Error {
    fn is_of_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl Folders {
    /// Those that were named, or else those of every machine.
    pub(crate) fn new(named: &[PathBuf]) -> Self {
        Self {
            paths: if named.is_empty() {
                DEFAULTS.map(PathBuf::from).to_vec()
            } else {
                named.to_vec()
            },
            may_be_missing: named.is_empty(),
        }
    }
}

impl fmt::Display for Folders {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.paths.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{}", path.display())?;
        }
        Ok(())
    }
}

impl Hook {
    /// Whether it is to run, even if it cannot.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state, State::Runs | State::Broken(_))
    }
}

/// All files of the folders in the order of their names, which is that in which they run.
pub(crate) fn find(folders: &Folders) -> Result<Vec<Hook>, Error> {
    let mut found: BTreeMap<OsString, Hook> = BTreeMap::new();
    for folder in &folders.paths {
        let files = match files(folder) {
            Err(error) if folders.may_be_missing && error.is_of_missing() => continue,
            files => files?,
        };
        for path in files {
            let Some(name) = path.file_name() else {
                continue;
            };
            if let Some(first) = found.get_mut(name) {
                first.overrides.get_or_insert(path);
                continue;
            }
            let state = judge(name, &path);
            let hook = Hook {
                name: name.to_owned(),
                state,
                path: path.clone(),
                overrides: None,
            };
            found.insert(hook.name.clone(), hook);
        }
    }
    Ok(found.into_values().collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error {
        path: folder.to_owned(),
        source,
    };
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries
        .map(|entry| Ok(entry.map_err(failed)?.path()))
        .collect()
}

fn judge(name: &OsStr, path: &Path) -> State {
    let name = name.to_string_lossy();
    if name.starts_with('.') {
        return State::Skipped("hidden");
    }
    if name.ends_with('~') || LEFTOVERS.iter().any(|part| name.contains(part)) {
        return State::Skipped("left by an editor or a package manager");
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return State::Broken("a link that leads nowhere".to_owned());
        }
        Err(error) => return State::Broken(format!("cannot be looked at: {error}")),
    };
    // /dev/null, by whatever link: no other device is a hook, either.
    if metadata.file_type().is_char_device() || (metadata.is_file() && metadata.len() == 0) {
        return State::Masked;
    }
    if !metadata.is_file() {
        return State::Skipped("not a file");
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return State::Skipped("not executable");
    }
    if let Err(errno) = access(path, Access::EXEC_OK) {
        return State::Broken(format!(
            "this user cannot run it: {}",
            io::Error::from(errno)
        ));
    }
    State::Runs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The operator's folder and the system's.
    struct Machine {
        _root: tempfile::TempDir,
        etc: PathBuf,
        lib: PathBuf,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (etc, lib) = (root.path().join("etc"), root.path().join("lib"));
            fs::create_dir(&etc).unwrap();
            fs::create_dir(&lib).unwrap();
            Self {
                _root: root,
                etc,
                lib,
            }
        }

        fn find(&self) -> Vec<Hook> {
            find(&named(&[&self.etc, &self.lib])).unwrap()
        }

        fn states(&self) -> Vec<(String, State)> {
            let found = self.find().into_iter();
            found
                .map(|hook| (hook.name.into_string().unwrap(), hook.state))
                .collect()
        }
    }

    fn named(paths: &[&PathBuf]) -> Folders {
        let paths: Vec<_> = paths.iter().map(|&path| path.clone()).collect();
        Folders::new(&paths)
    }

    fn write(path: PathBuf, text: &str, mode: u32) {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn hooks_run_in_the_order_of_their_names_whichever_folder_they_are_in() {
        let machine = Machine::new();
        for (folder, name) in [
            (&machine.lib, "30-c"),
            (&machine.etc, "20-b"),
            (&machine.lib, "10-a"),
        ] {
            write(folder.join(name), "#!/bin/sh\n", 0o755);
        }
        let names: Vec<_> = machine.states().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["10-a", "20-b", "30-c"]);
    }

    #[test]
    fn the_first_folder_overrides_the_others() {
        let machine = Machine::new();
        write(machine.etc.join("10-a"), "#!/bin/sh\necho etc\n", 0o755);
        write(machine.lib.join("10-a"), "#!/bin/sh\necho lib\n", 0o755);
        let found = machine.find();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, machine.etc.join("10-a"));
        assert_eq!(found[0].overrides, Some(machine.lib.join("10-a")));
        assert_eq!(found[0].state, State::Runs);
    }

    #[test]
    fn an_empty_file_or_a_link_to_dev_null_turns_a_hook_off() {
        let machine = Machine::new();
        for name in ["10-a", "20-b", "30-c"] {
            write(machine.lib.join(name), "#!/bin/sh\n", 0o755);
        }
        write(machine.etc.join("10-a"), "", 0o644);
        symlink("/dev/null", machine.etc.join("20-b")).unwrap();
        let states = [
            ("10-a".to_owned(), State::Masked),
            ("20-b".to_owned(), State::Masked),
            ("30-c".to_owned(), State::Runs),
        ];
        assert_eq!(machine.states(), states);
    }

    #[test]
    fn what_cannot_be_a_hook_is_skipped_with_its_reason() {
        let machine = Machine::new();
        let etc = &machine.etc;
        for name in [".10-a", "20-b~", "30-c.dpkg-old", "35-c.rpmsave"] {
            write(etc.join(name), "#!/bin/sh\n", 0o755);
        }
        write(etc.join("40-d"), "#!/bin/sh\n", 0o644);
        fs::create_dir(etc.join("50-e")).unwrap();
        let reasons: Vec<_> = machine
            .states()
            .into_iter()
            .map(|(_, state)| match state {
                State::Skipped(reason) => reason,
                other => panic!("{other:?}"),
            })
            .collect();
        let left = "left by an editor or a package manager";
        assert_eq!(
            reasons,
            ["hidden", left, left, left, "not executable", "not a file"]
        );
    }

    #[test]
    fn a_link_that_cannot_be_followed_is_broken_and_not_turned_off() {
        let machine = Machine::new();
        symlink("nowhere", machine.etc.join("10-a")).unwrap();
        symlink("20-b", machine.etc.join("20-b")).unwrap();
        let states = machine.states();
        let nowhere = State::Broken("a link that leads nowhere".to_owned());
        assert_eq!(states[0].1, nowhere);
        let State::Broken(reason) = &states[1].1 else {
            panic!("{states:?}")
        };
        assert!(reason.starts_with("cannot be looked at: "), "{reason}");
    }

    #[test]
    fn the_reason_of_the_system_is_said_once() {
        let machine = Machine::new();
        let file = machine.etc.join("file");
        write(file.clone(), "text", 0o644);
        let error = anyhow::Error::from(find(&named(&[&file])).unwrap_err());
        let text = format!("{error:#}");
        let reason = error.root_cause().to_string();
        assert_eq!(text.matches(&reason).count(), 1, "{text}");
    }

    #[test]
    fn a_link_to_an_executable_is_a_hook() {
        let machine = Machine::new();
        symlink("/bin/sh", machine.etc.join("10-a")).unwrap();
        assert_eq!(machine.states(), [("10-a".to_owned(), State::Runs)]);
    }

    #[test]
    fn a_folder_that_was_named_must_exist_and_be_a_folder() {
        let machine = Machine::new();
        let missing = machine.etc.join("missing");
        let error = find(&named(&[&machine.lib, &missing])).unwrap_err();
        assert!(error.to_string().contains("etc/missing"), "{error}");
        let file = machine.etc.join("file");
        write(file.clone(), "text", 0o644);
        assert!(find(&named(&[&file])).is_err());

        let default = Folders {
            paths: vec![missing, machine.lib.clone()],
            may_be_missing: true,
        };
        assert_eq!(find(&default).unwrap(), []);
        assert!(Folders::new(&[]).may_be_missing);
    }
}
