// SPDX-License-Identifier: MIT OR Apache-2.0

//! Going on where a process before this one stopped, at whatever point that was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustix::io::Errno;

use crate::clock;
use crate::judging::process;
use crate::keeping::state::Handle;
use crate::protocol::{Buffer, Connection, Operation, Received, Request, Unique};

use super::server::Server;

/// For how long a watcher in doubt is looked after, in nanoseconds, and how often.
const DOUBT: u64 = 200_000_000;

const DOUBT_STEP: u64 = 20_000_000;

/// What a process before this one has left open.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The watchers that it opened and whose openers ask again, by the request.
    reopened: HashMap<u64, Handle>,
    /// A watcher whose opener may never have heard of it.
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    handle: Handle,
    until: u64,
    next: u64,
}

impl Recovery {
    /// The watcher that this request opened already.
    pub(super) fn reopened(&mut self, request: Unique) -> Option<Handle> {
        self.reopened.remove(&request.identity())
    }

    pub(super) fn next_look(&self) -> Option<u64> {
        self.doubt.map(|doubt| doubt.next)
    }
}

impl Server {
    /// Carries out what the process before this one left undone, and tells everybody what it may not
    /// have told them.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        let mut buffer = Buffer::default();
        self.connection.ask_again()?;
        // What comes again does not come in its order, but before everything new.
        let mut requests = BTreeMap::new();
        let mut others = Vec::new();
        let mut openers = BTreeSet::new();
        let connection = Arc::clone(&self.connection);
        while let Received::Request(request) = connection.receive(&mut buffer)? {
            match request.operation {
                Operation::Interrupt { .. } | Operation::Forget => {
                    others.push(request.bytes.to_vec());
                }
                operation => {
                    if matches!(operation, Operation::Open { .. }) {
                        openers.insert(request.unique.identity());
                    }
                    let is_last = !request.unique.is_resent();
                    requests.insert(request.unique.identity(), request.bytes.to_vec());
                    if is_last {
                        break;
                    }
                }
            }
        }
        self.look_for_openers(&openers);
        tracing::debug!(
            instance = self.instance.name(),
            requests = requests.len(),
            "took over"
        );
        self.sharing.renew(&self.connection);
        // Before a trigger that had been carried out is answered.
        self.tell_everybody();
        for bytes in requests.values().chain(&others) {
            if let Ok(request) = Request::parse(bytes) {
                self.handle(&request);
            }
        }
        Ok(())
    }

    fn look_for_openers(&mut self, openers: &BTreeSet<u64>) {
        let accounts = self.instance.accounts();
        let state = accounts.state();
        self.recovery.reopened = (0..accounts.slots())
            .filter_map(|index| state.at(index))
            .filter(|slot| openers.contains(&slot.opened_by))
            .map(|slot| (slot.opened_by, slot.handle))
            .collect();
        if let Some(handle) = state.opening() {
            let slot = state.get(handle);
            if slot.is_some_and(|slot| !openers.contains(&slot.opened_by)) {
                let now = clock::now();
                self.recovery.doubt = Some(Doubt {
                    handle,
                    until: now + DOUBT,
                    next: now,
                });
            }
            state.set_opening(None);
        }
    }

    /// Whether the opener of a watcher ever heard of it is unclear only if the daemon died between the
    /// answer and its next instruction, or the opener was killed before its request came again. In the
    /// latter case it is about to be gone.
    pub(super) fn settle_doubt(&mut self, now: u64) {
        let Some(doubt) = self.recovery.doubt.filter(|doubt| doubt.next <= now) else {
            return;
        };
        self.recovery.doubt = None;
        let slot = self.instance.accounts().state().get(doubt.handle);
        let Some(slot) = slot else {
            return;
        };
        if slot.opener.pid != 0 && process::is_gone(slot.opener.pid) {
            self.close(doubt.handle);
        } else if now < doubt.until {
            self.recovery.doubt = Some(Doubt {
                next: now + DOUBT_STEP,
                ..doubt
            });
        }
    }
}

/// Ends what a process before this one left, of which nothing can be taken over: whoever sleeps gets an error,
/// and so does everybody who comes later, once it is unmounted.
pub fn refuse_all(connection: &Connection) {
    let mut buffer = Buffer::default();
    if connection.ask_again().is_err() {
        return;
    }
    while let Ok(Received::Request(request)) = connection.receive(&mut buffer) {
        match request.operation {
            Operation::Interrupt { .. } | Operation::Forget => {}
            _ => connection.refuse(request.unique, Errno::NODEV),
        }
    }
}
