// SPDX-License-Identifier: MIT OR Apache-2.0

//! The thread that notices.
//!
//! One turn after the other: it asks all backends, decides once, and where the generation is to change it
//! samples the hypervisor's counter, reseeds, and has the change made, in this order. It waits for nobody but
//! for what it sleeps on, and sleeps for as long as nothing is to be done.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::authority::{Authority, Cause, Doubt, Presence};
use super::backend::{GONE, LOST};
use super::presence::{Arrivals, Sign};
use super::reseed::{self, Differences, Fresh};
use super::{Backend, Error, Kind, Settings};
use crate::clock;
use crate::placing::mounts;
use crate::serving::report::{self, SharedReports};

/// How far each backend has reported, in the order of [`Kind::ALL`].
pub type Positions = [Option<u64>; Kind::ALL.len()];

/// How soon a backend is looked at again that was busy, in nanoseconds: 1 ms.
const SOON: u64 = 1_000_000;

/// How long the same doubt is not logged again, in nanoseconds: 10 s. A stranger may cause one after the other.
const QUIET: u64 = 10_000_000_000;

/// In which order backends are asked. What is asked first may be the echo of what is asked later, not the
/// other way round.
const ORDER: [Kind; Kind::ALL.len()] = [Kind::Parent, Kind::Kprobe, Kind::Kmsg, Kind::Vmclock];

/// Whose generation it is. What is asked of it must not wait for anybody who may wait for this thread.
pub trait Machine: Send + Sync {
    /// Changes the generation, and stores the positions at once with it. Only a reseed gives a [`Fresh`].
    fn change(&self, fresh: Fresh, cause: Cause, positions: Positions);

    /// Stores the positions; there is nothing to change.
    fn note(&self, positions: Positions);

    /// Whether anything notices restores from now on.
    fn set_noticed(&self, noticed: bool);
}

/// What the thread works by.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which backends to use.
    pub order: Vec<Kind>,
    /// Where they find what they watch. The daemon's own mounts are looked up at each attempt.
    pub backends: Settings,
    /// How often to look at a vmclock device that cannot tell, where nothing better notices.
    pub vmclock_interval: Option<Duration>,
}

/// The thread, and what it shares.
#[derive(Debug)]
pub struct Noticing {
    shared: Arc<Shared>,
    busy_since: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Readable once there are orders.
    kick: OwnedFd,
    orders: Mutex<Orders>,
    reports: SharedReports,
}

#[derive(Debug, Default)]
struct Orders {
    /// Another plan, and whom to tell once it is carried out.
    plan: Option<(Plan, mpsc::Sender<()>)>,
    /// To stop, and whether nothing is to be left in the kernel.
    stop: Option<bool>,
}

impl Noticing {
    /// Starts the thread. When this returns, all backends have been looked for and asked once, so that what
    /// happened while nobody looked has been changed for; only a parent may take longer to answer.
    ///
    /// How the backends stand is kept in `reports`, for people. `positions` are those that were stored last, all of them `None` where nobody noticed before.
    ///
    /// # Errors
    ///
    /// If the kernel gives no thread or no descriptor.
    pub fn start(
        plan: Plan,
        positions: Positions,
        machine: Arc<dyn Machine>,
        reports: SharedReports,
    ) -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            kick: eventfd(0, flags)?,
            orders: Mutex::default(),
            reports,
        });
        let busy_since = Arc::new(AtomicU64::new(clock::now()));
        let mut work = Work::new(plan, positions, machine, Arc::clone(&shared))?;
        work.busy_since = Arc::clone(&busy_since);
        work.open_missing();
        work.turn();
        let thread = std::thread::Builder::new()
            .name("noticing".to_owned())
            .spawn(move || work.run())?;
        Ok(Self {
            shared,
            busy_since,
            thread: Some(thread),
        })
    }

    /// Goes on with another plan. Says whether that is done; a thread that hangs is not waited for longer than
    /// a second.
    pub fn reconfigure(&self, plan: Plan) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (tell, done) = mpsc::channel();
        self.order(|orders| orders.plan = Some((plan, tell)));
        done.recv_timeout(PATIENCE).is_ok()
    }

    /// Asks all backends once: those that cannot tell by themselves may have something to say.
    pub fn look_now(&self) {
        self.order(|_| {});
    }

    /// Ends the thread. With `remove_probe` nothing is left in the kernel; without it, a successor finds out
    /// what happens meanwhile.
    pub fn stop(mut self, remove_probe: bool) {
        self.end(remove_probe);
    }

    /// Since when the thread has been at work (nanoseconds, monotonic), unless it sleeps. One that has been for
    /// long hangs.
    pub fn busy_since(&self) -> Option<u64> {
        Some(self.busy_since.load(Ordering::Relaxed)).filter(|since| *since != 0)
    }

    /// How the backends stand, for people.
    pub fn reports(&self) -> Vec<report::Backend> {
        lock(&self.shared.reports).clone()
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut lock(&self.shared.orders));
        // It fails only where it is readable.
        let _ = rustix::io::write(&self.shared.kick, &1_u64.to_ne_bytes());
    }

    fn end(&mut self, remove_probe: bool) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.order(|orders| orders.stop = Some(remove_probe));
        if thread.join().is_err() {
            tracing::error!("the thread that notices restores had failed");
        }
    }
}

