// SPDX-License-Identifier: MIT OR Apache-2.0

//! Another node: the module's, or one that an outer daemon serves.
//!
//! The node is opened for reading only. Such a watcher is never counted when others wait, and it can never
//! acknowledge: after the first change it is outdated, hence readable, for ever. So what it reads is
//! compared with what it read last, and its descriptor is watched for edges.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sysgenid_core::Generation;

use super::backend::tells_when_readable;
use super::{Backend, Error, Kind, Settings, foreign};
use crate::sys;

/// Where the module and another daemon put a machine's own node.
const USUAL: &str = "/dev/sysgenid";

const NEEDED: &str = "a node of a system generation counter";

/// The backend.
#[derive(Debug)]
pub struct Parent {
    node: OwnedFd,
    path: PathBuf,
    /// The generation at the last look.
    generation: Generation,
    /// That the predecessor's generation was another one, which the next look is to report.
    changed_before: bool,
}

impl Parent {
    /// Opens the node.
    ///
    /// # Errors
    ///
    /// [`Error::NotPresent`], [`Error::NoPermission`], [`Error::OwnNode`], [`Error::Unsuitable`],
    /// [`Error::Io`].
    pub fn open(settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        let path = settings.parent.as_deref().unwrap_or(Path::new(USUAL));
        let node = foreign::open(path, &settings.own_devices)?;
        // Any other file would be read as if it were one: a node always polls.
        if !tells_when_readable(&node).map_err(|errno| Error::reading(path, errno))? {
            return Err(Error::Unsuitable {
                path: path.to_owned(),
                needed: NEEDED,
            });
        }
        // A new watcher cannot read the generation, only map it. A node that cannot be mapped leaves it
        // unknown: a successor then assumes a change.
        let found = sys::mapped_word(&node).ok().map(Generation::new);
        Ok(Self::resume(node, path, found, resume_at))
    }

    /// `found` is the generation of `node` once it was opened, if that is known.
    fn resume(
        node: OwnedFd,
        path: &Path,
        found: Option<Generation>,
        resume_at: Option<u64>,
    ) -> Self {
        Self {
            node,
            path: path.to_owned(),
            generation: found.unwrap_or(Generation::START),
            changed_before: resume_at.is_some_and(|position| {
                found.is_none_or(|found| u64::from(found.get()) != position)
            }),
        }
    }
}

impl Backend for Parent {
    fn kind(&self) -> Kind {
        Kind::Parent
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.node.as_fd())
    }

    /// A generation that differs is one change, however far it jumped: a trigger may name any minimum.
    fn look(&mut self) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        let changed = match rustix::io::retry_on_intr(|| rustix::io::read(&self.node, &mut bytes)) {
            Ok(4) => {
                let generation = Generation::from_ne_bytes(bytes);
                let changed = generation != self.generation;
                self.generation = generation;
                changed
            }
            Ok(_) => {
                return Err(Error::Unsuitable {
                    path: self.path.clone(),
                    needed: NEEDED,
                });
            }
            Err(Errno::AGAIN) => false,
            Err(errno) => return Err(Error::reading(&self.path, errno)),
        };
        let changed_before = std::mem::take(&mut self.changed_before);
        Ok(u32::from(changed) + u32::from(changed_before))
    }

    fn position(&self) -> u64 {
        self.generation.get().into()
    }

    fn description(&self) -> String {
        format!(
            "{}: no window but that of the parent itself and the time to wake the daemon",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::pipe::PipeFlags;

    use super::*;

    /// What stands for a node: what is written to the pipe is what the next reads return. A node repeats
    /// itself; the tests write as often as they look.
    fn node(found: Option<u32>, resume_at: Option<u64>) -> (OwnedFd, Parent) {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        let found = found.map(Generation::new);
        let parent = Parent::resume(reader, Path::new("the node"), found, resume_at);
        (writer, parent)
    }

    fn say(writer: &OwnedFd, generation: u32) {
        rustix::io::write(writer, &generation.to_ne_bytes()).unwrap();
    }

    #[test]
    fn a_generation_that_is_repeated_is_one_change() {
        let (writer, mut parent) = node(Some(3), None);
        assert_eq!(parent.look().unwrap(), 0);
        say(&writer, 4);
        assert_eq!(parent.look().unwrap(), 1);
        say(&writer, 4);
        assert_eq!(parent.look().unwrap(), 0);
        say(&writer, 900);
        assert_eq!(parent.look().unwrap(), 1);
        assert_eq!(parent.position(), 900);
    }

    #[test]
    fn a_change_between_the_open_and_the_mapping_is_not_counted_from_then_on() {
        let (writer, mut parent) = node(Some(4), None);
        say(&writer, 4);
        assert_eq!(parent.look().unwrap(), 0);
    }

    #[test]
    fn what_changed_while_nobody_looked_is_noticed_by_the_successor() {
        let (_writer, mut same) = node(Some(4), Some(4));
        assert_eq!(same.look().unwrap(), 0);
        let (writer, mut other) = node(Some(5), Some(4));
        assert_eq!(other.look().unwrap(), 1);
        assert_eq!(other.look().unwrap(), 0);
        say(&writer, 6);
        assert_eq!(other.look().unwrap(), 1);
    }

    #[test]
    fn a_successor_that_cannot_know_assumes_a_change() {
        let (_writer, mut parent) = node(None, Some(4));
        assert_eq!(parent.look().unwrap(), 1);
        assert_eq!(parent.look().unwrap(), 0);
        let (writer, mut first) = node(None, None);
        assert_eq!(first.look().unwrap(), 0);
        say(&writer, 1);
        assert_eq!(first.look().unwrap(), 1);
    }

    #[test]
    fn a_failure_keeps_what_is_still_to_be_reported() {
        let (writer, mut parent) = node(Some(5), Some(4));
        rustix::io::write(&writer, b"xy").unwrap();
        assert!(matches!(parent.look(), Err(Error::Unsuitable { .. })));
        assert_eq!(parent.look().unwrap(), 1);
    }

    #[test]
    fn a_node_whose_server_went_away_is_gone() {
        for errno in [Errno::NODEV, Errno::NOTCONN, Errno::CONNABORTED] {
            let error = Error::reading(Path::new("the node"), errno);
            assert!(matches!(error, Error::Gone { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sysgenid");
        fs::write(&file, 7_u32.to_ne_bytes()).unwrap();
        for path in [file, PathBuf::from("/dev/zero")] {
            let settings = Settings {
                parent: Some(path),
                ..Settings::default()
            };
            let error = Parent::open(&settings, None).unwrap_err();
            assert!(matches!(error, Error::Unsuitable { .. }), "{error}");
        }
    }
}
