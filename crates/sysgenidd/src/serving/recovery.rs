// SPDX-License-Identifier: MIT OR Apache-2.0

//! Going on where a process before this one stopped, at whatever point that was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock;
use crate::judging::process;
use crate::keeping::state::Mapping;
use crate::protocol::{Buffer, Operation, Received, Request};
use crate::serving::renewal::Renewals;
use crate::serving::report;

use super::instance::Instance;

/// For how long a watcher in doubt is looked after, in nanoseconds, and how often.
const DOUBT: u64 = 200_000_000;

const DOUBT_STEP: u64 = 20_000_000;

impl Instance {
    /// Carries out what the process before this one left undone, and tells everybody what it may not
    /// have told them.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn recover(
        &mut self,
        buffer: &mut Buffer,
        renewals: &Renewals,
        backends: &[report::Backend],
    ) -> anyhow::Result<()> {
        // A change may have been committed, and nothing after it done.
        self.page
            .first_u32()
            .store(self.record.generation.get(), Ordering::Release);
        self.connection.ask_again()?;
        // What comes again does not come in its order, but before everything new.
        let mut requests = BTreeMap::new();
        let mut others = Vec::new();
        let mut openers = BTreeSet::new();
        let connection = Arc::clone(&self.connection);
        while let Received::Request(request) = connection.receive(buffer)? {
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
        self.reopened = self
            .slots()
            .filter(|slot| openers.contains(&slot.opened_by))
            .map(|slot| (slot.opened_by, slot.handle))
            .collect();
        if let Some(handle) = self.state.opening() {
            let slot = self.state.get(handle);
            if slot.is_some_and(|slot| !openers.contains(&slot.opened_by)) {
                let now = clock::now();
                self.doubt = Some((handle, now + DOUBT, now));
            }
            self.state.set_opening(None);
        }
        tracing::debug!(
            instance = self.settings.name,
            requests = requests.len(),
            "took over"
        );
        if self.state.mapping() == Mapping::Store {
            self.renew(renewals);
        }
        for bytes in requests.values().chain(&others) {
            if let Ok(request) = Request::parse(bytes) {
                self.handle(&request, renewals, backends);
            }
        }
        if !self.is_renewing() {
            self.notify_pollers();
        }
        Ok(())
    }

    /// Whether the opener of a watcher ever heard of it is unclear only if the daemon died between the
    /// answer and its next instruction, or the opener was killed before its request came again. In the
    /// latter case it is about to be gone.
    pub(super) fn settle_doubt(&mut self, now: u64) {
        let Some((handle, until, _)) = self.doubt.take() else {
            return;
        };
        let Some(slot) = self.state.get(handle) else {
            return;
        };
        if slot.opener.pid != 0 && process::is_gone(slot.opener.pid) {
            self.close(handle);
        } else if now < until {
            self.doubt = Some((handle, until, now + DOUBT_STEP));
        }
    }
}
