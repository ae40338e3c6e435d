// SPDX-License-Identifier: MIT OR Apache-2.0

//! The accounts are exact after any sequence of calls: the registry against a model that keeps a
//! list of watchers and counts by walking over it.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use sysgenid_core::{
    abi, Access, Epoch, Error, Generation, Node, Patience, Read, Registry, Wait, Wake, Watcher,
};

/// One call on one node.
#[derive(Clone, Copy, Debug)]
enum Call {
    Open {
        vmgenid: bool,
        writable: bool,
    },
    Close {
        which: usize,
    },
    /// Acknowledges the current generation, or tries to with a number at this distance from it.
    Write {
        which: usize,
        distance: u32,
    },
    /// Reads the generation, if there is something to read.
    Read {
        which: usize,
    },
    /// Writes what it read last, as a program does.
    WriteWhatWasRead {
        which: usize,
    },
    SetTracking {
        which: usize,
        tracked: bool,
    },
    Bump,
    Trigger {
        minimum: Minimum,
    },
    /// Two triggers, all around the circle, back to the current number.
    Circle,
}

/// The minimum of a trigger, where it matters.
#[derive(Clone, Copy, Debug)]
enum Minimum {
    Absolute(u64),
    /// At this distance from the current generation.
    Relative(i64),
}

fn call() -> impl Strategy<Value = Call> {
    let which = 0..8_usize;
    let minimum = prop_oneof![
        Just(Minimum::Absolute(0)),
        Just(Minimum::Absolute(u64::from(u32::MAX) - 1)),
        Just(Minimum::Absolute(u64::from(u32::MAX))),
        Just(Minimum::Absolute(u64::from(u32::MAX) + 1)),
        any::<u64>().prop_map(Minimum::Absolute),
        (-3..4_i64).prop_map(Minimum::Relative),
    ];
    prop_oneof![
        4 => (any::<bool>(), any::<bool>())
            .prop_map(|(vmgenid, writable)| Call::Open { vmgenid, writable }),
        2 => which.clone().prop_map(|which| Call::Close { which }),
        4 => (which.clone(), prop_oneof![4 => Just(0), 1 => any::<u32>()])
            .prop_map(|(which, distance)| Call::Write { which, distance }),
        3 => which.clone().prop_map(|which| Call::Read { which }),
        3 => which.clone().prop_map(|which| Call::WriteWhatWasRead { which }),
        2 => Just(Call::Circle),
        4 => (which, any::<bool>())
            .prop_map(|(which, tracked)| Call::SetTracking { which, tracked }),
        3 => Just(Call::Bump),
        3 => minimum.prop_map(|minimum| Call::Trigger { minimum }),
    ]
}

/// What the model knows of a watcher: not an epoch but a plain fact.
#[derive(Clone, Copy)]
struct Modelled {
    acknowledged: bool,
    acknowledged_number: u32,
    tracked: bool,
    writable: bool,
    /// How many changes there were when the first happened that it has missed since.
    missed: Option<u64>,
    /// What it read last, and how many changes there were then; until it has written that.
    read: Option<(u32, u64)>,
}

/// The model: everything is a list, every count is a walk, a change marks everybody.
struct Model {
    number: u32,
    changes: u64,
    watchers: Vec<Modelled>,
}

impl Model {
    fn outdated(&self) -> usize {
        self.watchers
            .iter()
            .filter(|watcher| watcher.tracked && !watcher.acknowledged)
            .count()
    }

    fn tracked(&self) -> usize {
        self.watchers
            .iter()
            .filter(|watcher| watcher.tracked)
            .count()
    }

    fn change_to(&mut self, number: u32) {
        self.number = number;
        self.changes += 1;
        for watcher in &mut self.watchers {
            watcher.acknowledged = false;
            watcher.missed.get_or_insert(self.changes);
        }
    }

    /// The smallest number that is at least the minimum, where there is one, and comes after the
    /// current one in the circle 1, 2, … `u32::MAX`, 1.
    fn next(&self, minimum: u32) -> u32 {
        let after = if self.number == u32::MAX {
            1
        } else {
            self.number + 1
        };
        if minimum <= after || minimum == self.number {
            after
        } else {
            minimum
        }
    }
}

/// The registry beside its model.
struct World {
    registry: Registry,
    watchers: Vec<Watcher>,
    model: Model,
}

impl World {
    /// A world at some generation, for the wrap is far away from 0.
    fn at(start: u32) -> Self {
        let mut registry = Registry::new();
        if start > 0 {
            let _ = registry.trigger(true, u64::from(start)).unwrap();
        }
        let model = Model {
            number: registry.generation().get(),
            changes: registry.epoch().get(),
            watchers: Vec::new(),
        };
        World {
            registry,
            watchers: Vec::new(),
            model,
        }
    }

