// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an instance must not lose when its daemon dies, in memory that outlives the process.
//!
//! The daemon may be killed between any two instructions. What belongs together is therefore written
//! beside what is valid, and one store makes it so: the [`Record`] of a change is in one of two places,
//! and the commit word says in which; a [`Slot`] is valid by its handle, which is stored last and cleared
//! first. The number of outdated watchers is nowhere: it follows from the slots.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::{self, Errno};
use sysgenid_core::{Access, Epoch, Generation, History, LastRead, Node, WatcherRecord};

use crate::fault;
use crate::keeping::storage::Storage;
use crate::protocol::BackingId;

/// The kind and version of the layout; a daemon takes over from its own kind only.
const MAGIC: u64 = u64::from_be_bytes(*b"sysgen\0\x01");

/// Where things are, in words.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const COMMIT: usize = 1;
    pub(super) const SLOTS: usize = 2;
    pub(super) const SERIAL: usize = 3;
    pub(super) const MAPPING: usize = 4;
    pub(super) const OPENING: usize = 5;
    pub(super) const RECORDS: [usize; 2] = [16, 32];
    pub(super) const TIMES: usize = 64;
    pub(super) const FIRST_SLOT: usize = TIMES + super::TIMES_KEPT;
}

/// For how many changes it is known when they happened.
const TIMES_KEPT: usize = 960;

/// Words of a slot.
const SLOT: usize = 12;

/// Where things are in a slot.
mod slot {
    pub(super) const HANDLE: usize = 0;
    pub(super) const OPENED_BY: usize = 1;
    pub(super) const ACKNOWLEDGED: usize = 2;
    pub(super) const GENERATION_AND_FLAGS: usize = 3;
    pub(super) const KERNEL_HANDLE: usize = 4;
    pub(super) const PID: usize = 5;
    pub(super) const COMMAND: [usize; 2] = [6, 7];
    pub(super) const WAIT: usize = 8;
    pub(super) const DEADLINE: usize = 9;
    pub(super) const LAST_READ: usize = 10;
    pub(super) const LAST_READ_GENERATION: usize = 11;
}

const TRACKED: u64 = 1 << 32;
const WRITABLE: u64 = 1 << 33;
const VMGENID: u64 = 1 << 34;
const POLLS: u64 = 1 << 35;

/// The low bits of a handle are the slot's index, the others a serial number that is never used twice.
const INDEX_BITS: u32 = 24;

/// The daemon's name for an open file description of a node. It is never used twice, so a request about
/// a description that is gone can hit no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(u64);

impl Handle {
    /// From what the kernel says.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// What the kernel is told.
    pub const fn raw(self) -> u64 {
        self.0
    }

    fn index(self) -> usize {
        // Masked to 24 bits, it fits.
        usize::try_from(self.0 & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX)
    }
}

/// Everything about an instance that changes with its generation, or decides whether it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The current epoch.
    pub epoch: Epoch,
    /// The current generation.
    pub generation: Generation,
    /// The trigger request that was carried out last: sent again, it must not be again.
    pub trigger: u64,
    /// The parent's epoch that this instance has followed.
    pub parent_epoch: Epoch,
    /// [`Restores`](crate::noticing::Restores), in words.
    pub restores: [u64; 4],
    /// How far each backend has looked, in the order of [`Kind::ALL`](crate::noticing::Kind::ALL).
    pub positions: [Option<u64>; 3],
}

impl Record {
    const WORDS: usize = 12;

    fn to_words(self) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[0] = self.epoch.get();
        words[1] = u64::from(self.generation.get());
        words[2] = self.trigger;
        words[3] = self.parent_epoch.get();
        words[4..8].copy_from_slice(&self.restores);
        for (index, position) in self.positions.iter().enumerate() {
            if let Some(position) = position {
                words[8] |= 1 << index;
                words[9 + index] = *position;
            }
        }
        words
    }

    fn from_words(words: [u64; Self::WORDS]) -> Self {
        let position = |index: usize| (words[8] & 1 << index != 0).then_some(words[9 + index]);
        Self {
            epoch: Epoch::new(words[0]),
            generation: Generation::new(low_half(words[1])),
            trigger: words[2],
            parent_epoch: Epoch::new(words[3]),
            restores: [words[4], words[5], words[6], words[7]],
            positions: [position(0), position(1), position(2)],
        }
    }
}

