// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls on a node: open, close, read, write, poll, ioctl, and faults of a mapping.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use sysgenid_core::{Error, Generation, Ioctl, Node, Patience, Timeout, abi};

use crate::clock;
use crate::fault;
use crate::judging::process;
use crate::keeping::state::Handle;
use crate::noticing::reseed::{self, Fresh};
use crate::protocol::wire::{self, fopen};
use crate::protocol::{Request, Unique};

use super::accounts::Opening;
use super::copies::copy_of;
use super::files::errno;
use super::requests::part;
use super::server::{LateTrigger, Server};
use super::sleepers::Wait;

/// How a node is opened: every read and write comes here.
const OPEN_FLAGS: u32 = fopen::DIRECT_IO | fopen::NOFLUSH | fopen::PARALLEL_DIRECT_WRITES;

/// When a trigger is tried again that cannot be carried out for the moment, in nanoseconds.
const SOON: u64 = 1_000_000;

impl Server {
    pub(super) fn open(&mut self, request: &Request<'_>, node: Node, flags: u32) {
        let unique = request.unique;
        // An appending write holds the lock of the file for as long as its buffer takes to be read, and
        // everybody else's acknowledgement waits for it. To a node it means nothing. (Who asks for it later, by
        // fcntl, is not seen here: the right to write is for those who are trusted.)
        if flags & OFlags::APPEND.bits() != 0 {
            self.connection.refuse(unique, Errno::INVAL);
            return;
        }
        // The request may have been carried out by a process that died before it could say so.
        let handle = match self.recovery.reopened(unique) {
            Some(handle) => handle,
            None => {
                let opening = Opening {
                    request: unique.identity(),
                    node,
                    flags,
                    user: request.uid,
                    opener: process::opener(request.tid),
                };
                let instance = Arc::clone(&self.instance);
                let Some(mut accounts) = self.as_shown(&instance, request) else {
                    return;
                };
                let opened = accounts.open(&opening);
                drop(accounts);
                match opened {
                    Ok(handle) => handle,
                    Err(full) => {
                        self.say_full(full);
                        self.connection.refuse(unique, full.errno());
                        return;
                    }
                }
            }
        };
        let (sharing, backing_id) = self.sharing.open_flags();
        self.connection.answer(
            unique,
            &wire::OpenOut {
                fh: handle.raw(),
                open_flags: OPEN_FLAGS | sharing,
                backing_id,
            },
        );
        fault::point();
        self.instance.accounts().opened();
    }

    pub(super) fn close(&mut self, handle: Handle) {
        self.begun_anew.retain(|_, waits| *waits != handle);
        let wake = self.instance.accounts().close(handle);
        self.wake(wake);
    }

    pub(super) fn read(&mut self, request: &Request<'_>, handle: Handle, size: u32, flags: u32) {
        let patience = if flags & OFlags::NONBLOCK.bits() == 0 {
            Patience::Sleep
        } else {
            Patience::None
        };
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let instance = Arc::clone(&self.instance);
        let Some(mut accounts) = self.as_shown(&instance, request) else {
            return;
        };
        let answer = accounts.read(handle, length, patience);
        drop(accounts);
        self.settle_read(request.unique, handle, answer);
    }

    pub(super) fn fill_page(&self, unique: Unique, offset: u64, size: u32) {
        if !self.sharing.is_copied() {
            // It is for sendfile(2) and its like: nobody would renew what they got.
            self.connection.refuse(unique, Errno::INVAL);
            return;
        }
        let word = self.instance.accounts().page().word();
        let copy = copy_of(word);
        self.connection
            .answer_bytes(unique, part(&copy, offset, size));
    }

