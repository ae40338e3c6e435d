// SPDX-License-Identifier: MIT OR Apache-2.0

//! The accounts of an instance: one generation, its page, and who watches it.
//!
//! Everything here takes constant time and waits for nobody, so whoever causes a change can lock the
//! accounts of each instance that it concerns. What a call means is decided by [`Registry`]; this stores
//! what becomes of it before anybody is answered, so that a successor can go on at any point.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use sysgenid_core::{
    Access, Change, Epoch, Error, Generation, Node, PageWord, Patience, Read, Registry, Timeout,
    Wait, Wake, Watcher,
};

use crate::clock;
use crate::config::Limits;
use crate::fault;
use crate::keeping::page::Page;
use crate::keeping::state::{Handle, LastWait, Opener, Record, Slot, State};
use crate::noticing::reseed::Fresh;

use super::files::errno;

/// In place of a request: the kernel begins the wait anew, as another request. It numbers none so.
const BEGINS_ANEW: u64 = u64::MAX;

/// How many watchers all instances may have together: some 1 GB. Tenants are many, and so are their limits.
const MOST_OF_ALL: usize = 4 << 20;

/// How many they have.
static OF_ALL: AtomicUsize = AtomicUsize::new(0);

/// Why nobody can be made a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The instance has as many as it may.
    #[error("it has {0} watchers, as many as the configuration allows (watchers)")]
    Instance(u32),
    /// The user has as many as he may.
    #[error(
        "user {user} has {limit} watchers, as many as the configuration allows (watchers-per-user)"
    )]
    User {
        /// Who.
        user: u32,
        /// How many.
        limit: u32,
    },
    /// All instances together have as many as one process should.
    #[error("the daemon has {MOST_OF_ALL} watchers, as many as it takes")]
    Daemon,
    /// There is no memory for another.
    #[error("there is no room for another watcher: {0}")]
    Memory(Errno),
}

impl Full {
    /// What the caller of `open` gets.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Instance(_) | Self::Daemon => Errno::NFILE,
            Self::User { .. } => Errno::DQUOT,
            Self::Memory(errno) => errno,
        }
    }
}

/// Who opens a node, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// The identity of the request.
    pub(super) request: u64,
    pub(super) node: Node,
    /// The flags of open(2).
    pub(super) flags: u32,
    pub(super) user: u32,
    pub(super) opener: Opener,
}

/// One generation, and all who watch it.
#[derive(Debug)]
pub struct Accounts {
    registry: Registry,
    record: Record,
    state: State,
    page: Page,
    /// By the index of their slots.
    watchers: Vec<Option<Watcher>>,
    free: Vec<usize>,
    /// How many of them opened `vmgenid`.
    of_vmgenid: usize,
    /// How many of them each user has.
    of_users: HashMap<u32, u32>,
    limits: Limits,
    /// Whether something notices restores of what this instance stands for.
    noticed: bool,
    /// Whether serving has ended: the page says so, and nothing is shown in it any more.
    ended: bool,
}

impl Accounts {
    /// Those of an instance that begins: its page is live from now on, at a generation above all that it
    /// has shown, and above `above`.
    ///
    /// To those who map the page that is a change, so the kernel's generator must be fresh.
    pub fn begin(
        fresh: &Fresh,
        state: State,
        page: Page,
        above: Option<Generation>,
        limits: Limits,
    ) -> Self {
        let _ = fresh;
        let first = page.begin(above, false);
        let record = Record {
            generation: first.generation,
            ..state.record()
        };
        state.commit(&record);
        page.store(first);
        Self::resume(state, page, limits)
    }

