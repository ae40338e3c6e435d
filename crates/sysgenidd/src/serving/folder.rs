// SPDX-License-Identifier: MIT OR Apache-2.0

//! The folder of an instance: names, attributes, and the files that are reports.

use rustix::fs::OFlags;
use rustix::io::Errno;
use sysgenid_core::Node;
use zerocopy::IntoBytes;

use crate::protocol::Unique;
use crate::protocol::wire::{self, fopen};
use crate::serving::files::{self, File};
use crate::serving::report;

use super::instance::{Instance, part};

/// How long the kernel may remember names and attributes, in seconds. It is told when they change.
const VALID: u64 = 86_400;

/// Set in the handles of files that are no nodes.
const REPORT: u64 = 1 << 63;

impl Instance {
    pub(super) fn attributes(&self, inode: u64) -> Option<wire::Attr> {
        if inode == files::ROOT {
            return Some(files::folder_attributes());
        }
        let file = File::at(inode)?;
        let [sysgenid, vmgenid] = self.settings.access;
        Some(match file {
            File::Node(Node::Sysgenid) => files::attributes(Node::Sysgenid, sysgenid),
            File::Node(Node::Vmgenid) => files::attributes(Node::Vmgenid, vmgenid),
            // It names the programs of all users.
            File::Watchers => files::report_attributes(
                file,
                report::longest(self.watchers()),
                files::Access {
                    mode: 0o440,
                    ..sysgenid
                },
            ),
            File::Status | File::Metrics => files::report_attributes(
                file,
                report::longest(0),
                files::Access {
                    mode: 0o444,
                    uid: 0,
                    gid: 0,
                },
            ),
        })
    }

    pub(super) fn look_up(&self, unique: Unique, folder: u64, name: &[u8]) {
        let found = File::named(name)
            .filter(|_| folder == files::ROOT)
            .and_then(|file| Some((file, self.attributes(file.inode())?)));
        match found {
            Some((file, attr)) => self.connection.answer(
                unique,
                &wire::EntryOut {
                    nodeid: file.inode(),
                    entry_valid: valid(file.inode()),
                    attr_valid: valid(file.inode()),
                    attr,
                    ..wire::EntryOut::default()
                },
            ),
            None => self.connection.refuse(unique, Errno::NOENT),
        }
    }

    pub(super) fn open_report(&self, unique: Unique, flags: u32) {
        if flags & OFlags::ACCMODE.bits() != OFlags::RDONLY.bits() {
            self.connection.refuse(unique, Errno::ACCESS);
            return;
        }
        let answer = wire::OpenOut {
            fh: REPORT | self.state.new_handle(0).raw(),
            open_flags: fopen::DIRECT_IO | fopen::NOFLUSH,
            backing_id: 0,
        };
        self.connection.answer(unique, &answer);
    }

    /// Answers with a part of a report, as it was when its reading began.
    pub(super) fn read_report(
        &mut self,
        unique: Unique,
        file: File,
        handle: u64,
        (offset, size): (u64, u32),
        backends: &[report::Backend],
    ) {
        let text = match self.reports.remove(&handle) {
            Some(text) if offset > 0 => text,
            _ => match file {
                File::Node(_) => String::new(),
                File::Watchers => report::watchers(self),
                File::Status => report::status(self, backends),
                File::Metrics => report::metrics(self, backends),
            },
        };
        let bytes = part(text.as_bytes(), offset, size);
        self.connection.answer_bytes(unique, bytes);
        // Most readers take it all at once, and need no copy.
        if bytes.len() < text.len() && !bytes.is_empty() {
            self.reports.insert(handle, text);
        }
    }

    pub(super) fn read_folder(&self, unique: Unique, offset: u64, size: u32) {
        let dots = [(files::ROOT, 4, "."), (files::ROOT, 4, "..")];
        let files = File::ALL.map(|file| (file.inode(), 8, file.name()));
        let mut entries = Vec::new();
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (ino, kind, name)) in dots.into_iter().chain(files).enumerate().skip(first) {
            let padding = name.len().next_multiple_of(8) - name.len();
            let header = wire::Dirent {
                ino,
                off: u64::try_from(index + 1).unwrap_or(u64::MAX),
                namelen: u32::try_from(name.len()).unwrap_or(0),
                kind,
            };
            let length = size_of_val(&header) + name.len() + padding;
            if entries.len() + length > usize::try_from(size).unwrap_or(usize::MAX) {
                break;
            }
            entries.extend_from_slice(header.as_bytes());
            entries.extend_from_slice(name.as_bytes());
            entries.extend_from_slice(&[0; 8][..padding]);
        }
        self.connection.answer_bytes(unique, &entries);
    }
}

/// How long the kernel may remember the name and attributes of a file. The size of a report changes.
fn valid(inode: u64) -> u64 {
    match File::at(inode) {
        Some(File::Node(_)) | None => VALID,
        Some(File::Watchers | File::Status | File::Metrics) => 0,
    }
}

pub(super) fn attributes_answer(attr: wire::Attr) -> wire::AttrOut {
    wire::AttrOut {
        attr_valid: valid(attr.ino),
        attr,
        ..wire::AttrOut::default()
    }
}