/// How the page gets to those who map it, as far as that is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Kernel and daemon have yet to agree.
    Unsettled,
    /// The kernel keeps a copy, which the daemon renews at each change.
    Store,
    /// Mappings go to the page itself.
    Passthrough(BackingId),
}

/// Who opened a node, for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// The process, 0 if it is not visible from here.
    pub pid: u32,
    /// The name of the program as in `/proc/PID/comm`, padded with zeros.
    pub command: [u8; 16],
}

/// One watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub handle: Handle,
    /// The identity of the request that opened it.
    pub opened_by: u64,
    /// The node that was opened.
    pub node: Node,
    /// What the core knows of it.
    pub watcher: WatcherRecord,
    /// By whom.
    pub opener: Opener,
    /// The kernel's name for it, if somebody polled and has not been told of a change since.
    pub polled_as: Option<u64>,
    /// The last wait that had to sleep: the request, and when it times out (nanoseconds, monotonic).
    pub wait: (u64, u64),
}

/// The memory of one instance.
#[derive(Debug)]
pub struct State {
    storage: Storage,
}

impl State {
    /// That of a new instance.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EMFILE`.
    pub fn create() -> io::Result<Self> {
        let storage = Storage::create(c"sysgenid-state", at::FIRST_SLOT)?;
        let state = Self { storage };
        state.word(at::MAGIC).store(MAGIC, Ordering::Release);
        Ok(state)
    }

