// SPDX-License-Identifier: MIT OR Apache-2.0

//! The operator's side.

use std::time::Instant;

use sysgenid::{Error, Generation, Orchestrator, Resumption, Settlement};
use sysgenid_fixture::{Machine, PATIENCE, QUIET, acknowledge, tracked};

#[test]
#[ignore = "needs a node"]
fn an_orchestrator_waits_for_all_and_tells_a_time_out_from_a_change() {
    let machine = Machine::new();
    let watchers = [tracked(), tracked()];
    let generation = machine.bump();
    let settle = |timeout| machine.orchestrator().settle(Some(timeout)).unwrap();
    let started = Instant::now();
    assert_eq!(settle(QUIET), Settlement::TimedOut { outdated: 2 });
    assert!(started.elapsed() >= QUIET);
    acknowledge(&watchers[0]);
    assert_eq!(settle(QUIET), Settlement::TimedOut { outdated: 1 });
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| settle(PATIENCE));
        // A change while somebody waits is waited for as well.
        let latest = machine.bump();
        assert_ne!(latest, generation);
        for watcher in &watchers {
            acknowledge(watcher);
        }
        assert_eq!(waiting.join().unwrap(), Settlement::Settled(latest));
    });
}

#[test]
#[ignore = "needs a node"]
fn a_restored_container_gets_a_generation_beyond_its_snapshot() {
    let machine = Machine::new();
    let orchestrator = machine.orchestrator();
    let current = orchestrator.generation().unwrap();
    let in_snapshot = Generation::new(current.get() + 7);
    let settlement = orchestrator
        .bump_and_settle(in_snapshot.next(), Some(PATIENCE))
        .unwrap();
    assert_eq!(settlement, Settlement::Settled(in_snapshot.next()));
    let next = orchestrator.bump_at_least(Generation::new(1)).unwrap();
    assert_eq!(next, in_snapshot.next().next());
}

#[test]
#[ignore = "needs a node"]
fn a_service_resumes_when_all_others_are_done_and_pauses_again_for_a_change_in_the_middle() {
    let machine = Machine::new();
    let (service, other) = (tracked(), tracked());
    machine.bump();
    let mut events = Vec::new();
    let resumed = std::cell::Cell::new(None);
    let end = Orchestrator::pause_and_resume(
        service.wait().unwrap(),
        Some(PATIENCE),
        |generation| {
            events.push(generation);
            match events.len() {
                // The service is restored once more while it rebuilds.
                1 => drop(machine.bump()),
                _ => drop(acknowledge(&other)),
            }
            Ok::<_, Error>(())
        },
        |generation| {
            resumed.set(Some(generation));
            Ok(())
        },
    )
    .unwrap();
    let latest = machine.orchestrator().generation().unwrap();
    assert!(
        matches!(end, Resumption::Resumed(generation) if generation == latest),
        "{end:?}"
    );
    assert_eq!(events.len(), 2);
    assert_eq!(resumed.get(), Some(latest));
}

#[test]
#[ignore = "needs a node"]
fn a_service_stays_paused_while_others_are_late_and_can_wait_on() {
    let machine = Machine::new();
    let (service, late) = (tracked(), tracked());
    machine.bump();
    let end = Orchestrator::pause_and_resume(
        service.wait().unwrap(),
        Some(QUIET),
        |_| Ok::<_, Error>(()),
        |_| panic!("it must not resume"),
    )
    .unwrap();
    let Resumption::TimedOut {
        outdated: 1,
        waiting,
    } = end
    else {
        panic!("{end:?}");
    };
    // It goes on as if it had waited all the time: here through one more change.
    let latest = machine.bump();
    let mut paused = Vec::new();
    let end = Orchestrator::resume(
        waiting,
        Some(PATIENCE),
        |generation| {
            paused.push(generation);
            acknowledge(&late);
            Ok::<_, Error>(())
        },
        |_| Ok(()),
    )
    .unwrap();
    assert_eq!(paused, [latest]);
    assert!(
        matches!(end, Resumption::Resumed(generation) if generation == latest),
        "{end:?}"
    );
}
