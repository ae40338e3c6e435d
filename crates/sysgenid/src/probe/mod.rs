// SPDX-License-Identifier: MIT OR Apache-2.0

//! The mapped page: asking whether the machine was restored costs a load.

mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};
use std::time::{Duration, Instant};

use sysgenid_core::{Generation, PageWord};

use crate::error::Error;
use crate::probe::source::Source;
use crate::sys::epoch;
use crate::sys::words::Words;

/// How long the notice may take that follows the hypervisor's own word, before new secrets are made without.
const NOTICE_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked for meanwhile.
const NOTICE_INTERVAL: Duration = Duration::from_millis(1);

/// The live generation of a machine, mapped into this process.
///
/// To look costs three loads, never a system call, and takes no permission but to read `/dev/sysgenid`, which everybody
/// has by default. A probe is not a watcher: nobody ever waits for it, and it acknowledges nothing. It is
/// `Send + Sync`; clones share the mapping, and so does a child after `fork`. Open one for the whole process, or as
/// many as is convenient.
///
/// # When the node goes, and when it comes
///
/// Whoever serves a node changes the generation for the last time when it ends, and says in the page that it will show
/// no more changes. From then on each look of any clone also looks for the node, ten times a second at most, wherever the
/// first one was looked for and whoever serves it now: the daemon again, or the module in its place. That the node is back
/// is a change, for nobody knows what happened meanwhile. The same holds for a probe that was opened
/// [before there was a node](Self::open_or_never).
///
/// To look for it opens files and maps memory, by one thread at a time. A program that forbids itself such calls (seccomp)
/// must let them fail by an error, or a probe whose node goes is the end of it.
///
/// Without FUSE passthrough a daemon that is killed cannot say so in the page. A [`Watcher`](crate::Watcher)
/// is told then; [`look_for_node`](Self::look_for_node) has the probe follow.
///
/// # Fork
///
/// A fork is a change for the child: what it has in its memory its parent has as well.
///
/// # Machines with a vmclock device
///
/// Where the machine has a vmclock device whose hypervisor counts restores, and this process may read it, the probe
/// looks at that counter as well, which has changed before the machine runs on. See the
/// [table](crate#what-is-guaranteed-where).
///
/// # Example
///
/// ```
/// # let machine = sysgenid::testing::SimulatedMachine::new();
/// # fn draw_token() -> u64 { 4 }
/// # let probe = machine.probe();
/// // let probe = Probe::open()?;
/// let mut token = draw_token();
/// let mut stamp = probe.stamp();
///
/// // At each use:
/// if probe.has_changed(&stamp) {
///     stamp = probe.stamp_for_rebuild(&stamp);
///     token = draw_token();
/// }
/// # let _ = token;
/// # machine.restore();
/// # assert!(probe.has_changed(&stamp));
/// ```
///
/// [`Guarded`](crate::Guarded) does all of this for a value.
#[derive(Clone)]
pub struct Probe {
    words: Words<Source>,
}

/// What a probe saw at some moment. It belongs to one process and one start of one machine: two stamps are equal if
/// nothing was restored between them. They are only to be compared, so they have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// What the page said, or [`not_live`] of it.
    page: u64,
    counter: u64,
    epoch: u64,
}

/// What a stamp has of a page that is not live: what no page says, so that every look finds it different, and
/// looks for the node.
fn not_live(page: u64) -> u64 {
    /// A flag that no page has.
    const NOT_LIVE: [u8; 4] = 0x8000_0000_u32.to_ne_bytes();

    let [e, f, g, h] = NOT_LIVE;
    page | u64::from_ne_bytes([0, 0, 0, 0, e, f, g, h])
}

impl Stamp {
    /// The generation at that moment.
    pub fn generation(&self) -> Generation {
        PageWord::from_word(self.page).generation
    }

    /// Whether something was restored between this and another, or another page is shown. That somebody notices restores
    /// from now on, or not any more, is no change.
    fn differs_from(&self, other: &Self) -> bool {
        let (this, that) = (
            PageWord::from_word(self.page),
            PageWord::from_word(other.page),
        );
        (this.generation, this.live, self.counter, self.epoch)
            != (that.generation, that.live, other.counter, other.epoch)
    }
}

impl Probe {
    /// Opens the node of this machine (see [`Watcher::open`](crate::Watcher::open) for where it is), maps it and
    /// closes it again.
    ///
    /// # Errors
    ///
    /// [`Error::NoNode`], [`Error::KernelTooOld`], [`Error::NoPermission`], [`Error::NotANode`], [`Error::Gone`],
    /// [`Error::Io`].
    pub fn open() -> Result<Self, Error> {
        Self::of(Source::anywhere(), false)
    }

