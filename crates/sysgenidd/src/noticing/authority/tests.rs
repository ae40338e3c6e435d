// SPDX-License-Identifier: MIT OR Apache-2.0

//! A world in which machines are restored and cloned at any moment, and backends err in every way that can be
//! made up for.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::noticing::backend::{GONE, LOST};

const MILLISECOND: u64 = 1_000_000;

/// What is examined: the state machine, or a rule that is to be found out.
trait Rule: Clone {
    fn new(now: u64) -> Self;
    fn set(&mut self, kind: Kind, presence: Presence, now: u64);
    fn report(&mut self, kind: Kind, now: u64);
    fn doubt(&mut self, doubt: Doubt);
    fn decide(&mut self, now: u64) -> Option<Cause>;
    fn next_deadline(&self, now: u64) -> Option<u64>;
    fn is_waiting(&self) -> bool;
}

impl Rule for Authority {
    fn new(now: u64) -> Self {
        Self::new(now)
    }
    fn set(&mut self, kind: Kind, presence: Presence, now: u64) {
        self.set(kind, presence, now);
    }
    fn report(&mut self, kind: Kind, now: u64) {
        self.report(kind, now);
    }
    fn doubt(&mut self, doubt: Doubt) {
        self.doubt(doubt);
    }
    fn decide(&mut self, now: u64) -> Option<Cause> {
        self.decide(now)
    }
    fn next_deadline(&self, now: u64) -> Option<u64> {
        self.next_deadline(now)
    }
    fn is_waiting(&self) -> bool {
        self.is_waiting()
    }
}

/// What was done before: whoever counts more than was counted so far is credited with a change, and after ten
/// seconds without a word all counts are made equal.
#[derive(Clone)]
struct Counting {
    credited: u64,
    seen: [u64; Kind::ALL.len()],
    pending: Option<Cause>,
    quiet_at: Option<u64>,
}

impl Rule for Counting {
    fn new(_: u64) -> Self {
        Self {
            credited: 0,
            seen: [0; Kind::ALL.len()],
            pending: None,
            quiet_at: None,
        }
    }
    fn set(&mut self, kind: Kind, _: Presence, _: u64) {
        self.seen[kind as usize] = self.credited;
    }
    fn report(&mut self, kind: Kind, now: u64) {
        let seen = &mut self.seen[kind as usize];
        *seen += 1;
        if *seen > self.credited {
            self.credited = *seen;
            self.pending = Some(Cause::Restore(kind));
        }
        self.quiet_at = Some(now + 10_000 * MILLISECOND);
    }
    fn doubt(&mut self, _: Doubt) {
        // It came from the log, as a report.
        self.report(Kind::Kmsg, 0);
    }
    fn decide(&mut self, now: u64) -> Option<Cause> {
        if self.quiet_at.is_some_and(|at| at <= now) {
            self.quiet_at = None;
            self.seen.fill(self.credited);
        }
        self.pending.take()
    }
    fn next_deadline(&self, _: u64) -> Option<u64> {
        self.quiet_at
    }
    fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }
}

/// What else than the daemon does something by itself, later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    /// The kernel reseeds, and counts that if its probe is there. It may fail to tell.
    Kernel { tells: bool },
    /// The parent changes.
    Parent,
}

/// How far a change has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Sample(Cause),
    Reseed(Cause),
    Store { decided: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The machine was restored. Somebody is bound to tell, or nobody is.
    Restore { told: bool },
    /// The kernel's generator is fresh, whoever reseeded it.
    Reseed,
    /// A change, decided when the log had this length.
    Change { decided: usize },
}

/// What a daemon knows of the backends, and what of it outlives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Positions {
    /// The hypervisor's counter that was dealt with.
    vmclock: Option<u64>,
    kernel: Option<u64>,
    parent: Option<u64>,
}

