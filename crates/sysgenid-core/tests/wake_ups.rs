// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every interleaving of a small world: three watchers, two of which also wait for all, a machine
//! that is restored again and again, and closes at any moment.
//!
//! Each thread does what a front end does, in the same steps: change the accounts under the lock,
//! release it, then wake; or queue, look under the lock, and only then sleep. The explorer visits
//! every state that any order of these steps can reach and checks in each:
//!
//! - nobody sleeps who has reason to be awake, unless a wake-up for them is still on its way;
//! - a read or a wait returned exactly what an independent count of the watchers allows.

use stateright::{Checker, Model, Property};
use sysgenid_core::{Access, Error, Node, Patience, Read, Registry, Wait, Wake, Watcher};

const WATCHERS: usize = 3;
/// How often the machine is restored.
const BUMPS: u8 = 3;

/// Where a watcher's thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Thread {
    /// It does nothing in particular and may do anything.
    Idle,
    /// It is queued and about to look at the accounts.
    Looking(Sleep),
    /// It found nothing and sleeps; nobody has woken it yet.
    Asleep(Sleep),
    /// It died or closed.
    Gone,
}

/// What a thread sleeps in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sleep {
    Reading,
    Waiting,
}

/// Wake-ups that somebody owes: the lock is released, the queue not yet woken. One that is owed twice
/// counts once, which can only hide a wake-up too many, never one too few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Owed {
    readers: bool,
    waiters: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    registry: Registry,
    watchers: [Watcher; WATCHERS],
    threads: [Thread; WATCHERS],
    owed: Owed,
    bumps_left: u8,
    /// Whether some call returned, or went to sleep, when it should not have.
    unjustified: bool,
    /// The facts, kept apart from the registry: who is tracked, and who has acknowledged.
    tracked: [bool; WATCHERS],
    acknowledged: [bool; WATCHERS],
}

impl State {
    fn outdated(&self) -> usize {
        (0..WATCHERS)
            .filter(|&who| self.tracked[who] && !self.acknowledged[who])
            .count()
    }

    /// Whether a sleeper has reason to be awake.
    fn has_reason(&self, who: usize, sleep: Sleep) -> bool {
        match sleep {
            Sleep::Reading => !self.acknowledged[who],
            Sleep::Waiting => !self.acknowledged[who] || self.outdated() == 0,
        }
    }

    /// Wakes a queue: whoever sleeps in it looks again.
    fn wake(&mut self, queue: Sleep) {
        for thread in &mut self.threads {
            if *thread == Thread::Asleep(queue) {
                *thread = Thread::Looking(queue);
            }
        }
    }

    fn owe(&mut self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Waiters => self.owed.waiters = true,
        }
    }
}

/// One step of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The machine is restored; the wake-ups come later.
    Bump,
    WakeReaders,
    WakeWaiters,
    /// A thread calls `read` or waits: it queues.
    Call(usize, Sleep),
    /// It looks, and sleeps or returns.
    Look(usize),
    /// The time-out of a wait passes.
    TimeOut(usize),
    /// A signal comes.
    Signal(usize),
    Acknowledge(usize),
    SetTracking(usize, bool),
    /// The program dies, wherever it is.
    Close(usize),
}

struct World;