    /// Makes a call in both and compares the answers.
    fn make(&mut self, call: Call) {
        let before = self.model.outdated();
        let count = self.watchers.len();
        match call {
            Call::Open { vmgenid, writable } => {
                let node = if vmgenid {
                    Node::Vmgenid
                } else {
                    Node::Sysgenid
                };
                let access = if writable {
                    Access::ReadWrite
                } else {
                    Access::ReadOnly
                };
                self.watchers.push(self.registry.open(node, access));
                self.model.watchers.push(Modelled {
                    acknowledged: true,
                    acknowledged_number: self.model.number,
                    tracked: vmgenid && writable,
                    writable,
                    missed: None,
                    read: None,
                });
            }
            Call::Bump => {
                let expected = self.model.next(0);
                self.model.change_to(expected);
                assert_eq!(self.registry.bump().generation, Generation::new(expected));
            }
            Call::Trigger { minimum } => {
                let minimum = match minimum {
                    Minimum::Absolute(minimum) => minimum,
                    Minimum::Relative(distance) => {
                        u64::from(self.model.number).saturating_add_signed(distance)
                    }
                };
                assert_eq!(
                    self.registry.trigger(false, minimum),
                    Err(Error::NotCapable)
                );
                let answer = self.registry.trigger(true, minimum);
                match u32::try_from(minimum) {
                    Err(_) => assert_eq!(answer, Err(Error::Invalid)),
                    Ok(minimum) => {
                        let expected = self.model.next(minimum);
                        self.model.change_to(expected);
                        assert_eq!(answer.unwrap().generation, Generation::new(expected));
                    }
                }
            }
            Call::Close { which } if which < count => {
                self.model.watchers.remove(which);
                let wake = self.registry.close(&mut self.watchers.remove(which));
                self.compare_wake(before, wake);
            }
            Call::Write { which, distance } if which < count => {
                self.write(which, self.model.number.wrapping_add(distance));
            }
            Call::WriteWhatWasRead { which } if which < count => {
                if let Some((number, _)) = self.model.watchers[which].read {
                    self.write(which, number);
                }
            }
            Call::Read { which } if which < count => {
                let answer = self
                    .registry
                    .read(&mut self.watchers[which], 4, Patience::None);
                let watcher = &mut self.model.watchers[which];
                if watcher.acknowledged {
                    assert_eq!(answer, Err(Error::WouldBlock));
                } else {
                    watcher.read = Some((self.model.number, self.model.changes));
                    let generation = Generation::new(self.model.number);
                    assert_eq!(answer, Ok(Read::Generation(generation)));
                }
            }
            Call::Circle if self.model.number > 1 => {
                for number in [u32::MAX, self.model.number] {
                    // A minimum of the last number at the last number is the first.
                    let expected = self.model.next(number);
                    self.model.change_to(expected);
                    let change = self.registry.trigger(true, u64::from(number)).unwrap();
                    assert_eq!(change.generation, Generation::new(expected));
                }
            }
            Call::SetTracking { which, tracked } if which < count => {
                let answer = self
                    .registry
                    .set_tracking(&mut self.watchers[which], tracked);
                let watcher = &mut self.model.watchers[which];
                if tracked && !watcher.writable {
                    assert_eq!(answer, Err(Error::NotWritable));
                } else {
                    watcher.tracked = tracked;
                    self.compare_wake(before, answer.unwrap());
                }
            }
            Call::Close { .. }
            | Call::Write { .. }
            | Call::WriteWhatWasRead { .. }
            | Call::Read { .. }
            | Call::Circle
            | Call::SetTracking { .. } => {}
        }
        self.compare();
        self.compare_with_successor();
    }

    /// Writes a number. It counts if it is the current one, unless the watcher was told it before a
    /// change that it has not been told of.
    fn write(&mut self, which: usize, number: u32) {
        let before = self.model.outdated();
        let answer = self
            .registry
            .write(&mut self.watchers[which], &number.to_ne_bytes());
        if number != self.model.number {
            assert_eq!(answer, Err(Error::Invalid));
            return;
        }
        let watcher = &mut self.model.watchers[which];
        let missed_since = |(told, changes)| told == number && changes != self.model.changes;
        if watcher.read.take().is_some_and(missed_since) {
            assert_eq!(answer, Err(Error::Invalid));
            return;
        }
        watcher.acknowledged = true;
        watcher.acknowledged_number = number;
        watcher.missed = None;
        self.compare_wake(before, answer.unwrap());
    }