#[derive(Clone)]
struct World<R> {
    now: u64,
    rule: R,
    log: Vec<Entry>,
    later: Vec<(u64, Later)>,
    vmclock: bool,
    counter: u64,
    kernel: bool,
    notices: u64,
    parent: Presence,
    generation: u64,
    known: Positions,
    stored: Positions,
    step: Option<Step>,
}

/// A restore, and who tells of it when, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Restore {
    kernel: u64,
    kernel_tells: bool,
    parent: Option<u64>,
}

#[derive(Clone, Debug)]
enum Action {
    Pass(u64),
    /// The daemon asks all backends, and decides.
    Turn,
    /// The daemon goes on with a change.
    Step,
    Restore(Restore),
    /// A snapshot is taken, and goes on twice.
    Clone(Restore, Restore),
    /// The kernel's notice comes once more, or without a restore.
    Duplicate,
    /// A program triggers the parent.
    Trigger,
    Doubt,
    Vmclock(bool),
    Kernel(bool),
    Parent(Presence),
    /// The daemon dies, and another goes on.
    Die,
}

impl<R: Rule> World<R> {
    fn new(vmclock: bool, kernel: bool, parent: Presence) -> Self {
        let mut world = Self {
            now: 1,
            rule: R::new(1),
            log: Vec::new(),
            later: Vec::new(),
            vmclock: false,
            counter: 7,
            kernel: false,
            notices: 0,
            parent: Presence::Absent,
            generation: 0,
            known: Positions::default(),
            stored: Positions::default(),
            step: None,
        };
        world.set_vmclock(vmclock);
        world.set_kernel(kernel);
        world.set_parent(parent);
        world.turn();
        world
    }

    fn set_vmclock(&mut self, there: bool) {
        let undealt = self
            .known
            .vmclock
            .is_some_and(|known| known != self.counter);
        if there == self.vmclock || (!there && undealt) {
            return;
        }
        self.vmclock = there;
        if self.known.vmclock.is_none() {
            // Where a backend begins is stored before anything else.
            self.known.vmclock = Some(self.counter);
            self.stored.vmclock = Some(self.counter);
        }
        let presence = if there {
            Presence::Notices
        } else {
            Presence::Absent
        };
        self.rule.set(Kind::Vmclock, presence, self.now);
    }

    fn set_kernel(&mut self, there: bool) {
        let unread = self.known.kernel.is_some_and(|known| known != self.notices)
            || self
                .later
                .iter()
                .any(|(_, later)| matches!(later, Later::Kernel { .. }));
        let unheard = self.parent == Presence::Notices && unread;
        if there == self.kernel || (!there && unheard) {
            return;
        }
        self.kernel = there;
        if there {
            if self.known.kernel.replace(self.notices).is_some() {
                // The loss is stored before the probe is made anew.
                self.stored.kernel = self.stored.kernel.map(|_| LOST);
                self.rule.doubt(Doubt::CountAnew);
            } else {
                self.stored.kernel = Some(self.notices);
            }
            self.rule.set(Kind::Kprobe, Presence::Notices, self.now);
        } else {
            self.rule.set(Kind::Kprobe, Presence::Absent, self.now);
        }
    }

    fn set_parent(&mut self, presence: Presence) {
        if presence == self.parent {
            return;
        }
        if self.parent == Presence::Absent {
            if self.known.parent.replace(self.generation).is_some() {
                self.rule.doubt(Doubt::CameBack(Kind::Parent));
            } else {
                self.stored.parent = Some(self.generation);
            }
        }
        self.parent = presence;
        self.rule.set(Kind::Parent, presence, self.now);
    }

    fn pass(&mut self, until: u64) {
        while let Some(next) = (0..self.later.len()).min_by_key(|&index| self.later[index].0)
            && self.later[next].0 <= until
        {
            let (at, later) = self.later.remove(next);
            self.now = self.now.max(at);
            match later {
                Later::Kernel { tells } => {
                    self.log.push(Entry::Reseed);
                    self.notices += u64::from(tells && self.kernel);
                }
                Later::Parent => self.generation += 1,
            }
        }
        self.now = self.now.max(until);
    }

