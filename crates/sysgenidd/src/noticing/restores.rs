// SPDX-License-Identifier: MIT OR Apache-2.0

//! One restore is one bump, however many backends notice it.

use super::Kind;

/// What each backend noticed, and what was made of it.
///
/// All backends notice the same restores, each in its own time: the first to notice one is credited with a
/// bump, and the others only catch up. One that missed a restore, or took two for one, stays behind;
/// then the next restore that it alone notices would look like one that is already known. So whoever uses
/// this calls [`settle`](Self::settle) once no backend has said anything for [`SETTLE`](Self::SETTLE).
///
/// Where it must err, it bumps once too often: a program then rebuilds its secrets for nothing, which is
/// better than to use them twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restores {
    /// How many bumps there were.
    credited: u64,
    /// How many restores each backend noticed, counted so that one that is up to date has `credited`.
    seen: [u64; Kind::ALL.len()],
}

impl Restores {
    /// How long it must have been quiet before [`settle`](Self::settle): far longer than any two backends
    /// are apart, and shorter than machines are restored in a row.
    pub const SETTLE: std::time::Duration = std::time::Duration::from_secs(10);

    /// How many words [`to_words`](Self::to_words) takes.
    pub const WORDS: usize = 1 + Kind::ALL.len();

    /// A backend noticed `changes`. Returns how often to bump.
    #[must_use = "a bump that is not made is a restore that nobody hears of"]
    pub fn notice(&mut self, kind: Kind, changes: u32) -> u64 {
        let seen = &mut self.seen[kind as usize];
        *seen = seen.saturating_add(changes.into());
        let bumps = seen.saturating_sub(self.credited);
        self.credited += bumps;
        bumps
    }

    /// A backend begins that was never there: what was noticed without it is not its to notice any more.
    ///
    /// Not for one that goes on at the position of its predecessor. That one still reports what it missed,
    /// and would be credited once more for what others noticed meanwhile.
    pub fn join(&mut self, kind: Kind) {
        self.seen[kind as usize] = self.credited;
    }

    /// It has been quiet: no backend has anything to catch up with. A successor that finds itself not
    /// [settled](Self::is_settled) has to wait for the same quiet.
    pub fn settle(&mut self) {
        self.seen.fill(self.credited);
    }

    /// Whether [`settle`](Self::settle) would change nothing, so that no timer is needed.
    pub fn is_settled(&self) -> bool {
        self.seen.iter().all(|&seen| seen == self.credited)
    }

    /// As words that can be stored.
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let [first, second, third] = self.seen;
        [self.credited, first, second, third]
    }

    /// What [`to_words`](Self::to_words) returned. Words that it cannot have returned are made sense of
    /// without hiding a restore.
    pub fn from_words([credited, first, second, third]: [u64; Self::WORDS]) -> Self {
        Self {
            credited,
            seen: [first, second, third].map(|seen| seen.min(credited)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_to_notice_is_credited_and_the_others_catch_up() {
        let mut restores = Restores::default();
        assert_eq!(restores.notice(Kind::Kmsg, 1), 1);
        assert!(!restores.is_settled());
        assert_eq!(restores.notice(Kind::Vmclock, 1), 0);
        assert_eq!(restores.notice(Kind::Kmsg, 1), 1);
        assert_eq!(restores.notice(Kind::Parent, 2), 0);
        assert_eq!(restores.notice(Kind::Vmclock, 1), 0);
        assert!(restores.is_settled());
    }

    #[test]
    fn a_backend_that_took_two_for_one_is_repaired_by_quiet() {
        let mut restores = Restores::default();
        assert_eq!(restores.notice(Kind::Kmsg, 2), 2);
        assert_eq!(restores.notice(Kind::Vmclock, 1), 0);
        restores.settle();
        assert_eq!(restores.notice(Kind::Vmclock, 1), 1);
        assert_eq!(restores.notice(Kind::Kmsg, 1), 0);
    }

    #[test]
    fn a_backend_that_appears_has_nothing_to_catch_up_with() {
        let mut restores = Restores::default();
        assert_eq!(restores.notice(Kind::Kmsg, 3), 3);
        restores.join(Kind::Parent);
        assert_eq!(restores.notice(Kind::Parent, 1), 1);
    }

    /// The order in which backends notice: each of `kinds` as often as there are restores.
    fn interleaving() -> impl Strategy<Value = (u64, Vec<Kind>)> {
        let kinds = proptest::sample::subsequence(Kind::ALL.to_vec(), 1..=3);
        (0..20_usize, kinds).prop_flat_map(|(restores, kinds)| {
            let notices = kinds.repeat(restores);
            (Just(restores as u64), Just(notices).prop_shuffle())
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Notice(Kind, u32),
        Join(Kind),
        Settle,
        Store,
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = || proptest::sample::select(Kind::ALL.to_vec());
        prop_oneof![
            4 => (kind(), 0..4_u32).prop_map(|(kind, changes)| Step::Notice(kind, changes)),
            1 => kind().prop_map(Step::Join),
            1 => Just(Step::Settle),
            1 => Just(Step::Store),
        ]
    }

    proptest! {
        #[test]
        fn each_restore_is_one_bump_in_any_order_of_noticing(
            (restores, notices) in interleaving(),
        ) {
            let mut state = Restores::default();
            let mut bumps = 0;
            let mut seen = [0; 3];
            for kind in notices {
                seen[kind as usize] += 1;
                bumps += state.notice(kind, 1);
                // No restore waits for a second backend.
                prop_assert_eq!(bumps, seen.into_iter().max().unwrap_or(0));
            }
            prop_assert_eq!(bumps, restores);
        }

        #[test]
        fn a_missed_notice_never_hides_a_restore_after_quiet(
            before in proptest::collection::vec(step(), 0..40),
            after in proptest::sample::select(Kind::ALL.to_vec()),
            changes in 1..4_u32,
        ) {
            let mut state = Restores::default();
            for step in before {
                let _ = run(&mut state, &step);
            }
            state.settle();
            prop_assert!(state.is_settled());
            prop_assert_eq!(state.notice(after, changes), u64::from(changes));
        }

        #[test]
        fn there_are_never_fewer_bumps_than_any_backend_noticed(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut state = Restores::default();
            let mut bumps = 0;
            let mut noticed = [0; 3];
            for step in &steps {
                bumps += run(&mut state, step);
                if let Step::Notice(kind, changes) = step {
                    noticed[*kind as usize] += u64::from(*changes);
                }
                prop_assert!(noticed.iter().all(|&noticed| noticed <= bumps));
            }
        }
    }

    fn run(state: &mut Restores, step: &Step) -> u64 {
        match *step {
            Step::Notice(kind, changes) => return state.notice(kind, changes),
            Step::Join(kind) => state.join(kind),
            Step::Settle => state.settle(),
            Step::Store => {
                let stored = Restores::from_words(state.to_words());
                assert_eq!(stored, *state);
            }
        }
        0
    }

    #[test]
    fn words_that_make_no_sense_hide_no_restore() {
        let mut restores = Restores::from_words([1, 9, 1, 0]);
        assert_eq!(restores.notice(Kind::Vmclock, 1), 1);
    }
}
