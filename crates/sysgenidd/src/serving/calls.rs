// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls on a node: open, close, read, write, poll, ioctl, and faults of a mapping.

use std::os::fd::AsFd;

use rustix::fs::OFlags;
use rustix::io::{self, Errno};
use sysgenid_core::{
    Access, Error, Ioctl, Node, Patience, Read, Registry, Wait, Wake, Watcher, abi,
};

use crate::clock;
use crate::fault;
use crate::judging::process;
use crate::keeping::state::{Handle, Mapping, Slot};
use crate::protocol::wire::{self, fopen};
use crate::protocol::{Request, Unique};
use crate::serving::files::errno;
use crate::serving::renewal::{self, Renewals};

use super::instance::{Instance, Sleeper, part};

/// How a node is opened: every read and write comes here.
const OPEN_FLAGS: u32 = fopen::DIRECT_IO | fopen::NOFLUSH | fopen::PARALLEL_DIRECT_WRITES;

impl Instance {
    /// Agrees with the kernel on how mappings get the page, if that has not been done.
    pub(super) fn settle_mapping(&self) -> Mapping {
        let settled = self.state.mapping();
        if settled != Mapping::Unsettled {
            return settled;
        }
        let mapping = if self.settings.passthrough {
            match self.connection.open_backing(self.page.as_fd()) {
                Ok(id) => Mapping::Passthrough(id),
                Err(errno) => {
                    tracing::warn!(
                        instance = self.settings.name,
                        "the kernel cannot pass mappings through ({errno}); it keeps a copy of the \
                         page, which is renewed at each change"
                    );
                    Mapping::Store
                }
            }
        } else {
            Mapping::Store
        };
        self.state.set_mapping(mapping);
        mapping
    }

    pub(super) fn open(&mut self, request: &Request<'_>, node: Node, flags: u32) {
        let unique = request.unique;
        let (open_flags, backing_id) = match self.settle_mapping() {
            Mapping::Passthrough(id) => (OPEN_FLAGS | fopen::PASSTHROUGH, id.get()),
            // Without a file position, threads could share a descriptor with nothing between them; the
            // kernel does not allow that together with passthrough.
            Mapping::Store | Mapping::Unsettled => (OPEN_FLAGS | fopen::STREAM, 0),
        };
        // The request may have been carried out by a process that died before it could say so.
        let index = match self.reopened.remove(&unique.identity()) {
            Some(handle) => Ok(handle),
            None => self.add_watcher(request, node, flags),
        };
        let handle = match index {
            Ok(handle) => handle,
            Err(errno) => {
                self.connection.refuse(unique, errno);
                return;
            }
        };
        self.connection.answer(
            unique,
            &wire::OpenOut {
                fh: handle.raw(),
                open_flags,
                backing_id,
            },
        );
        fault::point();
        self.state.set_opening(None);
    }