    /// A front end that stops at any point, and goes on from what it kept, goes on with the same
    /// accounts and the same watchers.
    fn compare_with_successor(&self) {
        let mut successor = Registry::resume(self.registry.generation(), self.registry.epoch());
        for watcher in &self.watchers {
            assert_eq!(&successor.adopt(watcher.record()), watcher);
        }
        assert_eq!(successor, self.registry);
    }

    /// Waiters are woken exactly when the last outdated watcher has gone.
    fn compare_wake(&self, before: usize, wake: Wake) {
        let settled = before > 0 && self.model.outdated() == 0;
        assert_eq!(wake, if settled { Wake::Waiters } else { Wake::Nobody });
    }

    /// Every account and every answer is the model's.
    fn compare(&self) {
        let outdated = self.model.outdated();
        assert_eq!(
            self.registry.generation(),
            Generation::new(self.model.number)
        );
        assert_eq!(self.registry.outdated_watchers(), outdated);
        assert_eq!(self.registry.tracked_watchers(), self.model.tracked());
        for (watcher, modelled) in self.watchers.iter().zip(&self.model.watchers) {
            let current = modelled.acknowledged;
            assert_eq!(watcher.is_tracked(), modelled.tracked);
            assert_eq!(watcher.acknowledged().get(), modelled.acknowledged_number);
            assert_eq!(self.registry.is_outdated(watcher), !current);
            let events = if current {
                abi::POLL_WRITABLE
            } else {
                abi::POLL_WRITABLE | abi::POLL_READABLE
            };
            assert_eq!(self.registry.poll(watcher), events);
            let missed = watcher.record().first_missed(self.registry.epoch());
            assert_eq!(missed.map(Epoch::get), modelled.missed);

            // By a copy, so that these looks are none that the watcher remembers.
            let read =
                |length, patience| self.registry.read(&mut watcher.clone(), length, patience);
            assert_eq!(read(0, Patience::None), Ok(Read::Empty));
            assert_eq!(read(3, Patience::Sleep), Err(Error::Invalid));
            let generation = Ok(Read::Generation(self.registry.generation()));
            let or = |answer| if current { answer } else { generation };
            assert_eq!(read(4, Patience::None), or(Err(Error::WouldBlock)));
            assert_eq!(read(4, Patience::Sleep), or(Ok(Read::Sleep)));
            assert_eq!(read(9, Patience::Signal), or(Err(Error::Restart)));

            let wait = |patience| self.registry.wait(watcher, patience);
            let or = |answer| match (current, outdated) {
                (false, _) => Err(Error::Interrupted),
                (true, 0) => Ok(Wait::Settled),
                (true, _) => answer,
            };
            assert_eq!(wait(Patience::Sleep), or(Ok(Wait::Sleep)));
            assert_eq!(wait(Patience::TimeOut), or(Err(Error::TimedOut)));
            assert_eq!(wait(Patience::Signal), or(Err(Error::Interrupted)));
        }
    }
}

fn start() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), (u32::MAX - 6)..=u32::MAX, any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/accounts.proptest-regressions",
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn outdated_is_the_number_of_tracked_watchers_that_have_not_acknowledged(
        start in start(),
        calls in prop::collection::vec(call(), 1..120),
    ) {
        let mut world = World::at(start);
        for call in calls {
            world.make(call);
        }
    }

    #[test]
    fn no_wrap_or_jump_makes_a_stale_watcher_look_current(
        start in start(),
        minimums in prop::collection::vec(any::<u32>(), 1..40),
    ) {
        let mut registry = Registry::new();
        let _ = registry.trigger(true, u64::from(start)).unwrap();
        let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
        let seen = registry.generation();
        for minimum in minimums {
            let _ = registry.trigger(true, u64::from(minimum)).unwrap();
            // Then on to the very number that the watcher acknowledged, all around the circle.
            let again = u64::from(seen.get()).saturating_sub(1);
            let _ = registry.trigger(true, u64::from(u32::MAX)).unwrap();
            let _ = registry.trigger(true, again).unwrap();
            prop_assert!(registry.is_outdated(&watcher));
            prop_assert!(registry.poll(&watcher) & abi::POLL_READABLE != 0);
            prop_assert_eq!(registry.outdated_watchers(), 1);
        }
        let _ = registry.close(&mut watcher);
        prop_assert_eq!(registry.outdated_watchers(), 0);
    }
}

#[test]
fn the_very_same_number_after_a_full_circle_is_still_a_change() {
    let mut registry = Registry::new();
    let _ = registry.trigger(true, 5).unwrap();
    let watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.trigger(true, u64::from(u32::MAX)).unwrap();
    let _ = registry.trigger(true, 5).unwrap();
    assert_eq!(registry.generation(), watcher.acknowledged());
    assert!(registry.is_outdated(&watcher));
}

