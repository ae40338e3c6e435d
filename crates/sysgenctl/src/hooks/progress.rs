// SPDX-License-Identifier: MIT OR Apache-2.0

//! A note of how far the hooks have come, which outlives the program: the next one goes on from it, and `sysgenctl wait`
//! looks at it. A restarted program is a new watcher, and so current whatever was left to be done.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder of the packaged service. It is in memory: a part of each snapshot, and gone after a boot.
const OF_SERVICE: &str = "/run/sysgenid-hooks";

const NAME: &str = "progress";

/// Where the note is kept; without a folder nothing is.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Option<PathBuf>);

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The last generation that all hooks have dealt with, or that of the first start.
    pub(super) dealt_with: u32,
    /// The one that they are dealing with.
    pub(super) pending: Option<u32>,
}

/// What is left to be done, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending(String);

impl Progress {
    /// In the folder that was named, or in the first of those of the service.
    pub(super) fn new(named: Option<&Path>, of_service: Option<&OsStr>) -> Self {
        let of_service = of_service
            .and_then(|folders| folders.as_bytes().split(|&byte| byte == b':').next())
            .filter(|folder| !folder.is_empty())
            .map(|folder| Path::new(OsStr::from_bytes(folder)));
        Self(named.or(of_service).map(Path::to_owned))
    }

    /// In the folder that was named, or, for the machine's own node, in that of the packaged service.
    pub(crate) fn to_wait_for(named: Option<&Path>, is_machines_own: bool) -> Self {
        let of_service = is_machines_own.then_some(Path::new(OF_SERVICE));
        Self(named.or(of_service).map(Path::to_owned))
    }

    /// Reads the note, if there is one. One that cannot be understood is an error, and a note all the same.
    pub(super) fn read(&self) -> Option<io::Result<Note>> {
        let path = self.0.as_ref()?.join(NAME);
        match fs::read(path) {
            Ok(text) => Some(serde_json::from_slice(&text).map_err(io::Error::from)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// What the hooks have not dealt with yet, as far as is noted.
    pub(crate) fn pending(&self) -> Option<Pending> {
        match self.read()? {
            Ok(note) => note
                .pending
                .map(|generation| Pending(format!("generation {generation}"))),
            Err(error) => Some(Pending(format!(
                "a generation that cannot be read from {}: {error}",
                self.0.as_deref().unwrap_or(Path::new("")).display()
            ))),
        }
    }

    /// Writes the note, whole or not at all.
    pub(super) fn write(&self, note: Note) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let aside = folder.join(".progress.new");
        fs::write(&aside, serde_json::to_vec(&note)?)?;
        fs::rename(aside, folder.join(NAME))
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let progress = Progress::new(Some(&folder), None);
        assert!(progress.read().is_none() && progress.pending().is_none());
        for pending in [Some(5), None] {
            let note = Note {
                dealt_with: 3,
                pending,
            };
            progress.write(note).unwrap();
            assert_eq!(progress.read().unwrap().unwrap(), note);
            let pending = pending.map(|_| Pending("generation 5".to_owned()));
            assert_eq!(progress.pending(), pending);
        }
        fs::write(folder.join(NAME), "nonsense").unwrap();
        assert!(progress.read().unwrap().is_err());
        let pending = progress.pending().unwrap().to_string();
        assert!(pending.contains("cannot be read"), "{pending}");
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