    pub(super) fn add_watcher(
        &mut self,
        request: &Request<'_>,
        node: Node,
        flags: u32,
    ) -> io::Result<Handle> {
        let access = if flags & OFlags::ACCMODE.bits() == OFlags::RDONLY.bits() {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.state.add_slot()?;
                self.watchers.push(None);
                index
            }
        };
        let handle = self.state.new_handle(index);
        let watcher = self.registry.open(node, access);
        self.state.set_opening(Some(handle));
        self.state.fill(&Slot {
            handle,
            opened_by: request.unique.identity(),
            node,
            watcher: watcher.record(),
            opener: process::opener(request.tid),
            polled_as: None,
            wait: (0, 0),
        });
        self.watchers[index] = Some(watcher);
        self.of_vmgenid += usize::from(node == Node::Vmgenid);
        Ok(handle)
    }

    pub(super) fn close(&mut self, handle: Handle) {
        let Some(index) = self.state.find(handle) else {
            return;
        };
        let slot = self.state.at(index);
        self.of_vmgenid -= usize::from(slot.is_some_and(|slot| slot.node == Node::Vmgenid));
        self.state.free(index);
        if let Some(mut watcher) = self.watchers[index].take() {
            self.free.push(index);
            let wake = self.registry.close(&mut watcher);
            self.wake(wake);
        }
    }

    pub(super) fn read(&mut self, unique: Unique, handle: Handle, size: u32, flags: u32) {
        let patience = if flags & OFlags::NONBLOCK.bits() == 0 {
            Patience::Sleep
        } else {
            Patience::None
        };
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let answer = self.read_watcher(handle, length, patience);
        match answer {
            Err(errno) => self.connection.refuse(unique, errno),
            Ok(Ok(Read::Sleep)) => self.sleep(Sleeper::Read(unique, handle)),
            Ok(answer) => self.answer_read(unique, answer),
        }
    }

    pub(super) fn fill_page(&self, unique: Unique, offset: u64, size: u32) {
        let page = renewal::page(self.registry.generation());
        self.connection
            .answer_bytes(unique, part(&page, offset, size));
    }

    pub(super) fn write(&mut self, unique: Unique, handle: Handle, data: &[u8]) {
        let answer = self.change_watcher(handle, |registry, watcher| registry.write(watcher, data));
        match answer {
            Ok(wake) => {
                let size = u32::try_from(data.len()).unwrap_or(0);
                self.connection
                    .answer(unique, &wire::WriteOut { size, padding: 0 });
                self.wake(wake);
            }
            Err(errno) => self.connection.refuse(unique, errno),
        }
    }

    pub(super) fn ioctl(
        &mut self,
        request: &Request<'_>,
        handle: Handle,
        ioctl: Result<Ioctl, Error>,
        renewals: &Renewals,
    ) {
        let unique = request.unique;
        let ioctl = match ioctl {
            Ok(ioctl) => ioctl,
            Err(error) => {
                self.connection.refuse(unique, errno(error));
                return;
            }
        };
        if self.state.find(handle).is_none() {
            // It is a report's, or of a folder.
            self.connection.refuse(unique, Errno::NOTTY);
            return;
        }
        match ioctl {
            Ioctl::CountOutdatedWatchers => {
                let count = i32::try_from(self.registry.outdated_watchers()).unwrap_or(i32::MAX);
                self.answer_ioctl(unique, count);
            }
            Ioctl::WaitWatchers(timeout) => self.wait(unique, handle, timeout),
            Ioctl::SetTracking(tracked) => {
                let answer = self.change_watcher(handle, |registry, watcher| {
                    registry.set_tracking(watcher, tracked)
                });
                match answer {
                    Ok(wake) => {
                        self.answer_ioctl(unique, 0);
                        self.wake(wake);
                    }
                    Err(errno) => self.connection.refuse(unique, errno),
                }
            }
            Ioctl::Trigger { .. } if self.record.trigger == unique.identity() => {
                self.trigger = Some(unique);
            }
            Ioctl::Trigger { minimum } => {
                let capable = self.settings.owner.judges_capable(request.tid);
                match self.registry.trigger(capable, minimum) {
                    Ok(change) => {
                        self.carry_out(change, renewals, |record| {
                            record.trigger = unique.identity();
                        });
                        self.trigger = Some(unique);
                    }
                    Err(error) => self.connection.refuse(unique, errno(error)),
                }
            }
        }
    }

    pub(super) fn wait(&mut self, unique: Unique, handle: Handle, timeout: sysgenid_core::Timeout) {
        let Some(index) = self.state.find(handle) else {
            self.connection.refuse(unique, Errno::BADF);
            return;
        };
        let Some(watcher) = &self.watchers[index] else {
            self.connection.refuse(unique, Errno::BADF);
            return;
        };
        match self.registry.wait(watcher, Patience::Sleep) {
            Ok(Wait::Sleep) => {
                // The time that passed under another process counts.
                let (request, kept) = self.state.wait(index);
                let deadline = if unique.is_resent() && request == unique.identity() {
                    kept
                } else {
                    let deadline = timeout.nanoseconds().map_or(u64::MAX, |nanoseconds| {
                        clock::now().saturating_add(nanoseconds.unsigned_abs())
                    });
                    self.state.set_wait(index, unique.identity(), deadline);
                    deadline
                };
                let deadline = (deadline != u64::MAX).then_some(deadline);
                self.sleep(Sleeper::Wait(unique, handle, deadline));
            }
            answer => self.answer_wait(unique, answer),
        }
    }

    pub(super) fn poll(
        &mut self,
        unique: Unique,
        handle: Handle,
        kernel_handle: u64,
        notify: bool,
    ) {
        let Some(index) = self.state.find(handle) else {
            // A report can always be read.
            let answer = wire::PollOut {
                revents: abi::POLL_READABLE,
                padding: 0,
            };
            self.connection.answer(unique, &answer);
            return;
        };
        if notify {
            self.state.set_polled_as(index, kernel_handle);
        }
        let revents = self.watchers[index]
            .as_ref()
            .map_or(abi::POLL_WRITABLE, |watcher| self.registry.poll(watcher));
        let answer = wire::PollOut {
            revents,
            padding: 0,
        };
        self.connection.answer(unique, &answer);
    }

    /// What a read by a watcher does. That it was told is stored before it is.
    pub(super) fn read_watcher(
        &mut self,
        handle: Handle,
        length: usize,
        patience: Patience,
    ) -> Result<Result<Read, Error>, Errno> {
        let index = self.state.find(handle).ok_or(Errno::BADF)?;
        let watcher = self.watchers[index].as_mut().ok_or(Errno::BADF)?;
        let answer = self.registry.read(watcher, length, patience);
        if let Ok(Read::Generation(_)) = answer {
            self.state.set_watcher(index, watcher.record());
        }
        Ok(answer)
    }

    pub(super) fn watcher(&self, handle: Handle) -> Option<&Watcher> {
        self.watchers[self.state.find(handle)?].as_ref()
    }

    /// Changes a watcher, and stores what became of it.
    pub(super) fn change_watcher(
        &mut self,
        handle: Handle,
        change: impl FnOnce(&mut Registry, &mut Watcher) -> Result<Wake, Error>,
    ) -> Result<Wake, Errno> {
        let index = self.state.find(handle).ok_or(Errno::BADF)?;
        let watcher = self.watchers[index].as_mut().ok_or(Errno::BADF)?;
        let wake = change(&mut self.registry, watcher).map_err(errno)?;
        self.state.set_watcher(index, watcher.record());
        Ok(wake)
    }
}