    pub(super) fn write(&mut self, request: &Request<'_>, handle: Handle, data: &[u8]) {
        let unique = request.unique;
        let answer = self.instance.accounts().write(handle, data);
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

    pub(super) fn poll(&mut self, request: &Request<'_>, handle: Handle, notify: Option<u64>) {
        let instance = Arc::clone(&self.instance);
        let Some(accounts) = self.as_shown(&instance, request) else {
            return;
        };
        let polled = accounts.poll(handle, notify);
        drop(accounts);
        let answer = wire::PollOut {
            // A report can always be read.
            revents: polled.unwrap_or(abi::POLL_READABLE),
            padding: 0,
        };
        self.connection.answer(request.unique, &answer);
    }

    pub(super) fn ioctl(
        &mut self,
        request: &Request<'_>,
        handle: Handle,
        decoded: Result<Ioctl, Error>,
        argument: u64,
    ) {
        let unique = request.unique;
        let ioctl = match decoded {
            Ok(ioctl) => ioctl,
            Err(error) => {
                self.connection.refuse(unique, errno(error));
                return;
            }
        };
        if self.instance.accounts().state().find(handle).is_none() {
            // It is a report's, or of a folder.
            self.connection.refuse(unique, Errno::NOTTY);
            return;
        }
        match ioctl {
            Ioctl::CountOutdatedWatchers => {
                let count = self.instance.accounts().registry().outdated_watchers();
                self.answer_ioctl(unique, i32::try_from(count).unwrap_or(i32::MAX));
            }
            Ioctl::WaitWatchers(timeout) => self.wait(request, handle, timeout, argument),
            Ioctl::SetTracking(tracked) => {
                let answer = self.instance.accounts().set_tracking(handle, tracked);
                match answer {
                    Ok(wake) => {
                        self.answer_ioctl(unique, 0);
                        self.wake(wake);
                    }
                    Err(errno) => self.connection.refuse(unique, errno),
                }
            }
            Ioctl::Trigger { minimum } => self.trigger(request, minimum),
        }
    }

    fn wait(&mut self, request: &Request<'_>, handle: Handle, timeout: Timeout, argument: u64) {
        let mut wait = Wait {
            unique: request.unique,
            handle,
            tid: request.tid,
            argument,
            deadline: None,
        };
        let instance = Arc::clone(&self.instance);
        let Some(accounts) = self.as_shown(&instance, request) else {
            return;
        };
        let answer = accounts.wait(handle, Patience::Sleep);
        if let Ok(sysgenid_core::Wait::Sleep) = answer {
            wait.deadline = accounts.deadline(&wait, timeout);
        } else {
            // One that the kernel has begun anew is over: the next has all of its time.
            accounts.forget_deadline(handle, request.tid);
        }
        drop(accounts);
        self.settle_wait(wait, answer);
    }

    /// Software asks for a change. The kernel's generator is reseeded first: `getrandom` of a program that was
    /// restored from an image serves what its clones are served until then.
    fn trigger(&mut self, request: &Request<'_>, minimum: u64) {
        let unique = request.unique;
        if self.instance.accounts().record().trigger == unique.identity() {
            // A process before this one carried it out, and died before it could say so.
            self.triggered(unique);
            return;
        }
        let settings = self.instance.settings();
        if !settings.owner.judges_capable(request.tid) {
            self.connection.refuse(unique, errno(Error::NotCapable));
            return;
        }
        let Ok(minimum) = u32::try_from(minimum) else {
            self.connection.refuse(unique, errno(Error::Invalid));
            return;
        };
        let minimum = Generation::new(minimum);
        if settings.trusted {
            let fresh = reseed::reseed_for_trigger();
            self.carry_out(unique, minimum, &fresh);
            return;
        }
        self.late_triggers.push_back(LateTrigger {
            unique,
            minimum,
            asked: clock::now(),
        });
        self.trigger_late();
    }

    /// The triggers of tenants, one after the other: each waits for a reseed after it was asked for, which all
    /// instances share, and for the time that must be between two.
    pub(super) fn trigger_late(&mut self) {
        while let Some(&late) = self.late_triggers.front() {
            let now = clock::now();
            if self.is_held_up() {
                self.trigger_at = Some(now + SOON);
                return;
            }
            if now < self.next_trigger {
                self.trigger_at = Some(self.next_trigger);
                return;
            }
            match self.common.reseed.due(late.asked, now) {
                Err(at) => {
                    self.trigger_at = Some(at);
                    return;
                }
                Ok(fresh) => {
                    self.late_triggers.pop_front();
                    let per_second = self.instance.accounts().limits().tenant_triggers_a_second;
                    self.next_trigger = now + 1_000_000_000 / u64::from(per_second.get());
                    self.carry_out(late.unique, late.minimum, &fresh);
                }
            }
        }
        self.trigger_at = None;
    }

    fn carry_out(&mut self, unique: Unique, minimum: Generation, fresh: &Fresh) {
        let family = Arc::clone(&self.common.family);
        let changed = family.change(&self.instance, fresh, minimum, |record| {
            record.trigger = unique.identity();
        });
        match changed {
            Some(_) => self.triggered(unique),
            None => self.connection.refuse(unique, Errno::NODEV),
        }
    }
}
