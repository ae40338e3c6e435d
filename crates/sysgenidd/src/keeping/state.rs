// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an instance must not lose when its daemon dies, in memory that outlives the process.
//!
//! The daemon may be killed between any two instructions. What belongs together is therefore written
//! beside what is valid, and one store makes it so: the [`Record`] of a change is in one of two places,
//! and the commit word says in which; a [`Slot`] is valid by its handle, which is stored last and cleared
//! first. The number of outdated watchers is nowhere: it follows from the slots.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use sysgenid_core::{Access, Epoch, Generation, History, LastRead, Node, WatcherRecord};
use zerocopy::{FromBytes, IntoBytes};

use crate::failure::{Failure, failed};
use crate::fault;
use crate::keeping::folder;
use crate::keeping::storage::{AtomicWords, Storage};
use crate::protocol::BackingId;

/// The kind and version of the layout, which are those of [`Header`] and [`StoredSlot`].
const MAGIC: u64 = u64::from_be_bytes(*b"sysgen\0\x02");

/// For how many changes it is known when they happened.
const TIMES_KEPT: usize = 256;

/// The size of a new state in bytes: a page, which has room for the first few slots besides. There may be
/// very many instances.
const FIRST_SIZE: usize = 4096;

/// What the memory begins with; the slots follow.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    /// How many records were committed. The lowest bit says which is valid.
    commit: AtomicU64,
    /// How many slots there are.
    slots: AtomicU64,
    /// The serial number of the last handle.
    serial: AtomicU64,
    /// [`Mapping`]: 0, 1, or the backing id and 2.
    mapping: AtomicU64,
    /// The handle of the watcher that is being opened, or 0.
    opening: AtomicU64,
    spare: [AtomicU64; 34],
    records: [StoredRecord; 2],
    times: [AtomicU64; TIMES_KEPT],
}

// SAFETY: it is `repr(C)`, and all of it is of `AtomicU64`.
unsafe impl AtomicWords for Header {}

/// A [`Record`].
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct StoredRecord {
    epoch: AtomicU64,
    generation: AtomicU64,
    trigger: AtomicU64,
    parent_epoch: AtomicU64,
    authority: [AtomicU64; 4],
    /// A bit for each of the positions that there is.
    positions_present: AtomicU64,
    positions: [AtomicU64; 4],
    spare: [AtomicU64; 3],
}

/// A [`Slot`].
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct StoredSlot {
    /// Stored last and cleared first: 0 is a free slot, whatever the rest is.
    handle: AtomicU64,
    opened_by: AtomicU64,
    acknowledged: AtomicU64,
    /// The generation that was acknowledged, and what else must be stored with it.
    generation_and_flags: AtomicU64,
    kernel_handle: AtomicU64,
    pid: AtomicU64,
    uid: AtomicU64,
    command: [AtomicU64; 2],
    wait: StoredWait,
    /// An epoch, or 0.
    last_read: AtomicU64,
    last_read_generation: AtomicU64,
    spare: AtomicU64,
}

// SAFETY: it is `repr(C)`, and all of it is of `AtomicU64`.
unsafe impl AtomicWords for StoredSlot {}

/// A [`LastWait`].
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct StoredWait {
    /// Stored last and cleared first.
    request: AtomicU64,
    deadline: AtomicU64,
    thread: AtomicU64,
    argument: AtomicU64,
}

const TRACKED: u64 = 1 << 32;
const WRITABLE: u64 = 1 << 33;
const VMGENID: u64 = 1 << 34;
const POLLS: u64 = 1 << 35;

/// Why a state cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another version's.
    #[error(
        "its watchers were kept by another version of sysgenidd, in a way that this one does not understand"
    )]
    OtherVersion,
    /// There is less of it than it says.
    #[error("what was kept of its watchers is cut off")]
    CutOff,
    /// It cannot be made, or read.
    #[error(transparent)]
    File(#[from] folder::Error),
}

impl From<Failure> for StateError {
    fn from(failure: Failure) -> Self {
        Self::File(failure.into())
    }
}

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
    /// What the noticing wants to remember with a change; what it means is its own affair.
    pub authority: [u64; 4],
    /// How far each backend has looked, in the order of [`Kind::ALL`](crate::noticing::Kind::ALL).
    pub positions: [Option<u64>; 4],
}