impl World {
    /// Asks the registry on behalf of a thread, and judges the answer by the facts.
    fn look(state: &mut State, who: usize, sleep: Sleep, patience: Patience) {
        let stale = !state.acknowledged[who];
        let settled = state.outdated() == 0;
        let watcher = &mut state.watchers[who];
        let sleeps = patience == Patience::Sleep;
        let (justified, goes_on) = match sleep {
            Sleep::Reading => match state.registry.read(watcher, 4, patience) {
                Ok(Read::Generation(_)) => (stale, false),
                Ok(Read::Sleep) => (!stale && sleeps, true),
                Err(Error::Restart) => (!stale && patience == Patience::Signal, false),
                _ => (false, false),
            },
            Sleep::Waiting => match state.registry.wait(watcher, patience) {
                Ok(Wait::Settled) => (settled && !stale, false),
                Ok(Wait::Sleep) => (!settled && !stale && sleeps, true),
                Err(Error::Interrupted) => {
                    (stale || (!settled && patience == Patience::Signal), false)
                }
                Err(Error::TimedOut) => {
                    (!stale && !settled && patience == Patience::TimeOut, false)
                }
                _ => (false, false),
            },
        };
        state.unjustified |= !justified;
        state.threads[who] = if goes_on {
            Thread::Asleep(sleep)
        } else {
            Thread::Idle
        };
    }
}

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut registry = Registry::new();
        // The first is tracked from the start, the others are not until they ask.
        let nodes = [Node::Vmgenid, Node::Sysgenid, Node::Sysgenid];
        let watchers = nodes.map(|node| registry.open(node, Access::ReadWrite));
        vec![State {
            registry,
            watchers,
            threads: [Thread::Idle; WATCHERS],
            owed: Owed::default(),
            bumps_left: BUMPS,
            unjustified: false,
            tracked: [true, false, false],
            acknowledged: [true; WATCHERS],
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.bumps_left > 0 {
            steps.push(Step::Bump);
        }
        if state.owed.readers {
            steps.push(Step::WakeReaders);
        }
        if state.owed.waiters {
            steps.push(Step::WakeWaiters);
        }
        for who in 0..WATCHERS {
            match state.threads[who] {
                Thread::Idle => {
                    steps.push(Step::Call(who, Sleep::Reading));
                    // Two of the three ever wait for all.
                    if who > 0 {
                        steps.push(Step::Call(who, Sleep::Waiting));
                    }
                    steps.push(Step::Acknowledge(who));
                    steps.push(Step::SetTracking(who, !state.tracked[who]));
                    steps.push(Step::Close(who));
                }
                Thread::Looking(_) => {
                    steps.push(Step::Look(who));
                    steps.push(Step::Close(who));
                }
                Thread::Asleep(sleep) => {
                    steps.push(Step::Signal(who));
                    if sleep == Sleep::Waiting {
                        steps.push(Step::TimeOut(who));
                    }
                    // Another thread of the same program acknowledges on the same description.
                    steps.push(Step::Acknowledge(who));
                    steps.push(Step::Close(who));
                }
                Thread::Gone => {}
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Bump => {
                let _ = state.registry.bump();
                state.bumps_left -= 1;
                state.acknowledged = [false; WATCHERS];
                state.owed.readers = true;
                state.owed.waiters = true;
            }
            Step::WakeReaders => {
                state.owed.readers = false;
                state.wake(Sleep::Reading);
            }
            Step::WakeWaiters => {
                state.owed.waiters = false;
                state.wake(Sleep::Waiting);
            }
            Step::Call(who, sleep) => state.threads[who] = Thread::Looking(sleep),
            Step::Look(who) => {
                let Thread::Looking(sleep) = state.threads[who] else {
                    return None;
                };
                World::look(&mut state, who, sleep, Patience::Sleep);
            }
            Step::TimeOut(who) | Step::Signal(who) => {
                let Thread::Asleep(sleep) = state.threads[who] else {
                    return None;
                };
                let patience = match step {
                    Step::Signal(_) => Patience::Signal,
                    _ => Patience::TimeOut,
                };
                World::look(&mut state, who, sleep, patience);
            }
            Step::Acknowledge(who) => {
                let current = state.registry.generation().to_ne_bytes();
                let wake = state
                    .registry
                    .write(&mut state.watchers[who], &current)
                    .ok()?;
                state.acknowledged[who] = true;
                state.owe(wake);
            }
            Step::SetTracking(who, tracked) => {
                let wake = state
                    .registry
                    .set_tracking(&mut state.watchers[who], tracked)
                    .ok()?;
                state.tracked[who] = tracked;
                state.owe(wake);
            }
            Step::Close(who) => {
                let wake = state.registry.close(&mut state.watchers[who]);
                state.tracked[who] = false;
                state.threads[who] = Thread::Gone;
                state.owe(wake);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no sleeper misses its wake-up", |_, state: &State| {
                (0..WATCHERS).all(|who| match state.threads[who] {
                    Thread::Asleep(sleep) => {
                        let owed = match sleep {
                            Sleep::Reading => state.owed.readers,
                            Sleep::Waiting => state.owed.waiters,
                        };
                        !state.has_reason(who, sleep) || owed
                    }
                    _ => true,
                })
            }),
            Property::always("a call returns exactly when it may", |_, state: &State| {
                !state.unjustified
            }),
            Property::always("the accounts are exact", |_, state: &State| {
                state.registry.outdated_watchers() == state.outdated()
            }),
            // The explorer really gets to where something could go wrong.
            Property::sometimes("two wait while one reads", |_, state: &State| {
                state.threads[0] == Thread::Asleep(Sleep::Reading)
                    && state.threads[1] == Thread::Asleep(Sleep::Waiting)
                    && state.threads[2] == Thread::Asleep(Sleep::Waiting)
            }),
            Property::sometimes(
                "somebody dies while others wait for it",
                |_, state: &State| {
                    state.threads[0] == Thread::Gone
                        && state.threads[1] == Thread::Asleep(Sleep::Waiting)
                        && state.owed.waiters
                },
            ),
        ]
    }
}

#[test]
fn no_sleeper_misses_its_wake_up_and_a_wait_returns_exactly_when_it_may() {
    let checker = World.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(
        checker.unique_state_count() > 10_000,
        "{}",
        checker.unique_state_count()
    );
    println!("{} states", checker.unique_state_count());
}