    /// Those that a process before this one kept.
    pub fn resume(state: State, page: Page, limits: Limits) -> Self {
        let record = state.record();
        let noticed = page.word().noticed;
        let mut registry = Registry::resume(record.generation, record.epoch);
        let mut free = Vec::new();
        let mut of_vmgenid = 0;
        let mut of_users = HashMap::new();
        let watchers = (0..state.slots())
            .map(|index| match state.at(index) {
                None => {
                    free.push(index);
                    None
                }
                Some(slot) => {
                    of_vmgenid += usize::from(slot.node == Node::Vmgenid);
                    *of_users.entry(slot.uid).or_default() += 1;
                    Some(registry.adopt(slot.watcher))
                }
            })
            .collect();
        let accounts = Self {
            registry,
            record,
            state,
            page,
            watchers,
            free,
            of_vmgenid,
            of_users,
            limits,
            noticed,
            ended: false,
        };
        OF_ALL.fetch_add(accounts.watchers(), Ordering::Relaxed);
        // A change may have been committed, and nothing after it done.
        accounts.show();
        accounts
    }

    /// Stores in the page what is true now, all of it at once.
    fn show(&self) {
        if self.ended {
            return;
        }
        self.page.store(PageWord {
            generation: self.registry.generation(),
            live: true,
            noticed: self.noticed,
        });
    }

    /// Whether serving has ended, so that nothing is to be changed any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is decided about watchers.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What is stored with each change.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What outlives the process.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The page that programs map.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// Whether something notices restores of what this instance stands for.
    pub fn is_noticed(&self) -> bool {
        self.noticed
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.len() - self.free.len()
    }

    /// How many watchers opened this node.
    pub fn watchers_of(&self, node: Node) -> usize {
        match node {
            Node::Vmgenid => self.of_vmgenid,
            Node::Sysgenid => self.watchers() - self.of_vmgenid,
        }
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        self.watchers.len()
    }

    /// When a change happened, in nanoseconds of [`clock::boottime`].
    pub fn time(&self, epoch: Epoch) -> u64 {
        self.state.time(epoch, self.registry.epoch())
    }

    /// How much anybody may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Other limits hold for whoever opens a node from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Stores something of the record that is no change of the generation.
    pub fn note(&mut self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record;
        change(&mut record);
        if record != self.record {
            self.record = record;
            self.state.commit(&record);
        }
    }

    /// Says in the page whether something notices restores. That is no change of the generation.
    pub fn set_noticed(&mut self, noticed: bool) {
        if noticed != self.noticed {
            self.noticed = noticed;
            self.show();
        }
    }

    /// Moves to the next generation, of at least `minimum`, and shows it. `note` is stored with it, all at
    /// once. Everybody is to be woken afterwards.
    pub fn change(&mut self, minimum: Generation, note: impl FnOnce(&mut Record)) -> Generation {
        // A minimum of 0 is none, and a number that fits cannot be refused.
        let change = match self.registry.trigger(true, u64::from(minimum.get())) {
            Ok(change) => change,
            Err(_) => self.registry.bump(),
        };
        self.store(change, note);
        change.generation
    }

    /// Moves to the next generation, and says in the same store that nothing notices restores any more.
    /// Everybody is to be woken afterwards.
    pub fn change_unnoticed(&mut self, note: impl FnOnce(&mut Record)) {
        self.noticed = false;
        self.change(Generation::START, note);
    }

    fn store(&mut self, change: Change, note: impl FnOnce(&mut Record)) {
        let epoch = self.registry.epoch();
        self.record.epoch = epoch;
        self.record.generation = change.generation;
        note(&mut self.record);
        self.state.set_time(epoch, clock::boottime());
        self.state.commit(&self.record);
        self.show();
        fault::point();
    }

    /// Ends: the page changes once more and says that it is not live, both at once.
    pub fn end(&mut self, fresh: &Fresh) {
        self.ended = true;
        self.page.end(fresh);
    }