    fn restore(&mut self, restore: Restore) {
        self.counter += 1;
        let parent = restore.parent.filter(|_| self.parent == Presence::Notices);
        let parent_is_quiet = self.parent != Presence::Notices || self.generation == 0;
        let told = self.vmclock
            || parent.is_some()
            || (self.kernel && restore.kernel_tells && parent_is_quiet);
        self.log.push(Entry::Restore { told });
        let kernel = self.now + restore.kernel * MILLISECOND;
        let tells = restore.kernel_tells;
        self.later.push((kernel, Later::Kernel { tells }));
        if let Some(after) = parent {
            self.later
                .push((kernel + after * MILLISECOND, Later::Parent));
        }
    }

    fn look(&mut self) {
        if self.parent != Presence::Absent && self.known.parent != Some(self.generation) {
            self.known.parent = Some(self.generation);
            self.rule.report(Kind::Parent, self.now);
        }
        if self.kernel && self.known.kernel != Some(self.notices) {
            self.known.kernel = Some(self.notices);
            self.rule.report(Kind::Kprobe, self.now);
        }
        // It is dealt with only by a change.
        if self.vmclock && self.known.vmclock != Some(self.counter) {
            self.rule.report(Kind::Vmclock, self.now);
        }
    }

    /// What has been decided is done before the daemon learns anything new.
    fn finish(&mut self) {
        while self.step.is_some() {
            self.step();
        }
    }

    fn turn(&mut self) {
        self.finish();
        self.look();
        match self.rule.decide(self.now) {
            Some(cause) => self.step = Some(Step::Sample(cause)),
            None if !self.rule.is_waiting() => self.stored = self.known,
            None => {}
        }
    }

    fn step(&mut self) {
        self.step = match self.step {
            None => None,
            Some(Step::Sample(cause)) => {
                if self.vmclock && cause.settles() {
                    self.known.vmclock = Some(self.counter);
                }
                Some(Step::Reseed(cause))
            }
            Some(Step::Reseed(_)) => {
                let decided = self.log.len();
                self.log.push(Entry::Reseed);
                Some(Step::Store { decided })
            }
            Some(Step::Store { decided }) => {
                self.log.push(Entry::Change { decided });
                self.stored = self.known;
                if !self.kernel {
                    self.stored.kernel = None;
                }
                if self.parent == Presence::Absent {
                    self.stored.parent = None;
                }
                None
            }
        };
    }

    fn die(&mut self) {
        self.step = None;
        self.known = self.stored;
        self.rule = R::new(self.now);
        let (vmclock, kernel, parent) = (self.vmclock, self.kernel, self.parent);
        if vmclock {
            self.known.vmclock.get_or_insert(self.counter);
            self.rule.set(Kind::Vmclock, Presence::Notices, self.now);
        } else if self.known.vmclock.is_some_and(|at| at != GONE) {
            self.known.vmclock = Some(GONE);
            self.rule.doubt(Doubt::Lost(Kind::Vmclock));
        }
        if kernel {
            // One that was made anew was the last thing that its predecessor did.
            if self.known.kernel.is_none_or(|at| at == LOST) {
                self.rule.doubt(Doubt::CountAnew);
                self.known.kernel = Some(self.notices);
            }
            self.rule.set(Kind::Kprobe, Presence::Notices, self.now);
        } else if self.known.kernel.is_some() {
            self.rule.doubt(Doubt::Lost(Kind::Kprobe));
        }
        if parent != Presence::Absent {
            if self.known.parent.is_none() {
                self.rule.doubt(Doubt::CameBack(Kind::Parent));
                self.known.parent = Some(self.generation);
            }
            self.rule.set(Kind::Parent, parent, self.now);
        } else if self.known.parent.is_some() {
            self.rule.doubt(Doubt::Lost(Kind::Parent));
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Pass(milliseconds) => self.pass(self.now + milliseconds * MILLISECOND),
            Action::Turn => self.turn(),
            Action::Step => self.step(),
            Action::Restore(restore) => self.restore(restore),
            Action::Clone(..) => unreachable!("it concerns two worlds"),
            Action::Duplicate => self.notices += u64::from(self.kernel),
            Action::Trigger => self.generation += u64::from(self.parent != Presence::Absent),
            Action::Doubt => self.rule.doubt(Doubt::LostRecords),
            Action::Vmclock(there) => {
                self.finish();
                self.set_vmclock(there);
            }
            Action::Kernel(there) => {
                self.finish();
                self.set_kernel(there);
            }
            Action::Parent(presence) => {
                self.finish();
                self.set_parent(presence);
            }
            Action::Die => self.die(),
        }
    }

