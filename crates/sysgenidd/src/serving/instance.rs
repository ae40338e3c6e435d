// SPDX-License-Identifier: MIT OR Apache-2.0

//! One generation with its nodes and watchers: requests are translated into calls of the core, and its
//! answers into answers.
//!
//! What a call means is decided by [`Registry`]. What is here owns who sleeps, and sees to it that a
//! successor can go on at any point: what a request changes is stored before it is answered, and a
//! request that comes again changes nothing again.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use sysgenid_core::{
    Change, Epoch, Error, Generation, Ioctl, Node, Patience, Read, Registry, Wait, Wake, Watcher,
};

use crate::clock;
use crate::fault;
use crate::judging::capability::Owner;
use crate::keeping::state::{Handle, Mapping, Record, Slot, State};
use crate::keeping::storage::Storage;
use crate::protocol::wire::{self, flag};
use crate::protocol::{Connection, Operation, Request, Unique};
use crate::serving::files::{self, File, errno};
use crate::serving::renewal::{self, Renewals};
use crate::serving::report;

use super::folder::attributes_answer;

/// What is offered to the kernel at INIT, as far as it has it.
const WANTED: u64 =
    flag::INIT_EXT | flag::DIRECT_IO_ALLOW_MMAP | flag::PASSTHROUGH | flag::HAS_RESEND;

/// The descriptors of an instance that outlive the process.
#[derive(Debug)]
pub struct Kept {
    /// Of `/dev/fuse`.
    pub connection: OwnedFd,
    /// Of the state.
    pub state: OwnedFd,
    /// Of the page.
    pub page: OwnedFd,
}

/// What an instance is, apart from what it is going through.
#[derive(Debug)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Where its folder is mounted.
    pub path: PathBuf,
    /// Who may open `sysgenid` and `vmgenid`.
    pub access: [files::Access; 2],
    /// The user namespace in which a capability counts.
    pub owner: Owner,
    /// Whether mappings may go to the page itself, where the kernel can do it.
    pub passthrough: bool,
}

/// What a request that sleeps is waiting for.
#[derive(Debug)]
pub(super) enum Sleeper {
    Read(Unique, Handle),
    Wait(Unique, Handle, Option<u64>),
}

/// One generation, and all who watch it.
#[derive(Debug)]
pub struct Instance {
    pub(super) settings: Settings,
    pub(super) connection: Arc<Connection>,
    pub(super) state: State,
    pub(super) page: Storage,
    pub(super) registry: Registry,
    pub(super) record: Record,
    /// By the index of their slots.
    pub(super) watchers: Vec<Option<Watcher>>,
    pub(super) free: Vec<usize>,
    /// How many of them opened `vmgenid`.
    pub(super) of_vmgenid: usize,
    /// By the identity of the request.
    pub(super) sleepers: HashMap<u64, Sleeper>,
    /// The deadlines of the sleepers that have one.
    pub(super) deadlines: BTreeSet<(u64, u64)>,
    /// Texts as they were when their reading began, by handle.
    pub(super) reports: HashMap<u64, String>,
    /// The watchers that a process before this one opened and whose openers ask again, by the request.
    pub(super) reopened: HashMap<u64, Handle>,
    /// A watcher whose opener may never have heard of it, until when that is unclear, and when to look.
    pub(super) doubt: Option<(Handle, u64, u64)>,
    /// How many renewals of the page are under way.
    pub(super) renewals: usize,
    /// The trigger that has been carried out, and is to be answered once everybody else is told.
    pub(super) trigger: Option<Unique>,
    /// What came while one of these was pending, and was put off. So a trigger is answered before another
    /// is carried out: the state remembers only the last.
    pub(super) deferred: Vec<Vec<u8>>,
    /// Whether kernel and daemon have agreed on how to talk.
    pub(super) agreement: Agreement,
}

/// Whether kernel and daemon have agreed on how to talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Not yet.
    Pending,
    /// Yes.
    Reached,
    /// They cannot: the reason, and what to do.
    Impossible(String),
}

