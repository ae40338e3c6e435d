// SPDX-License-Identifier: MIT OR Apache-2.0

//! One instance, as every thread sees it: who causes a change, who serves it, who asks how it stands.
//!
//! A thread of its own serves it (see [`server`](super::server)). Others change its accounts, under their
//! lock, and kick that thread, which then wakes whom the change concerns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;
use rustix::io;

use crate::clock;
use crate::judging::Owner;
use crate::noticing::reseed;
use crate::protocol::Connection;

use super::accounts::Accounts;
use super::files::{self, Access};

/// What an instance is, apart from what it is going through.
#[derive(Debug)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Where its folder is mounted.
    pub path: PathBuf,
    /// The user namespace in which a capability counts.
    pub owner: Owner,
    /// Whether the machine is in the hands of those who may trigger it, and not of a tenant.
    pub trusted: bool,
    /// Whether mappings may go to the page itself, where the kernel can do it.
    pub passthrough: bool,
}

/// One instance.
#[derive(Debug)]
pub struct Instance {
    settings: Settings,
    connection: Arc<Connection>,
    accounts: Mutex<Accounts>,
    /// Who may open `sysgenid` and `vmgenid`.
    access: Mutex<[Access; 2]>,
    kick: OwnedFd,
    ending: AtomicBool,
    /// Since when its thread has been at work, in nanoseconds of the monotonic clock; 0 while it sleeps.
    busy_since: AtomicU64,
    renewing: AtomicBool,
}

impl Instance {
    /// Puts together what is to be served.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new(
        settings: Settings,
        access: [Access; 2],
        connection: Connection,
        accounts: Accounts,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            connection: Arc::new(connection),
            accounts: Mutex::new(accounts),
            access: Mutex::new(access),
            kick: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ending: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            renewing: AtomicBool::new(false),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where its folder is mounted.
    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// What it was asked to be.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The device that requests come from.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Its accounts. Whoever holds them does nothing that could take long.
    pub fn accounts(&self) -> MutexGuard<'_, Accounts> {
        // Each change of the accounts is whole before anything that could panic.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may open `sysgenid` and `vmgenid`.
    pub fn access(&self) -> [Access; 2] {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other people may open the nodes now.
    pub fn set_access(&self, access: [Access; 2]) {
        let before = std::mem::replace(
            &mut *self.access.lock().unwrap_or_else(PoisonError::into_inner),
            access,
        );
        if access != before {
            for inode in files::NODES {
                self.connection.notify_attributes(inode);
            }
        }
    }

    /// Has its thread look for what has changed.
    pub fn kick(&self) {
        // It is full after 2^64 kicks that nobody saw.
        let _ = io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    pub(super) fn kicked(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(super) fn take_kicks(&self) {
        let _ = io::read(&self.kick, &mut [0; 8]);
    }

    /// Ends it: the page changes once more and says that it is not live, and its thread refuses those who
    /// sleep and stops.
    pub fn end(&self) {
        let fresh = reseed::reseed_at_end();
        self.accounts().end(&fresh);
        self.ending.store(true, Ordering::Release);
        self.kick();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(super) fn set_busy(&self, busy: bool) {
        let since = if busy { clock::now() } else { 0 };
        self.busy_since.store(since, Ordering::Relaxed);
    }

    /// Since when its thread has been at work without looking up, in nanoseconds of the monotonic clock.
    pub fn busy_since(&self) -> Option<u64> {
        Some(self.busy_since.load(Ordering::Relaxed)).filter(|since| *since != 0)
    }

    pub(super) fn set_renewing(&self, renewing: bool) {
        self.renewing.store(renewing, Ordering::Relaxed);
    }

    /// Whether copies of its page are being renewed, by a process of their own.
    pub fn is_renewing(&self) -> bool {
        self.renewing.load(Ordering::Relaxed)
    }
}
