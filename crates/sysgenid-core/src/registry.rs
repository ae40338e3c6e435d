// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who watches, who is outdated, and what each call therefore does.

use super::abi;
use super::{Access, Epoch, Error, Generation, Node};

/// One generation and the accounts of its watchers.
///
/// It stores counts, not watchers: each [`Watcher`] lives with the open file description that it
/// stands for, so opening one allocates nothing here and a bump walks over nobody. Both belong under
/// the same lock, and a watcher must only ever be shown to the registry that opened it.
///
/// # Invariants
///
/// `outdated` is the number of tracked watchers whose acknowledged epoch is not `epoch`, and
/// `tracked` is the number of tracked watchers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Registry {
    generation: Generation,
    epoch: Epoch,
    tracked: usize,
    outdated: usize,
}

/// One open file description of a node.
///
/// A clone is for a front end that has to move a watcher through its lock; it takes the place of the
/// original and is not another watcher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use = "a watcher that is not closed is counted for ever"]
pub struct Watcher {
    acknowledged: Epoch,
    acknowledged_generation: Generation,
    last_read: Option<LastRead>,
    tracked: bool,
    access: Access,
}

/// What a watcher's last read returned, until it acknowledges.
///
/// The number alone does not tell which change it is about: the generation may have jumped away and come
/// back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LastRead {
    /// The identity of the change.
    pub epoch: Epoch,
    /// The generation of that change, which is what the program saw.
    pub generation: Generation,
}

/// All that there is to know of a watcher, for a front end that keeps it in storage of its own and goes
/// on after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatcherRecord {
    /// The identity of the change that it acknowledged last, or found when it was opened.
    pub acknowledged: Epoch,
    /// The generation of that change, as programs see it.
    pub acknowledged_generation: Generation,
    /// What its last read returned, if it has not acknowledged since.
    pub last_read: Option<LastRead>,
    /// Whether it counts when others wait for everyone.
    pub tracked: bool,
    /// What it was opened for.
    pub access: Access,
}

/// How a caller that finds nothing to return stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patience {
    /// It must not sleep (`O_NONBLOCK`).
    None,
    /// It may sleep, for the first time or again after a wake-up.
    Sleep,
    /// It slept, and a signal is pending.
    Signal,
    /// It slept, and its time ran out.
    TimeOut,
}

/// What a successful `read` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Read {
    /// Returns 0: no byte was asked for.
    Empty,
    /// Returns these 4 bytes.
    Generation(Generation),
    /// Sleeps until the watchers are woken, then asks again.
    Sleep,
}

/// What a wait does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Returns 0: no tracked watcher is outdated.
    Settled,
    /// Sleeps until the waiters are woken, then asks again.
    Sleep,
}

/// Whom to wake after the lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "whoever is not woken sleeps on"]
pub enum Wake {
    /// Nobody's answer has changed.
    Nobody,
    /// Those who wait for all tracked watchers: the last outdated one has gone.
    Waiters,
}

/// A generation change. Everybody is to be woken: those who read or poll because they are outdated
/// now, and those who wait because they are outdated themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "everybody must be woken after a change"]
pub struct Change {
    /// The generation that the page must show before anybody is woken.
    pub generation: Generation,
}

impl Registry {
    /// A registry at generation 0 with no watcher.
    pub const fn new() -> Self {
        Self {
            generation: Generation::START,
            epoch: Epoch::START,
            tracked: 0,
            outdated: 0,
        }
    }

    /// A registry that goes on where another, with this generation and epoch, stopped. It has no
    /// watcher until they are [adopted](Self::adopt).
    pub const fn resume(generation: Generation, epoch: Epoch) -> Self {
        Self {
            generation,
            epoch,
            tracked: 0,
            outdated: 0,
        }
    }

