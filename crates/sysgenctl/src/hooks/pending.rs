// SPDX-License-Identifier: MIT OR Apache-2.0

//! The note of a change that hooks have not dealt with yet, which outlives a restart of the program.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NAME: &str = "pending";

/// Where the note is kept; without a folder nothing is.
#[derive(Debug)]
pub(super) struct Pending(Option<PathBuf>);

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The generation that was not dealt with.
    pub(super) generation: u32,
    /// The last one before it that was.
    pub(super) previous: u32,
}

impl Pending {
    /// In the folder that was named, or in the first of those of the service.
    pub(super) fn new(named: Option<&Path>, of_service: Option<&OsStr>) -> Self {
        let of_service = of_service
            .and_then(|folders| folders.as_bytes().split(|&byte| byte == b':').next())
            .filter(|folder| !folder.is_empty())
            .map(|folder| Path::new(OsStr::from_bytes(folder)));
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

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, note: Note) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let aside = folder.join(".pending.new");
        fs::write(&aside, serde_json::to_vec(&note)?)?;
        fs::rename(aside, folder.join(NAME))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        match fs::remove_file(folder.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let pending = Pending::new(Some(&folder.path().join("new")), None);
        assert!(pending.read().is_none());
        let note = Note {
            generation: 5,
            previous: 3,
        };
        pending.write(note).unwrap();
        assert_eq!(pending.read().unwrap().unwrap(), note);
        fs::write(folder.path().join("new/pending"), "nonsense").unwrap();
        assert!(pending.read().unwrap().is_err());
        pending.remove().unwrap();
        pending.remove().unwrap();
        assert!(pending.read().is_none());
    }

    #[test]
    fn the_folder_that_was_named_goes_before_the_first_of_the_service() {
        let of_service = Some(OsStr::new("/run/a:/run/b"));
        let named = Path::new("/named");
        for (pending, expected) in [
            (Pending::new(Some(named), of_service), Some(named)),
            (Pending::new(None, of_service), Some(Path::new("/run/a"))),
            (Pending::new(None, Some(OsStr::new(""))), None),
            (Pending::new(None, None), None),
        ] {
            assert_eq!(pending.0.as_deref(), expected);
        }
    }
}