impl StoredRecord {
    fn store(&self, record: &Record) {
        store(&self.epoch, record.epoch.get());
        store(&self.generation, record.generation.get().into());
        store(&self.trigger, record.trigger);
        store(&self.parent_epoch, record.parent_epoch.get());
        for (place, word) in self.authority.iter().zip(record.authority) {
            store(place, word);
        }
        let mut present = 0;
        for (index, (place, position)) in self.positions.iter().zip(record.positions).enumerate() {
            store(place, position.unwrap_or(0));
            present |= u64::from(position.is_some()) << index;
        }
        store(&self.positions_present, present);
    }

    fn load(&self) -> Record {
        let present = load(&self.positions_present);
        Record {
            epoch: Epoch::new(load(&self.epoch)),
            generation: Generation::new(low_half(load(&self.generation))),
            trigger: load(&self.trigger),
            parent_epoch: Epoch::new(load(&self.parent_epoch)),
            authority: std::array::from_fn(|index| load(&self.authority[index])),
            positions: std::array::from_fn(|index| {
                (present & 1 << index != 0).then(|| load(&self.positions[index]))
            }),
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
    /// For which user, by whose limits it counts.
    pub uid: u32,
    /// The kernel's name for it, if somebody polled and has not been told of a change since.
    pub polled_as: Option<u64>,
    /// The last wait that had to sleep.
    pub wait: LastWait,
}

/// A wait that had to sleep. The same call may come again, and must not wait longer for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastWait {
    /// The identity of the request; 0 if there was none.
    pub request: u64,
    /// When it times out, in nanoseconds of the monotonic clock.
    pub deadline: u64,
    /// The thread that called: a call that the kernel restarts comes as another request of the same thread.
    pub thread: u32,
    /// The argument of the call.
    pub argument: u64,
}

/// The memory of one instance.
#[derive(Debug)]
pub struct State {
    storage: Storage,
}

impl State {
    /// The name of its file.
    pub(super) const NAME: &str = "state";

    /// That of a new instance, in this file. One that is there already is forgotten.
    pub(super) fn create(path: &Path) -> Result<Self, StateError> {
        let (file, new) = folder::create_beside(path)?;
        let storage = Storage::of_file(file, FIRST_SIZE / size_of::<u64>())
            .map_err(failed("make room for", &new))?;
        let state = Self { storage };
        store(&state.header().magic, MAGIC);
        // It appears under its name when it is whole.
        std::fs::rename(&new, path).map_err(failed("make", path))?;
        Ok(state)
    }

    /// That of an instance which another process served.
    pub(super) fn resume(path: &Path) -> Result<Self, StateError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file: OwnedFd =
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open", path))?;
        let storage = Storage::of_file(file, 1).map_err(failed("map", path))?;
        if load(&storage.words()[0]) != MAGIC {
            return Err(StateError::OtherVersion);
        }
        if storage.parts::<Header, StoredSlot>().is_none() {
            return Err(StateError::CutOff);
        }
        let state = Self { storage };
        if state.stored().len() < state.slots() {
            return Err(StateError::CutOff);
        }
        Ok(state)
    }

    fn parts(&self) -> (&Header, &[StoredSlot]) {
        // Whoever made `self` has seen to it.
        self.storage
            .parts()
            .unwrap_or_else(|| unreachable!("a state without a header"))
    }

    fn header(&self) -> &Header {
        self.parts().0
    }

    /// The slots, with those for which there is only room yet.
    fn stored(&self) -> &[StoredSlot] {
        self.parts().1
    }

    fn slot(&self, index: usize) -> &StoredSlot {
        &self.stored()[index]
    }

    /// What is valid now.
    pub fn record(&self) -> Record {
        let header = self.header();
        header.records[usize::from(load(&header.commit) & 1 == 1)].load()
    }

    /// Makes `record` what is valid, all of it at once.
    pub fn commit(&self, record: &Record) {
        let header = self.header();
        let next = load(&header.commit).wrapping_add(1);
        header.records[usize::from(next & 1 == 1)].store(record);
        fault::point();
        store(&header.commit, next);
        fault::point();
    }

    /// Notes when a change happens, in nanoseconds of the clock that also counts while the machine sleeps
    /// (`CLOCK_BOOTTIME`). To be called before it is committed.
    pub fn set_time(&self, epoch: Epoch, time: u64) {
        let place = History::<TIMES_KEPT>::place(epoch, epoch);
        store(&self.header().times[place], time);
    }