    /// Takes over a watcher of the registry before, and counts it as that one did.
    pub fn adopt(&mut self, record: WatcherRecord) -> Watcher {
        let watcher = Watcher {
            acknowledged: record.acknowledged,
            acknowledged_generation: record.acknowledged_generation,
            last_read: record.last_read,
            tracked: record.tracked,
            access: record.access,
        };
        if watcher.tracked {
            self.tracked += 1;
            if self.is_outdated(&watcher) {
                self.outdated += 1;
            }
        }
        watcher
    }

    /// The current generation.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// The number of changes since the start.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number of tracked watchers.
    pub const fn tracked_watchers(&self) -> usize {
        self.tracked
    }

    /// The number of tracked watchers that have not acknowledged the current generation.
    pub const fn outdated_watchers(&self) -> usize {
        self.outdated
    }

    /// Whether `watcher`, tracked or not, has yet to acknowledge the current generation.
    pub fn is_outdated(&self, watcher: &Watcher) -> bool {
        watcher.acknowledged != self.epoch
    }

    /// Adds a watcher whose acknowledged generation is the current one.
    pub fn open(&mut self, node: Node, access: Access) -> Watcher {
        let tracked = node.tracks_new_watchers(access);
        if tracked {
            self.tracked += 1;
        }
        Watcher {
            acknowledged: self.epoch,
            acknowledged_generation: self.generation,
            last_read: None,
            tracked,
            access,
        }
    }

    /// Removes a watcher; it must not be used again. Doing so twice is harmless.
    pub fn close(&mut self, watcher: &mut Watcher) -> Wake {
        self.stop_tracking(watcher)
    }

    /// What a `read` of `length` bytes does. The watcher remembers which change it was told of.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for 1 to 3 bytes. Where the watcher is current: [`Error::WouldBlock`] for a
    /// caller that must not sleep, [`Error::Restart`] for one with a signal pending.
    pub fn read(
        &self,
        watcher: &mut Watcher,
        length: usize,
        patience: Patience,
    ) -> Result<Read, Error> {
        if length == 0 {
            return Ok(Read::Empty);
        }
        if length < abi::GENERATION_SIZE {
            return Err(Error::Invalid);
        }
        if self.is_outdated(watcher) {
            watcher.last_read = Some(LastRead {
                epoch: self.epoch,
                generation: self.generation,
            });
            return Ok(Read::Generation(self.generation));
        }
        match patience {
            Patience::Sleep => Ok(Read::Sleep),
            Patience::None | Patience::TimeOut => Err(Error::WouldBlock),
            Patience::Signal => Err(Error::Restart),
        }
    }

    /// Acknowledges the generation in `bytes`. Doing so again is harmless.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], and the watcher stays outdated, for anything but the 4 bytes of the current
    /// generation; also if they are what the watcher's last read returned, and the generation has gone
    /// elsewhere and come back since: it has not seen those changes. It then has to look again, by whatever
    /// way, and the same bytes are good.
    pub fn write(&mut self, watcher: &mut Watcher, bytes: &[u8]) -> Result<Wake, Error> {
        let bytes = bytes.try_into().map_err(|_| Error::Invalid)?;
        if Generation::from_ne_bytes(bytes) != self.generation {
            return Err(Error::Invalid);
        }
        let last_read = watcher.last_read.take();
        if last_read
            .is_some_and(|read| read.generation == self.generation && read.epoch != self.epoch)
        {
            return Err(Error::Invalid);
        }
        let was_counted = watcher.tracked && self.is_outdated(watcher);
        watcher.acknowledged = self.epoch;
        watcher.acknowledged_generation = self.generation;
        Ok(if was_counted {
            self.uncount()
        } else {
            Wake::Nobody
        })
    }

    /// The events that `poll` reports of the watcher, as `EPOLL…` bits.
    pub fn poll(&self, watcher: &Watcher) -> u32 {
        abi::poll_events(self.is_outdated(watcher))
    }

