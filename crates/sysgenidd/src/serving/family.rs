// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's instance and those that follow it: what changes one changes all, and all pages before anybody
//! is woken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sysgenid_core::Generation;

use crate::keeping::state::Record;
use crate::noticing::Positions;
use crate::noticing::reseed::Fresh;

use super::instance::Instance;

/// The host's instance, and those that follow it.
#[derive(Debug, Default)]
pub struct Family(Mutex<Members>);

#[derive(Debug, Default)]
struct Members {
    host: Option<Arc<Instance>>,
    followers: Vec<Arc<Instance>>,
}

impl Family {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this is the host's.
    pub fn set_host(&self, host: Option<Arc<Instance>>) {
        self.members().host = host;
    }

    /// Has an instance follow the host from now on. What was before is none of its own, unless it has
    /// followed already and goes on.
    pub fn join(&self, follower: Arc<Instance>, has_followed: bool) {
        let mut members = self.members();
        let Members { host, followers } = &mut *members;
        if let Some(host) = host {
            let host = host.accounts();
            let (epoch, noticed) = (host.registry().epoch(), host.is_noticed());
            drop(host);
            let mut accounts = follower.accounts();
            accounts.set_noticed(noticed);
            if !has_followed {
                accounts.note(|record| record.parent_epoch = epoch);
            }
            drop(accounts);
            follower.kick();
        }
        if !followers
            .iter()
            .any(|member| Arc::ptr_eq(member, &follower))
        {
            followers.push(follower);
        }
    }

    /// An instance that has ended follows the host no longer.
    pub fn forget(&self, follower: &Arc<Instance>) {
        self.members()
            .followers
            .retain(|member| !Arc::ptr_eq(member, follower));
    }

    /// An instance that goes on follows the host no longer. Nothing notices for it any more: its page says
    /// so with a last change by what did.
    pub fn leave(&self, follower: &Arc<Instance>, fresh: &Fresh) {
        let _ = fresh;
        self.forget(follower);
        let mut accounts = follower.accounts();
        if accounts.is_noticed() && !accounts.has_ended() {
            accounts.change_unnoticed(|_| {});
        }
        drop(accounts);
        follower.kick();
    }

    /// Changes the generation of the host and of all that follow it, and wakes everybody once all of their
    /// pages show it. `note` is stored with the host's change, all at once.
    ///
    /// That the kernel's generator is fresh is shown by `fresh`, which only a reseed gives.
    pub fn change_host(
        &self,
        fresh: &Fresh,
        minimum: Generation,
        note: impl FnOnce(&mut Record),
    ) -> Option<Generation> {
        let _ = fresh;
        let members = self.members();
        let host = members.host.as_ref()?;
        let mut accounts = host.accounts();
        if accounts.has_ended() {
            return None;
        }
        let generation = accounts.change(minimum, note);
        drop(accounts);
        let followers = members.catch_up();
        host.kick();
        for follower in followers {
            follower.kick();
        }
        Some(generation)
    }

    /// Changes the generation of one instance, and of all that follow it if it is the host's. `None`: it has
    /// ended meanwhile, and nothing changes any more.
    pub fn change(
        &self,
        instance: &Arc<Instance>,
        fresh: &Fresh,
        minimum: Generation,
        note: impl FnOnce(&mut Record),
    ) -> Option<Generation> {
        let is_host = {
            let members = self.members();
            members
                .host
                .as_ref()
                .is_some_and(|host| Arc::ptr_eq(host, instance))
        };
        if is_host {
            let mut note = Some(note);
            let changed = self.change_host(fresh, minimum, |record| {
                if let Some(note) = note.take() {
                    note(record);
                }
            });
            return changed;
        }
        let mut accounts = instance.accounts();
        if accounts.has_ended() {
            return None;
        }
        let generation = accounts.change(minimum, note);
        drop(accounts);
        instance.kick();
        Some(generation)
    }

    /// Has those that follow the host catch up with what a process before this one did not finish.
    pub fn catch_up(&self) {
        for follower in self.members().catch_up() {
            follower.kick();
        }
    }

    /// Stores how far the backends have looked, where that is no change.
    pub fn note(&self, positions: Positions) {
        if let Some(host) = &self.members().host {
            host.accounts().note(|record| record.positions = positions);
        }
    }

    /// Says in the pages of the host and of all that follow it that something notices restores.
    pub fn set_noticed(&self) {
        let members = self.members();
        for member in members.host.iter().chain(&members.followers) {
            member.accounts().set_noticed(true);
            member.kick();
        }
    }

    /// Says in the pages of the host and of all that follow it that nothing notices restores any more, in one
    /// store with a last change.
    pub fn lose_notice(&self, fresh: &Fresh) {
        let _ = fresh;
        let members = self.members();
        let all = || members.host.iter().chain(&members.followers);
        if all().all(|member| !member.accounts().is_noticed()) {
            return;
        }
        if let Some(host) = &members.host {
            host.accounts().change_unnoticed(|_| {});
            let epoch = host.accounts().registry().epoch();
            for follower in &members.followers {
                let follow = |record: &mut Record| record.parent_epoch = epoch;
                follower.accounts().change_unnoticed(follow);
            }
        }
        for member in all() {
            member.kick();
        }
    }
}

impl Members {
    /// Changes those whose host has changed since they followed it last, and returns them.
    fn catch_up(&self) -> Vec<&Arc<Instance>> {
        let Some(host) = &self.host else {
            return Vec::new();
        };
        let epoch = host.accounts().registry().epoch();
        self.followers
            .iter()
            .filter(|follower| {
                let mut accounts = follower.accounts();
                let followed = accounts.record().parent_epoch;
                // Also one that is ahead: the host's instance is a new one then, and whatever it was that ended
                // the old one was a change.
                let behind = followed != epoch;
                if behind {
                    accounts.change(Generation::START, |record| record.parent_epoch = epoch);
                }
                behind
            })
            .collect()
    }
}
