// SPDX-License-Identifier: MIT OR Apache-2.0

//! The one thread that serves everything: requests, backends, the control socket, signals and time.
//!
//! It never touches a file of its own mounts, for it would wait for itself, and never waits for a
//! client.

mod callers;
mod host_backends;
mod instances;
mod signals;
pub(crate) mod watch;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::clock;
use crate::config::{Config, InstanceName};
use crate::control::{self, Origin};
use crate::daemon::watch::{Source, Watch};
use crate::keeping::keeper::{self, Keeper};
use crate::keeping::store::Inherited;
use crate::keeping::supervise;
use crate::noticing::Restores;
use crate::placing::mounts;
use crate::placing::publish;
use crate::protocol::Buffer;
use crate::serving::renewal::Renewals;
use crate::serving::report;

use self::callers::Caller;
use self::host_backends::Watched;
use self::instances::Served;
use self::signals::Signals;

/// Where the nodes are published.
const DEVICES: &str = "/dev";

/// The shortest and longest time between two attempts to open a backend that went away.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the command line says; it goes before the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file, if not the usual one.
    pub config: Option<PathBuf>,
    /// Where the folders of the instances are mounted.
    pub directory: Option<PathBuf>,
    /// Whether `/dev/sysgenid` and `/dev/vmgenid` shall lead to the host's nodes.
    pub publish: bool,
}

impl Options {
    /// The daemon's folder: what the command line says, or the configuration, or if that is of no use, the
    /// usual place.
    pub fn directory(&self) -> PathBuf {
        if let Some(directory) = &self.directory {
            return directory.clone();
        }
        match Config::load(self.config.as_deref()) {
            Ok(config) => config.directory,
            Err(error) => {
                let config = Config::default();
                tracing::warn!("{error}; assuming {}", config.directory.display());
                config.directory
            }
        }
    }

    /// The configuration with what the command line says.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file.
    pub fn load(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(directory) = &self.directory {
            config.directory.clone_from(directory);
        }
        config.publish |= self.publish;
        Ok(config)
    }
}

/// Why the loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything ends.
    Stop,
    /// A successor goes on.
    HandOver,
    /// The host's own instance was taken away.
    Failed,
}

/// Everything that the loop works on.
struct Daemon {
    options: Options,
    config: Config,
    keeper: Keeper,
    watch: Watch,
    signals: Signals,
    timer: OwnedFd,
    armed: Option<u64>,
    renewals: Renewals,
    listener: control::Listener,
    callers: Vec<Option<Caller>>,
    /// The host's own is the first.
    instances: Vec<Option<Served>>,
    backends: Vec<Watched>,
    backend_reports: Vec<report::Backend>,
    /// When the restores that the backends noticed are taken as settled.
    settle_at: Option<u64>,
    /// When the control socket is listened to again.
    listen_at: Option<u64>,
    buffer: Buffer,
}

/// Removes what a daemon that is gone has left: dead mounts, links that lead nowhere.
///
/// # Errors
///
/// If a daemon is running, or somebody keeps its state for the next.
pub fn clean(options: &Options) -> anyhow::Result<()> {
    let (mut keeper, mut inherited) = Keeper::take()?;
    let directory = options.directory();
    if !directory.exists() {
        publish::unpublish(&directory, Path::new(DEVICES))?;
        return Ok(());
    }
    let directory = prepare_directory(&directory)?;
    keeper.lock(&directory, &mut inherited)?;
    publish::unpublish(&directory, Path::new(DEVICES))?;
    mounts::clean(&directory, |_| false);
    keeper.forget_all(&directory);
    Ok(())
}

/// Serves until a signal or a request ends it.
///
/// # Errors
///
/// Says why the daemon cannot start. Once it serves, it goes on.
pub fn run(options: Options) -> anyhow::Result<()> {
    let (mut keeper, mut inherited) = Keeper::take()?;
    let loaded = options.load();
    let is_sound = loaded.is_ok();
    let mut config = match (loaded, keeper::directory_before(&inherited)) {
        (Ok(config), _) => config,
        (Err(error), None) => return Err(error),
        (Err(error), Some(directory)) => {
            // Those who use the nodes shall not suffer for it.
            tracing::error!("{error:#}; going on as before, until it is read again");
            Config {
                directory,
                ..Config::default()
            }
        }
    };
    let signals = Signals::register()?;
    supervise::stop_with_supervisor()?;
    if !rustix::process::geteuid().is_root() {
        bail!("sysgenidd must run as root: it mounts a file system, and judges capabilities");
    }
    let directory = prepare_directory(&config.directory)?;
    config.directory.clone_from(&directory);
    keeper.lock(&directory, &mut inherited)?;
    warn_of_time_limits();

    let watch = Watch::new()?;
    let listener = match inherited.take("control") {
        Some(fd) => control::Listener::from_fd(fd)?,
        None => control::Listener::bind(&directory)?,
    };
    keeper.keep("control", listener.as_fd())?;
    let timer = rustix::time::timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let renewals = Renewals::new()?;
    watch.add(signals.wake.as_fd(), Source::Signals)?;
    watch.add(timer.as_fd(), Source::Timer)?;
    watch.add(renewals.as_fd(), Source::Renewals)?;
    watch.add(listener.as_fd(), Source::Listener)?;

    let mut daemon = Daemon {
        options,
        config,
        keeper,
        watch,
        signals,
        timer,
        armed: None,
        renewals,
        listener,
        callers: Vec::new(),
        instances: Vec::new(),
        backends: Vec::new(),
        backend_reports: Vec::new(),
        settle_at: None,
        listen_at: None,
        buffer: Buffer::default(),
    };
    let started = daemon.start(&mut inherited, is_sound);
    if let Err(error) = started {
        // Whatever was mounted shall not stay behind without anybody who serves it.
        daemon.stop();
        return Err(error);
    }
    match daemon.serve() {
        End::Stop => daemon.stop(),
        End::HandOver => tracing::info!("handing over to the next process"),
        End::Failed => {
            let directory = daemon.config.directory.clone();
            daemon.stop();
            bail!(
                "{} was unmounted or aborted by somebody else: start the daemon again",
                directory.join("host").display()
            );
        }
    }
    Ok(())
}

