// SPDX-License-Identifier: MIT OR Apache-2.0

//! The thread of an instance: it receives requests, answers them or lets them sleep, and wakes.
//!
//! Whatever a tenant does keeps his own instance's thread busy and no other. Even that one never does more
//! than a slice of one kind of work before it looks at the others: a program that opens the node need not
//! wait until a hundred thousand pollers have been told of a change.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use sysgenid_core::{Epoch, Generation, Ioctl, PageWord, Patience, Read, Wake};

use crate::clock;
use crate::fault;
use crate::judging::process;
use crate::keeping::state::Handle;
use crate::noticing::reseed::CommonReseed;
use crate::protocol::wire;
use crate::protocol::{Buffer, Connection, Operation, Received, Request, Unique};

use super::accounts::{Accounts, Full};
use super::family::Family;
use super::instance::Instance;
use super::report::SharedReports;
use super::reports::Reports;
use super::sharing::{self, Sharing};
use super::sleepers::{Sleeper, Sleepers, Wait};

/// How many requests are answered before anything else gets its turn.
const BURST: usize = 128;

/// The same while there are some to be woken: whoever asks much must not keep a change from others.
const SHORT_BURST: usize = 8;

/// How many sleepers or pollers are woken before anything else gets its turn.
const SLICE: usize = 64;

/// How long to look for the next request after an answer, before sleeping, in nanoseconds.
const LINGER: u64 = 40_000;

/// How long the end of an instance waits for copies of its page to show it, in nanoseconds.
const LAST_COPY: u64 = 1_000_000_000;

/// How long it is not said again that there is no room for another watcher, in nanoseconds.
const SAID_AGAIN: u64 = 60_000_000_000;

/// The result of an interrupted ioctl that the kernel begins anew, unless a handler runs: `-ERESTARTNOHAND`.
/// Only where a signal or its like is pending does the kernel make something of it.
const AGAIN_WITHOUT_HANDLER: i32 = -514;

/// The same, which a handler with `SA_RESTART` does not end either: `-ERESTARTSYS`.
const AGAIN: i32 = -512;

/// What all instances of a daemon share.
#[derive(Clone, Debug)]
pub struct Common {
    /// The host's instance and its followers.
    pub family: Arc<Family>,
    /// How the backends stand, for people.
    pub backends: SharedReports,
    /// The reseeds that tenants' triggers share.
    pub reseed: Arc<CommonReseed>,
    /// How many reports a user may have open.
    pub most_reports: u32,
}

/// Why an instance is served no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to end.
    AsTold,
    /// Somebody else unmounted or aborted it.
    Gone,
}

/// A trigger of a tenant that has yet to be carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateTrigger {
    pub(super) unique: Unique,
    pub(super) minimum: Generation,
    /// When, in nanoseconds of the monotonic clock.
    pub(super) asked: u64,
}

/// What serves one instance.
#[derive(Debug)]
pub struct Server {
    pub(super) instance: Arc<Instance>,
    pub(super) common: Common,
    pub(super) connection: Arc<Connection>,
    pub(super) sharing: Box<dyn Sharing>,
    pub(super) sleepers: Sleepers,
    pub(super) reports: Reports,
    pub(super) recovery: super::recovery::Recovery,
    /// The change that everybody who maps the page sees, and of which all are being told.
    shown: Epoch,
    /// What they see of it: the flags may change without the generation.
    shown_word: PageWord,
    /// The sleepers that are to be asked again, and how many slots are to be looked at for pollers, from
    /// which on.
    waking: Vec<u64>,
    pollers_left: usize,
    next_poller: usize,
    /// How many slots there were when the change was stored: those that came later know of it.
    round: usize,
    /// The trigger that has been carried out, and is answered once the copies of the page show it.
    trigger: Option<Unique>,
    /// Those of tenants that have yet to be carried out, when to look at them, and when there may be one again.
    pub(super) late_triggers: VecDeque<LateTrigger>,
    pub(super) trigger_at: Option<u64>,
    pub(super) next_trigger: u64,
    /// What came while a copy of the page was not renewed yet, and was put off. So a trigger is answered
    /// before another is carried out: the state remembers only the last.
    deferred: Vec<Vec<u8>>,
    /// When it was said last that there is no room, in nanoseconds.
    full_said: Option<u64>,
    /// Whether there is another CPU for whoever was answered.
    lingers: bool,
    /// The watchers whose waits the kernel is to begin anew, by the thread that waits.
    pub(super) begun_anew: HashMap<u32, Handle>,
}

