// SPDX-License-Identifier: MIT OR Apache-2.0

//! TLS session tickets that belong to one generation.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;
use sysgenid::{Guarded, Probe};

/// How long a ticket is good for, in seconds: what [`Ticketer`] says of its own, which cannot be asked for without
/// making one.
const LIFETIME: u32 = 12 * 60 * 60;

/// The ticketer of rustls, with new keys for each generation.
///
/// Whoever has a ticket key can open every ticket that was made with it, pose as the server to the client that holds
/// one, and with TLS 1.2 read what was said over the connections that they are of. So no two clones may have the same
/// key, and a ticket that was issued before a restore is worth nothing after it: its client does a full handshake, and
/// notices nothing else.
#[derive(Debug)]
pub struct GuardedTicketer(Guarded<Arc<dyn ProducesTickets>, rustls::Error>);

impl GuardedTicketer {
    /// A ticketer that asks this probe. The first keys are drawn with the first ticket.
    pub fn new(probe: Probe) -> Self {
        Self::of(probe, Ticketer::new)
    }

    fn of(
        probe: Probe,
        make: impl Fn() -> Result<Arc<dyn ProducesTickets>, rustls::Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Guarded::fallible(probe, move |_generation| make()))
    }
}

impl ProducesTickets for GuardedTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    /// Nothing if the machine was restored meanwhile, instead of another attempt: the session that the ticket is for
    /// was there before, so each clone has it. Nothing also where there is no randomness for new keys; the connection
    /// goes on without a ticket.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ticketer = self.0.try_get().ok()?;
        let ticket = ticketer.encrypt(plain)?;
        ticketer.is_current().then_some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let ticketer = self.0.try_get().ok()?;
        let plain = ticketer.decrypt(ticket)?;
        ticketer.is_current().then_some(plain)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use sysgenid::testing::SimulatedMachine;

    use super::*;

    #[test]
    fn a_ticket_is_good_in_the_generation_that_it_was_issued_in_and_in_no_other() {
        let machine = SimulatedMachine::new();
        let ticketer = GuardedTicketer::new(machine.probe());
        let old = ticketer.encrypt(b"session").unwrap();
        assert_eq!(ticketer.decrypt(&old).unwrap(), b"session");
        machine.restore();
        assert_eq!(ticketer.decrypt(&old), None);
        let new = ticketer.encrypt(b"session").unwrap();
        assert_eq!(ticketer.decrypt(&new).unwrap(), b"session");
        assert_eq!(ticketer.decrypt(&old), None);
    }

    /// A ticketer in the middle of whose work the machine is restored.
    #[derive(Debug)]
    struct Slow(Arc<SimulatedMachine>);

    impl ProducesTickets for Slow {
        fn enabled(&self) -> bool {
            true
        }

        fn lifetime(&self) -> u32 {
            LIFETIME
        }

        fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
            self.0.restore();
            Some(plain.to_vec())
        }

        fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
            self.encrypt(ticket)
        }
    }

    #[test]
    fn what_a_restore_came_into_is_not_given_away() {
        let machine = Arc::new(SimulatedMachine::new());
        let slow = Arc::new(Slow(Arc::clone(&machine)));
        let ticketer = GuardedTicketer::of(machine.probe(), move || Ok(slow.clone()));
        assert_eq!(ticketer.encrypt(b"session"), None);
        assert_eq!(ticketer.decrypt(b"ticket"), None);
    }

    #[test]
    fn without_new_keys_there_are_no_tickets_and_no_old_ones_either() {
        let machine = SimulatedMachine::new();
        let attempts = AtomicU32::new(0);
        let ticketer = GuardedTicketer::of(machine.probe(), move || {
            match attempts.fetch_add(1, Ordering::Relaxed) {
                1 | 2 => Err(rustls::Error::FailedToGetRandomBytes),
                _ => Ticketer::new(),
            }
        });
        let old = ticketer.encrypt(b"session").unwrap();
        machine.restore();
        assert_eq!(ticketer.decrypt(&old), None);
        assert_eq!(ticketer.encrypt(b"session"), None);
        assert!(ticketer.encrypt(b"session").is_some());
    }

    #[test]
    fn a_ticket_of_one_clone_is_not_good_in_another() {
        let (one, other) = (SimulatedMachine::new(), SimulatedMachine::new());
        let of_one = GuardedTicketer::new(one.probe());
        let of_other = GuardedTicketer::new(other.probe());
        one.restore();
        other.restore();
        let ticket = of_one.encrypt(b"session").unwrap();
        assert_eq!(of_other.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_is_said_to_be_good_for_as_long_as_it_is() {
        let own = Ticketer::new().unwrap().lifetime();
        assert_eq!(
            GuardedTicketer::new(Probe::never()).lifetime(),
            own,
            "rustls has changed it"
        );
    }
}