    /// Adds a watcher.
    pub(super) fn open(&mut self, opening: &Opening) -> Result<Handle, Full> {
        let access = if opening.flags & OFlags::ACCMODE.bits() == OFlags::RDONLY.bits() {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        // An eighth more is for root: users are many where user namespaces are, and it must not be they who keep
        // the machine's own programs out.
        let most = self.limits.watchers.get();
        let room = if opening.user == 0 {
            most.saturating_add(most / 8)
        } else {
            most
        };
        if self.watchers() >= usize::try_from(room).unwrap_or(usize::MAX) {
            return Err(Full::Instance(room));
        }
        if OF_ALL.load(Ordering::Relaxed) >= MOST_OF_ALL && opening.user != 0 {
            return Err(Full::Daemon);
        }
        let of_user = self.of_users.get(&opening.user).copied().unwrap_or(0);
        let limit = self.limits.watchers_per_user.get();
        if of_user >= limit {
            return Err(Full::User {
                user: opening.user,
                limit,
            });
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.state.add_slot().map_err(Full::Memory)?;
                self.watchers.push(None);
                index
            }
        };
        let handle = self.state.new_handle(index);
        let watcher = self.registry.open(opening.node, access);
        self.state.set_opening(Some(handle));
        self.state.fill(&Slot {
            handle,
            opened_by: opening.request,
            node: opening.node,
            watcher: watcher.record(),
            opener: opening.opener,
            uid: opening.user,
            polled_as: None,
            wait: LastWait::default(),
        });
        self.watchers[index] = Some(watcher);
        self.of_vmgenid += usize::from(opening.node == Node::Vmgenid);
        *self.of_users.entry(opening.user).or_default() += 1;
        OF_ALL.fetch_add(1, Ordering::Relaxed);
        Ok(handle)
    }

    /// The opener of the last watcher has been told.
    pub(super) fn opened(&self) {
        self.state.set_opening(None);
    }

    /// Removes a watcher, if it is there.
    pub(super) fn close(&mut self, handle: Handle) -> Wake {
        let Some(index) = self.state.find(handle) else {
            return Wake::Nobody;
        };
        if let Some(slot) = self.state.at(index) {
            self.of_vmgenid -= usize::from(slot.node == Node::Vmgenid);
            if let Some(count) = self.of_users.get_mut(&slot.uid) {
                *count -= 1;
                if *count == 0 {
                    self.of_users.remove(&slot.uid);
                }
            }
        }
        self.state.free(index);
        OF_ALL.fetch_sub(1, Ordering::Relaxed);
        let Some(mut watcher) = self.watchers[index].take() else {
            return Wake::Nobody;
        };
        self.free.push(index);
        self.registry.close(&mut watcher)
    }

    /// What a read does. That the watcher was told is stored before it is.
    pub(super) fn read(
        &mut self,
        handle: Handle,
        length: usize,
        patience: Patience,
    ) -> Result<Read, Errno> {
        let index = self.state.find(handle).ok_or(Errno::BADF)?;
        let watcher = self.watchers[index].as_mut().ok_or(Errno::BADF)?;
        let before = watcher.record();
        let answer = self.registry.read(watcher, length, patience);
        let after = watcher.record();
        if before != after {
            self.state.set_watcher(index, after);
        }
        answer.map_err(errno)
    }

    /// Acknowledges.
    pub(super) fn write(&mut self, handle: Handle, data: &[u8]) -> Result<Wake, Errno> {
        self.update(handle, |registry, watcher| registry.write(watcher, data))
    }

    /// Makes a watcher tracked or not.
    pub(super) fn set_tracking(&mut self, handle: Handle, tracked: bool) -> Result<Wake, Errno> {
        self.update(handle, |registry, watcher| {
            registry.set_tracking(watcher, tracked)
        })
    }

    /// Changes a watcher, and stores what became of it.
    fn update(
        &mut self,
        handle: Handle,
        change: impl FnOnce(&mut Registry, &mut Watcher) -> Result<Wake, Error>,
    ) -> Result<Wake, Errno> {
        let index = self.state.find(handle).ok_or(Errno::BADF)?;
        let watcher = self.watchers[index].as_mut().ok_or(Errno::BADF)?;
        let before = watcher.record();
        let answer = change(&mut self.registry, watcher);
        let after = watcher.record();
        if before != after {
            self.state.set_watcher(index, after);
        }
        answer.map_err(errno)
    }