impl Drop for Noticing {
    fn drop(&mut self) {
        self.end(false);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread sleeps on, beside the backends.
const KICK: u64 = 100;
const SIGNS: u64 = 200;

/// One kind of backend.
#[derive(Debug)]
struct Watched {
    backend: Option<Box<dyn Backend>>,
    /// Whether this process had it.
    was_opened: bool,
    /// The last word about it, for people.
    word: String,
    /// Whether it has answered since it was opened.
    has_answered: bool,
}

/// The thread's own.
struct Work {
    plan: Plan,
    machine: Arc<dyn Machine>,
    shared: Arc<Shared>,
    busy_since: Arc<AtomicU64>,
    watch: OwnedFd,
    watched: BTreeMap<Kind, Watched>,
    authority: Authority,
    arrivals: Arrivals,
    positions: Positions,
    /// The positions that were stored last.
    stored: Positions,
    /// Whether people were told that something notices.
    noticed: Option<bool>,
    /// That a backend went away in this turn.
    lost: bool,
    /// When to look at a backend again that was busy.
    look_again: Option<u64>,
    /// When a doubt about the log was logged last, and how many were not since.
    doubted: Option<(u64, u32)>,
}

impl Work {
    fn new(
        plan: Plan,
        positions: Positions,
        machine: Arc<dyn Machine>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let watch = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &watch,
            &shared.kick,
            EventData::new_u64(KICK),
            EventFlags::IN,
        )?;
        let arrivals = Arrivals::new();
        for (sign, fd, flags) in arrivals.fds() {
            epoll::add(&watch, fd, EventData::new_u64(SIGNS + sign as u64), flags)?;
        }
        Ok(Self {
            plan,
            machine,
            shared,
            busy_since: Arc::default(),
            watch,
            watched: BTreeMap::new(),
            authority: Authority::new(clock::now()),
            arrivals,
            positions,
            stored: positions,
            noticed: None,
            lost: false,
            look_again: None,
            doubted: None,
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(8);
        loop {
            let timeout = self.next_deadline().map(|deadline| {
                let wait = deadline.saturating_sub(clock::now());
                Timespec::try_from(Duration::from_nanos(wait)).unwrap_or_default()
            });
            events.clear();
            self.busy_since.store(0, Ordering::Release);
            let waited = epoll::wait(&self.watch, spare_capacity(&mut events), timeout.as_ref());
            self.busy_since.store(clock::now(), Ordering::Release);
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => tracing::error!("cannot wait for restores: {errno}"),
            }
            for event in &events {
                self.hear(event.data.u64());
            }
            let orders = std::mem::take(&mut *lock(&self.shared.orders));
            if let Some(remove_probe) = orders.stop {
                self.stop(remove_probe);
                return;
            }
            let done = orders.plan.map(|(plan, done)| {
                self.reconfigure(plan);
                done
            });
            if self.arrivals.is_due(clock::now()) {
                self.open_missing();
            }
            self.turn();
            if let Some(done) = done {
                // Who gave up waiting does not listen.
                let _ = done.send(());
            }
        }
    }

    fn hear(&mut self, source: u64) {
        if source == KICK {
            let _ = rustix::io::read(&self.shared.kick, &mut [0; 8]);
        }
        let sign = Sign::ALL
            .into_iter()
            .find(|&sign| SIGNS + sign as u64 == source);
        if let Some(sign) = sign {
            self.arrivals.hear(sign, clock::now());
        }
        // A backend: all of them are asked anyway.
    }

    /// When there is something to do although nothing happens.
    fn next_deadline(&self) -> Option<u64> {
        let now = clock::now();
        self.authority
            .next_deadline(now)
            .into_iter()
            .chain(self.arrivals.next_deadline())
            .chain(self.look_again)
            .chain(self.interval().map(|interval| now + interval))
            .min()
    }

    /// How often a vmclock device that cannot tell is looked at, in nanoseconds. The kernel's notice, or a
    /// parent's, makes it unnecessary.
    fn interval(&self) -> Option<u64> {
        let interval = self.plan.vmclock_interval?;
        let is_silent = self.open_backend(Kind::Vmclock)?.fd().is_none();
        let is_needed = self.authority.authority() == Some(Kind::Vmclock);
        (is_silent && is_needed).then(|| u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX))
    }

    fn open_backend(&self, kind: Kind) -> Option<&dyn Backend> {
        self.watched.get(&kind)?.backend.as_deref()
    }

    /// One turn: asks everybody, and does what follows from it.
    fn turn(&mut self) {
        let now = clock::now();
        self.look_again = self.look_again.filter(|&at| at > now);
        for _ in 0..=Kind::ALL.len() {
            for kind in ORDER {
                self.look(kind);
            }
            if !std::mem::take(&mut self.lost) {
                break;
            }
            // Whoever takes over begins before the change that is made for the loss, so that no restore falls
            // between.
            self.open_missing();
        }
        self.close_superseded();
        // Whoever is told of a change finds what it came from.
        self.report();
        if let Some(cause) = self.authority.decide(clock::now()) {
            self.change(cause);
        } else if !self.authority.is_waiting() {
            self.note();
        }
        let noticed = self.authority.is_noticed(clock::now());
        if noticed.is_some() && noticed != self.noticed {
            self.noticed = noticed;
            let noticed = noticed == Some(true);
            if !noticed {
                tracing::warn!(
                    "nothing here notices a restore of this machine: whoever restores it has to call the \
                     trigger"
                );
            }
            self.machine.set_noticed(noticed);
        }
    }

    /// Asks one backend.
    fn look(&mut self, kind: Kind) {
        let Some(backend) = self
            .watched
            .get_mut(&kind)
            .and_then(|watched| watched.backend.as_mut())
        else {
            return;
        };
        match backend.look() {
            Ok(seen) => {
                let presence = backend.presence();
                let before = self.authority.presence(kind);
                let now = clock::now();
                // What it reports it reports as what it was, or has become.
                self.authority.set(kind, before.max(presence), now);
                if let Some(doubt) = seen.doubt {
                    self.authority.doubt(doubt);
                }
                if seen.reports > 0 {
                    tracing::debug!(backend = %kind, reports = seen.reports, "reported");
                    self.authority.report(kind, now);
                }
                self.authority.set(kind, presence, now);
                if before == Presence::Absent && presence != Presence::Absent {
                    // It took its time to answer.
                    tracing::info!(backend = %kind, "watching {}", backend.description());
                    if let Some(watched) = self.watched.get_mut(&kind) {
                        watched.has_answered = true;
                    }
                    self.note_beginning(kind);
                }
                if let Some(error) = seen.ended {
                    self.lose(kind, &error);
                }
            }
            Err(Error::Busy { .. }) => {
                self.look_again = Some(clock::now() + SOON);
            }
            Err(error) => self.lose(kind, &error),
        }
    }

    /// The kernel's log is read no more once its notices are counted. It was asked after the counting began.
    fn close_superseded(&mut self) {
        if self.open_backend(Kind::Kprobe).is_some() && self.open_backend(Kind::Kmsg).is_some() {
            self.close(Kind::Kmsg);
            self.positions[Kind::Kmsg as usize] = None;
            self.say(
                Kind::Kmsg,
                "not needed: kprobe counts the kernel's notices".to_owned(),
            );
        }
    }

    fn change(&mut self, cause: Cause) {
        self.log(cause);
        if cause.settles()
            && let Some(vmclock) = self
                .watched
                .get_mut(&Kind::Vmclock)
                .and_then(|watched| watched.backend.as_mut())
            && let Err(error) = vmclock.deal()
        {
            // It goes on reporting, and this becomes one change more.
            tracing::debug!("{error}");
        }
        self.collect_positions();
        let position = |kind: Kind| self.positions[kind as usize].filter(|&at| at != GONE);
        let fresh = reseed::reseed_after_restore(&Differences {
            counter: position(Kind::Vmclock),
            notices: position(Kind::Kprobe).or(position(Kind::Kmsg)),
        });
        self.machine.change(fresh, cause, self.positions);
        self.stored = self.positions;
    }

    fn log(&mut self, cause: Cause) {
        if cause != Cause::Doubt(Doubt::LostRecords) {
            tracing::info!("changing the generation: {cause}");
            return;
        }
        let now = clock::now();
        if let Some((at, unsaid)) = &mut self.doubted
            && now.saturating_sub(*at) < QUIET
        {
            *unsaid += 1;
            return;
        }
        let unsaid = self
            .doubted
            .replace((now, 0))
            .map_or(0, |(_, unsaid)| unsaid);
        tracing::warn!(
            unsaid,
            "changing the generation: {cause}; somebody writes to it faster than it can be read"
        );
    }

    /// Stores the positions if they are others than before.
    fn note(&mut self) {
        self.collect_positions();
        if self.stored != self.positions {
            self.machine.note(self.positions);
            self.stored = self.positions;
        }
    }

    /// Stores where a backend begins that nobody had before, before it reports anything: what happens from now
    /// on is not lost even if this process is.
    fn note_beginning(&mut self, kind: Kind) {
        let position = self.open_backend(kind).and_then(Backend::position);
        if self.stored[kind as usize].is_none() && position.is_some() {
            self.stored[kind as usize] = position;
            self.machine.note(self.stored);
        }
    }

    /// Stores, before a backend is opened again, that it was lost, if the change for that is still to be made.
    /// To open it may be to make it anew in the kernel, and then nothing else would tell a successor.
    fn note_loss(&mut self, kind: Kind) {
        let is_lost = self.positions[kind as usize] == Some(GONE);
        let stored = &mut self.stored[kind as usize];
        if is_lost && stored.is_some_and(|at| at != GONE && at != LOST) {
            *stored = Some(LOST);
            self.machine.note(self.stored);
        }
    }

    fn collect_positions(&mut self) {
        for (&kind, watched) in &self.watched {
            if let Some(backend) = &watched.backend {
                self.positions[kind as usize] = backend.position();
            }
        }
    }

    /// A backend cannot be asked any more, or not yet.
    fn lose(&mut self, kind: Kind, error: &Error) {
        let was_there = self.authority.presence(kind) != Presence::Absent;
        // One that ended in order has said so before it went.
        let has_answered = self
            .watched
            .get_mut(&kind)
            .is_some_and(|watched| std::mem::take(&mut watched.has_answered));
        self.close(kind);
        self.miss(kind, was_there, error);
        if has_answered {
            self.arrivals.begin(clock::now());
            self.lost = true;
        } else {
            // It is not any nearer for having been asked.
            self.expect();
        }
    }

    /// A backend is not there. Where a predecessor had it, what it had to say is lost.
    fn miss(&mut self, kind: Kind, was_there: bool, error: &Error) {
        let position = &mut self.positions[kind as usize];
        let was_opened = self
            .watched
            .get(&kind)
            .is_some_and(|watched| watched.was_opened);
        // The hypervisor's counter says when it is back what happened, the others do not.
        let keeps_count = kind == Kind::Vmclock && was_opened;
        if position.is_some_and(|at| at != GONE) && !keeps_count {
            *position = Some(GONE);
            if !was_there {
                self.authority.doubt(Doubt::Lost(kind));
            }
        }
        let is_usual = matches!(
            error,
            Error::NotPresent { .. } | Error::OwnNode { .. } | Error::NoGenerationId
        );
        let word = error.to_string();
        let is_said = self
            .watched
            .get(&kind)
            .is_some_and(|watched| watched.word == word);
        if is_usual || is_said {
            tracing::debug!(backend = %kind, "{word}");
        } else {
            tracing::warn!(backend = %kind, "{word}");
        }
        self.say(kind, word);
    }

    fn close(&mut self, kind: Kind) -> Option<Box<dyn Backend>> {
        let backend = self
            .watched
            .get_mut(&kind)
            .and_then(|watched| watched.backend.take());
        if let Some(backend) = &backend {
            if let Some(fd) = backend.fd() {
                // It fails only for what is not watched.
                let _ = epoll::delete(&self.watch, fd);
            }
            // It knows more than the last turn.
            self.positions[kind as usize] = backend.position();
        }
        self.authority.set(kind, Presence::Absent, clock::now());
        backend
    }

    fn say(&mut self, kind: Kind, word: String) {
        if let Some(watched) = self.watched.get_mut(&kind) {
            watched.word = word;
        }
    }

    /// Opens what is to be used and is not open.
    fn open_missing(&mut self) {
        let mut settings = self.plan.backends.clone();
        settings
            .own_devices
            .extend(mounts::devices(&settings.directory));
        for kind in ORDER {
            if !self.plan.order.contains(&kind) {
                continue;
            }
            let watched = self.watched.entry(kind).or_insert_with(|| Watched {
                backend: None,
                was_opened: false,
                has_answered: false,
                word: String::new(),
            });
            if watched.backend.is_some() {
                continue;
            }
            // The log is for where there is no probe, or to find out what a predecessor did not read.
            let position = self.positions[kind as usize];
            if kind == Kind::Kmsg
                && self.open_backend(Kind::Kprobe).is_some()
                && position.is_none_or(|at| at == GONE)
            {
                self.positions[kind as usize] = None;
                self.say(
                    kind,
                    "not needed: kprobe counts the kernel's notices".to_owned(),
                );
                continue;
            }
            self.note_loss(kind);
            match super::open(kind, &settings, position) {
                Ok(backend) => self.opened(kind, backend),
                Err(error) => self.miss(kind, false, &error),
            }
        }
        self.expect();
    }

    fn opened(&mut self, kind: Kind, backend: Box<dyn Backend>) {
        if let Some(fd) = backend.fd()
            && let Err(errno) = epoll::add(
                &self.watch,
                fd,
                EventData::new_u64(kind as u64),
                EventFlags::IN | EventFlags::ET,
            )
        {
            tracing::error!(backend = %kind, "cannot be watched: {errno}");
        }
        let presence = backend.presence();
        if presence != Presence::Absent {
            tracing::info!(backend = %kind, "watching {}", backend.description());
        }
        self.authority.set(kind, presence, clock::now());
        self.positions[kind as usize] = backend.position();
        if let Some(watched) = self.watched.get_mut(&kind) {
            watched.word = backend.description();
            watched.backend = Some(backend);
            watched.was_opened = true;
            watched.has_answered = presence != Presence::Absent;
        }
        self.note_beginning(kind);
    }

    /// Says what is missing, so that it is found once it is there.
    fn expect(&mut self) {
        let settings = &self.plan.backends;
        let has_probe = self.open_backend(Kind::Kprobe).is_some();
        let missing: Vec<Kind> = self
            .watched
            .iter()
            .filter(|(_, watched)| watched.backend.is_none())
            .map(|(&kind, _)| kind)
            .filter(|&kind| kind != Kind::Kmsg || !has_probe)
            .collect();
        let paths: Vec<PathBuf> = missing
            .iter()
            .filter_map(|kind| match kind {
                Kind::Vmclock => {
                    let usual = || PathBuf::from("/dev/vmclock0");
                    Some(settings.vmclock.clone().unwrap_or_else(usual))
                }
                Kind::Kmsg => Some(settings.kmsg.clone()),
                Kind::Parent => {
                    let usual = || PathBuf::from("/dev/sysgenid");
                    Some(settings.parent.clone().unwrap_or_else(usual))
                }
                // A mount or a driver, which tell by themselves.
                Kind::Kprobe => None,
            })
            .collect();
        if missing.is_empty() {
            self.arrivals.expect_nothing();
        } else {
            self.arrivals.expect(&paths, clock::now());
        }
    }

    fn reconfigure(&mut self, plan: Plan) {
        let same_files = plan.backends == self.plan.backends;
        let open: Vec<Kind> = self.watched.keys().copied().collect();
        for kind in open {
            let is_used = plan.order.contains(&kind);
            if is_used && same_files {
                continue;
            }
            let backend = self.close(kind);
            self.watched.remove(&kind);
            if !is_used {
                self.positions[kind as usize] = None;
                if let Some(backend) = backend {
                    backend.remove();
                }
            }
        }
        self.plan = plan;
        self.open_missing();
    }

    fn stop(&mut self, remove_probe: bool) {
        // What was noticed and not changed for is left for the successor: the positions do not tell of it.
        for watched in self.watched.values_mut() {
            if let Some(backend) = watched.backend.take()
                && remove_probe
            {
                backend.remove();
            }
        }
    }

    fn report(&self) {
        let reports = self.plan.order.iter().map(|kind| {
            let watched = self.watched.get(kind);
            let backend = watched.and_then(|watched| watched.backend.as_deref());
            report::Backend {
                kind: *kind,
                works: backend.is_some_and(|backend| backend.presence() == Presence::Notices),
                description: match (backend, watched) {
                    (Some(backend), _) => backend.description(),
                    (None, Some(watched)) => watched.word.clone(),
                    (None, None) => "not looked for yet".to_owned(),
                },
            }
        });
        *lock(&self.shared.reports) = reports.collect();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Condvar;
    use std::time::Instant;

    use sysgenid_vmclock::sample;

    use super::super::foreign::tests::Unserved;
    use super::super::kprobe::tests::Fake;
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Said {
        Change(Cause, Positions),
        Note(Positions),
        Noticed(bool),
    }

    /// What the thread has said to the machine.
    #[derive(Debug, Default)]
    struct Listener {
        said: Mutex<Vec<Said>>,
        more: Condvar,
    }

    impl Listener {
        fn hear(&self, said: Said) {
            lock(&self.said).push(said);
            self.more.notify_all();
        }

        /// What was said, once it has come to that.
        fn wait(&self, until: impl Fn(&[Said]) -> bool) -> Vec<Said> {
            let patience = Duration::from_secs(30);
            let (said, waited) = self
                .more
                .wait_timeout_while(lock(&self.said), patience, |said| !until(said))
                .unwrap();
            assert!(!waited.timed_out(), "{said:?}");
            said.clone()
        }

        fn wait_for_changes(&self, count: usize) -> Vec<Cause> {
            causes(&self.wait(|said| causes(said).len() >= count))
        }
    }

    fn causes(said: &[Said]) -> Vec<Cause> {
        said.iter()
            .filter_map(|said| match said {
                Said::Change(cause, _) => Some(*cause),
                _ => None,
            })
            .collect()
    }

    impl Machine for Listener {
        fn change(&self, _: Fresh, cause: Cause, positions: Positions) {
            self.hear(Said::Change(cause, positions));
        }
        fn note(&self, positions: Positions) {
            self.hear(Said::Note(positions));
        }
        fn set_noticed(&self, noticed: bool) {
            self.hear(Said::Noticed(noticed));
        }
    }

    /// A machine of files: the kernel's probe, and a hypervisor's page.
    struct World {
        tracing: Fake,
        listener: Arc<Listener>,
    }

    impl World {
        fn new() -> Self {
            Self {
                tracing: Fake::new(Some("0 0")),
                listener: Arc::default(),
            }
        }

        fn page(&self) -> PathBuf {
            self.tracing.path("vmclock0")
        }

        fn set_counter(&self, counter: u8) {
            // At once, as the driver does.
            let new = self.tracing.path("new");
            fs::write(&new, sample(counter.into())).unwrap();
            fs::rename(new, self.page()).unwrap();
        }

        fn plan(&self, order: &[Kind]) -> Plan {
            Plan {
                order: order.to_vec(),
                backends: Settings {
                    vmclock: Some(self.page()),
                    ..self.tracing.settings.clone()
                },
                vmclock_interval: None,
            }
        }

        fn start(&self, plan: Plan, positions: Positions) -> Noticing {
            let machine: Arc<dyn Machine> = Arc::clone(&self.listener) as _;
            Noticing::start(plan, positions, machine, Arc::default()).unwrap()
        }
    }

    /// Writes into the page that is open.
    fn overwrite(page: &Path, counter: u64) {
        // There is never less than a page.
        let file = fs::File::options().write(true).open(page).unwrap();
        file.write_all_at(&sample(counter), 0).unwrap();
    }

    #[test]
    fn what_happened_before_the_start_is_changed_for_at_the_start() {
        let world = World::new();
        world.set_counter(8);
        let before = [Some(7), None, None, None];
        let noticing = world.start(world.plan(&[Kind::Vmclock]), before);
        let said = lock(&world.listener.said).clone();
        let positions = [Some(8), None, None, None];
        assert!(said.contains(&Said::Change(Cause::Restore(Kind::Vmclock), positions)));
        assert!(said.contains(&Said::Noticed(true)));
        noticing.stop(false);
    }

    #[test]
    fn a_first_start_changes_nothing_and_stores_where_it_begins() {
        let world = World::new();
        world.set_counter(7);
        let plan = world.plan(&[Kind::Vmclock, Kind::Kprobe]);
        world.start(plan, Positions::default()).stop(false);
        let said = lock(&world.listener.said).clone();
        assert_eq!(causes(&said), []);
        assert!(said.contains(&Said::Note([Some(7), Some(0), None, None])));
    }

    #[test]
    fn the_kernels_notice_is_one_change_with_the_hypervisors_word_before_it() {
        let world = World::new();
        world.set_counter(7);
        let plan = world.plan(&[Kind::Vmclock, Kind::Kprobe]);
        let noticing = world.start(plan, Positions::default());
        overwrite(&world.page(), 8);
        noticing.look_now();
        world.tracing.set(Some("1 0"));
        world.tracing.wake();
        let causes = world.listener.wait_for_changes(1);
        assert_eq!(causes, [Cause::Restore(Kind::Kprobe)]);
        let positions = [Some(8), Some(1), None, None];
        let last = Said::Change(causes[0], positions);
        assert!(lock(&world.listener.said).contains(&last));
        noticing.stop(false);
        assert_eq!(world.listener.wait_for_changes(1).len(), 1);
    }

    #[test]
    fn a_word_that_is_not_confirmed_is_a_change_within_the_bound() {
        let world = World::new();
        world.set_counter(7);
        let plan = world.plan(&[Kind::Vmclock, Kind::Kprobe]);
        let noticing = world.start(plan, Positions::default());
        let began = Instant::now();
        overwrite(&world.page(), 8);
        noticing.look_now();
        assert_eq!(world.listener.wait_for_changes(1), [Cause::Overdue]);
        assert!(began.elapsed() >= Duration::from_secs(1));
        // Late, and one more.
        world.tracing.set(Some("1 0"));
        world.tracing.wake();
        let causes = world.listener.wait_for_changes(2);
        assert_eq!(causes[1], Cause::Restore(Kind::Kprobe));
        drop(noticing);
    }

    #[test]
    fn what_was_absent_at_the_start_is_found_and_followed() {
        let world = World::new();
        let plan = Plan {
            vmclock_interval: Some(Duration::from_millis(5)),
            ..world.plan(&[Kind::Vmclock])
        };
        let noticing = world.start(plan, Positions::default());
        assert_eq!(noticing.reports().len(), 1);
        assert!(!noticing.reports()[0].works);
        // Nobody is trying any more.
        std::thread::sleep(Duration::from_millis(1500));
        let began = Instant::now();
        world.set_counter(7);
        world
            .listener
            .wait(|said| said.contains(&Said::Noticed(true)));
        assert!(began.elapsed() < Duration::from_secs(1));
        overwrite(&world.page(), 8);
        let causes = world.listener.wait_for_changes(1);
        assert_eq!(causes, [Cause::Restore(Kind::Vmclock)]);
        assert!(noticing.reports()[0].works);
        noticing.stop(true);
    }

    #[test]
    fn what_a_predecessor_had_and_is_gone_is_a_change() {
        let world = World::new();
        let before = [None, None, None, Some(4)];
        let plan = Plan {
            backends: Settings {
                parent: Some(world.tracing.path("parent")),
                ..world.plan(&[]).backends
            },
            ..world.plan(&[Kind::Parent])
        };
        world.start(plan, before).stop(false);
        let lost = Cause::Doubt(Doubt::Lost(Kind::Parent));
        let positions = [None, None, None, Some(GONE)];
        let said = lock(&world.listener.said).clone();
        assert!(said.contains(&Said::Change(lost, positions)), "{said:?}");
        assert_eq!(causes(&said).len(), 1);
    }

    #[test]
    fn a_parent_that_hangs_is_waited_for_by_nobody() {
        let world = World::new();
        world.set_counter(7);
        let at = world.tracing.path("outer");
        fs::create_dir(&at).unwrap();
        let mount = match Unserved::mount(&at) {
            Ok(mount) => mount,
            Err(errno) => {
                eprintln!("skipped: no FUSE mount can be made here: {errno}");
                return;
            }
        };
        let mut plan = world.plan(&[Kind::Vmclock, Kind::Parent]);
        plan.backends.parent = Some(at.join("sysgenid"));
        let noticing = world.start(plan, Positions::default());
        overwrite(&world.page(), 8);
        noticing.look_now();
        let causes = world.listener.wait_for_changes(1);
        assert_eq!(causes, [Cause::Restore(Kind::Vmclock)]);
        let parent = &noticing.reports()[1];
        assert!(!parent.works && parent.description.contains("has not answered"));
        noticing.stop(true);
        drop(mount);
    }

    #[test]
    fn the_log_is_read_for_what_a_predecessor_missed_and_left_once_there_is_a_probe() {
        let world = World::new();
        let plan = world.plan(&[Kind::Kprobe, Kind::Kmsg]);
        let log = match super::super::open(Kind::Kmsg, &plan.backends, None) {
            Ok(log) => log,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        };
        // Higher than any number in it: as if it were the log of another kernel.
        let before = [
            None,
            None,
            log.position().map(|last| last + 1_000_000),
            None,
        ];
        let noticing = world.start(plan, before);
        let doubt = Cause::Doubt(Doubt::AnotherKernel);
        let positions = [None, Some(0), None, None];
        let said = lock(&world.listener.said).clone();
        assert!(said.contains(&Said::Change(doubt, positions)), "{said:?}");
        assert!(noticing.reports()[1].description.contains("not needed"));
        noticing.stop(false);
    }

    #[test]
    fn without_a_probe_the_log_takes_over_and_says_so() {
        let world = World::new();
        let plan = world.plan(&[Kind::Kprobe, Kind::Kmsg]);
        if let Err(error) = super::super::open(Kind::Kmsg, &plan.backends, None) {
            eprintln!("skipped: {error}");
            return;
        }
        let noticing = world.start(plan, Positions::default());
        fs::remove_file(world.tracing.path("kprobe_profile")).unwrap();
        noticing.look_now();
        let lost = Cause::Doubt(Doubt::Lost(Kind::Kprobe));
        assert_eq!(world.listener.wait_for_changes(1), [lost]);
        // It began before the change for the loss was made.
        let said = lock(&world.listener.said).clone();
        let begins = said
            .iter()
            .position(|said| matches!(said, Said::Note(positions) if positions[2].is_some()));
        let changes = said
            .iter()
            .position(|said| matches!(said, Said::Change(..)));
        assert!(begins.is_some() && begins < changes, "{said:?}");
        let reports = noticing.reports();
        assert!(!reports[0].works && reports[1].works, "{reports:?}");
        noticing.stop(false);
    }

    #[test]
    fn a_probe_that_goes_away_is_a_change_and_it_is_found_again() {
        let world = World::new();
        let plan = world.plan(&[Kind::Kprobe]);
        let noticing = world.start(plan, Positions::default());
        world.tracing.set(None);
        noticing.look_now();
        let lost = Cause::Doubt(Doubt::Lost(Kind::Kprobe));
        assert_eq!(world.listener.wait_for_changes(1), [lost]);
        world.tracing.set(Some("3 0"));
        assert_eq!(
            world.listener.wait_for_changes(2)[1],
            Cause::Doubt(Doubt::CountAnew)
        );
        noticing.stop(false);
    }

    #[test]
    fn a_loss_is_stored_before_what_was_lost_is_made_anew() {
        let world = World::new();
        let plan = world.plan(&[Kind::Kprobe]);
        let noticing = world.start(plan.clone(), Positions::default());
        world.tracing.set(None);
        noticing.look_now();
        world.listener.wait_for_changes(1);
        let of_the_probe = |said: &Said| match said {
            Said::Change(_, positions) | Said::Note(positions) => positions[Kind::Kprobe as usize],
            Said::Noticed(_) => None,
        };
        let stored: Vec<_> = world
            .listener
            .wait(|_| true)
            .iter()
            .filter_map(of_the_probe)
            .collect();
        noticing.stop(false);
        // Where it began, that it was lost, and that it is gone, with the change.
        assert_eq!(stored, [0, LOST, GONE], "{stored:?}");
        // Who begins at the second finds the probe as it was in the beginning, and changes all the same.
        world.tracing.set(Some("0 0"));
        let mut positions = Positions::default();
        positions[Kind::Kprobe as usize] = Some(LOST);
        let successor = world.start(plan, positions);
        let causes = world.listener.wait_for_changes(2);
        assert_eq!(causes[1], Cause::Doubt(Doubt::CountAnew));
        successor.stop(false);
    }

    #[test]
    fn a_clean_stop_removes_the_probe_and_a_handover_does_not() {
        for remove in [false, true] {
            let world = World::new();
            let plan = world.plan(&[Kind::Kprobe]);
            world.start(plan, Positions::default()).stop(remove);
            let events = fs::read_to_string(world.tracing.path("kprobe_events")).unwrap();
            assert_eq!(events.contains("-:sysgenid/"), remove, "{events}");
        }
    }

    #[test]
    fn a_backend_that_is_not_to_be_used_any_more_is_left() {
        let world = World::new();
        world.set_counter(7);
        let both = world.plan(&[Kind::Vmclock, Kind::Kprobe]);
        let noticing = world.start(both, Positions::default());
        assert!(noticing.reconfigure(world.plan(&[Kind::Vmclock])));
        let lost = Cause::Doubt(Doubt::Lost(Kind::Kprobe));
        assert_eq!(world.listener.wait_for_changes(1), [lost]);
        assert_eq!(noticing.reports().len(), 1);
        drop(noticing);
        let events = fs::read_to_string(world.tracing.path("kprobe_events")).unwrap();
        assert!(events.contains("-:sysgenid/"), "{events}");
    }

    /// How often the noticing thread of this process has gone to sleep. Other tests have one, too, where all
    /// run in one process.
    fn sleeps() -> Vec<String> {
        let threads = fs::read_dir("/proc/self/task").unwrap();
        threads
            .flatten()
            .filter(|thread| {
                fs::read_to_string(thread.path().join("comm"))
                    .is_ok_and(|name| name.trim() == "noticing")
            })
            .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
            .filter_map(|status| {
                let line = status
                    .lines()
                    .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
                Some(line.to_owned())
            })
            .collect()
    }

    #[test]
    fn a_thread_that_has_all_that_it_wants_sleeps_and_says_so() {
        let world = World::new();
        world.set_counter(7);
        let plan = world.plan(&[Kind::Vmclock, Kind::Kprobe]);
        let noticing = world.start(plan, Positions::default());
        let began = Instant::now();
        while noticing.busy_since().is_some() {
            assert!(began.elapsed() < Duration::from_secs(30));
            std::thread::yield_now();
        }
        // That nothing happens can only be seen for a time; what others mount meanwhile wakes it, too.
        let is_quiet = |_| {
            let before = sleeps();
            std::thread::sleep(Duration::from_millis(1500));
            before.len() != 1 || sleeps() == before
        };
        assert!((0..10).any(is_quiet));
        noticing.stop(false);
    }
}
