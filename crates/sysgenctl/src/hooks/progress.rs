// SPDX-License-Identifier: MIT OR Apache-2.0

//! A note of how far the hooks have come, which outlives the program: the next one goes on from it, and `sysgenctl wait`
//! looks at it. A restarted program is a new watcher, and so current whatever was left to be done.
//!
//! As with a watcher, nobody waits for long for one that has ended: the note says which process it is of.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sysgenid::Generation;

/// The folder of the packaged service. It is in memory, and so a part of each snapshot.
const OF_SERVICE: &str = "/run/sysgenid-hooks";

const NAME: &str = "progress";

/// More than any note has.
const LONGEST_NOTE: u64 = 4096;

/// Where the note is kept; without a folder nothing is.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Option<PathBuf>);

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The last generation that all hooks have dealt with, or that of the first start.
    pub(super) dealt_with: u32,
    /// The one that they are dealing with.
    pub(super) pending: Option<u32>,
    /// Who deals with it.
    pub(super) process: Process,
    /// In which boot: the numbers of another say nothing.
    pub(super) boot: String,
}

/// A process, told from a later one of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// When it was started, in clock ticks of the boot.
    started: Option<u64>,
}

/// What is left to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    generation: u32,
    /// Whether a process is there that does it.
    pub(crate) is_attended: bool,
}

impl Note {
    /// One of this process.
    pub(super) fn new(dealt_with: Generation, pending: Option<Generation>) -> Self {
        Self {
            dealt_with: dealt_with.get(),
            pending: pending.map(Generation::get),
            process: Process::this(),
            boot: boot(),
        }
    }
}

impl Process {
    fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: start_of(pid),
        }
    }

    /// Whether it is there, and another one than this.
    pub(super) fn is_another(self) -> bool {
        self.pid != std::process::id() && self.runs()
    }

    fn runs(self) -> bool {
        self.started.is_some() && start_of(self.pid) == self.started
    }
}

fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may have any character. What follows begins with the third field.
    stat.rsplit(") ").next()?.split(' ').nth(19)?.parse().ok()
}

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

impl Progress {
    /// In the folder that was named, or in the first of those of the service.
    pub(super) fn new(named: Option<&Path>, of_service: Option<&OsStr>) -> Self {
        let of_service = of_service
            .and_then(|folders| folders.as_bytes().split(|&byte| byte == b':').next())
            .filter(|folder| !folder.is_empty())
            .map(|folder| Path::new(OsStr::from_bytes(folder)));
        Self(named.or(of_service).map(Path::to_owned))
    }

    /// None at all.
    pub(super) fn nowhere() -> Self {
        Self(None)
    }

    /// In the folder that was named, or, for the machine's own node, in that of the packaged service.
    pub(crate) fn to_wait_for(named: Option<&Path>, is_machines_own: bool) -> Self {
        let of_service = is_machines_own.then_some(Path::new(OF_SERVICE));
        Self(named.or(of_service).map(Path::to_owned))
    }

    /// Reads the note, if there is one of this boot.
    pub(super) fn read(&self) -> io::Result<Option<Note>> {
        let Some(folder) = &self.0 else {
            return Ok(None);
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(folder.join(NAME));
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(LONGEST_NOTE).read_to_string(&mut text)?;
        let note: Note = serde_json::from_str(&text)?;
        Ok((note.boot == boot()).then_some(note))
    }

    /// What the hooks have not dealt with yet, as far as is noted, where this is the generation.
    pub(crate) fn pending(&self, current: Generation) -> io::Result<Option<Pending>> {
        let Some(note) = self.read()? else {
            return Ok(None);
        };
        let is_missed = note.dealt_with != current.get();
        let generation = note.pending.or(is_missed.then_some(current.get()));
        Ok(generation.map(|generation| Pending {
            generation,
            is_attended: note.process.runs(),
        }))
    }

    /// Writes the note, whole or not at all. If that fails there is none: an old one would have others wait for ever.
    pub(super) fn write(&self, note: &Note) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let aside = folder.join(".progress.new");
        let write = || {
            fs::create_dir_all(folder)?;
            remove(&aside)?;
            let mut file = File::create_new(&aside)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            fs::rename(&aside, folder.join(NAME))
        };
        write().inspect_err(|_| {
            for file in [&aside, &folder.join(NAME)] {
                let _ = remove(file);
            }
        })
    }