    /// What a wait for all tracked watchers does.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if the caller is outdated itself, tracked or not: it would wait for
    /// others while they may be waiting for it. Where some tracked watcher is outdated:
    /// [`Error::TimedOut`] for a caller that must not sleep any longer, [`Error::Interrupted`] for
    /// one with a signal pending.
    pub fn wait(&self, watcher: &Watcher, patience: Patience) -> Result<Wait, Error> {
        if self.is_outdated(watcher) {
            return Err(Error::Interrupted);
        }
        if self.outdated == 0 {
            return Ok(Wait::Settled);
        }
        match patience {
            Patience::Sleep => Ok(Wait::Sleep),
            Patience::None | Patience::TimeOut => Err(Error::TimedOut),
            Patience::Signal => Err(Error::Interrupted),
        }
    }

    /// Makes a watcher tracked or not. Doing so again is harmless.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritable`] for one that is to be tracked but cannot write.
    pub fn set_tracking(&mut self, watcher: &mut Watcher, tracked: bool) -> Result<Wake, Error> {
        if !tracked {
            return Ok(self.stop_tracking(watcher));
        }
        if watcher.access == Access::ReadOnly {
            return Err(Error::NotWritable);
        }
        if !watcher.tracked {
            watcher.tracked = true;
            self.tracked += 1;
            if self.is_outdated(watcher) {
                self.outdated += 1;
            }
        }
        Ok(Wake::Nobody)
    }

    /// A backend noticed that the machine or container was cloned or rolled back: moves to the next
    /// generation.
    pub fn bump(&mut self) -> Change {
        self.move_to(self.generation.next())
    }

    /// Software asks for a change, to a generation of at least `minimum`.
    ///
    /// # Errors
    ///
    /// [`Error::NotCapable`] if the caller is not `capable`; [`Error::Invalid`] for a minimum beyond
    /// `u32`.
    pub fn trigger(&mut self, capable: bool, minimum: u64) -> Result<Change, Error> {
        if !capable {
            return Err(Error::NotCapable);
        }
        let minimum = abi::minimum_from_argument(minimum)?;
        Ok(self.move_to(self.generation.next_at_least(minimum)))
    }

    fn move_to(&mut self, generation: Generation) -> Change {
        self.generation = generation;
        self.epoch = self.epoch.next();
        // Nobody can have acknowledged an epoch that did not exist.
        self.outdated = self.tracked;
        Change { generation }
    }

    fn stop_tracking(&mut self, watcher: &mut Watcher) -> Wake {
        if !watcher.tracked {
            return Wake::Nobody;
        }
        watcher.tracked = false;
        self.tracked -= 1;
        if self.is_outdated(watcher) {
            self.uncount()
        } else {
            Wake::Nobody
        }
    }

    fn uncount(&mut self) -> Wake {
        self.outdated -= 1;
        if self.outdated == 0 {
            Wake::Waiters
        } else {
            Wake::Nobody
        }
    }
}

impl WatcherRecord {
    /// The first change that the watcher has not acknowledged, where `current` is the
    /// [epoch of its registry](Registry::epoch). `None` while it is not outdated.
    pub fn first_missed(&self, current: Epoch) -> Option<Epoch> {
        (self.acknowledged != current).then(|| self.acknowledged.next())
    }
}

impl Watcher {
    /// The generation that it acknowledged last, or found when it was opened.
    pub const fn acknowledged(&self) -> Generation {
        self.acknowledged_generation
    }

    /// The change that it acknowledged last, or the last one before it was opened.
    pub const fn acknowledged_epoch(&self) -> Epoch {
        self.acknowledged
    }

    /// Whether it counts when others wait for everyone.
    pub const fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// What [`Registry::adopt`] needs to take it over.
    pub const fn record(&self) -> WatcherRecord {
        WatcherRecord {
            acknowledged: self.acknowledged,
            acknowledged_generation: self.acknowledged_generation,
            last_read: self.last_read,
            tracked: self.tracked,
            access: self.access,
        }
    }
}