    /// Lets a diligent daemon run for some time: it has its turn as soon as there is something.
    fn run(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds * MILLISECOND;
        loop {
            self.turn();
            self.finish();
            let ahead = self.later.iter().map(|&(at, _)| at);
            let next = ahead.chain(self.rule.next_deadline(self.now)).min();
            match next.filter(|&next| next <= end) {
                Some(next) => self.pass(next),
                None => break,
            }
        }
        self.pass(end);
        self.turn();
    }

    fn changes(&self) -> usize {
        let is_change = |entry: &&Entry| matches!(entry, Entry::Change { .. });
        self.log.iter().filter(is_change).count()
    }

    /// After each restore that somebody was bound to tell of there is a change at or after the reseed; none
    /// that was decided after it came before that reseed.
    fn check(&self) -> Result<(), TestCaseError> {
        for (at, entry) in self.log.iter().enumerate() {
            let Entry::Restore { told } = *entry else {
                continue;
            };
            let after = &self.log[at..];
            let reseed = after.iter().position(|entry| *entry == Entry::Reseed);
            let first = reseed.map_or(self.log.len(), |reseed| at + reseed);
            let changes = self
                .log
                .iter()
                .enumerate()
                .skip(at)
                .filter_map(|(place, entry)| {
                    let Entry::Change { decided } = *entry else {
                        return None;
                    };
                    Some((place, decided))
                });
            for (place, decided) in changes.clone() {
                prop_assert!(
                    decided < at || place > first,
                    "restore {at}: changed at {place}, before the reseed at {first}: {:?}",
                    self.log
                );
            }
            prop_assert!(
                !told || changes.clone().any(|(place, _)| place > first),
                "restore {at} was swallowed: {:?}",
                self.log
            );
        }
        Ok(())
    }
}

fn restore() -> impl Strategy<Value = Restore> {
    (
        0..3000_u64,
        any::<bool>(),
        proptest::option::of(0..3000_u64),
    )
        .prop_map(|(kernel, kernel_tells, parent)| Restore {
            kernel,
            kernel_tells,
            parent,
        })
}

fn presence() -> impl Strategy<Value = Presence> {
    prop_oneof![
        Just(Presence::Absent),
        Just(Presence::Follows),
        Just(Presence::Notices),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..1500_u64).prop_map(Action::Pass),
        6 => Just(Action::Turn),
        6 => Just(Action::Step),
        4 => restore().prop_map(Action::Restore),
        1 => (restore(), restore()).prop_map(|(one, other)| Action::Clone(one, other)),
        1 => Just(Action::Duplicate),
        1 => Just(Action::Trigger),
        1 => Just(Action::Doubt),
        1 => any::<bool>().prop_map(Action::Vmclock),
        1 => any::<bool>().prop_map(Action::Kernel),
        1 => presence().prop_map(Action::Parent),
        1 => Just(Action::Die),
    ]
}

/// More clones than these prove nothing more, and take their time.
const MOST_WORLDS: usize = 16;

