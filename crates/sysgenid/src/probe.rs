// SPDX-License-Identifier: MIT OR Apache-2.0

//! The mapped page: asking whether the machine was restored costs a load.

use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{Duration, Instant};

use sysgenid_core::Generation;

use crate::error::{Access, Error};
use crate::node::Node;
use crate::sys::word::{Word32, Word64};
use crate::vmclock;

/// How long the notice may take that follows the hypervisor's own word, before new secrets are made without.
const NOTICE_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked for meanwhile.
const NOTICE_INTERVAL: Duration = Duration::from_millis(1);

/// The live generation of a machine, mapped into this process.
///
/// To look costs a load, never a system call, and takes no permission but to read `/dev/sysgenid`, which everybody
/// has by default. A probe is not a watcher: nobody ever waits for it, and it acknowledges nothing. It is
/// `Send + Sync`; clones share the mapping, and so does a child after `fork`. Open one for the whole process, or as
/// many as is convenient.
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
#[derive(Clone, Debug)]
pub struct Probe {
    generation: Word32,
    /// The hypervisor's counter, where there is one.
    counter: Option<Word64>,
    source: Source,
}

/// Where a probe looks.
#[derive(Clone, Debug)]
enum Source {
    Node {
        path: PathBuf,
        identity: Identity,
        vmclock: Option<PathBuf>,
    },
    Simulation,
    Never,
}

/// What a probe saw at some moment. It belongs to one start of one machine: two stamps are equal if nothing was
/// restored between them. They are only to be compared, so they have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    generation: u32,
    counter: u64,
}

impl Stamp {
    /// The generation at that moment.
    pub fn generation(&self) -> Generation {
        Generation::new(self.generation)
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
        Self::of(&Node::find(Access::Read)?)
    }

    /// The same for the node at a path.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::of(&Node::open(path.as_ref(), Access::Read)?)
    }

    /// The same, but where nothing serves a node, a probe that never changes. A node that is there and cannot be
    /// opened is still an error: it would be worse to overlook it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), without [`Error::NoNode`] and [`Error::KernelTooOld`].
    pub fn open_or_never() -> Result<Self, Error> {
        match Self::open() {
            Err(error) if error.is_absent() => Ok(Self::never()),
            result => result,
        }
    }

    /// A probe that never changes: for a machine that is known never to be snapshotted, and for tests.
    pub fn never() -> Self {
        Self {
            generation: Word32::never(),
            counter: None,
            source: Source::Never,
        }
    }

    fn of(node: &Node) -> Result<Self, Error> {
        let generation = node.map()?;
        let (counter, vmclock) = vmclock::map_counter().unzip();
        Ok(Self {
            generation,
            counter,
            source: Source::Node {
                path: node.path().to_owned(),
                identity: Identity::of(node)?,
                vmclock,
            },
        })
    }

    pub(crate) fn simulated(generation: Word32, counter: Word64) -> Self {
        Self {
            generation,
            counter: Some(counter),
            source: Source::Simulation,
        }
    }

    /// What there is to see now. Whatever the server of the node did before the change, such as to reseed the
    /// kernel's generator, has happened for whoever has seen it here (this is an acquire).
    #[inline]
    pub fn stamp(&self) -> Stamp {
        // The counter first. If the machine is restored between the two, the stamp is over at once; the other way round
        // it would pass for one of after the restore, with the notice still to come.
        let counter = self.counter(Ordering::Acquire);
        let generation = self.generation.load(Ordering::Acquire);
        Stamp {
            generation,
            counter,
        }
    }

    /// The current generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.stamp().generation()
    }

    /// What the hypervisor has counted; always the same where it does not count.
    #[inline]
    fn counter(&self, ordering: Ordering) -> u64 {
        self.counter
            .as_ref()
            .map_or(0, |counter| counter.load(ordering))
    }

    /// Whether the machine was restored since a stamp was taken. Two relaxed loads and a comparison: enough to
    /// ask. Take a new stamp by [`stamp_for_rebuild`](Self::stamp_for_rebuild) before acting on the answer.
    ///
    /// A value that must not leave a clone that it was not made for is checked *after* use as well: a restore can
    /// come between the check and the use, however close they are.
    #[inline]
    pub fn has_changed(&self, since: &Stamp) -> bool {
        // A look after use is to be after it in the program as it runs, not only as it is written.
        compiler_fence(Ordering::SeqCst);
        self.generation.load(Ordering::Relaxed) != since.generation
            || self
                .counter
                .as_ref()
                .is_some_and(|counter| counter.load(Ordering::Relaxed) != since.counter)
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
            let is_noticed = now.generation != since.generation || now.counter == since.counter;
            if is_noticed || Instant::now() >= deadline {
                return now;
            }
            std::thread::sleep(NOTICE_INTERVAL);
        }
    }

    /// Whether the node that this probe has mapped is still the one at its path: false once its server has ended for
    /// good, from when on the probe never changes any more. True for a probe that never changes by design.
    ///
    /// It opens the node, which takes some system calls, so ask now and then, not at each use; a
    /// [`Watcher`](crate::Watcher) is told.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`], [`Error::Io`]: then nobody knows.
    pub fn is_live(&self) -> Result<bool, Error> {
        let Source::Node { path, identity, .. } = &self.source else {
            return Ok(true);
        };
        match Node::open(path, Access::Read).and_then(|node| Identity::of(&node)) {
            Ok(current) => Ok(current == *identity),
            Err(Error::NotANode { .. }) => Ok(false),
            Err(error) if error.is_absent() || error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it can change at all: false for [`never`](Self::never), and for what
    /// [`open_or_never`](Self::open_or_never) returns where nothing serves a node.
    pub fn can_change(&self) -> bool {
        !matches!(self.source, Source::Never)
    }

    /// The node that is looked at, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Node { path, .. } => Some(path),
            Source::Simulation | Source::Never => None,
        }
    }

    /// The vmclock device that is looked at as well, if there is one that counts restores and this process may
    /// read it: then there is no window between the resume and [`has_changed`](Self::has_changed).
    pub fn vmclock(&self) -> Option<&Path> {
        match &self.source {
            Source::Node { vmclock, .. } => vmclock.as_deref(),
            Source::Simulation | Source::Never => None,
        }
    }
}

/// What tells one node from another that has come to its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    /// The mount, by a number that is not used again (since Linux 6.8; else by one that may be).
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl Identity {
    fn of(node: &Node) -> Result<Self, Error> {
        use rustix::fs::{AtFlags, StatxFlags, statx};

        /// `STATX_MNT_ID_UNIQUE` of `<linux/stat.h>`.
        const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

        let file = statx(
            node,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::INO | UNIQUE_MOUNT,
        )
        .map_err(|errno| node.failed("identify", errno))?;
        Ok(Self {
            mount: file.stx_mnt_id,
            device: (file.stx_rdev_major, file.stx_rdev_minor),
            inode: file.stx_ino,
        })
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
        assert!(!probe.can_change() && probe.is_live().unwrap());
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
    fn a_notice_alone_is_enough() {
        let machine = SimulatedMachine::new();
        let probe = machine.probe();
        let before = probe.stamp();
        let generation = machine.notice();
        assert_eq!(probe.stamp_for_rebuild(&before).generation(), generation);
    }
}
