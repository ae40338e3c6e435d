// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files in the folder of an instance: their numbers, names and attributes.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sysgenid_core::{Error, Node};

use crate::keeping::page;
use crate::protocol::wire::Attr;

/// The folder.
pub(crate) const ROOT: u64 = 1;

/// The nodes, as [`File`] numbers them.
pub(crate) const NODES: [u64; 2] = [2, 3];

/// A file in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum File {
    /// One that carries the contract.
    Node(Node),
    /// Who watches.
    Watchers,
    /// How things stand, for people.
    Status,
    /// How things stand, for collectors.
    Metrics,
}

impl File {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [
        File::Node(Node::Sysgenid),
        File::Node(Node::Vmgenid),
        File::Watchers,
        File::Status,
        File::Metrics,
    ];

    /// The file with this inode number.
    pub(crate) fn at(inode: u64) -> Option<Self> {
        let index = usize::try_from(inode.checked_sub(ROOT + 1)?).ok()?;
        Self::ALL.get(index).copied()
    }

    /// The file with this name.
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|file| file.name().as_bytes() == name)
    }

    /// Its inode number.
    pub(crate) const fn inode(self) -> u64 {
        ROOT + match self {
            File::Node(Node::Sysgenid) => 1,
            File::Node(Node::Vmgenid) => 2,
            File::Watchers => 3,
            File::Status => 4,
            File::Metrics => 5,
        }
    }

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            File::Node(node) => node.name(),
            File::Watchers => "watchers",
            File::Status => "status",
            File::Metrics => "metrics",
        }
    }
}

/// Who may open a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The permission bits.
    pub mode: u32,
    /// The owner, as the daemon sees it.
    pub uid: u32,
    /// The group, as the daemon sees it.
    pub gid: u32,
}

impl Access {
    /// That of a node which nobody configured.
    pub fn default_of(node: Node) -> Self {
        Self {
            mode: u32::from(node.default_mode()),
            uid: 0,
            gid: 0,
        }
    }
}

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

/// The attributes of the folder.
pub(crate) fn folder_attributes() -> Attr {
    Attr {
        ino: ROOT,
        mode: FOLDER | 0o755,
        nlink: 2,
        blksize: 4096,
        ..Attr::default()
    }
}

/// The attributes of a node.
pub(crate) fn attributes(node: Node, access: Access) -> Attr {
    let file = File::Node(node);
    Attr {
        ino: file.inode(),
        nlink: 1,
        blksize: 4096,
        // What can be mapped. A write that begins within the size also needs no lock of the file.
        size: page::SIZE as u64,
        mode: REGULAR | access.mode,
        uid: access.uid,
        gid: access.gid,
        ..Attr::default()
    }
}

/// The attributes of a report. Some programs (busybox's `cat`, by `sendfile`) read no more than its size.
pub(crate) fn report_attributes(file: File, length: u64, access: Access) -> Attr {
    Attr {
        ino: file.inode(),
        nlink: 1,
        blksize: 4096,
        size: length,
        mode: REGULAR | access.mode,
        uid: access.uid,
        gid: access.gid,
        ..Attr::default()
    }
}

/// The errno of the contract.
pub(crate) const fn errno(error: Error) -> Errno {
    match error {
        Error::Invalid => Errno::INVAL,
        Error::WouldBlock => Errno::AGAIN,
        // FUSE has no answer that would restart a read.
        Error::Restart | Error::Interrupted => Errno::INTR,
        Error::TimedOut => Errno::TIME,
        Error::NotWritable => Errno::BADF,
        Error::NotCapable => Errno::ACCESS,
        Error::NotPermitted => Errno::PERM,
        Error::UnknownIoctl => Errno::NOTTY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_file() {
        for file in File::ALL {
            assert_eq!(File::at(file.inode()), Some(file));
            assert_eq!(File::named(file.name().as_bytes()), Some(file));
        }
        for inode in [0, ROOT, 7, u64::MAX] {
            assert_eq!(File::at(inode), None);
        }
        assert!(
            NODES
                .into_iter()
                .all(|inode| matches!(File::at(inode), Some(File::Node(_))))
        );
    }
}
