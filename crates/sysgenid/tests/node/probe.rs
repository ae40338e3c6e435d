// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looking, and what is built on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sysgenid::{Guarded, Probe};
use sysgenid_fixture::Machine;

#[test]
#[ignore = "needs a node"]
fn a_probe_sees_a_change_at_once_and_is_never_waited_for() {
    let machine = Machine::new();
    let probe = Probe::open().unwrap();
    assert!(probe.is_live() && probe.can_change() && probe.path().is_some());
    for _ in 0..10 {
        let stamp = probe.stamp();
        assert!(!probe.has_changed(&stamp));
        let generation = machine.bump();
        assert!(probe.has_changed(&stamp));
        let stamp = probe.stamp_for_rebuild(&stamp);
        assert_eq!(stamp.generation(), generation);
        assert_eq!(probe.generation(), generation);
        machine.assert_settled();
    }
}

#[test]
#[ignore = "needs a node"]
fn a_guarded_value_is_rebuilt_once_a_change_by_whoever_comes_first() {
    const THREADS: u32 = 4;
    let machine = Machine::new();
    let made = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&made);
    let guarded = Guarded::new(Probe::open().unwrap(), move |generation| {
        counter.fetch_add(1, Ordering::Relaxed);
        generation
    });
    for round in 1..=20 {
        let generation = machine.bump();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| assert_eq!(*guarded.get(), generation));
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), round);
    }
}