    /// The file, for people.
    pub(crate) fn path(&self) -> String {
        let path = self.0.as_ref().map(|folder| folder.join(NAME));
        path.unwrap_or_default().display().to_string()
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = self.generation;
        write!(
            formatter,
            "the hooks for generation {generation} have not all succeeded"
        )?;
        if !self.is_attended {
            formatter.write_str(
                ", and sysgenctl run-hooks does not run any more (systemctl start sysgenid-hooks)",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const THIRD: Generation = Generation::new(3);
    const FIFTH: Generation = Generation::new(5);

    #[test]
    fn a_note_is_read_as_it_was_written_and_says_what_is_pending() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let progress = Progress::new(Some(&folder), None);
        assert_eq!(progress.read().unwrap(), None);
        assert_eq!(progress.pending(FIFTH).unwrap(), None);
        for (pending, current, expected) in [
            (Some(FIFTH), THIRD, Some(5)),
            (None, THIRD, None),
            // It has come while nobody looked.
            (None, FIFTH, Some(5)),
        ] {
            let note = Note::new(THIRD, pending);
            progress.write(&note).unwrap();
            assert_eq!(progress.read().unwrap(), Some(note));
            let expected = expected.map(|generation| Pending {
                generation,
                is_attended: true,
            });
            assert_eq!(progress.pending(current).unwrap(), expected);
        }
        fs::write(folder.join(NAME), "nonsense").unwrap();
        assert!(progress.pending(FIFTH).is_err());
    }

    #[test]
    fn a_note_of_a_process_that_has_ended_is_unattended_and_one_of_another_boot_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let progress = Progress::new(Some(folder.path()), None);
        let mut child = Command::new("true").spawn().unwrap();
        let mut note = Note::new(THIRD, Some(FIFTH));
        note.process.pid = child.id();
        child.wait().unwrap();
        progress.write(&note).unwrap();
        assert!(!progress.pending(FIFTH).unwrap().unwrap().is_attended);
        // One of that number that was started at another time.
        note.process.pid = 1;
        assert!(!note.process.is_another());
        note.process.started = start_of(1);
        assert!(note.process.is_another());
        note.boot = "another".to_owned();
        progress.write(&note).unwrap();
        assert_eq!(progress.read().unwrap(), None);
    }

    #[test]
    fn where_a_note_cannot_be_written_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let progress = Progress::new(Some(folder.path()), None);
        progress.write(&Note::new(THIRD, Some(FIFTH))).unwrap();
        // Something that cannot be replaced is in the way.
        fs::create_dir(folder.path().join(".progress.new")).unwrap();
        progress.write(&Note::new(FIFTH, None)).unwrap_err();
        assert_eq!(progress.read().unwrap(), None);
    }

    #[test]
    fn a_note_is_no_link_and_none_that_waits_for_somebody() {
        let folder = tempfile::tempdir().unwrap();
        let progress = Progress::new(Some(folder.path()), None);
        let target = folder.path().join("target");
        fs::write(&target, "kept").unwrap();
        let aside = folder.path().join(".progress.new");
        std::os::unix::fs::symlink(&target, aside).unwrap();
        progress.write(&Note::new(THIRD, None)).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        let note = folder.path().join(NAME);
        fs::remove_file(&note).unwrap();
        std::os::unix::fs::symlink(&target, &note).unwrap();
        assert!(progress.read().is_err());
        fs::remove_file(&note).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &note, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(progress.read().is_err());
    }

    #[test]
    fn the_folder_that_was_named_goes_before_the_first_of_the_service() {
        let of_service = Some(OsStr::new("/run/a:/run/b"));
        let named = Path::new("/named");
        for (progress, expected) in [
            (Progress::new(Some(named), of_service), Some(named)),
            (Progress::new(None, of_service), Some(Path::new("/run/a"))),
            (Progress::new(None, Some(OsStr::new(""))), None),
            (Progress::new(None, None), None),
            (Progress::to_wait_for(Some(named), true), Some(named)),
            (
                Progress::to_wait_for(None, true),
                Some(Path::new(OF_SERVICE)),
            ),
            (Progress::to_wait_for(None, false), None),
        ] {
            assert_eq!(progress.0.as_deref(), expected);
        }
    }
}