    /// Opens the node at a path, maps it and closes it again.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::of(Source::at(path.as_ref()), false)
    }

    /// Opens the node of this machine, or a probe that looks for it if nothing serves one yet. A node that is there and
    /// cannot be opened is still an error: it would be worse to overlook it.
    ///
    /// Until there is a node nothing is noticed, of course. That it has come is a change.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), without [`Error::NoNode`] and [`Error::KernelTooOld`].
    pub fn open_or_never() -> Result<Self, Error> {
        Self::of(Source::anywhere(), true)
    }

    /// Opens the node at a path, or a probe that looks for it there if nothing serves it yet; see
    /// [`open_or_never`](Self::open_or_never).
    ///
    /// # Errors
    ///
    /// As [`open_or_never`](Self::open_or_never).
    pub fn open_at_or_never(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::of(Source::at(path.as_ref()), true)
    }

    /// A probe that never changes but in a forked child: for a machine that is known never to be snapshotted, and for
    /// tests.
    pub fn never() -> Self {
        Self {
            words: Words::constant(Source::Never),
        }
    }

    fn of(source: Source, may_be_absent: bool) -> Result<Self, Error> {
        let words = source.into_words()?;
        match Source::attach(&words) {
            Err(error) if may_be_absent && error.is_absent() => {}
            result => {
                result?;
            }
        }
        Ok(Self { words })
    }

    pub(crate) fn simulated(page: &Arc<AtomicU64>, counter: &Arc<AtomicU64>) -> Self {
        Self {
            words: Words::simulated(page, counter, Source::Simulation),
        }
    }

    /// What there is to see now. Whatever the server of the node did before the change, such as to reseed the
    /// kernel's generator, has happened for whoever has seen it here (this is an acquire).
    #[inline]
    pub fn stamp(&self) -> Stamp {
        // The epoch first: a child that has not settled must look at nothing else, and who sees a new one sees its page.
        let epoch = self.words.epoch();
        fence(Ordering::Acquire);
        if epoch == epoch::CHILD {
            return self.stamp_of_child();
        }
        // Then the counter. If the machine is restored between the two, the stamp is over at once; the other way round
        // it would pass for one of after the restore, with the notice still to come.
        let counter = self.words.counter();
        fence(Ordering::Acquire);
        let mut page = self.words.page();
        fence(Ordering::Acquire);
        if !PageWord::from_word(page).live {
            page = not_live(page);
        }
        Stamp {
            page,
            counter,
            epoch,
        }
    }

    #[cold]
    fn stamp_of_child(&self) -> Stamp {
        self.words.settle();
        self.stamp()
    }

    /// The current generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.stamp().generation()
    }

    /// Whether the machine was restored since a stamp was taken. Three relaxed loads and comparisons: enough to
    /// ask. Take a new stamp by [`stamp_for_rebuild`](Self::stamp_for_rebuild) before acting on the answer.
    ///
    /// A value that must not leave a clone that it was not made for is checked *after* use as well: a restore can
    /// come between the check and the use, however close they are.
    #[inline]
    pub fn has_changed(&self, since: &Stamp) -> bool {
        // A look after use is to be after it in the program as it runs, not only as it is written.
        compiler_fence(Ordering::SeqCst);
        // The epoch first, as in `stamp`.
        let is_same = self.words.epoch() == since.epoch
            && self.words.page() == since.page
            && self.words.counter() == since.counter;
        !is_same && self.is_over(since)
    }

    /// Whether a stamp is over that is not what there is to see now, or of a page that is not live.
    #[cold]
    #[inline(never)]
    fn is_over(&self, since: &Stamp) -> bool {
        Source::look_now_and_then(&self.words);
        let is_over = self.stamp().differs_from(since);
        if is_over {
            self.words.confirm();
        }
        is_over
    }

    /// The stamp under which to make new secrets, now that `since` is known to be over.
    ///
    /// Usually this returns at once. Where the hypervisor's own word came first, by vmclock, the kernel has not
    /// reseeded its generator yet, and two clones that draw from it now draw the same: then this sleeps until the
    /// generation has changed as well, which is the notice that the reseed is done. It does so for a second at
    /// most, for a machine on which nobody bumps the generation. In an asynchronous program call it where a thread may
    /// block.
    ///
    /// It can tell only what came after `since`. A stamp that was taken between the hypervisor's word and the notice,
    /// by a program that was just started, is one of the new machine already; what is drawn under it comes from the
    /// old generator, until the notice makes it over. It cannot tell one restore from two, either. If nobody has
    /// looked between them, and the notice of the second is still to come, it returns at once; then the generation
    /// changes again when that notice comes, and whatever was made meanwhile is made anew.
    pub fn stamp_for_rebuild(&self, since: &Stamp) -> Stamp {
        let deadline = Instant::now() + NOTICE_LIMIT;
        loop {
            let now = self.stamp();
            let is_noticed = now.generation() != since.generation()
                // Another page, with a counter that there was none of before.
                || (now.epoch != since.epoch && since.counter == 0)
                || now.counter == since.counter;
            if is_noticed || Instant::now() >= deadline {
                return now;
            }
            std::thread::sleep(NOTICE_INTERVAL);
        }
    }

    /// Whether the page that this probe looks at will show the next change: false while nothing serves the node. True
    /// for a probe that never changes by design.
    ///
    /// It looks for the node first, if that is due, and costs a load if it is there.
    pub fn is_live(&self) -> bool {
        Source::look_now_and_then(&self.words);
        PageWord::from_word(self.words.page()).live
    }

    /// Looks for the node now, and has this probe and its clones look at whatever is at its path, which is a change if it
    /// is another page. Returns whether it is.
    ///
    /// The looks do so by themselves where the page says that its server has ended. It takes some system calls.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open): then this probe goes on as it was.
    pub fn look_for_node(&self) -> Result<bool, Error> {
        Source::attach(&self.words)
    }

    /// Whether it can change at all: false for [`never`](Self::never). It says nothing of whether there is a node now;
    /// [`is_live`](Self::is_live) does.
    pub fn can_change(&self) -> bool {
        !matches!(self.words.data(), Source::Never)
    }

    /// The node that is looked at, if it is one and was found.
    pub fn path(&self) -> Option<PathBuf> {
        self.words.data().path()
    }

    /// The vmclock device that is looked at as well, if there is one that counts restores and this process may
    /// read it: then there is no window between the resume and [`has_changed`](Self::has_changed).
    pub fn vmclock(&self) -> Option<PathBuf> {
        self.words.data().vmclock()
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Probe")
            .field("source", self.words.data())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimulatedMachine;

    #[test]
    fn a_probe_that_never_changes_says_so() {
        let probe = Probe::never();
        let stamp = probe.stamp();
        assert!(!probe.has_changed(&stamp));
        assert!(!probe.can_change() && probe.is_live());
        assert_eq!(probe.generation(), Generation::START);
    }

    #[test]
    fn a_change_is_seen_by_clones_and_in_other_threads() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let stamp = probe.stamp();
        let clone = probe.clone();
        machine.restore();
        std::thread::spawn(move || assert!(clone.has_changed(&stamp)))
            .join()
            .unwrap();
        assert!(probe.has_changed(&stamp));
        assert!(!probe.has_changed(&probe.stamp()));
    }

    #[test]
    fn new_secrets_wait_for_the_notice_where_the_hypervisor_speaks_first() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let before = probe.stamp();
        machine.count_restore();
        assert!(probe.has_changed(&before), "there is no window");
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let stamp = probe.stamp_for_rebuild(&before);
            tell.send(()).unwrap();
            stamp
        });
        assert!(
            told.recv_timeout(Duration::from_millis(50)).is_err(),
            "secrets would be drawn from a generator that is not reseeded"
        );
        let generation = machine.notice();
        assert_eq!(waiting.join().unwrap().generation(), generation);
    }

    #[test]
    fn new_secrets_do_not_wait_for_ever_for_a_notice() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let before = probe.stamp();
        machine.count_restore();
        let started = Instant::now();
        let stamp = probe.stamp_for_rebuild(&before);
        assert!(started.elapsed() >= NOTICE_LIMIT);
        assert!(!probe.has_changed(&stamp));
    }

    #[test]
    fn a_stamp_of_a_page_that_is_not_live_is_looked_at_again_and_again() {
        let live = |generation, live| {
            let word = PageWord {
                generation: Generation::new(generation),
                live,
                noticed: false,
            };
            word.to_word()
        };
        let stamp = |page| Stamp {
            page,
            counter: 0,
            epoch: 1,
        };
        let (alive, ended) = (stamp(live(4, true)), stamp(not_live(live(5, false))));
        assert_ne!(ended.page, live(5, false), "or no look would look further");
        assert_eq!(ended.generation(), Generation::new(5));
        assert!(ended.differs_from(&alive) && alive.differs_from(&ended));
        assert!(!ended.differs_from(&stamp(not_live(live(5, false)))));
        assert!(
            stamp(live(5, true)).differs_from(&ended),
            "it is served again"
        );
    }

    #[test]
    fn that_somebody_notices_restores_from_now_on_is_no_change() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let stamp = probe.stamp();
        machine.set_noticed(false);
        assert!(!probe.has_changed(&stamp));
        machine.restore();
        assert!(probe.has_changed(&stamp));
    }

    #[test]
    fn a_notice_alone_is_enough() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let before = probe.stamp();
        let generation = machine.notice();
        assert_eq!(probe.stamp_for_rebuild(&before).generation(), generation);
    }
}