fn live<R: Rule>(
    vmclock: bool,
    kernel: bool,
    parent: Presence,
    actions: &[Action],
) -> Result<(), TestCaseError> {
    let mut worlds = vec![World::<R>::new(vmclock, kernel, parent)];
    for action in actions {
        if let Action::Clone(one, other) = *action {
            let mut clones = worlds.clone();
            worlds.iter_mut().for_each(|world| world.restore(one));
            clones.iter_mut().for_each(|world| world.restore(other));
            worlds.extend(clones);
            worlds.truncate(MOST_WORLDS);
        } else {
            worlds.iter_mut().for_each(|world| world.act(action));
        }
    }
    for mut world in worlds {
        world.run(20_000);
        world.check()?;
    }
    Ok(())
}

fn any_life() -> impl Strategy<Value = (bool, bool, Presence, Vec<Action>)> {
    (
        any::<bool>(),
        any::<bool>(),
        presence(),
        proptest::collection::vec(action(), 0..60),
    )
}

/// Enough to find what is seldom; `PROPTEST_CASES` may ask for more.
fn config() -> Config {
    let usual = Config::default();
    Config {
        cases: usual.cases.max(2000),
        failure_persistence: None,
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn after_each_restore_there_is_a_change_at_or_after_the_reseed_and_none_before(
        (vmclock, kernel, parent, actions) in any_life(),
    ) {
        live::<Authority>(vmclock, kernel, parent, &actions)?;
    }

    #[test]
    fn sound_sources_make_one_change_of_each_restore(
        vmclock: bool,
        kernel: bool,
        parent in presence(),
        restores in proptest::collection::vec((0..900_u64, 0..90_u64, 0..5000_u64), 0..10),
    ) {
        let mut world = World::<Authority>::new(vmclock, kernel, parent);
        let noticed = vmclock || kernel || parent == Presence::Notices;
        for (count, &(kernel, parent, quiet)) in restores.iter().enumerate() {
            world.restore(Restore { kernel, kernel_tells: true, parent: Some(parent) });
            world.run(kernel + parent + quiet + 1000);
            prop_assert_eq!(world.changes(), if noticed { count + 1 } else { 0 });
        }
        world.check()?;
    }
}

/// Found by the test above: the successor saw a probe as it had been in the beginning.
#[test]
fn a_daemon_that_dies_after_it_has_found_again_what_was_lost_hides_nothing() {
    let restore = Restore {
        kernel: 0,
        kernel_tells: true,
        parent: None,
    };
    let actions = [
        Action::Kernel(true),
        Action::Restore(restore),
        Action::Kernel(false),
        Action::Pass(0),
        Action::Kernel(true),
        Action::Die,
    ];
    live::<Authority>(false, false, Presence::Absent, &actions).unwrap();
}

#[test]
fn the_rule_of_counting_is_found_out() {
    let found = TestRunner::new(config()).run(&any_life(), |(vmclock, kernel, parent, actions)| {
        live::<Counting>(vmclock, kernel, parent, &actions)
    });
    let error = found.expect_err("counting hides restores");
    eprintln!("{error}");
}

/// Some state with these backends, all that can notice.
fn with(kinds: &[Kind]) -> Authority {
    let mut authority = Authority::new(0);
    for &kind in kinds {
        authority.set(kind, Presence::Notices, 0);
    }
    assert_eq!(authority.decide(0), None);
    authority
}

#[test]
fn the_hypervisors_word_waits_for_the_kernels_notice() {
    let mut authority = with(&[Kind::Vmclock, Kind::Kprobe]);
    authority.report(Kind::Vmclock, 5);
    assert_eq!(authority.decide(5), None);
    assert_eq!(authority.next_deadline(5), Some(5 + BOUND));
    authority.report(Kind::Kprobe, 9);
    assert_eq!(authority.decide(9), Some(Cause::Restore(Kind::Kprobe)));
    assert_eq!(authority.decide(5 + BOUND), None);
    assert_eq!(authority.next_deadline(9), None);
}

#[test]
fn a_notice_that_is_late_is_one_change_more() {
    let mut authority = with(&[Kind::Vmclock, Kind::Kmsg]);
    authority.report(Kind::Vmclock, 5);
    authority.report(Kind::Vmclock, 6);
    assert_eq!(authority.decide(5 + BOUND - 1), None);
    assert_eq!(authority.decide(5 + BOUND), Some(Cause::Overdue));
    authority.report(Kind::Kmsg, 7 + BOUND);
    let late = authority.decide(7 + BOUND);
    assert_eq!(late, Some(Cause::Restore(Kind::Kmsg)));
}

#[test]
fn a_doubt_is_a_change_and_hides_none_that_is_due() {
    let mut authority = with(&[Kind::Vmclock, Kind::Kmsg]);
    authority.doubt(Doubt::LostRecords);
    assert_eq!(authority.decide(1), Some(Cause::Doubt(Doubt::LostRecords)));
    authority.report(Kind::Vmclock, 2);
    authority.doubt(Doubt::LostRecords);
    assert_eq!(authority.decide(2), Some(Cause::Doubt(Doubt::LostRecords)));
    assert_eq!(authority.decide(2 + BOUND), Some(Cause::Overdue));
}

#[test]
fn a_parent_that_notices_nothing_is_followed_and_settles_nothing() {
    let mut authority = with(&[Kind::Vmclock, Kind::Kprobe]);
    authority.set(Kind::Parent, Presence::Follows, 0);
    authority.report(Kind::Vmclock, 1);
    authority.report(Kind::Parent, 2);
    assert_eq!(authority.decide(2), Some(Cause::Followed));
    assert_eq!(authority.next_deadline(2), Some(1 + BOUND));
}

#[test]
fn the_kernels_notice_after_the_parents_word_is_its_echo_and_alone_it_is_due() {
    let mut authority = with(&[Kind::Kprobe, Kind::Parent]);
    authority.report(Kind::Parent, 5);
    assert_eq!(authority.decide(5), Some(Cause::Restore(Kind::Parent)));
    authority.report(Kind::Kprobe, 6);
    assert_eq!(authority.decide(6 + BOUND), None);
    // A parent that hangs.
    authority.report(Kind::Kprobe, 6 + BOUND);
    assert_eq!(authority.decide(6 + BOUND), None);
    assert_eq!(authority.decide(6 + 2 * BOUND), Some(Cause::Overdue));
}

#[test]
fn an_authority_that_goes_away_is_a_doubt_and_one_that_comes_is_none() {
    let mut authority = with(&[Kind::Vmclock]);
    authority.set(Kind::Kprobe, Presence::Notices, 1);
    assert_eq!(authority.decide(1), None);
    authority.set(Kind::Vmclock, Presence::Absent, 2);
    assert_eq!(authority.decide(2), None);
    authority.set(Kind::Kprobe, Presence::Absent, 3);
    let lost = Cause::Doubt(Doubt::Lost(Kind::Kprobe));
    assert_eq!(authority.decide(3), Some(lost));
}

#[test]
fn that_nothing_notices_is_said_once_it_lasts() {
    let mut authority = Authority::new(10);
    assert_eq!(authority.is_noticed(10), None);
    assert_eq!(authority.next_deadline(10), Some(10 + LOST_AFTER));
    authority.set(Kind::Parent, Presence::Follows, 11);
    assert_eq!(authority.is_noticed(10 + LOST_AFTER), Some(false));
    assert_eq!(authority.next_deadline(10 + LOST_AFTER), None);
    authority.set(Kind::Kmsg, Presence::Notices, 20 + LOST_AFTER);
    assert_eq!(authority.is_noticed(20 + LOST_AFTER), Some(true));
    authority.set(Kind::Kmsg, Presence::Absent, 30 + LOST_AFTER);
    assert_eq!(authority.is_noticed(31 + LOST_AFTER), None);
}