#[test]
fn closing_twice_is_harmless() {
    let mut registry = Registry::new();
    let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.bump();
    assert_eq!(registry.close(&mut watcher), Wake::Waiters);
    assert_eq!(registry.close(&mut watcher), Wake::Nobody);
    assert_eq!(registry.tracked_watchers(), 0);
}

#[test]
fn a_write_of_the_wrong_size_changes_nothing() {
    let mut registry = Registry::new();
    let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.bump();
    for bytes in [&[][..], &[1, 0, 0], &[1, 0, 0, 0, 0]] {
        assert_eq!(registry.write(&mut watcher, bytes), Err(Error::Invalid));
    }
    assert_eq!(registry.outdated_watchers(), 1);
}

/// A registry in which a watcher has read a number, and missed changes that led back to it.
fn read_before_a_circle() -> (Registry, Watcher, u32) {
    let number = 5;
    let mut registry = Registry::new();
    let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.trigger(true, u64::from(number)).unwrap();
    let told = Ok(Read::Generation(Generation::new(number)));
    assert_eq!(registry.read(&mut watcher, 4, Patience::None), told);
    let _ = registry.trigger(true, u64::from(u32::MAX)).unwrap();
    let _ = registry.trigger(true, u64::from(number)).unwrap();
    assert_eq!(registry.generation(), Generation::new(number));
    (registry, watcher, number)
}

#[test]
fn a_number_that_was_read_before_a_circle_is_refused_once() {
    let (mut registry, mut watcher, number) = read_before_a_circle();
    let stale = registry.write(&mut watcher, &number.to_ne_bytes());
    assert_eq!(stale, Err(Error::Invalid));
    assert!(registry.is_outdated(&watcher));
    assert_eq!(registry.outdated_watchers(), 1);
    // The program has been told that what it knew is old. What it writes now it has looked up again.
    let again = registry.write(&mut watcher, &number.to_ne_bytes());
    assert_eq!(again, Ok(Wake::Waiters));
    assert!(!registry.is_outdated(&watcher));
}

#[test]
fn a_number_that_was_read_again_after_a_circle_counts() {
    let (mut registry, mut watcher, number) = read_before_a_circle();
    let told = Ok(Read::Generation(Generation::new(number)));
    assert_eq!(registry.read(&mut watcher, 4, Patience::None), told);
    let answer = registry.write(&mut watcher, &number.to_ne_bytes());
    assert_eq!(answer, Ok(Wake::Waiters));
}

#[test]
fn a_refused_number_leaves_what_was_read_as_it_is() {
    let (mut registry, mut watcher, number) = read_before_a_circle();
    for wrong in [number + 1, number - 1, 0, u32::MAX] {
        let answer = registry.write(&mut watcher, &wrong.to_ne_bytes());
        assert_eq!(answer, Err(Error::Invalid));
    }
    assert_eq!(registry.write(&mut watcher, &[]), Err(Error::Invalid));
    let stale = registry.write(&mut watcher, &number.to_ne_bytes());
    assert_eq!(stale, Err(Error::Invalid));
}

#[test]
fn a_number_that_was_never_read_counts_even_after_a_circle() {
    let mut registry = Registry::new();
    let _ = registry.trigger(true, 5).unwrap();
    let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.trigger(true, u64::from(u32::MAX)).unwrap();
    let _ = registry.trigger(true, 5).unwrap();
    // It has it from the page.
    let answer = registry.write(&mut watcher, &5_u32.to_ne_bytes());
    assert_eq!(answer, Ok(Wake::Waiters));
}

#[test]
fn a_number_learnt_elsewhere_counts_after_an_old_read_of_another() {
    let mut registry = Registry::new();
    let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
    let _ = registry.bump();
    let told = Ok(Read::Generation(Generation::new(1)));
    assert_eq!(registry.read(&mut watcher, 4, Patience::None), told);
    let _ = registry.bump();
    let answer = registry.write(&mut watcher, &2_u32.to_ne_bytes());
    assert_eq!(answer, Ok(Wake::Waiters));
}

#[test]
fn nobody_waits_for_a_watcher_that_cannot_write() {
    for node in [Node::Vmgenid, Node::Sysgenid] {
        let mut registry = Registry::new();
        let watcher = registry.open(node, Access::ReadOnly);
        assert!(!watcher.is_tracked());
        let _ = registry.bump();
        assert!(registry.is_outdated(&watcher));
        assert_eq!(registry.outdated_watchers(), 0);
    }
}
