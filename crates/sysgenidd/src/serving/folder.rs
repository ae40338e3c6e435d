// SPDX-License-Identifier: MIT OR Apache-2.0

//! The folder of an instance: names, attributes, and the files that are reports.

use rustix::fs::OFlags;
use rustix::io::Errno;
use sysgenid_core::Node;
use zerocopy::IntoBytes;

use crate::protocol::wire::{self, fopen};
use crate::protocol::{Request, Unique};
use crate::serving::files::{self, File};
use crate::serving::report;

use super::requests::part;
use super::server::Server;

/// How long the kernel may remember names and attributes, in seconds. It is told when they change.
const VALID: u64 = 86_400;

/// Set in the handles of files that are no nodes.
const REPORT: u64 = 1 << 63;

impl Server {
    pub(super) fn attributes(&mut self, inode: u64) -> Option<wire::Attr> {
        if inode == files::ROOT {
            return Some(files::folder_attributes());
        }
        let file = File::at(inode)?;
        let [sysgenid, vmgenid] = self.instance.access();
        Some(match file {
            File::Node(Node::Sysgenid) => files::attributes(Node::Sysgenid, sysgenid),
            File::Node(Node::Vmgenid) => files::attributes(Node::Vmgenid, vmgenid),
            // It names the programs of all users.
            File::Watchers => files::report_attributes(
                file,
                report::length_of_watchers(&self.instance),
                files::Access {
                    mode: 0o440,
                    ..sysgenid
                },
            ),
            File::Status | File::Metrics => files::report_attributes(
                file,
                self.tell_length(file),
                files::Access {
                    mode: 0o444,
                    uid: 0,
                    gid: 0,
                },
            ),
        })
    }

    pub(super) fn look_up(&mut self, unique: Unique, folder: u64, name: &[u8]) {
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

    pub(super) fn open_report(&mut self, request: &Request<'_>, file: File, flags: u32) {
        let unique = request.unique;
        if flags & OFlags::ACCMODE.bits() != OFlags::RDONLY.bits() {
            self.connection.refuse(unique, Errno::ACCESS);
            return;
        }
        let user = request.uid;
        if self.reports.check(user).is_err() {
            self.connection.refuse(unique, Errno::MFILE);
            return;
        }
        let handle = REPORT | self.instance.accounts().state().new_handle(0).raw();
        let draft = self.reports.take_told(file);
        let text = self.write_report(file, draft);
        if self.reports.open(handle, user, text).is_err() {
            self.connection.refuse(unique, Errno::MFILE);
            return;
        }
        let answer = wire::OpenOut {
            fh: handle,
            open_flags: fopen::DIRECT_IO | fopen::NOFLUSH,
            backing_id: 0,
        };
        self.connection.answer(unique, &answer);
    }

    /// Answers with a part of a report, as it was when it was opened.
    pub(super) fn read_report(
        &self,
        unique: Unique,
        handle: u64,
        (offset, size): (u64, u32),
        file: File,
    ) {
        match self.reports.text(handle) {
            Some(text) => self
                .connection
                .answer_bytes(unique, part(text, offset, size)),
            // A process before this one had it open.
            None => {
                let text = self.write_report(file, None);
                let bytes = part(text.as_bytes(), offset, size);
                self.connection.answer_bytes(unique, bytes);
            }
        }
    }

    /// The length of a report that is drafted for it, and kept for whoever opens it next.
    fn tell_length(&mut self, file: File) -> u64 {
        let draft = self.draft_report(file);
        let length = u64::try_from(draft.len()).unwrap_or(u64::MAX);
        self.reports.tell(file, draft);
        length
    }

    /// A report as long as it will be, without what is too much work for everybody who looks at its size.
    fn draft_report(&self, file: File) -> String {
        match file {
            File::Node(_) => String::new(),
            File::Watchers => report::watchers(&self.instance),
            File::Status => report::status(&self.instance, &self.common.backends),
            File::Metrics => report::metrics(&self.instance, &self.common.backends),
        }
    }

    fn write_report(&self, file: File, draft: Option<String>) -> String {
        let mut text = draft.unwrap_or_else(|| self.draft_report(file));
        if file == File::Metrics {
            report::add_oldest(&mut text, &self.instance);
        }
        text
    }

    /// Lists the reports. The nodes are found by their names only: programs that walk a tree and read all that
    /// they find, as tar and grep do, would sleep in them until the next change.
    pub(super) fn read_folder(&self, unique: Unique, offset: u64, size: u32) {
        let dots = [(files::ROOT, 4, "."), (files::ROOT, 4, "..")];
        let files = File::ALL
            .into_iter()
            .filter(|file| !matches!(file, File::Node(_)))
            .map(|file| (file.inode(), 8, file.name()));
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