impl Server {
    /// What serves an instance with which the kernel has agreed on how to talk.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new(instance: Arc<Instance>, common: Common) -> anyhow::Result<Self> {
        let connection = Arc::clone(instance.connection());
        let accounts = instance.accounts();
        let sharing = sharing::settle(
            instance.name(),
            instance.settings().passthrough,
            &connection,
            accounts.state(),
            accounts.page(),
        )?;
        let shown = accounts.registry().epoch();
        let shown_word = accounts.page().word();
        let begun_anew = accounts.waits_begun_anew();
        drop(accounts);
        Ok(Self {
            reports: Reports::new(common.most_reports),
            instance,
            common,
            connection,
            sharing,
            sleepers: Sleepers::default(),
            recovery: super::recovery::Recovery::default(),
            shown,
            shown_word,
            waking: Vec::new(),
            pollers_left: 0,
            next_poller: 0,
            round: 0,
            trigger: None,
            late_triggers: VecDeque::new(),
            trigger_at: None,
            next_trigger: 0,
            deferred: Vec::new(),
            full_said: None,
            begun_anew,
            lingers: std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1),
        })
    }

    /// Serves until the instance ends.
    ///
    /// # Errors
    ///
    /// Those of the device, without which nothing can be served.
    pub fn serve(&mut self) -> anyhow::Result<Ended> {
        const REQUESTS: u64 = 1;
        const KICKS: u64 = 2;
        const COPIES: u64 = 3;
        let watch = epoll::create(CreateFlags::CLOEXEC)?;
        let add = |fd: std::os::fd::BorrowedFd<'_>, data| {
            epoll::add(&watch, fd, EventData::new_u64(data), EventFlags::IN)
        };
        add(self.connection.as_fd(), REQUESTS)?;
        add(self.instance.kicked(), KICKS)?;
        if let Some(fd) = self.sharing.fd() {
            add(fd, COPIES)?;
        }
        let mut buffer = Buffer::default();
        let mut events = Vec::with_capacity(4);
        let mut last_copy = None;
        loop {
            let timeout = self.timeout(last_copy);
            self.instance.set_renewing(self.sharing.is_under_way());
            self.instance.set_busy(false);
            events.clear();
            match epoll::wait(&watch, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.instance.set_busy(true);
            for event in &events {
                match event.data.u64() {
                    KICKS => self.instance.take_kicks(),
                    COPIES => self.sharing.advance(&self.connection),
                    _ => {}
                }
            }
            let now = clock::now();
            if self.instance.is_ending() {
                let until = *last_copy.get_or_insert_with(|| {
                    self.sharing.renew(&self.connection);
                    now + LAST_COPY
                });
                if !self.sharing.is_under_way() || now >= until {
                    self.refuse_everybody();
                    return Ok(Ended::AsTold);
                }
            }
            self.time_passed(now);
            self.begin_waking();
            self.go_on();
            if self.answer_requests(&mut buffer)? == Ended::Gone {
                return Ok(Ended::Gone);
            }
            self.begin_waking();
            self.wake_some();
        }
    }

    /// Until when there is nothing to do but what comes.
    fn timeout(&self, last_copy: Option<u64>) -> Option<Timespec> {
        if self.has_wakes_left() && !self.sharing.is_under_way() {
            return Some(Timespec::default());
        }
        let next = [
            self.sleepers.next_deadline(),
            self.recovery.next_look(),
            self.trigger_at,
            last_copy,
        ]
        .into_iter()
        .flatten()
        .min()?;
        Some(clock::timespec(next.saturating_sub(clock::now())))
    }

    /// Answers what has come, up to a limit.
    fn answer_requests(&mut self, buffer: &mut Buffer) -> anyhow::Result<Ended> {
        let connection = Arc::clone(&self.connection);
        let burst = if self.has_wakes_left() {
            SHORT_BURST
        } else {
            BURST
        };
        let mut answered = 0;
        let mut last = None;
        while answered < burst {
            match connection.receive(buffer) {
                Ok(Received::Request(request)) => {
                    self.handle(&request);
                    answered += 1;
                    last = self.lingers.then(clock::now);
                }
                // Who was answered often asks again at once, and to be woken for that takes longer.
                Ok(Received::Nothing)
                    if last.is_some_and(|last| clock::now() - last < LINGER)
                        && !self.has_wakes_left() => {}
                Ok(Received::Nothing) => break,
                Ok(Received::Gone) => return Ok(Ended::Gone),
                // It has been refused.
                Err(Errno::BADMSG) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Ended::AsTold)
    }

    /// The accounts of the instance, if everybody who maps the page sees the last change. Otherwise whoever was
    /// answered now could be told of it before: the request is put off.
    pub(super) fn as_shown<'a>(
        &mut self,
        instance: &'a Instance,
        request: &Request<'_>,
    ) -> Option<MutexGuard<'a, Accounts>> {
        let accounts = instance.accounts();
        let shows = !self.sharing.is_copied()
            || (!self.sharing.is_under_way() && accounts.registry().epoch() == self.shown);
        if shows {
            return Some(accounts);
        }
        drop(accounts);
        self.begin_waking();
        if self.is_held_up() {
            self.defer(request);
        } else {
            self.handle(request);
        }
        None
    }

    /// Whether a request is put off until the copies of the page are renewed.
    pub(super) fn is_held_up(&self) -> bool {
        self.sharing.is_under_way() || self.trigger.is_some() || !self.deferred.is_empty()
    }

    /// Puts a request off.
    pub(super) fn defer(&mut self, request: &Request<'_>) {
        self.deferred.push(request.bytes.to_vec());
    }

    /// A trigger has been carried out. It is answered once everybody who maps the page sees the change, and
    /// the first of those who sleep have been told.
    pub(super) fn triggered(&mut self, unique: Unique) {
        self.begin_waking();
        if self.sharing.is_under_way() {
            self.trigger = Some(unique);
        } else {
            self.wake_some();
            self.answer_ioctl(unique, 0);
        }
    }

    /// Answers whoever caused a change, and then those who were put off.
    fn go_on(&mut self) {
        if self.sharing.is_under_way() {
            return;
        }
        if let Some(trigger) = self.trigger.take() {
            self.wake_some();
            self.answer_ioctl(trigger, 0);
        }
        for bytes in std::mem::take(&mut self.deferred) {
            if let Ok(request) = Request::parse(&bytes) {
                self.handle(&request);
            }
        }
    }

    /// Looks whether there was a change of which not everybody is being told, and begins with that.
    pub(super) fn begin_waking(&mut self) {
        let accounts = self.instance.accounts();
        let word = accounts.page().word();
        let epoch = accounts.registry().epoch();
        let slots = accounts.slots();
        drop(accounts);
        if word != self.shown_word {
            self.shown_word = word;
            self.sharing.renew(&self.connection);
            self.instance.set_renewing(self.sharing.is_under_way());
        }
        if epoch == self.shown {
            return;
        }
        self.shown = epoch;
        self.round = slots;
        self.pollers_left = slots;
        self.waking = self.sleepers.identities();
        // The last ones first: they are taken from the end.
        self.waking.reverse();
    }

    fn has_wakes_left(&self) -> bool {
        !self.waking.is_empty() || self.pollers_left > 0
    }

    /// Wakes a slice of those who have to hear of a change.
    fn wake_some(&mut self) {
        if self.sharing.is_under_way() {
            return;
        }
        for _ in 0..SLICE {
            let Some(identity) = self.waking.pop() else {
                break;
            };
            self.wake_sleeper(identity, Patience::Sleep);
        }
        if self.waking.is_empty() && self.pollers_left > 0 {
            fault::point();
            self.tell_some_pollers();
        }
    }

    /// Tells a slice of those who poll. It goes round: a change in the middle of it is one more round from
    /// there on, so that nobody is told never because others are told again and again.
    fn tell_some_pollers(&mut self) {
        let mut told = Vec::with_capacity(SLICE);
        let accounts = self.instance.accounts();
        // Many slots may be free or current: a look costs little, but not nothing.
        for _ in 0..SLICE * 16 {
            if self.pollers_left == 0 || told.len() == SLICE {
                break;
            }
            if self.next_poller >= self.round {
                self.next_poller = 0;
            }
            if let Some(kernel_handle) = accounts.take_poller(self.next_poller) {
                told.push((self.next_poller, kernel_handle));
            }
            self.next_poller += 1;
            self.pollers_left -= 1;
        }
        drop(accounts);
        for &(_, kernel_handle) in &told {
            self.connection.notify_poll(kernel_handle);
            fault::point();
        }
        let accounts = self.instance.accounts();
        for (index, kernel_handle) in told {
            accounts.told(index, kernel_handle);
        }
    }

    /// Tells all who poll and are outdated, as a process before this one may not have.
    pub(super) fn tell_everybody(&mut self) {
        self.round = self.instance.accounts().slots();
        self.pollers_left = self.round;
    }

    /// The last outdated watcher has gone or acknowledged, perhaps.
    pub(super) fn wake(&mut self, wake: Wake) {
        if wake == Wake::Nobody {
            return;
        }
        // Among those who have to hear of a change, a slice at a time.
        let waits = self.sleepers.waits();
        if waits.len() <= SLICE {
            for identity in waits {
                self.wake_sleeper(identity, Patience::Sleep);
            }
        } else {
            self.waking.extend(waits);
        }
    }

    /// Asks the core again about one that sleeps.
    fn wake_sleeper(&mut self, identity: u64, patience: Patience) {
        if let Some(sleeper) = self.sleepers.take(identity) {
            self.ask_again(sleeper, patience);
        }
    }

    fn ask_again(&mut self, sleeper: Sleeper, patience: Patience) {
        match sleeper {
            Sleeper::Read(unique, handle) => {
                let length = sysgenid_core::abi::GENERATION_SIZE;
                let answer = self.instance.accounts().read(handle, length, patience);
                self.settle_read(unique, handle, answer);
            }
            Sleeper::Wait(wait) => {
                let answer = self.instance.accounts().wait(wait.handle, patience);
                self.settle_wait(wait, answer);
            }
        }
    }

    /// Answers a read, or lets it sleep.
    pub(super) fn settle_read(
        &mut self,
        unique: Unique,
        handle: Handle,
        answer: Result<Read, Errno>,
    ) {
        match answer {
            Ok(Read::Generation(generation)) => {
                self.connection
                    .answer_bytes(unique, &generation.to_ne_bytes());
            }
            Ok(Read::Empty) => self.connection.answer_bytes(unique, &[]),
            Ok(Read::Sleep) => self.sleepers.add(Sleeper::Read(unique, handle)),
            Err(errno) => self.connection.refuse(unique, errno),
        }
    }

    /// Answers a wait, or lets it sleep.
    pub(super) fn settle_wait(&mut self, wait: Wait, answer: Result<sysgenid_core::Wait, Errno>) {
        match answer {
            Ok(sysgenid_core::Wait::Settled) => self.answer_ioctl(wait.unique, 0),
            Ok(sysgenid_core::Wait::Sleep) => self.sleepers.add(Sleeper::Wait(wait)),
            Err(errno) => self.connection.refuse(wait.unique, errno),
        }
    }

    /// The caller of a request has a signal pending, or the kernel wants it out of its call: to freeze it, to
    /// stop it, for a debugger. A wait ends only for a signal that has a handler; else it begins anew when the
    /// program goes on, with the deadline that it had.
    pub(super) fn interrupted(&mut self, target: Unique) {
        if self.cancel_trigger(target) {
            return;
        }
        let Some(sleeper) = self.sleepers.take(target.identity()) else {
            return;
        };
        match sleeper {
            Sleeper::Read(..) => self.ask_again(sleeper, Patience::Signal),
            Sleeper::Wait(wait) if process::pending_handler(wait.tid) => {
                self.ask_again(sleeper, Patience::Signal);
            }
            Sleeper::Wait(wait) => {
                // It may be over in this very moment.
                let answer = self.instance.accounts().wait(wait.handle, Patience::Sleep);
                if matches!(answer, Ok(sysgenid_core::Wait::Sleep)) {
                    self.instance.accounts().keep_deadline(&wait);
                    // One deadline is kept for a watcher, so one is enough here, however many threads are killed.
                    self.begun_anew.retain(|_, waits| *waits != wait.handle);
                    self.begun_anew.insert(wait.tid, wait.handle);
                    self.answer_ioctl(wait.unique, AGAIN_WITHOUT_HANDLER);
                } else {
                    self.settle_wait(wait, answer);
                }
            }
        }
    }

    /// If the kernel did not begin a wait anew but a handler ended it after all, the thread's next call tells: any
    /// other than that wait. A later wait is then another, and has all of its time.
    pub(super) fn forget_wait_before(&mut self, request: &Request<'_>) {
        if self.begun_anew.is_empty() || request.tid == 0 {
            return;
        }
        let Some(handle) = self.begun_anew.remove(&request.tid) else {
            return;
        };
        let is_that_wait = matches!(
            request.operation,
            Operation::Ioctl { handle: called, request: number, argument }
                if Handle::new(called) == handle
                    && matches!(Ioctl::decode(number, argument), Ok(Ioctl::WaitWatchers(_)))
        );
        if !is_that_wait {
            self.instance
                .accounts()
                .forget_deadline(handle, request.tid);
        }
    }

    /// A trigger that still waits for its reseed does not happen if its caller does not wait for it.
    fn cancel_trigger(&mut self, target: Unique) -> bool {
        let found = self
            .late_triggers
            .iter()
            .position(|late| late.unique.identity() == target.identity());
        if let Some(late) = found.and_then(|index| self.late_triggers.remove(index)) {
            self.answer_ioctl(late.unique, AGAIN);
        }
        found.is_some()
    }

    /// Says that somebody could not become a watcher, but not for each of them.
    pub(super) fn say_full(&mut self, full: Full) {
        let now = clock::now();
        if self.full_said.is_none_or(|said| now - said > SAID_AGAIN) {
            self.full_said = Some(now);
            tracing::warn!(instance = self.instance.name(), "no more watchers: {full}");
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

    /// Ends what has waited long enough.
    fn time_passed(&mut self, now: u64) {
        for _ in 0..SLICE {
            // Whoever was outdated by a change shall find it in his copy of the page.
            if self.is_held_up() {
                break;
            }
            let Some(sleeper) = self.sleepers.take_late(now) else {
                break;
            };
            self.ask_again(sleeper, Patience::TimeOut);
        }
        if self.trigger_at.is_some_and(|at| at <= now) {
            self.trigger_at = None;
            self.trigger_late();
        }
        self.settle_doubt(now);
    }

    /// Whoever sleeps gets an error, now that nothing will happen any more.
    fn refuse_everybody(&mut self) {
        for sleeper in self.sleepers.drain() {
            self.connection.refuse(sleeper.unique(), Errno::NODEV);
        }
        for late in std::mem::take(&mut self.late_triggers) {
            self.connection.refuse(late.unique, Errno::NODEV);
        }
        if let Some(trigger) = self.trigger.take() {
            self.answer_ioctl(trigger, 0);
        }
        for bytes in std::mem::take(&mut self.deferred) {
            if let Ok(request) = Request::parse(&bytes) {
                self.connection.refuse(request.unique, Errno::NODEV);
            }
        }
    }
}