    /// That of an instance which another process served.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not one of this version.
    pub fn resume(file: OwnedFd) -> io::Result<Self> {
        let storage = Storage::resume(file)?;
        if storage.words().len() < at::FIRST_SLOT
            || storage.words()[at::MAGIC].load(Ordering::Acquire) != MAGIC
        {
            return Err(Errno::INVAL);
        }
        let state = Self { storage };
        if state.storage.words().len() < at::FIRST_SLOT + state.slots() * SLOT {
            return Err(Errno::INVAL);
        }
        Ok(state)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.storage.words()[index]
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// What is valid now.
    pub fn record(&self) -> Record {
        let start = at::RECORDS[usize::from(self.load(at::COMMIT) & 1 == 1)];
        Record::from_words(std::array::from_fn(|index| self.load(start + index)))
    }

    /// Makes `record` what is valid, all of it at once.
    pub fn commit(&self, record: &Record) {
        let next = self.load(at::COMMIT).wrapping_add(1);
        let start = at::RECORDS[usize::from(next & 1 == 1)];
        for (index, word) in record.to_words().into_iter().enumerate() {
            self.store(start + index, word);
        }
        fault::point();
        self.store(at::COMMIT, next);
        fault::point();
    }

    /// Notes when a change happens, in nanoseconds. To be called before it is committed.
    pub fn set_time(&self, epoch: Epoch, time: u64) {
        let place = History::<TIMES_KEPT>::place(epoch, epoch);
        self.store(at::TIMES + place, time);
    }

    /// When a change happened; for one of long ago, a time that is not before it.
    pub fn time(&self, epoch: Epoch, current: Epoch) -> u64 {
        self.load(at::TIMES + History::<TIMES_KEPT>::place(epoch, current))
    }

    /// How the page gets to those who map it.
    pub fn mapping(&self) -> Mapping {
        match self.load(at::MAPPING) {
            0 => Mapping::Unsettled,
            1 => Mapping::Store,
            id => Mapping::Passthrough(BackingId::new(i32::try_from(id - 2).unwrap_or(0))),
        }
    }

    /// Settles how the page gets to those who map it.
    pub fn set_mapping(&self, mapping: Mapping) {
        let word = match mapping {
            Mapping::Unsettled => 0,
            Mapping::Store => 1,
            Mapping::Passthrough(id) => 2 + u64::try_from(id.get()).unwrap_or(0),
        };
        self.store(at::MAPPING, word);
    }

    /// The watcher that was being opened when the daemon died, if it died then.
    pub fn opening(&self) -> Option<Handle> {
        match self.load(at::OPENING) {
            0 => None,
            handle => Some(Handle(handle)),
        }
    }

    /// Says that a watcher is about to be opened, or that its opener has been told.
    pub fn set_opening(&self, handle: Option<Handle>) {
        self.store(at::OPENING, handle.map_or(0, Handle::raw));
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        usize::try_from(self.load(at::SLOTS)).unwrap_or(usize::MAX)
    }

    /// A handle for the slot with this index.
    pub fn new_handle(&self, index: usize) -> Handle {
        let serial = self.load(at::SERIAL) + 1;
        self.store(at::SERIAL, serial);
        Handle(serial << INDEX_BITS | u64::try_from(index).unwrap_or(0))
    }

    /// Adds a free slot, and returns its index.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `ENFILE` beyond 16 million.
    pub fn add_slot(&mut self) -> io::Result<usize> {
        let index = self.slots();
        if index >> INDEX_BITS != 0 {
            return Err(Errno::NFILE);
        }
        let needed = at::FIRST_SLOT + (index + 1) * SLOT;
        if needed > self.storage.words().len() {
            self.storage.grow(needed + needed / 4)?;
        }
        self.store(at::SLOTS, u64::try_from(index + 1).unwrap_or(u64::MAX));
        Ok(index)
    }

    /// Fills the slot that the handle names.
    pub fn fill(&self, slot: &Slot) {
        let start = at::FIRST_SLOT + slot.handle.index() * SLOT;
        let command = slot.opener.command.as_chunks::<8>().0;
        self.store(start + slot::OPENED_BY, slot.opened_by);
        self.store(start + slot::PID, u64::from(slot.opener.pid));
        for (word, bytes) in slot::COMMAND.into_iter().zip(command) {
            self.store(start + word, u64::from_ne_bytes(*bytes));
        }
        self.store(start + slot::WAIT, slot.wait.0);
        self.store(start + slot::DEADLINE, slot.wait.1);
        self.store(start + slot::ACKNOWLEDGED, slot.watcher.acknowledged.get());
        self.store_last_read(start, slot.watcher.last_read);
        let mut flags = u64::from(slot.watcher.acknowledged_generation.get());
        for (flag, is_set) in [
            (TRACKED, slot.watcher.tracked),
            (WRITABLE, slot.watcher.access == Access::ReadWrite),
            (VMGENID, slot.node == Node::Vmgenid),
            (POLLS, slot.polled_as.is_some()),
        ] {
            if is_set {
                flags |= flag;
            }
        }
        self.store(start + slot::KERNEL_HANDLE, slot.polled_as.unwrap_or(0));
        self.store(start + slot::GENERATION_AND_FLAGS, flags);
        fault::point();
        self.store(start + slot::HANDLE, slot.handle.raw());
        fault::point();
    }

    /// The watcher with this index, if there is one.
    pub fn at(&self, index: usize) -> Option<Slot> {
        if index >= self.slots() {
            return None;
        }
        let start = at::FIRST_SLOT + index * SLOT;
        let handle = self.load(start + slot::HANDLE);
        if handle == 0 {
            return None;
        }
        let flags = self.load(start + slot::GENERATION_AND_FLAGS);
        let mut command = [0; 16];
        for (word, bytes) in slot::COMMAND
            .into_iter()
            .zip(command.as_chunks_mut::<8>().0)
        {
            *bytes = self.load(start + word).to_ne_bytes();
        }
        Some(Slot {
            handle: Handle(handle),
            opened_by: self.load(start + slot::OPENED_BY),
            node: if flags & VMGENID != 0 {
                Node::Vmgenid
            } else {
                Node::Sysgenid
            },
            watcher: WatcherRecord {
                acknowledged: Epoch::new(self.load(start + slot::ACKNOWLEDGED)),
                acknowledged_generation: Generation::new(low_half(flags)),
                last_read: self.last_read(start),
                tracked: flags & TRACKED != 0,
                access: if flags & WRITABLE != 0 {
                    Access::ReadWrite
                } else {
                    Access::ReadOnly
                },
            },
            opener: Opener {
                pid: low_half(self.load(start + slot::PID)),
                command,
            },
            polled_as: (flags & POLLS != 0).then(|| self.load(start + slot::KERNEL_HANDLE)),
            wait: (
                self.load(start + slot::WAIT),
                self.load(start + slot::DEADLINE),
            ),
        })
    }

    /// The index of the slot of this watcher, if it is still there.
    pub fn find(&self, handle: Handle) -> Option<usize> {
        let index = handle.index();
        (handle.0 != 0
            && index < self.slots()
            && self.load(at::FIRST_SLOT + index * SLOT + slot::HANDLE) == handle.0)
            .then_some(index)
    }

    /// This watcher, if it is still there.
    pub fn get(&self, handle: Handle) -> Option<Slot> {
        self.at(self.find(handle)?)
    }

    /// The kernel's name for the watcher with this index, if somebody polled it and has not been told of a
    /// change since.
    pub fn polled_as(&self, index: usize) -> Option<u64> {
        let start = at::FIRST_SLOT + index * SLOT;
        let polls = self.load(start + slot::HANDLE) != 0
            && self.load(start + slot::GENERATION_AND_FLAGS) & POLLS != 0;
        polls.then(|| self.load(start + slot::KERNEL_HANDLE))
    }

    /// Notes that somebody polls the watcher with this index.
    pub fn set_polled_as(&self, index: usize, kernel_handle: u64) {
        let start = at::FIRST_SLOT + index * SLOT;
        self.store(start + slot::KERNEL_HANDLE, kernel_handle);
        let flags = start + slot::GENERATION_AND_FLAGS;
        self.store(flags, self.load(flags) | POLLS);
    }

    /// Notes that those who polled the watcher with this index have been told.
    pub fn clear_polled_as(&self, index: usize) {
        let flags = at::FIRST_SLOT + index * SLOT + slot::GENERATION_AND_FLAGS;
        self.store(flags, self.load(flags) & !POLLS);
    }

    /// Stores what the core knows of the watcher with this index.
    pub fn set_watcher(&self, index: usize, watcher: WatcherRecord) {
        let start = at::FIRST_SLOT + index * SLOT;
        let flags = start + slot::GENERATION_AND_FLAGS;
        let kept = self.load(flags) & !(TRACKED | u64::from(u32::MAX));
        let tracked = if watcher.tracked { TRACKED } else { 0 };
        let generation = u64::from(watcher.acknowledged_generation.get());
        self.store(flags, kept | tracked | generation);
        fault::point();
        self.store(start + slot::ACKNOWLEDGED, watcher.acknowledged.get());
        self.store_last_read(start, watcher.last_read);
        fault::point();
    }

    fn store_last_read(&self, start: usize, read: Option<LastRead>) {
        // No change has epoch 0.
        self.store(start + slot::LAST_READ, 0);
        if let Some(read) = read {
            let generation = u64::from(read.generation.get());
            self.store(start + slot::LAST_READ_GENERATION, generation);
            self.store(start + slot::LAST_READ, read.epoch.get());
        }
    }

    fn last_read(&self, start: usize) -> Option<LastRead> {
        let epoch = self.load(start + slot::LAST_READ);
        (epoch != 0).then(|| LastRead {
            epoch: Epoch::new(epoch),
            generation: Generation::new(low_half(self.load(start + slot::LAST_READ_GENERATION))),
        })
    }

    /// The last wait of the watcher with this index that had to sleep, and its deadline.
    pub fn wait(&self, index: usize) -> (u64, u64) {
        let start = at::FIRST_SLOT + index * SLOT;
        (
            self.load(start + slot::WAIT),
            self.load(start + slot::DEADLINE),
        )
    }

    /// Notes until when a request waits.
    pub fn set_wait(&self, index: usize, request: u64, deadline: u64) {
        let start = at::FIRST_SLOT + index * SLOT;
        self.store(start + slot::WAIT, 0);
        self.store(start + slot::DEADLINE, deadline);
        self.store(start + slot::WAIT, request);
    }

    /// Frees the slot with this index.
    pub fn free(&self, index: usize) {
        self.store(at::FIRST_SLOT + index * SLOT + slot::HANDLE, 0);
        fault::point();
    }
}

impl AsFd for State {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.storage.as_fd()
    }
}

