// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--supervise`: a service manager for one service, where init keeps no descriptors.
//!
//! It runs the daemon as its child, holds what that keeps, starts it again when it ends, and hands
//! over what it holds, as `keeping/handover.rs` says. A daemon that does not say in time that it is alive is
//! killed, and nothing is lost by that.
//!
//! Where the daemon cannot be kept running it gives up in order: the pages show it to whoever maps them, and
//! closing the last copy of a FUSE connection aborts it, so that no caller is left in a call that cannot be
//! killed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::io::FdFlags;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Resource;
use rustix::process::Signal;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGQUIT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGUSR1;

use crate::daemon::HANDED_OVER;
use crate::keeping::clean_up::clean_up;
use crate::keeping::handover::Handover;
use crate::keeping::handover::Kept;
use crate::keeping::handover::List;
use crate::keeping::handover::apply;
use crate::keeping::handover::receive;
use crate::keeping::keeper::LOCK;
use crate::keeping::lock;
use crate::keeping::store;
use crate::service;
use crate::service::Manager;

/// Exits within this time count towards the restart limit.
const WINDOW: Duration = Duration::from_secs(10);

/// How long the daemon may take to end when it is told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the daemon may not say that it is alive, unless somebody wants something else.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// Why the daemon does not run any more, or cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be run.
    #[error("cannot run {}: {source}; is it still installed?", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon ended before it served anything; it has said why.
    #[error("the daemon did not start ({0}); see its message above")]
    Start(ExitStatus),
    /// The daemon does not stay.
    #[error(
        "the daemon ended {exits} times within {} s, at last with {status}; gave up, and aborted every connection: programs get errors from their nodes now. See its messages above, then start it again",
        WINDOW.as_secs()
    )]
    CrashLoop {
        /// How often it ended.
        exits: usize,
        /// How it ended.
        status: ExitStatus,
    },
    /// A system call failed without which nothing can be supervised.
    #[error("cannot supervise: {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An outer service manager is described wrongly.
    #[error(transparent)]
    Manager(#[from] service::Error),
    /// This supervisor is described wrongly to its child.
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::System {
        doing,
        source: error.into(),
    }
}

/// What to run, and what to tidy up after it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The daemon; looked up anew at each start, so that an upgrade takes effect.
    pub program: PathBuf,
    /// Its arguments, without `--supervise`.
    pub arguments: Vec<OsString>,
    /// Where the instances are mounted.
    pub directory: PathBuf,
    /// Where the links to the host's nodes are, `/dev`.
    pub devices: PathBuf,
    /// How often the daemon may end within ten seconds.
    pub restart_limit: usize,
    /// How long the daemon, once it serves, may not say that it is alive; it is killed then. Nothing is for
    /// ever.
    pub watchdog: Option<Duration>,
}

/// The program that this process runs, at the path where an upgrade would put its successor.
///
/// # Errors
///
/// [`Error::System`] where `/proc` is not mounted.
pub fn program() -> Result<PathBuf, Error> {
    let path = std::env::current_exe().map_err(failed("find the program of this process"))?;
    Ok(without_deleted(path))
}

/// The kernel marks a program whose file was replaced.
fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(original) => PathBuf::from(OsString::from_vec(original.to_vec())),
        None => path,
    }
}

/// Makes the kernel send `SIGINT` to this process when its supervisor dies: without the store it
/// could not be restarted, so it had better end cleanly. Returns whether there is a supervisor.
///
/// To be called in the main thread once `SIGINT` is handled. Without a supervisor, does nothing.
///
/// # Errors
///
/// [`Error::System`] and [`Error::Store`].
pub fn stop_with_supervisor() -> Result<bool, Error> {
    if Handover::from_environment()?.is_none() {
        return Ok(false);
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::INT))
        .map_err(failed("ask for a signal at the supervisor's death"))?;
    // It may have died just before.
    if Handover::from_environment()?.is_none() {
        rustix::process::kill_process(rustix::process::getpid(), Signal::INT)
            .map_err(failed("stop after the supervisor's death"))?;
    }
    Ok(true)
}