    /// When a change happened; for one of long ago, a time that is not before it.
    pub fn time(&self, epoch: Epoch, current: Epoch) -> u64 {
        load(&self.header().times[History::<TIMES_KEPT>::place(epoch, current)])
    }

    /// How the page gets to those who map it.
    pub fn mapping(&self) -> Mapping {
        match load(&self.header().mapping) {
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
        store(&self.header().mapping, word);
    }

    /// The watcher that was being opened when the daemon died, if it died then.
    pub fn opening(&self) -> Option<Handle> {
        match load(&self.header().opening) {
            0 => None,
            handle => Some(Handle(handle)),
        }
    }

    /// Says that a watcher is about to be opened, or that its opener has been told.
    pub fn set_opening(&self, handle: Option<Handle>) {
        store(&self.header().opening, handle.map_or(0, Handle::raw));
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        usize::try_from(load(&self.header().slots)).unwrap_or(usize::MAX)
    }

    /// A handle for the slot with this index.
    pub fn new_handle(&self, index: usize) -> Handle {
        let serial = load(&self.header().serial) + 1;
        store(&self.header().serial, serial);
        Handle(serial << INDEX_BITS | u64::try_from(index).unwrap_or(0))
    }

    /// Adds a free slot, and returns its index.
    ///
    /// # Errors
    ///
    /// `ENOMEM` and `ENOSPC`; `ENFILE` beyond 16 million.
    pub fn add_slot(&mut self) -> io::Result<usize> {
        let index = self.slots();
        if index >> INDEX_BITS != 0 {
            return Err(Errno::NFILE);
        }
        if index >= self.stored().len() {
            // A quarter more, but never so much that whoever waits for the accounts meanwhile would feel it.
            let slots = index + 1 + (index / 4).min(4096);
            let bytes = size_of::<Header>() + slots * size_of::<StoredSlot>();
            self.storage.grow(bytes / size_of::<u64>())?;
        }
        store(
            &self.header().slots,
            u64::try_from(index + 1).unwrap_or(u64::MAX),
        );
        Ok(index)
    }

    /// Fills the slot that the handle names.
    pub fn fill(&self, slot: &Slot) {
        let stored = self.slot(slot.handle.index());
        store(&stored.opened_by, slot.opened_by);
        store(&stored.pid, slot.opener.pid.into());
        store(&stored.uid, slot.uid.into());
        let command = slot.opener.command.as_chunks::<8>().0;
        for (place, bytes) in stored.command.iter().zip(command) {
            store(place, u64::from_ne_bytes(*bytes));
        }
        stored.wait.store(&slot.wait);
        store(&stored.acknowledged, slot.watcher.acknowledged.get());
        stored.store_last_read(slot.watcher.last_read);
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
        store(&stored.kernel_handle, slot.polled_as.unwrap_or(0));
        store(&stored.generation_and_flags, flags);
        fault::point();
        store(&stored.handle, slot.handle.raw());
        fault::point();
    }

    /// The watcher with this index, if there is one.
    pub fn at(&self, index: usize) -> Option<Slot> {
        if index >= self.slots() {
            return None;
        }
        let stored = self.slot(index);
        let handle = load(&stored.handle);
        if handle == 0 {
            return None;
        }
        let flags = load(&stored.generation_and_flags);
        let mut command = [0; 16];
        for (place, bytes) in stored.command.iter().zip(command.as_chunks_mut::<8>().0) {
            *bytes = load(place).to_ne_bytes();
        }
        Some(Slot {
            handle: Handle(handle),
            opened_by: load(&stored.opened_by),
            node: if flags & VMGENID != 0 {
                Node::Vmgenid
            } else {
                Node::Sysgenid
            },
            watcher: WatcherRecord {
                acknowledged: Epoch::new(load(&stored.acknowledged)),
                acknowledged_generation: Generation::new(low_half(flags)),
                last_read: stored.last_read(),
                tracked: flags & TRACKED != 0,
                access: if flags & WRITABLE != 0 {
                    Access::ReadWrite
                } else {
                    Access::ReadOnly
                },
            },
            opener: Opener {
                pid: low_half(load(&stored.pid)),
                command,
            },
            uid: low_half(load(&stored.uid)),
            polled_as: (flags & POLLS != 0).then(|| load(&stored.kernel_handle)),
            wait: stored.wait.load(),
        })
    }

    /// The index of the slot of this watcher, if it is still there.
    pub fn find(&self, handle: Handle) -> Option<usize> {
        let index = handle.index();
        (handle.0 != 0 && index < self.slots() && load(&self.slot(index).handle) == handle.0)
            .then_some(index)
    }

    /// This watcher, if it is still there.
    pub fn get(&self, handle: Handle) -> Option<Slot> {
        self.at(self.find(handle)?)
    }

    /// The kernel's name for the watcher with this index, if somebody polled it and has not been told of a
    /// change since.
    pub fn polled_as(&self, index: usize) -> Option<u64> {
        let stored = self.slot(index);
        let polls = load(&stored.handle) != 0 && load(&stored.generation_and_flags) & POLLS != 0;
        polls.then(|| load(&stored.kernel_handle))
    }

    /// Notes that somebody polls the watcher with this index.
    pub fn set_polled_as(&self, index: usize, kernel_handle: u64) {
        let stored = self.slot(index);
        store(&stored.kernel_handle, kernel_handle);
        let flags = &stored.generation_and_flags;
        store(flags, load(flags) | POLLS);
    }

    /// Notes that those who polled the watcher with this index have been told.
    pub fn clear_polled_as(&self, index: usize) {
        let flags = &self.slot(index).generation_and_flags;
        store(flags, load(flags) & !POLLS);
    }

    /// Stores what the core knows of the watcher with this index.
    pub fn set_watcher(&self, index: usize, watcher: WatcherRecord) {
        let stored = self.slot(index);
        let flags = &stored.generation_and_flags;
        let kept = load(flags) & !(TRACKED | u64::from(u32::MAX));
        let tracked = if watcher.tracked { TRACKED } else { 0 };
        let generation = u64::from(watcher.acknowledged_generation.get());
        store(flags, kept | tracked | generation);
        fault::point();
        store(&stored.acknowledged, watcher.acknowledged.get());
        stored.store_last_read(watcher.last_read);
        fault::point();
    }

    /// The last wait of the watcher with this index that had to sleep.
    pub fn wait(&self, index: usize) -> LastWait {
        self.slot(index).wait.load()
    }

    /// Notes until when a request waits.
    pub fn set_wait(&self, index: usize, wait: &LastWait) {
        self.slot(index).wait.store(wait);
    }

    /// Frees the slot with this index.
    pub fn free(&self, index: usize) {
        store(&self.slot(index).handle, 0);
        fault::point();
    }
}

impl StoredSlot {
    fn store_last_read(&self, read: Option<LastRead>) {
        // No change has epoch 0.
        store(&self.last_read, 0);
        if let Some(read) = read {
            store(&self.last_read_generation, read.generation.get().into());
            store(&self.last_read, read.epoch.get());
        }
    }