/// Makes the daemon's folder if it is not there, and returns its true path, as the kernel's list of mounts has
/// it. The folder is for everybody to enter, whatever the umask is.
///
/// # Errors
///
/// If it cannot be made or entered.
pub fn prepare_directory(directory: &Path) -> anyhow::Result<PathBuf> {
    let failed = || format!("{} cannot be made", directory.display());
    if let Some(above) = directory.parent() {
        std::fs::create_dir_all(above).with_context(failed)?;
    }
    match std::fs::create_dir(directory) {
        Ok(()) => std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
            .with_context(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(failed),
    }
    std::fs::canonicalize(directory)
        .with_context(|| format!("{} has no true path", directory.display()))
}

/// An administrator can have the kernel give up on file systems that leave a request unanswered, as a
/// reader that waits for a change does.
fn warn_of_time_limits() {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let limit = std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}"));
        if limit.is_ok_and(|limit| limit.trim() != "0") {
            tracing::warn!(
                "fs.fuse.{name} is set: the kernel will abort a node in which a program sleeps for \
                 longer; set it to 0"
            );
        }
    }
}

impl Daemon {
    /// Takes over what there is, and starts what the configuration says, if that `is_sound`.
    fn start(&mut self, inherited: &mut Inherited, is_sound: bool) -> anyhow::Result<()> {
        let kept = self.keeper.sort(inherited);
        let names: Vec<_> = kept.keys().cloned().collect();
        mounts::clean(&self.config.directory, |name| {
            names.iter().any(|kept| kept.as_str() == name)
        });
        let succeeds = !kept.is_empty();
        // The host's own comes first: the others follow it.
        let host = InstanceName::host();
        let (first, others): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|(name, _)| name.is_host());
        for (name, (kept, definition)) in first {
            self.resume(&name, kept, definition);
        }
        if self.host().is_none() {
            self.add(
                &host,
                self.config.instances[&host].clone(),
                Origin::Configuration,
            )?;
        }
        for (name, (kept, definition)) in others {
            self.resume(&name, kept, definition);
        }
        self.open_backends();
        // The process before may have been about to.
        self.settle_at =
            Some(clock::now() + nanoseconds(Restores::SETTLE)).filter(|_| !self.is_settled());
        if is_sound && let Err(error) = self.reconcile() {
            tracing::error!("{error:#}");
        }
        self.follow_host();
        for index in 0..self.instances.len() {
            self.go_on(index);
        }
        let mut published = false;
        if self.config.publish {
            match self.publish(&self.config.directory) {
                Ok(done) => published = done,
                Err(error) if !succeeds => return Err(error),
                // Those who use the nodes already are worth more than those who cannot find them.
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        let status = format!("serving {}", self.config.directory.display());
        self.keeper.manager().ready(&status)?;
        tracing::info!(
            directory = %self.config.directory.display(),
            published,
            "ready"
        );
        Ok(())
    }

    /// Serves until something ends it.
    fn serve(&mut self) -> End {
        let mut events = Vec::with_capacity(64);
        let mut end = None;
        loop {
            // While a page is being renewed, somebody may wait for this process, and cannot be killed.
            if let Some(end) = end
                && !self.is_renewing()
            {
                return end;
            }
            self.arm();
            events.clear();
            match epoll::wait(self.watch.as_fd(), spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => tracing::error!("cannot wait for events: {errno}"),
            }
            for event in &events {
                if let Some(source) = Source::from_data(event.data.u64()) {
                    end = self.attend(source).or(end);
                }
            }
            self.look_at_the_silent();
            self.follow_host();
        }
    }

    /// Attends to whatever has something to say.
    fn attend(&mut self, source: Source) -> Option<End> {
        match source {
            Source::Instance(index) => return self.serve_instance(index),
            Source::Caller(index) => return self.serve_caller(index),
            Source::Signals => return self.signalled(),
            Source::Backend(index) => self.look(index),
            Source::Timer => self.time_passed(),
            Source::Renewals => self.renewed(),
            Source::Listener => self.accept(),
        }
        None
    }

    /// Lets the usual paths lead to the nodes of the host, unless the kernel has nodes of its own there.
    /// Says whether they do.
    fn publish(&self, directory: &Path) -> anyhow::Result<bool> {
        match publish::publish(directory, Path::new(DEVICES)) {
            Err(error @ publish::Error::Device(_)) => {
                tracing::warn!("{error}");
                return Ok(false);
            }
            result => result?,
        }
        if !self.backend_reports.iter().any(|backend| backend.works) {
            tracing::warn!(
                "no backend can notice a restore of this machine: unless whoever restores it calls the \
                 trigger, programs that rely on the nodes, as AWS-LC does where it finds them, are worse \
                 off than without"
            );
        }
        Ok(true)
    }

    /// Sets the timer to the next moment at which something is to be done.
    fn arm(&mut self) {
        let instances = self.instances.iter().flatten();
        let next = instances
            .filter_map(|served| served.instance.next_deadline())
            .chain(
                self.backends
                    .iter()
                    .filter_map(|watched| Some(watched.retry?.0)),
            )
            .chain(self.settle_at)
            .chain(self.listen_at)
            .chain(
                self.interval()
                    .map(|interval| clock::now() + nanoseconds(interval)),
            )
            .min();
        if next == self.armed {
            return;
        }
        let zero = Timespec::default();
        let setting = Itimerspec {
            it_interval: zero,
            it_value: next.map_or(zero, clock::timespec),
        };
        match rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting) {
            Ok(_) => self.armed = next,
            Err(errno) => tracing::error!("the timer cannot be set: {errno}"),
        }
    }