/// Runs the daemon until it is told to stop, or does not stay.
///
/// `SIGTERM`, `SIGINT` and `SIGQUIT` stop it cleanly, `SIGHUP` is passed on, and `SIGUSR1` restarts it
/// without a loss, for an upgrade.
///
/// # Errors
///
/// Any [`Error`]; the daemon is not running then, and no mount and no link is left.
pub fn run(options: &Options) -> Result<(), Error> {
    let signals = Signals::register()?;
    let manager = Manager::from_environment()?;
    raise_descriptor_limit();
    let mut kept = Kept::default();
    let outcome = keep_running(options, &signals, &manager, &mut kept);
    give_up(options, kept);
    outcome
}

/// Removes what a daemon that is gone has left, unless another one serves there: which may be why this one
/// could not.
fn give_up(options: &Options, mut kept: Kept) {
    let _lock = match kept.remove(LOCK) {
        Some(lock) => lock,
        None => match lock::take(&options.directory) {
            Ok(lock) => lock,
            Err(error) => {
                tracing::debug!("{error}");
                return;
            }
        },
    };
    let cleaned = clean_up(&options.directory, &options.devices, || drop(kept));
    if let Err(error) = cleaned {
        tracing::error!("{error}");
    }
}

fn keep_running(
    options: &Options,
    signals: &Signals,
    manager: &Manager,
    kept: &mut Kept,
) -> Result<(), Error> {
    let mut exits = Exits::new(options.restart_limit);
    let mut served = false;
    loop {
        let mut daemon = Daemon::start(options, kept)?;
        let status = daemon.watch(signals, manager, kept)?;
        served |= daemon.ready;
        // A clean stop empties the store, and only that does.
        if daemon.stopping || (status.success() && kept.is_empty()) {
            return Ok(());
        }
        if !served && kept.is_empty() {
            return Err(Error::Start(status));
        }
        if daemon.restarting || status.code() == Some(HANDED_OVER.into()) {
            tracing::info!("the daemon handed over ({status}); starting it again");
            continue;
        }
        tracing::warn!("the daemon ended ({status}); starting it again");
        if let Some(exits) = exits.too_many(Instant::now()) {
            return Err(Error::CrashLoop { exits, status });
        }
    }
}

/// When the daemon ended, as far as it matters.
struct Exits {
    limit: usize,
    recent: VecDeque<Instant>,
}

impl Exits {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            recent: VecDeque::new(),
        }
    }

    /// Counts an exit, and returns the count if it is beyond the limit.
    fn too_many(&mut self, now: Instant) -> Option<usize> {
        self.recent.push_back(now);
        while let Some(&first) = self.recent.front()
            && now.duration_since(first) > WINDOW
        {
            self.recent.pop_front();
        }
        (self.recent.len() > self.limit).then_some(self.recent.len())
    }
}

/// A daemon that runs.
struct Daemon {
    child: Child,
    ended: OwnedFd,
    /// Absent once the daemon has closed its end.
    messages: Option<OwnedFd>,
    ready: bool,
    restarting: bool,
    stopping: bool,
    deadline: Option<Instant>,
    watchdog: Watchdog,
}

/// Whether the daemon still says that it is alive.
///
/// The time is taken in two halves: where the clock leaps, as it may when a machine is restored, there must
/// be time for an answer even so.
#[derive(Debug)]
struct Watchdog {
    period: Option<Duration>,
    /// When the half began that runs, if one does, and whether it is the second.
    half: Option<(Instant, bool)>,
}

impl Watchdog {
    fn new(period: Option<Duration>) -> Self {
        let period = period.filter(|period| !period.is_zero());
        Self { period, half: None }
    }

    /// The daemon is alive at `now`.
    fn feed(&mut self, now: Instant) {
        self.half = Some((now, false));
    }

    /// Nothing is expected of the daemon any more.
    fn rest(&mut self) {
        self.half = None;
    }

    /// When to call [`is_late`](Self::is_late).
    fn due(&self) -> Option<Instant> {
        Some(self.half?.0 + self.period? / 2)
    }

    /// Whether the daemon has not been fed for the whole time.
    fn is_late(&mut self, now: Instant) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        let was_second = self.half.is_some_and(|(_, is_second)| is_second);
        self.half = (!was_second).then_some((now, true));
        was_second
    }
}

