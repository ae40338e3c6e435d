// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who serves a node: the kernel module, or the daemon.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a node tells about whoever serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrontEnd {
    /// The kernel module: the node is a device.
    Module,
    /// The daemon: the node is a file of its own file system.
    Daemon {
        /// Where its reports are, beside the node. There are none where only the node was handed in, as in a
        /// container.
        folder: Option<PathBuf>,
    },
}

impl FrontEnd {
    /// Looks at the node at a path.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // /dev/sysgenid may be a link into the daemon's folder.
        let path = fs::canonicalize(path)?;
        if fs::metadata(&path)?.file_type().is_char_device() {
            return Ok(Self::Module);
        }
        let folder = path
            .parent()
            .filter(|folder| folder.join("status").exists() && folder.join("watchers").exists())
            .map(Path::to_owned);
        Ok(Self::Daemon { folder })
    }

    /// For programs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Daemon { .. } => "daemon",
        }
    }
}

/// What tells one node from every other file: the device that it is, or its place on the daemon's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Device(u64),
    File { device: u64, inode: u64 },
}

impl Identity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(if metadata.file_type().is_char_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        })
    }
}