    fn last_read(&self) -> Option<LastRead> {
        let epoch = load(&self.last_read);
        (epoch != 0).then(|| LastRead {
            epoch: Epoch::new(epoch),
            generation: Generation::new(low_half(load(&self.last_read_generation))),
        })
    }
}

impl StoredWait {
    fn store(&self, wait: &LastWait) {
        store(&self.request, 0);
        store(&self.deadline, wait.deadline);
        store(&self.thread, wait.thread.into());
        store(&self.argument, wait.argument);
        store(&self.request, wait.request);
    }

    fn load(&self) -> LastWait {
        LastWait {
            request: load(&self.request),
            deadline: load(&self.deadline),
            thread: low_half(load(&self.thread)),
            argument: load(&self.argument),
        }
    }
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}

/// The lower 32 bits.
#[allow(clippy::cast_possible_truncation)] // Which is what it is for.
const fn low_half(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        state: State,
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let state = State::create(&folder.path().join(State::NAME)).unwrap();
            Self { state, folder }
        }

        fn resume(&self) -> Result<State, StateError> {
            State::resume(&self.folder.path().join(State::NAME))
        }
    }

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
            uid: 1000,
            polled_as: None,
            wait: LastWait::default(),
        }
    }

    #[test]
    fn a_successor_finds_what_was_stored() {
        let mut place = Place::new();
        let state = &mut place.state;
        let mut slots = Vec::new();
        for _ in 0..1000 {
            let slot = slot(state);
            state.fill(&slot);
            slots.push(slot);
        }
        let record = Record {
            epoch: Epoch::new(1 << 40),
            generation: Generation::new(9),
            trigger: 5,
            parent_epoch: Epoch::new(3),
            authority: [1, 2, 3, 4],
            positions: [None, Some(0), Some(u64::MAX), Some(7)],
        };
        state.commit(&record);
        state.set_mapping(Mapping::Passthrough(BackingId::new(1)));
        state.set_opening(Some(slots[7].handle));
        let successor = place.resume().unwrap();
        assert_eq!(successor.record(), record);
        assert_eq!(successor.mapping(), Mapping::Passthrough(BackingId::new(1)));
        assert_eq!(successor.opening(), Some(slots[7].handle));
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(successor.at(index).as_ref(), Some(slot));
            assert_eq!(successor.find(slot.handle), Some(index));
        }
        assert_eq!(successor.at(1000), None);
        let file = std::fs::metadata(place.folder.path().join(State::NAME)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&file) & 0o777, 0o600);
    }

    #[test]
    fn a_new_instance_has_nothing_of_one_before_it() {
        let mut place = Place::new();
        let slot = slot(&mut place.state);
        place.state.fill(&slot);
        let new = State::create(&place.folder.path().join(State::NAME)).unwrap();
        assert_eq!(new.slots(), 0);
        assert_eq!(place.resume().unwrap().slots(), 0);
    }

    #[test]
    fn a_record_that_is_not_committed_is_not_there() {
        let Place { state, .. } = Place::new();
        let mut record = Record {
            generation: Generation::new(4),
            ..Record::default()
        };
        state.commit(&record);
        // What a daemon does that dies before the commit word.
        let header = state.header();
        record.generation = Generation::new(5);
        header.records[usize::from(load(&header.commit) & 1 == 0)].store(&record);
        assert_eq!(state.record().generation, Generation::new(4));
    }

    #[test]
    fn a_handle_of_a_freed_slot_finds_nothing_even_when_the_slot_is_used_again() {
        let Place { mut state, .. } = Place::new();
        let first = slot(&mut state);
        state.fill(&first);
        state.free(0);
        assert_eq!(state.find(first.handle), None);
        assert_eq!(state.at(0), None);
        let mut second = first;
        second.handle = state.new_handle(0);
        state.fill(&second);
        assert_eq!(state.find(first.handle), None);
        assert_eq!(state.find(second.handle), Some(0));
    }

    #[test]
    fn storing_a_watcher_keeps_who_it_is() {
        let Place { mut state, .. } = Place::new();
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
        slot.wait = LastWait {
            request: 8,
            deadline: 9,
            thread: 10,
            argument: u64::MAX,
        };
        state.set_wait(0, &slot.wait);
        assert_eq!(state.wait(0), slot.wait);
        assert_eq!(state.at(0), Some(slot));
    }

    #[test]
    fn the_time_of_a_change_long_ago_is_not_before_it() {
        let Place { state, .. } = Place::new();
        for epoch in 1..5000 {
            state.set_time(Epoch::new(epoch), epoch * 10);
        }
        let current = Epoch::new(4999);
        assert_eq!(state.time(current, current), 49_990);
        assert_eq!(state.time(Epoch::new(4900), current), 49_000);
        assert!(state.time(Epoch::new(1), current) > 10);
    }

    #[test]
    fn memory_of_another_version_is_refused_and_not_touched() {
        let place = Place::new();
        let path = place.folder.path().join(State::NAME);
        store(&place.state.header().magic, MAGIC + 1);
        assert!(matches!(place.resume(), Err(StateError::OtherVersion)));
        let short = [0xff; 8];
        std::fs::write(&path, short).unwrap();
        assert!(matches!(place.resume(), Err(StateError::OtherVersion)));
        assert_eq!(std::fs::read(&path).unwrap(), short);
    }

    #[test]
    fn memory_that_is_cut_off_is_refused() {
        let mut place = Place::new();
        let path = place.folder.path().join(State::NAME);
        let slot = slot(&mut place.state);
        place.state.fill(&slot);
        place.resume().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [size_of::<Header>(), size_of::<Header>() - 8, 8] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let refused = place.resume();
            assert!(
                matches!(refused, Err(StateError::CutOff)),
                "{length}: {refused:?}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(place.resume(), Err(StateError::File(_))));
    }

    #[test]
    fn the_layout_is_that_of_its_version() {
        assert_eq!(size_of::<Header>(), 2624);
        assert_eq!(size_of::<StoredSlot>(), 128);
        assert_eq!(std::mem::offset_of!(Header, records), 320);
    }
}