    /// What a wait for all tracked watchers does.
    pub(super) fn wait(&self, handle: Handle, patience: Patience) -> Result<Wait, Errno> {
        let index = self.state.find(handle).ok_or(Errno::BADF)?;
        let watcher = self.watchers[index].as_ref().ok_or(Errno::BADF)?;
        self.registry.wait(watcher, patience).map_err(errno)
    }

    /// Until when a request waits, in nanoseconds of the monotonic clock; `None` is for ever. The time that
    /// passed under another process counts, and so does that of a wait which the kernel has begun anew.
    pub(super) fn deadline(&self, wait: &super::sleepers::Wait, timeout: Timeout) -> Option<u64> {
        let index = self.state.find(wait.handle)?;
        let kept = self.state.wait(index);
        let identity = wait.unique.identity();
        let is_resent = wait.unique.is_resent() && kept.request == identity;
        // Also if it is over by now: the program was stopped for longer than it wanted to wait.
        let is_begun_anew = kept.request == BEGINS_ANEW
            && kept.thread == wait.tid
            && kept.argument == wait.argument;
        let deadline = if is_resent || is_begun_anew {
            kept.deadline
        } else {
            timeout.nanoseconds().map_or(u64::MAX, |nanoseconds| {
                clock::now().saturating_add(nanoseconds.unsigned_abs())
            })
        };
        self.state.set_wait(
            index,
            &LastWait {
                request: identity,
                deadline,
                thread: wait.tid,
                argument: wait.argument,
            },
        );
        (deadline != u64::MAX).then_some(deadline)
    }

    /// Keeps the deadline of a wait that the kernel will begin anew.
    pub(super) fn keep_deadline(&self, wait: &super::sleepers::Wait) {
        if let Some(index) = self.state.find(wait.handle) {
            self.state.set_wait(
                index,
                &LastWait {
                    request: BEGINS_ANEW,
                    deadline: wait.deadline.unwrap_or(u64::MAX),
                    thread: wait.tid,
                    argument: wait.argument,
                },
            );
        }
    }

    /// The threads whose waits the kernel was told to begin anew, also by a process before this one, and the
    /// watchers that they wait with.
    pub(super) fn waits_begun_anew(&self) -> HashMap<u32, Handle> {
        (0..self.state.slots())
            .filter_map(|index| self.state.at(index))
            .filter(|slot| slot.wait.request == BEGINS_ANEW)
            .map(|slot| (slot.wait.thread, slot.handle))
            .collect()
    }

    /// The wait of a thread whose deadline was kept has not begun anew.
    pub(super) fn forget_deadline(&self, handle: Handle, thread: u32) {
        if let Some(index) = self.state.find(handle) {
            let kept = self.state.wait(index);
            if kept.request == BEGINS_ANEW && kept.thread == thread {
                self.state.set_wait(index, &LastWait::default());
            }
        }
    }

    /// What poll reports of a watcher. With `notify`, whoever polls shall be told of the next change.
    pub(super) fn poll(&self, handle: Handle, notify: Option<u64>) -> Option<u32> {
        let index = self.state.find(handle)?;
        let watcher = self.watchers[index].as_ref()?;
        if let Some(kernel_handle) = notify {
            self.state.set_polled_as(index, kernel_handle);
        }
        Some(self.registry.poll(watcher))
    }

    /// Whom to tell of a change: the kernel's name for the watcher with this index, if it is outdated and
    /// somebody polls it. He is taken to be told.
    pub(super) fn take_poller(&self, index: usize) -> Option<u64> {
        let watcher = self.watchers.get(index)?.as_ref()?;
        if !self.registry.is_outdated(watcher) {
            return None;
        }
        self.state.polled_as(index)
    }

    /// Notes that a poller has been told. Whoever was told polls again before it can report anything, and so
    /// asks to be told again.
    pub(super) fn told(&self, index: usize, kernel_handle: u64) {
        if self.state.polled_as(index) == Some(kernel_handle) {
            self.state.clear_polled_as(index);
        }
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        OF_ALL.fetch_sub(self.watchers(), Ordering::Relaxed);
    }
}