/// The lower 32 bits.
#[allow(clippy::cast_possible_truncation)] // Which is what it is for.
const fn low_half(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(state: &mut State) -> Slot {
        let index = state.add_slot().unwrap();
        Slot {
            handle: state.new_handle(index),
            opened_by: 6,
            node: Node::Vmgenid,
            watcher: WatcherRecord {
                acknowledged: Epoch::new(u64::MAX - 1),
                acknowledged_generation: Generation::new(u32::MAX),
                last_read: Some(LastRead {
                    epoch: Epoch::new(1 << 33),
                    generation: Generation::new(7),
                }),
                tracked: true,
                access: Access::ReadOnly,
            },
            opener: Opener {
                pid: 77,
                command: *b"a program\0\0\0\0\0\0\0",
            },
            polled_as: None,
            wait: (0, 0),
        }
    }

    #[test]
    fn a_successor_finds_what_was_stored() {
        let mut state = State::create().unwrap();
        let mut slots = Vec::new();
        for _ in 0..1000 {
            let slot = slot(&mut state);
            state.fill(&slot);
            slots.push(slot);
        }
        let record = Record {
            epoch: Epoch::new(1 << 40),
            generation: Generation::new(9),
            trigger: 5,
            parent_epoch: Epoch::new(3),
            restores: [1, 2, 3, 4],
            positions: [None, Some(0), Some(u64::MAX)],
        };
        state.commit(&record);
        state.set_mapping(Mapping::Passthrough(BackingId::new(1)));
        let successor = State::resume(state.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(successor.record(), record);
        assert_eq!(successor.mapping(), Mapping::Passthrough(BackingId::new(1)));
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(successor.at(index).as_ref(), Some(slot));
            assert_eq!(successor.find(slot.handle), Some(index));
        }
    }

    #[test]
    fn a_record_that_is_not_committed_is_not_there() {
        let state = State::create().unwrap();
        let mut record = Record {
            generation: Generation::new(4),
            ..Record::default()
        };
        state.commit(&record);
        // What a daemon does that dies before the commit word.
        let unused = at::RECORDS[usize::from(state.load(at::COMMIT) & 1 == 0)];
        record.generation = Generation::new(5);
        for (index, word) in record.to_words().into_iter().enumerate() {
            state.store(unused + index, word);
        }
        assert_eq!(state.record().generation, Generation::new(4));
    }

    #[test]
    fn a_handle_of_a_freed_slot_finds_nothing_even_when_the_slot_is_used_again() {
        let mut state = State::create().unwrap();
        let first = slot(&mut state);
        state.fill(&first);
        state.free(0);
        assert_eq!(state.find(first.handle), None);
        let mut second = first;
        second.handle = state.new_handle(0);
        state.fill(&second);
        assert_eq!(state.find(first.handle), None);
        assert_eq!(state.find(second.handle), Some(0));
    }

    #[test]
    fn storing_a_watcher_keeps_who_it_is() {
        let mut state = State::create().unwrap();
        let mut slot = slot(&mut state);
        state.fill(&slot);
        slot.watcher.tracked = false;
        slot.watcher.acknowledged = Epoch::new(3);
        slot.watcher.acknowledged_generation = Generation::new(3);
        state.set_watcher(0, slot.watcher);
        state.set_polled_as(0, 0);
        slot.polled_as = Some(0);
        assert_eq!(state.polled_as(0), Some(0));
        state.clear_polled_as(0);
        assert_eq!(state.polled_as(0), None);
        state.set_polled_as(0, 0);
        state.set_wait(0, 8, 9);
        slot.wait = (8, 9);
        assert_eq!(state.at(0), Some(slot));
    }

    #[test]
    fn the_time_of_a_change_long_ago_is_not_before_it() {
        let state = State::create().unwrap();
        for epoch in 1..5000 {
            state.set_time(Epoch::new(epoch), epoch * 10);
        }
        let current = Epoch::new(4999);
        assert_eq!(state.time(current, current), 49_990);
        assert_eq!(state.time(Epoch::new(4500), current), 45_000);
        assert!(state.time(Epoch::new(1), current) > 10);
    }

    #[test]
    fn memory_of_another_version_is_refused() {
        let state = State::create().unwrap();
        state.store(at::MAGIC, MAGIC + 1);
        let file = state.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(State::resume(file).unwrap_err(), Errno::INVAL);
    }
}
