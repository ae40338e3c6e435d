// SPDX-License-Identifier: MIT OR Apache-2.0

//! What each request is about: the one place in which a request's kind decides where it goes.

use rustix::io::Errno;
use sysgenid_core::Ioctl;

use crate::keeping::state::Handle;
use crate::protocol::wire;
use crate::protocol::{Operation, Request};

use super::files::File;
use super::folder::attributes_answer;
use super::server::Server;

impl Server {
    /// Answers one request, puts it to sleep, or puts it off.
    pub(super) fn handle(&mut self, request: &Request<'_>) {
        let unique = request.unique;
        self.forget_wait_before(request);
        let fills_page = matches!(
            request.operation,
            Operation::Read {
                fills_page: true,
                ..
            }
        );
        // In their order: a trigger that may have been carried out comes before those that came later. But a
        // page is filled at once, for the renewal may wait for it.
        if self.is_held_up() && !fills_page {
            self.defer(request);
            return;
        }
        match request.operation {
            // The kernel asks once, at the beginning.
            Operation::Init(_) => self.connection.refuse(unique, Errno::PROTO),
            Operation::Lookup { name } => self.look_up(unique, request.inode, name),
            Operation::GetAttributes => match self.attributes(request.inode) {
                Some(attr) => self.connection.answer(unique, &attributes_answer(attr)),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::StatFileSystem => self.connection.answer(
                unique,
                &wire::StatfsOut {
                    bsize: 4096,
                    frsize: 4096,
                    namelen: 255,
                    ..wire::StatfsOut::default()
                },
            ),
            Operation::Open { flags } => match File::at(request.inode) {
                Some(File::Node(node)) => self.open(request, node, flags),
                Some(file) => self.open_report(request, file, flags),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::Read {
                handle,
                offset,
                size,
                flags,
                fills_page,
            } => match File::at(request.inode) {
                Some(File::Node(_)) if fills_page => self.fill_page(unique, offset, size),
                Some(File::Node(_)) => self.read(request, Handle::new(handle), size, flags),
                Some(file) => self.read_report(unique, handle, (offset, size), file),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::Write { handle, data } => self.write(request, Handle::new(handle), data),
            Operation::Release { handle } => {
                self.reports.close(handle);
                self.close(Handle::new(handle));
                self.connection.answer_bytes(unique, &[]);
            }
            Operation::Ioctl {
                handle,
                request: number,
                argument,
            } => {
                let decoded = Ioctl::decode(number, argument);
                self.ioctl(request, Handle::new(handle), decoded, argument);
            }
            Operation::Poll {
                handle,
                kernel_handle,
                notify,
            } => {
                let notify = notify.then_some(kernel_handle);
                self.poll(request, Handle::new(handle), notify);
            }
            Operation::OpenFolder => self.connection.answer(
                unique,
                &wire::OpenOut {
                    fh: 0,
                    open_flags: 0,
                    backing_id: 0,
                },
            ),
            Operation::ReadFolder { offset, size } => self.read_folder(unique, offset, size),
            Operation::ReleaseFolder => self.connection.answer_bytes(unique, &[]),
            Operation::Interrupt { target } => self.interrupted(target),
            Operation::Forget => {}
            Operation::Destroy => self.connection.answer_bytes(unique, &[]),
            Operation::SetAttributes { changes_access } if !changes_access => {
                // Opened with O_TRUNC, or touched: to a device that means nothing, and is no error.
                match self.attributes(request.inode) {
                    Some(attr) => self.connection.answer(unique, &attributes_answer(attr)),
                    None => self.connection.refuse(unique, Errno::NOENT),
                }
            }
            Operation::SetAttributes { .. } | Operation::Change => {
                self.connection.refuse(unique, Errno::PERM);
            }
            // The kernel then does without, and asks no more.
            Operation::Other(_) => self.connection.refuse(unique, Errno::NOSYS),
        }
    }
}

/// What a read of `size` bytes at `offset` returns.
pub(super) fn part(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    &bytes[start..bytes.len().min(start.saturating_add(size))]
}