impl Instance {
    /// A new instance: its folder is mounted, its generation is 0.
    ///
    /// # Errors
    ///
    /// Says what could not be done.
    pub fn create(settings: Settings) -> anyhow::Result<Self> {
        let state = State::create()?;
        let page = Storage::create(c"sysgenid", renewal::PAGE / size_of::<u64>())?;
        let connection = Connection::mount(&settings.path)?;
        Ok(Self::new(settings, connection, state, page))
    }

    /// Goes on with an instance that another process served; [`recover`](Self::recover) comes next.
    ///
    /// # Errors
    ///
    /// Says what is wrong with what was kept.
    pub fn resume(settings: Settings, kept: Kept) -> anyhow::Result<Self> {
        let state = State::resume(kept.state)?;
        let page = Storage::resume(kept.page)?;
        let connection = Connection::resume(kept.connection);
        let mut instance = Self::new(settings, connection, state, page);
        // If not, INIT comes again.
        instance.agreement = Agreement::Reached;
        Ok(instance)
    }

    fn new(settings: Settings, connection: Connection, state: State, page: Storage) -> Self {
        let record = state.record();
        let mut registry = Registry::resume(record.generation, record.epoch);
        let mut free = Vec::new();
        let mut of_vmgenid = 0;
        let watchers: Vec<_> = (0..state.slots())
            .map(|index| {
                let slot = state.at(index);
                match &slot {
                    None => free.push(index),
                    Some(slot) => of_vmgenid += usize::from(slot.node == Node::Vmgenid),
                }
                slot.map(|slot| registry.adopt(slot.watcher))
            })
            .collect();
        Self {
            settings,
            connection: Arc::new(connection),
            state,
            page,
            registry,
            record,
            watchers,
            free,
            of_vmgenid,
            sleepers: HashMap::new(),
            deadlines: BTreeSet::new(),
            reports: HashMap::new(),
            reopened: HashMap::new(),
            doubt: None,
            renewals: 0,
            deferred: Vec::new(),
            trigger: None,
            agreement: Agreement::Pending,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where its folder is mounted.
    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// What it was asked to be.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The device that requests come from.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Whether kernel and daemon have agreed on how to talk.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Its accounts.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The page that programs map.
    pub fn page(&self) -> &Storage {
        &self.page
    }

    /// How many watchers it has.
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

    /// What is stored with each change.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether a renewal of the page is under way.
    pub fn is_renewing(&self) -> bool {
        self.renewals > 0
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

    /// Other people may open the nodes now.
    pub fn set_access(&mut self, access: [files::Access; 2]) {
        if access != self.settings.access {
            self.settings.access = access;
            for inode in files::NODES {
                self.connection.notify_attributes(inode);
            }
        }
    }

    /// A backend or a parent noticed a change. `note` is stored with it, all at once.
    pub fn bump(&mut self, renewals: &Renewals, note: impl FnOnce(&mut Record)) {
        let change = self.registry.bump();
        self.carry_out(change, renewals, note);
    }

    pub(super) fn carry_out(
        &mut self,
        change: Change,
        renewals: &Renewals,
        note: impl FnOnce(&mut Record),
    ) {
        let epoch = self.registry.epoch();
        self.record.epoch = epoch;
        self.record.generation = change.generation;
        note(&mut self.record);
        self.state.set_time(epoch, clock::now());
        self.state.commit(&self.record);
        self.page
            .first_u32()
            .store(change.generation.get(), Ordering::Release);
        fault::point();
        if self.state.mapping() == Mapping::Store {
            self.renew(renewals);
        } else {
            self.wake_everybody();
        }
    }

    /// Has the kernel's copies of the page renewed.
    pub(super) fn renew(&mut self, renewals: &Renewals) {
        match renewals.start(&self.connection, &self.page) {
            Ok(()) => self.renewals += 1,
            Err(error) => {
                tracing::error!(
                    instance = self.settings.name,
                    "no process can be started that renews the page ({error}): programs that map it see \
                     the old generation"
                );
                self.wake_everybody();
            }
        }
    }

    /// A renewal is done.
    pub fn renewed(&mut self) {
        self.renewals = self.renewals.saturating_sub(1);
        if !self.is_renewing() {
            self.wake_everybody();
        }
    }

    /// Whether [`go_on`](Self::go_on) has something to do.
    pub fn is_held_up(&self) -> bool {
        !self.is_renewing() && (self.trigger.is_some() || !self.deferred.is_empty())
    }

    /// Answers whoever caused a change, and then those who were put off. Whatever follows from the change
    /// shall have happened before. Afterwards it may be held up again.
    pub fn go_on(&mut self, renewals: &Renewals, backends: &[report::Backend]) {
        if self.is_renewing() {
            return;
        }
        if let Some(trigger) = self.trigger.take() {
            self.answer_ioctl(trigger, 0);
        }
        for bytes in std::mem::take(&mut self.deferred) {
            if let Ok(request) = Request::parse(&bytes) {
                self.handle(&request, renewals, backends);
            }
        }
    }

    /// Everybody's answer has changed: a watcher is outdated now, whatever it did before.
    pub(super) fn wake_everybody(&mut self) {
        self.deadlines.clear();
        for (_, sleeper) in std::mem::take(&mut self.sleepers) {
            self.answer_sleeper(sleeper, Patience::Sleep);
        }
        fault::point();
        self.notify_pollers();
    }

    pub(super) fn notify_pollers(&self) {
        for (index, watcher) in self.watchers.iter().enumerate() {
            let outdated = watcher
                .as_ref()
                .is_some_and(|watcher| self.registry.is_outdated(watcher));
            if outdated && let Some(kernel_handle) = self.state.polled_as(index) {
                self.connection.notify_poll(kernel_handle);
                fault::point();
                // Whoever was told polls again before it can report anything, and so asks to be told again.
                self.state.clear_polled_as(index);
            }
        }
    }

    /// The last outdated watcher has gone or acknowledged, perhaps.
    pub(super) fn wake(&mut self, wake: Wake) {
        if wake == Wake::Nobody {
            return;
        }
        let waiters: Vec<u64> = self
            .sleepers
            .iter()
            .filter(|(_, sleeper)| matches!(sleeper, Sleeper::Wait(..)))
            .map(|(identity, _)| *identity)
            .collect();
        for identity in waiters {
            self.wake_sleeper(identity, Patience::Sleep);
        }
    }

    /// Asks the core again about one that sleeps.
    pub(super) fn wake_sleeper(&mut self, identity: u64, patience: Patience) {
        let Some(sleeper) = self.sleepers.remove(&identity) else {
            return;
        };
        if let Sleeper::Wait(_, _, Some(deadline)) = sleeper {
            self.deadlines.remove(&(deadline, identity));
        }
        self.answer_sleeper(sleeper, patience);
    }

    pub(super) fn answer_sleeper(&mut self, sleeper: Sleeper, patience: Patience) {
        let (Sleeper::Read(unique, handle) | Sleeper::Wait(unique, handle, _)) = sleeper;
        match sleeper {
            Sleeper::Read(..) => {
                let length = sysgenid_core::abi::GENERATION_SIZE;
                match self.read_watcher(handle, length, patience) {
                    Err(errno) => self.connection.refuse(unique, errno),
                    Ok(Ok(Read::Sleep)) => self.sleep(sleeper),
                    Ok(answer) => self.answer_read(unique, answer),
                }
            }
            Sleeper::Wait(..) => {
                let Some(watcher) = self.watcher(handle) else {
                    self.connection.refuse(unique, Errno::BADF);
                    return;
                };
                match self.registry.wait(watcher, patience) {
                    Ok(Wait::Sleep) => self.sleep(sleeper),
                    answer => self.answer_wait(unique, answer),
                }
            }
        }
    }

    pub(super) fn sleep(&mut self, sleeper: Sleeper) {
        let (Sleeper::Read(unique, _) | Sleeper::Wait(unique, _, _)) = sleeper;
        if let Sleeper::Wait(_, _, Some(deadline)) = sleeper {
            self.deadlines.insert((deadline, unique.identity()));
        }
        self.sleepers.insert(unique.identity(), sleeper);
    }

    pub(super) fn answer_read(&self, unique: Unique, answer: Result<Read, Error>) {
        match answer {
            Ok(Read::Generation(generation)) => {
                self.connection
                    .answer_bytes(unique, &generation.to_ne_bytes());
            }
            // A sleeper is not answered.
            Ok(Read::Empty | Read::Sleep) => self.connection.answer_bytes(unique, &[]),
            Err(error) => self.connection.refuse(unique, errno(error)),
        }
    }

    pub(super) fn answer_wait(&self, unique: Unique, answer: Result<Wait, Error>) {
        match answer {
            Ok(_) => self.answer_ioctl(unique, 0),
            Err(error) => self.connection.refuse(unique, errno(error)),
        }
    }

    pub(super) fn answer_ioctl(&self, unique: Unique, result: i32) {
        let answer = wire::IoctlOut {
            result,
            flags: 0,
            in_iovs: 0,
            out_iovs: 0,
        };
        self.connection.answer(unique, &answer);
    }

    /// The next moment at which [`time_passed`](Self::time_passed) has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        let wait = self.deadlines.first().map(|(deadline, _)| *deadline);
        let doubt = self.doubt.map(|(_, _, next)| next);
        match (wait, doubt) {
            (Some(wait), Some(doubt)) => Some(wait.min(doubt)),
            (wait, doubt) => wait.or(doubt),
        }
    }

    /// Ends the waits whose time has run out.
    pub fn time_passed(&mut self, now: u64) {
        while let Some(&(deadline, identity)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.wake_sleeper(identity, Patience::TimeOut);
        }
        if self.doubt.is_some_and(|(_, _, next)| next <= now) {
            self.settle_doubt(now);
        }
    }

    /// Answers one request, or puts it to sleep.
    pub fn handle(
        &mut self,
        request: &Request<'_>,
        renewals: &Renewals,
        backends: &[report::Backend],
    ) {
        let unique = request.unique;
        // In their order: a trigger that may have been carried out comes before those that came later.
        if (self.is_renewing() || self.trigger.is_some() || !self.deferred.is_empty())
            && !matches!(
                request.operation,
                Operation::Read {
                    fills_page: true,
                    ..
                }
            )
        {
            self.deferred.push(request.bytes.to_vec());
            return;
        }
        match request.operation {
            Operation::Init(init) => self.init(unique, &init),
            Operation::Lookup { name } => self.look_up(unique, request.inode, name),
            Operation::GetAttributes => match self.attributes(request.inode) {
                Some(attr) => self.connection.answer(unique, &attributes_answer(attr)),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::StatFileSystem => self.connection.answer(
                unique,
                &wire::StatfsOut {
                    bsize: 4096,
                    frsize: 4096,
                    namelen: 255,
                    ..wire::StatfsOut::default()
                },
            ),
            Operation::Open { flags } => match File::at(request.inode) {
                Some(File::Node(node)) => self.open(request, node, flags),
                Some(_) => self.open_report(unique, flags),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::Read {
                handle,
                offset,
                size,
                flags,
                fills_page,
            } => match File::at(request.inode) {
                Some(File::Node(_)) if fills_page => match self.state.mapping() {
                    Mapping::Store => self.fill_page(unique, offset, size),
                    // It is for sendfile(2) and its like: nobody would renew what they got.
                    Mapping::Passthrough(_) | Mapping::Unsettled => {
                        self.connection.refuse(unique, Errno::INVAL);
                    }
                },
                Some(File::Node(_)) => self.read(unique, Handle::new(handle), size, flags),
                Some(file) => self.read_report(unique, file, handle, (offset, size), backends),
                None => self.connection.refuse(unique, Errno::NOENT),
            },
            Operation::Write { handle, data } => self.write(unique, Handle::new(handle), data),
            Operation::Release { handle } => {
                self.reports.remove(&handle);
                self.close(Handle::new(handle));
                self.connection.answer_bytes(unique, &[]);
            }
            Operation::Ioctl {
                handle,
                request: number,
                argument,
            } => {
                let result = Ioctl::decode(number, argument);
                self.ioctl(request, Handle::new(handle), result, renewals);
            }
            Operation::Poll {
                handle,
                kernel_handle,
                notify,
            } => self.poll(unique, Handle::new(handle), kernel_handle, notify),
            Operation::OpenFolder => self.connection.answer(
                unique,
                &wire::OpenOut {
                    fh: 0,
                    open_flags: 0,
                    backing_id: 0,
                },
            ),
            Operation::ReadFolder { offset, size } => self.read_folder(unique, offset, size),
            Operation::ReleaseFolder => self.connection.answer_bytes(unique, &[]),
            Operation::Interrupt { target } => {
                self.wake_sleeper(target.identity(), Patience::Signal);
            }
            Operation::Forget => {}
            Operation::Destroy => self.connection.answer_bytes(unique, &[]),
            Operation::SetAttributes { changes_access } if !changes_access => {
                // Opened with O_TRUNC, or touched: to a device that means nothing, and is no error.
                match self.attributes(request.inode) {
                    Some(attr) => self.connection.answer(unique, &attributes_answer(attr)),
                    None => self.connection.refuse(unique, Errno::NOENT),
                }
            }
            Operation::SetAttributes { .. } | Operation::Change => {
                self.connection.refuse(unique, Errno::PERM);
            }
            // The kernel then does without, and asks no more.
            Operation::Other(_) => self.connection.refuse(unique, Errno::NOSYS),
        }
    }

    pub(super) fn init(&mut self, unique: Unique, init: &wire::InitIn) {
        let offered = u64::from(init.flags) | u64::from(init.flags2) << 32;
        let agreed = offered & WANTED;
        if init.major != wire::MAJOR || init.minor < wire::MINOR || agreed & flag::HAS_RESEND == 0 {
            self.agreement = Agreement::Impossible(format!(
                "the kernel is too old: it speaks FUSE {}.{}, and sysgenidd needs {}.{}, which Linux \
                 6.9 and newer have",
                init.major,
                init.minor,
                wire::MAJOR,
                wire::MINOR
            ));
            self.connection.refuse(unique, Errno::PROTO);
            return;
        }
        // Only whole halves are taken.
        #[allow(clippy::cast_possible_truncation)]
        let (flags, flags2) = (agreed as u32, (agreed >> 32) as u32);
        let answer = wire::InitOut {
            major: wire::MAJOR,
            minor: wire::MINOR,
            max_readahead: 0,
            flags,
            // Closing is a request that nobody waits for, and many programs may end at once.
            max_background: u16::MAX,
            congestion_threshold: u16::MAX,
            max_write: 4096,
            time_gran: 1,
            max_pages: 1,
            map_alignment: 0,
            flags2,
            max_stack_depth: 1,
            request_timeout: 0,
            unused: [0; 11],
        };
        self.connection.answer(unique, &answer);
        self.settle_mapping();
        self.agreement = Agreement::Reached;
    }

    /// Ends the instance: everybody who sleeps gets an error, and the folder is unmounted. When the
    /// connection is closed, here and wherever it is kept, so does everybody who comes later.
    pub fn stop(mut self) {
        let sleepers = std::mem::take(&mut self.sleepers);
        for (_, Sleeper::Read(unique, _) | Sleeper::Wait(unique, _, _)) in sleepers {
            self.connection.refuse(unique, Errno::NODEV);
        }
        for bytes in std::mem::take(&mut self.deferred) {
            if let Ok(request) = Request::parse(&bytes) {
                self.connection.refuse(request.unique, Errno::NODEV);
            }
        }
        if let Err(errno) = Connection::unmount(&self.settings.path) {
            tracing::warn!(
                "{} cannot be unmounted: {errno}",
                self.settings.path.display()
            );
        }
        // The mount point is ours; if something else is in it, it stays.
        let _ = std::fs::remove_dir(&self.settings.path);
    }

    /// The watchers, for people to read.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        (0..self.state.slots()).filter_map(|index| self.state.at(index))
    }

    /// When a change happened, in nanoseconds of the monotonic clock.
    pub fn time(&self, epoch: Epoch) -> u64 {
        self.state.time(epoch, self.registry.epoch())
    }

    /// The generation.
    pub fn generation(&self) -> Generation {
        self.registry.generation()
    }
}

/// What a read of `size` bytes at `offset` returns.
pub(super) fn part(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    &bytes[start..bytes.len().min(start.saturating_add(size))]
}
