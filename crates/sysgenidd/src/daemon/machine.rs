// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the noticing thread does to the machine: its changes go to the host's instance and all that follow
//! it, and the main thread hears whether anything notices at all.

use std::sync::Arc;

use sysgenid_core::Generation;

use crate::noticing::reseed::{self, Fresh};
use crate::noticing::{Cause, Machine, Positions};
use crate::serving::family::Family;

use super::events::{Event, Sender};

/// The machine's own generation, for those who notice.
#[derive(Debug)]
pub(super) struct OwnMachine {
    pub(super) family: Arc<Family>,
    pub(super) events: Sender,
}

impl Machine for OwnMachine {
    fn change(&self, fresh: Fresh, cause: Cause, positions: Positions) {
        let generation = self
            .family
            .change_host(&fresh, Generation::START, |record| {
                record.positions = positions;
            });
        if let Some(generation) = generation {
            tracing::debug!(%generation, "{cause}");
        }
    }

    fn note(&self, positions: Positions) {
        self.family.note(positions);
    }

    fn set_noticed(&self, noticed: bool) {
        if noticed {
            self.family.set_noticed();
        } else {
            // From now on nobody sees to those who rely on being told: a last change.
            self.family.lose_notice(&reseed::reseed_for_trigger());
        }
        self.events.send(Event::Noticed(noticed));
    }
}