impl Daemon {
    fn start(options: &Options, kept: &Kept) -> Result<Self, Error> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("make a pair of sockets"))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
            .map_err(failed("pass on a descriptor"))?;
        let list = List::of(kept)
            .to_file()
            .map_err(failed("list what is kept"))?;
        let handover = Handover {
            supervisor: rustix::process::getpid().as_raw_nonzero().get(),
            notify: theirs.as_raw_fd(),
            list: list.as_raw_fd(),
        };
        let mut command = Command::new(&options.program);
        command
            .args(&options.arguments)
            .env(Handover::VARIABLE, handover.to_string())
            .stdin(Stdio::null())
            // A terminal's interrupt is for the supervisor, which stops the daemon in its own way.
            .process_group(0);
        for variable in service::MANAGER_VARIABLES {
            command.env_remove(variable);
        }
        let watchdog = Watchdog::new(options.watchdog);
        if let Some(period) = watchdog.period {
            command.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
        let child = command.spawn().map_err(|source| Error::Spawn {
            program: options.program.clone(),
            source,
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let ended = pid
            .ok_or(Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
            .map_err(failed("watch the daemon"))?;
        Ok(Self {
            child,
            ended,
            messages: Some(ours),
            ready: false,
            restarting: false,
            stopping: false,
            deadline: None,
            watchdog,
        })
    }

    /// Serves the daemon until it ends.
    fn watch(
        &mut self,
        signals: &Signals,
        manager: &Manager,
        kept: &mut Kept,
    ) -> Result<ExitStatus, Error> {
        loop {
            self.obey(signals);
            let ended = self.wait(signals)?;
            // What it sent before it ended comes first.
            self.read_messages(manager, kept);
            if ended {
                return self.child.wait().map_err(failed("wait for the daemon"));
            }
        }
    }

    /// Waits for anything to happen, and returns whether the daemon has ended.
    fn wait(&mut self, signals: &Signals) -> Result<bool, Error> {
        let next = self.deadline.into_iter().chain(self.watchdog.due()).min();
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![
            PollFd::new(&self.ended, PollFlags::IN),
            PollFd::new(&signals.wake, PollFlags::IN),
        ];
        if let Some(messages) = &self.messages {
            fds.push(PollFd::new(messages, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(0) => {
                self.time_passed(Instant::now());
                Ok(false)
            }
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(failed("wait")(error)),
        }
    }

    fn time_passed(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            tracing::warn!("the daemon does not end; killing it");
            self.signal(Signal::KILL);
            // Nothing more can be done about it.
            self.deadline = None;
        }
        if self.watchdog.is_late(now) {
            tracing::error!("the daemon has not said for too long that it is alive; killing it");
            self.signal(Signal::KILL);
        }
    }

    /// Does what signals have asked for.
    fn obey(&mut self, signals: &Signals) {
        signals.drain();
        if signals.stop.swap(false, Ordering::Relaxed) && !self.stopping {
            self.stopping = true;
            self.watchdog.rest();
            self.deadline = Some(Instant::now() + STOP_TIMEOUT);
            self.signal(Signal::INT);
        }
        // A daemon that still starts might not handle these yet, and would die of them.
        if !self.ready || self.stopping {
            return;
        }
        if signals.reload.swap(false, Ordering::Relaxed) {
            self.signal(Signal::HUP);
        }
        if signals.restart.swap(false, Ordering::Relaxed) && !self.restarting {
            self.restarting = true;
            self.watchdog.rest();
            self.deadline = Some(Instant::now() + STOP_TIMEOUT);
            self.signal(Signal::TERM);
        }
    }

    fn signal(&self, signal: Signal) {
        // That it has ended meanwhile is seen next.
        if let Err(error) = rustix::process::pidfd_send_signal(&self.ended, signal)
            && error != Errno::SRCH
        {
            tracing::error!("cannot send {signal:?} to the daemon: {error}");
        }
    }

    fn read_messages(&mut self, manager: &Manager, kept: &mut Kept) {
        while let Some(socket) = &self.messages {
            match receive(socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(Some((message, fds))) => {
                    let said = apply(&message, fds, kept);
                    if said.ready && !self.ready {
                        self.ready = true;
                        if let Err(error) = manager.ready("supervising") {
                            tracing::warn!("{error}");
                        }
                    }
                    if let Some(period) = said.period {
                        self.watchdog.period = Some(period).filter(|period| !period.is_zero());
                    }
                    if said.stuck {
                        tracing::error!("the daemon says that it is stuck; killing it");
                        self.signal(Signal::KILL);
                    }
                    let is_ending = self.stopping || self.restarting;
                    if (said.ready || said.alive) && !is_ending {
                        self.watchdog.feed(Instant::now());
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(None) => self.messages = None,
                Err(error) => {
                    tracing::error!("cannot read from the daemon: {error}");
                    self.messages = None;
                }
            }
        }
    }
}

/// The signals of this process, as flags, and a socket that wakes `poll`.
struct Signals {
    wake: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    restart: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> Result<Self, Error> {
        Self::try_register().map_err(failed("handle signals"))
    }

    fn try_register() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signals = Self {
            wake,
            stop: Arc::default(),
            reload: Arc::default(),
            restart: Arc::default(),
        };
        let flags = [
            (SIGTERM, &signals.stop),
            (SIGINT, &signals.stop),
            (SIGQUIT, &signals.stop),
            (SIGHUP, &signals.reload),
            (SIGUSR1, &signals.restart),
        ];
        for (signal, flag) in flags {
            // Handlers run in the order of registration: the flag is set before `poll` wakes.
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Takes the bytes before the flags are looked at, so that a later signal wakes again.
    fn drain(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(1..)) {}
    }
}

/// Each instance takes several descriptors here, and the child inherits the limit.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::io::BufReader;
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use sysgenid_core::{Generation, PageWord};

    use crate::keeping::folder::Folder;
    use crate::keeping::store::Store;
    use crate::protocol::FILE_SYSTEM_TYPE;

    use super::*;

    // The supervisor and the daemon under test are processes of this very program: each is one of
    // the two ignored tests below, which do nothing unless they are told their part.
    const STAGE: &str = "SYSGENIDD_TEST_STAGE";
    const LIMIT: &str = "3";
    const WATCHED: &str = "SYSGENIDD_TEST_WATCHED";
    const PERIOD: Duration = Duration::from_millis(500);

    fn part(name: &str) -> Vec<OsString> {
        let test = format!("keeping::supervisor::tests::{name}");
        ["--exact", test.as_str(), "--ignored", "--nocapture", "-q"]
            .map(OsString::from)
            .to_vec()
    }

    #[test]
    #[ignore = "the supervisor of other tests"]
    fn part_supervisor() {
        let Some(stage) = std::env::var_os(STAGE).map(PathBuf::from) else {
            return;
        };
        let options = Options {
            program: program().unwrap(),
            arguments: part("part_daemon"),
            directory: stage.join("run"),
            devices: stage.join("dev"),
            restart_limit: LIMIT.parse().unwrap(),
            watchdog: std::env::var_os(WATCHED).map(|_| PERIOD),
        };
        let code = match run(&options) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        };
        std::process::exit(code);
    }

    /// Counts its starts in a file that it keeps, and does what the test tells it to.
    #[test]
    #[ignore = "the daemon of other tests"]
    fn part_daemon() {
        let Some(stage) = std::env::var_os(STAGE).map(PathBuf::from) else {
            return;
        };
        let (interrupted, interrupt) = UnixStream::pair().unwrap();
        signal_hook::low_level::pipe::register(SIGINT, interrupt).unwrap();
        let (reloaded, reload) = UnixStream::pair().unwrap();
        signal_hook::low_level::pipe::register(SIGHUP, reload).unwrap();
        let (terminated, terminate) = UnixStream::pair().unwrap();
        signal_hook::low_level::pipe::register(SIGTERM, terminate).unwrap();
        let (store, mut inherited) = Store::take().unwrap();
        assert!(store.is_present());
        assert!(stop_with_supervisor().unwrap());

        let mut talk = UnixStream::connect(stage.join("talk")).unwrap();
        let mut orders = BufReader::new(talk.try_clone().unwrap());
        let state = inherited.take("state/host").unwrap_or_else(|| {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let state = rustix::fs::memfd_create("state", flags).unwrap();
            store.keep("state/host", state.as_fd()).unwrap();
            state
        });
        let starts = rustix::fs::fstat(&state).unwrap().st_size + 1;
        rustix::fs::ftruncate(&state, u64::try_from(starts).unwrap()).unwrap();
        writeln!(talk, "start {starts} of {}", std::process::id()).unwrap();
        let mut order = String::new();
        orders.read_line(&mut order).unwrap();
        if order.trim() == "ready" {
            store.manager().ready("").unwrap();
            store.barrier(Duration::from_secs(60)).unwrap();
            writeln!(talk, "is ready").unwrap();
        }
        loop {
            let mut fds = [
                PollFd::new(&talk, PollFlags::IN),
                PollFd::new(&interrupted, PollFlags::IN),
                PollFd::new(&reloaded, PollFlags::IN),
                PollFd::new(&terminated, PollFlags::IN),
            ];
            if rustix::event::poll(&mut fds, None) == Err(Errno::INTR) {
                continue;
            }
            let [talks, int, hup, term] = fds.map(|fd| !fd.revents().is_empty());
            if hup {
                (&reloaded).read_exact(&mut [0]).unwrap();
                writeln!(talk, "reloads").unwrap();
            }
            if int {
                writeln!(talk, "stops").unwrap();
                store.forget("state/host").unwrap();
                std::process::exit(0);
            }
            if term {
                writeln!(talk, "hands over").unwrap();
                std::process::exit(0);
            }
            if talks {
                let mut order = String::new();
                orders.read_line(&mut order).unwrap();
                match order.trim() {
                    "fail" => std::process::exit(3),
                    "keep and die" => {
                        let (read, _write) = rustix::pipe::pipe().unwrap();
                        store.keep("late", read.as_fd()).unwrap();
                        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL)
                            .unwrap();
                    }
                    "late?" => {
                        let found = inherited.take("late").is_some();
                        writeln!(talk, "late {found}").unwrap();
                    }
                    "mount" => {
                        mount_unserved(&stage.join("run/host"), &store);
                        writeln!(talk, "mounted").unwrap();
                    }
                    "live" => {
                        let period = sd_notify::watchdog_enabled().unwrap();
                        assert_eq!(period, PERIOD);
                        // Four periods, in which it would be killed three times.
                        for _ in 0..16 {
                            store.manager().send("WATCHDOG=1", None).unwrap();
                            std::thread::sleep(period / 4);
                        }
                        writeln!(talk, "lived").unwrap();
                    }
                    "ignore signals" => loop {
                        std::thread::park();
                    },
                    "stop" => {
                        store.forget("state/host").unwrap();
                        std::process::exit(0);
                    }
                    order => panic!("{order:?}"),
                }
            }
        }
    }

    /// A FUSE mount whose requests nobody ever answers.
    fn mount_unserved(point: &Path, store: &Store) {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let fuse = rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty()).unwrap();
        std::fs::create_dir_all(point).unwrap();
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0\0",
            fuse.as_raw_fd()
        );
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).unwrap();
        let flags = rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("sysgenid", point, FILE_SYSTEM_TYPE, flags, data).unwrap();
        store.keep("fuse/host", fuse.as_fd()).unwrap();
    }

    struct Stage {
        folder: tempfile::TempDir,
        listener: UnixListener,
        supervisor: Child,
    }

    struct Talk {
        lines: BufReader<UnixStream>,
        pid: Pid,
    }

    impl Stage {
        fn new() -> Self {
            let program = std::env::current_exe().unwrap();
            Self::start_with(Command::new(program))
        }

        fn start_with(mut command: Command) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("dev")).unwrap();
            std::fs::create_dir(folder.path().join("run")).unwrap();
            let listener = UnixListener::bind(folder.path().join("talk")).unwrap();
            let supervisor = command
                .args(part("part_supervisor"))
                .env(STAGE, folder.path())
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            Self {
                folder,
                listener,
                supervisor,
            }
        }

        /// Waits for a daemon to start, and returns how many have.
        fn next(&self) -> (u32, Talk) {
            let (stream, _) = self.listener.accept().unwrap();
            let mut talk = Talk {
                lines: BufReader::new(stream),
                pid: Pid::INIT,
            };
            let said = talk.hear();
            let mut words = said.split(' ');
            let starts = words.nth(1).unwrap().parse().unwrap();
            talk.pid = Pid::from_raw(words.nth(1).unwrap().parse().unwrap()).unwrap();
            (starts, talk)
        }

        fn next_ready(&self) -> (u32, Talk) {
            let (starts, mut talk) = self.next();
            talk.say("ready");
            assert_eq!(talk.hear(), "is ready");
            (starts, talk)
        }

        fn signal(&self, signal: Signal) {
            rustix::process::kill_process(self.pid(), signal).unwrap();
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(i32::try_from(self.supervisor.id()).unwrap()).unwrap()
        }

        fn end(mut self) -> (Option<i32>, String) {
            let code = self.supervisor.wait().unwrap().code();
            let mut said = String::new();
            let stderr = self.supervisor.stderr.as_mut().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            (code, said)
        }
    }

    impl Talk {
        fn say(&mut self, order: &str) {
            writeln!(self.lines.get_mut(), "{order}").unwrap();
        }

        fn hear(&mut self) -> String {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            line.trim().to_owned()
        }
    }

    #[test]
    fn what_was_kept_survives_every_way_to_end() {
        let stage = Stage::new();
        let (starts, mut talk) = stage.next_ready();
        assert_eq!(starts, 1);
        talk.say("fail");
        let (starts, talk) = stage.next_ready();
        assert_eq!(starts, 2);
        rustix::process::kill_process(talk.pid, Signal::KILL).unwrap();
        let (starts, mut talk) = stage.next_ready();
        assert_eq!(starts, 3);
        stage.signal(Signal::USR1);
        assert_eq!(talk.hear(), "hands over");
        let (starts, mut talk) = stage.next_ready();
        assert_eq!(starts, 4);
        stage.signal(Signal::TERM);
        assert_eq!(talk.hear(), "stops");
        assert_eq!(stage.end().0, Some(0));
    }

    #[test]
    fn a_descriptor_kept_just_before_death_is_there_afterwards() {
        let stage = Stage::new();
        let (_, mut talk) = stage.next_ready();
        talk.say("keep and die");
        let (_, mut talk) = stage.next_ready();
        talk.say("late?");
        assert_eq!(talk.hear(), "late true");
        stage.signal(Signal::INT);
        assert_eq!(talk.hear(), "stops");
        assert_eq!(stage.end().0, Some(0));
    }

    #[test]
    fn a_crash_loop_ends_and_restarts_that_were_asked_for_are_no_crash() {
        let stage = Stage::new();
        let (_, mut talk) = stage.next_ready();
        for _ in 0..5 {
            stage.signal(Signal::USR1);
            assert_eq!(talk.hear(), "hands over");
            talk = stage.next_ready().1;
        }
        for _ in 0..3 {
            talk.say("fail");
            talk = stage.next_ready().1;
        }
        talk.say("fail");
        let (code, said) = stage.end();
        assert_eq!(code, Some(1));
        assert!(said.contains("ended 4 times within 10 s"), "{said}");
    }

    #[test]
    fn a_daemon_that_stops_cleanly_is_not_started_again() {
        let stage = Stage::new();
        let (_, mut talk) = stage.next_ready();
        talk.say("stop");
        assert_eq!(stage.end().0, Some(0));
    }

    #[test]
    fn a_first_start_that_fails_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            program: "/bin/false".into(),
            arguments: Vec::new(),
            directory: folder.path().to_owned(),
            devices: folder.path().to_owned(),
            restart_limit: 5,
            watchdog: None,
        };
        // Not registered: the test's own process keeps its signals.
        let signals = Signals {
            wake: UnixStream::pair().unwrap().0,
            stop: Arc::default(),
            reload: Arc::default(),
            restart: Arc::default(),
        };
        let manager = Manager::from_environment().unwrap();
        let error = keep_running(&options, &signals, &manager, &mut Kept::new());
        assert!(matches!(error, Err(Error::Start(_))), "{error:?}");
        let options = Options {
            program: "/no/such/program".into(),
            ..options
        };
        let error = keep_running(&options, &signals, &manager, &mut Kept::new());
        assert!(matches!(error, Err(Error::Spawn { .. })), "{error:?}");
    }

    #[test]
    fn a_request_to_reload_waits_until_the_daemon_is_ready() {
        let stage = Stage::new();
        let (_, mut talk) = stage.next();
        stage.signal(Signal::HUP);
        talk.say("ready");
        assert_eq!(talk.hear(), "is ready");
        assert_eq!(talk.hear(), "reloads");
        stage.signal(Signal::QUIT);
        assert_eq!(talk.hear(), "stops");
        assert_eq!(stage.end().0, Some(0));
    }

    #[test]
    fn the_daemon_stops_when_its_supervisor_is_killed() {
        let stage = Stage::new();
        let (_, mut talk) = stage.next_ready();
        stage.signal(Signal::KILL);
        assert_eq!(talk.hear(), "stops");
        assert_eq!(stage.end().0, None);
    }

    #[test]
    fn giving_up_aborts_the_connection_and_leaves_no_mount_and_no_link() {
        if std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .is_err()
        {
            eprintln!("skipped: /dev/fuse cannot be opened here");
            return;
        }
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe().unwrap());
        let stage = Stage::start_with(unshare);
        let (_, mut talk) = stage.next_ready();
        let name = crate::config::InstanceName::host();
        let keep = Folder::open(&stage.folder.path().join("run")).unwrap();
        let page = keep.page(&name).unwrap();
        page.store(PageWord {
            live: true,
            ..PageWord::default()
        });
        talk.say("mount");
        assert_eq!(talk.hear(), "mounted");
        let run = stage.folder.path().join("run");
        let link = stage.folder.path().join("dev/sysgenid");
        std::os::unix::fs::symlink(run.join("host/sysgenid"), &link).unwrap();

        // Somebody of the same mount namespace is stuck in a call that nobody answers.
        let inside = format!("/proc/{}/root{}", stage.supervisor.id(), run.display());
        let stuck = std::thread::spawn(move || std::fs::metadata(format!("{inside}/host/x")));
        for _ in 0..3 {
            talk.say("fail");
            talk = stage.next_ready().1;
        }
        let list = format!("/proc/{}/mountinfo", stage.supervisor.id());
        let list = std::fs::read_to_string(list).unwrap();
        assert!(list.contains(FILE_SYSTEM_TYPE), "{list}");
        assert!(!stuck.is_finished());
        talk.say("fail");
        assert!(stuck.join().unwrap().is_err());
        // By the time that anybody gets an error.
        let ended = PageWord {
            generation: Generation::new(1),
            ..PageWord::default()
        };
        assert_eq!(page.word(), ended);
        let folder = stage.folder.path().to_owned();
        let mut stage = stage;
        assert_eq!(stage.supervisor.wait().unwrap().code(), Some(1));
        assert!(!folder.join("run/host").exists());
        assert!(std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn a_daemon_that_hangs_is_killed_and_loses_nothing_and_one_that_lives_is_not() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(WATCHED, "yes");
        let stage = Stage::start_with(command);
        let (_, mut talk) = stage.next_ready();
        talk.say("live");
        assert_eq!(talk.hear(), "lived");
        talk.say("ignore signals");
        let (starts, mut talk) = stage.next_ready();
        assert_eq!(starts, 2);
        talk.say("stop");
        assert_eq!(stage.end().0, Some(0));
    }

    #[test]
    fn a_watchdog_gives_time_for_an_answer_also_where_the_clock_leaps() {
        let start = Instant::now();
        let half = PERIOD / 2;
        let mut watchdog = Watchdog::new(Some(PERIOD));
        // Until it serves, nothing is expected.
        assert_eq!(watchdog.due(), None);
        assert!(!watchdog.is_late(start + PERIOD));
        watchdog.feed(start);
        assert!(!watchdog.is_late(start + half - Duration::from_millis(1)));
        assert_eq!(watchdog.due(), Some(start + half));
        assert!(!watchdog.is_late(start + half));
        assert_eq!(watchdog.due(), Some(start + PERIOD));
        watchdog.feed(start + half);
        let leap = start + Duration::from_secs(3600);
        assert!(!watchdog.is_late(leap));
        assert!(!watchdog.is_late(leap));
        assert!(watchdog.is_late(leap + half));
        // Once is enough.
        assert!(!watchdog.is_late(leap + PERIOD));
        watchdog.feed(leap);
        watchdog.rest();
        assert_eq!(watchdog.due(), None);
        let mut without = Watchdog::new(Some(Duration::ZERO));
        without.feed(start);
        assert_eq!(without.due(), None);
    }

    #[test]
    fn old_exits_are_forgotten() {
        let mut exits = Exits::new(2);
        let start = Instant::now();
        assert_eq!(exits.too_many(start), None);
        assert_eq!(exits.too_many(start), None);
        assert_eq!(exits.too_many(start + WINDOW), Some(3));
        let later = start + WINDOW + Duration::from_millis(1);
        assert_eq!(exits.too_many(later), None);
    }

    #[test]
    fn a_replaced_program_is_run_at_its_old_path() {
        let path = |text: &str| PathBuf::from(text);
        assert_eq!(without_deleted(path("/usr/x (deleted)")), path("/usr/x"));
        assert_eq!(without_deleted(path("/usr/x")), path("/usr/x"));
    }
}