    fn time_passed(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.armed = None;
        let now = clock::now();
        for served in self.instances.iter_mut().flatten() {
            served.instance.time_passed(now);
        }
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_at = None;
            if let Err(errno) = self.watch.add(self.listener.as_fd(), Source::Listener) {
                tracing::error!("the control socket cannot be watched: {errno}");
            }
        }
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            if let Some(host) = self.instances.first_mut().and_then(Option::as_mut) {
                host.instance.note(|record| {
                    let mut restores = Restores::from_words(record.restores);
                    restores.settle();
                    record.restores = restores.to_words();
                });
            }
        }
        for index in 0..self.backends.len() {
            if let Some((at, wait)) = self.backends[index].retry
                && at <= now
            {
                if self.backends[index].backend.is_some() {
                    self.backends[index].retry = None;
                    self.look(index);
                } else {
                    self.open_backend(index, wait);
                }
            }
        }
    }

    fn signalled(&mut self) -> Option<End> {
        let _ = rustix::io::read(&self.signals.wake, &mut [0; 64]);
        if self.signals.stop.swap(false, Ordering::Relaxed) {
            return Some(End::Stop);
        }
        if self.signals.terminate.swap(false, Ordering::Relaxed) {
            return Some(if self.keeper.outlives_the_process() {
                End::HandOver
            } else {
                End::Stop
            });
        }
        if self.signals.reload.swap(false, Ordering::Relaxed)
            && let Err(error) = self.reload()
        {
            tracing::error!("{error:#}");
        }
        None
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        let _ = self.keeper.manager().reloading();
        let result = self.try_reload();
        let status = format!("serving {}", self.config.directory.display());
        let _ = self.keeper.manager().ready(&status);
        result
    }

    fn try_reload(&mut self) -> anyhow::Result<()> {
        let unchanged = "the configuration stays what it was";
        let mut config = self.options.load().context(unchanged)?;
        let directory = std::fs::canonicalize(&config.directory).unwrap_or_default();
        if directory != self.config.directory {
            bail!("{unchanged}: the directory cannot change while the daemon runs; restart it");
        }
        config.directory = directory;
        if config.publish {
            self.publish(&config.directory).context(unchanged)?;
        } else if self.config.publish {
            publish::unpublish(&config.directory, Path::new(DEVICES)).context(unchanged)?;
        }
        self.config = config;
        self.open_backends();
        self.reconcile()?;
        tracing::info!("the configuration has been read again");
        Ok(())
    }

    /// Ends everything: whoever sleeps is woken with an error, and nothing is left behind.
    fn stop(mut self) {
        let _ = self.keeper.manager().stopping();
        if self.config.publish
            && let Err(error) = publish::unpublish(&self.config.directory, Path::new(DEVICES))
        {
            tracing::warn!("{error}");
        }
        for index in (0..self.instances.len()).rev() {
            self.remove(index);
        }
        self.keeper.forget_all(&self.config.directory);
        tracing::info!("stopped");
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
