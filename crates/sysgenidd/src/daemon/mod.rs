// SPDX-License-Identifier: MIT OR Apache-2.0

//! The main thread: it starts the others, adds and removes instances, and listens to the command line, to
//! signals and to the service manager. It answers no request of a program, so that it may wait.
//!
//! It never touches a file of its own mounts all the same: it could wait for a thread that waits for it.

mod callers;
mod directory;
mod events;
mod instances;
mod machine;
mod options;
mod places;
mod signals;
pub(crate) mod watch;
mod watchdog;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::clock;
use crate::config::{Config, InstanceName, Publish};
use crate::control;
use crate::judging::proc::Proc;
use crate::keeping::clean_up::clean_up;
use crate::keeping::keeper::{self, Keeper};
use crate::keeping::store::Inherited;
use crate::keeping::supervisor;
use crate::noticing::reseed::CommonReseed;
use crate::noticing::{self, Kind, Noticing};
use crate::placing::{mounts, publish};
use crate::serving::family::Family;
use crate::serving::server::Common;

pub use self::directory::prepare_directory;
pub use self::options::Options;

use self::callers::Caller;
use self::events::Event;
use self::instances::{Served, Wanted};
use self::machine::OwnMachine;
use self::signals::Signals;
use self::watch::{Source, Watch};
use self::watchdog::Watchdog;

/// Where the nodes are published.
const DEVICES: &str = "/dev";

/// How long the control socket is not listened to where no connection can be accepted, in nanoseconds.
const LISTEN_AGAIN: u64 = 1_000_000_000;

/// How long the start waits for a parent to answer, in nanoseconds.
const PARENT_ANSWERS: u64 = 500_000_000;

/// How long a hand-over waits for copies of pages to be renewed, in nanoseconds.
const LAST_COPIES: u64 = 1_000_000_000;

/// The exit status of a daemon that has left everything to the next one: a service manager is to start it, and
/// it has not failed (`EX_TEMPFAIL`).
pub const HANDED_OVER: u8 = 75;

/// What a daemon ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything ends.
    Stop,
    /// A successor goes on.
    HandOver,
    /// The host's own instance was taken away.
    Failed,
}

/// Everything that the main thread works on.
struct Daemon {
    options: Options,
    config: Config,
    keeper: Keeper,
    watch: Watch,
    signals: Signals,
    listener: control::Listener,
    callers: Vec<Option<Caller>>,
    served: Vec<Option<Served>>,
    /// The number of the last thread that was started.
    serial: u64,
    common: Common,
    events_in: events::Sender,
    events: events::Receiver,
    noticing: Option<Noticing>,
    /// Whether something notices restores of this machine, as far as that is known.
    noticed: Option<bool>,
    /// Whether the start is finished.
    started: bool,
    /// Whether the host's own instance has gone.
    failed: bool,
    watchdog: Watchdog,
    /// When the control socket is listened to again.
    listen_at: Option<u64>,
}

/// Removes what a daemon that is gone has left: dead mounts, links that lead nowhere, and pages that say that
/// they are live.
///
/// # Errors
///
/// If a daemon is running, or somebody keeps its state for the next.
pub fn clean(options: &Options) -> anyhow::Result<()> {
    let (store, mut inherited) = keeper::take()?;
    let directory = options.directory();
    if !directory.exists() {
        publish::unpublish(&directory, Path::new(DEVICES))?;
        return Ok(());
    }
    let directory = prepare_directory(&directory)?;
    let mut keeper = Keeper::lock(store, &mut inherited, &directory)?;
    let cleaned = clean_up(&directory, Path::new(DEVICES), || {
        keeper.close_all(inherited);
    });
    let settings = noticing::Settings {
        directory: directory.clone(),
        ..noticing::Settings::default()
    };
    if let Err(error) = noticing::kprobe::clean(&settings) {
        // Where it cannot be removed, it cannot have been made.
        tracing::debug!("{error}");
    }
    keeper.forget_all();
    cleaned?;
    Ok(())
}

/// Serves until a signal or a request ends it.
///
/// # Errors
///
/// Says why the daemon cannot start. Once it serves, it goes on.
pub fn run(options: Options) -> anyhow::Result<End> {
    // First of all: who is told to end while it starts leaves to the next one what it was left.
    let signals = Signals::register()?;
    let (store, mut inherited) = keeper::take()?;
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
    supervisor::stop_with_supervisor()?;
    if !rustix::process::geteuid().is_root() {
        bail!("sysgenidd must run as root: it mounts a file system, and judges capabilities");
    }
    let directory = prepare_directory(&config.directory)?;
    config.directory.clone_from(&directory);
    let keeper = Keeper::lock(store, &mut inherited, &directory)?;
    directory::warn_of_time_limits();
    // Says at once what is wrong with it.
    let _ = Proc::own();

    let watch = Watch::new()?;
    let listener = control::Listener::bind(&directory)?;
    let (events_in, events) = events::channel()?;
    watch.add(signals.wake.as_fd(), Source::Signals)?;
    watch.add(events.as_fd(), Source::Events)?;
    watch.add(listener.as_fd(), Source::Listener)?;
    let common = Common {
        family: Arc::new(Family::default()),
        backends: Arc::default(),
        reseed: Arc::new(CommonReseed::default()),
        most_reports: config.limits.reports.get(),
    };
    let watchdog = Watchdog::new(keeper.manager().watchdog_interval());
    let mut daemon = Daemon {
        options,
        config,
        keeper,
        watch,
        signals,
        listener,
        callers: Vec::new(),
        served: Vec::new(),
        serial: 0,
        common,
        events_in,
        events,
        noticing: None,
        noticed: None,
        started: false,
        failed: false,
        watchdog,
        listen_at: None,
    };
    let succeeds = inherited.names().next().is_some() && daemon.keeper.outlives_the_process();
    let started = daemon.start(&mut inherited, is_sound);
    if let Err(error) = started {
        // What was taken over is for the next one, who may be luckier: the service manager says how often. Else
        // whatever was mounted shall not stay behind without anybody who serves it.
        if !succeeds {
            daemon.stop();
        }
        return Err(error);
    }
    let end = daemon.serve();
    match end {
        End::Stop => daemon.stop(),
        End::HandOver => daemon.hand_over(),
        End::Failed => {
            let directory = daemon.config.directory.clone();
            daemon.stop();
            bail!(
                "{} was unmounted or aborted by somebody else: start the daemon again",
                directory.join("host").display()
            );
        }
    }
    Ok(end)
}

impl Daemon {
    /// Takes over what there is, and starts what the configuration says, if that `is_sound`.
    fn start(&mut self, inherited: &mut Inherited, is_sound: bool) -> anyhow::Result<()> {
        let kept = self.keeper.sort(inherited)?;
        let names: Vec<_> = kept.keys().cloned().collect();
        mounts::clean(&self.config.directory, |name| {
            names.iter().any(|kept| kept.as_str() == name)
        });
        let succeeds = !kept.is_empty();
        // The host's own comes first: the others follow it.
        let host = InstanceName::host();
        let (first, others): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|(name, _)| name.is_host());
        for (name, kept) in first {
            self.resume(&name, kept);
        }
        if self.host().is_none() {
            let attributes = self.config.instances[&host].clone();
            self.add(&host, Wanted::configured(attributes))?;
        }
        for (name, kept) in others {
            self.resume(&name, kept);
        }
        // Whoever caused a change finds it everywhere when he is answered.
        self.common.family.catch_up();
        for index in 0..self.served.len() {
            let waits = self.served[index].as_ref().is_some_and(Served::waits);
            if waits && let Err(error) = self.start_serving(index, true) {
                tracing::error!("{error:#}");
                self.remove(index);
            }
        }
        if is_sound && let Err(error) = self.reconcile() {
            tracing::error!("{error:#}");
        }
        self.start_noticing()?;
        self.await_parent();
        if let Err(error) = self.place() {
            if !succeeds {
                return Err(error);
            }
            // Those who use the nodes already are worth more than those who cannot find them.
            tracing::error!("{error:#}");
        }
        self.keeper.settle();
        self.started = true;
        let status = format!("serving {}", self.config.directory.display());
        self.keeper.manager().ready(&status)?;
        tracing::info!(
            directory = %self.config.directory.display(),
            published = self.is_published(),
            "ready"
        );
        Ok(())
    }

    /// Starts the thread that notices restores, at the positions that the process before this one reached.
    fn start_noticing(&mut self) -> anyhow::Result<()> {
        let positions = self
            .host()
            .map(|host| host.instance.accounts().record().positions)
            .unwrap_or_default();
        let machine = OwnMachine {
            family: Arc::clone(&self.common.family),
            events: self.events_in.clone(),
        };
        let noticing = Noticing::start(
            self.plan(),
            positions,
            Arc::new(machine),
            Arc::clone(&self.common.backends),
        )?;
        self.noticing = Some(noticing);
        self.hear();
        Ok(())
    }

    /// Gives a parent a moment to answer, so that what starts after this daemon finds the nodes that it is
    /// reason to publish. It is another daemon's, and may hang.
    fn await_parent(&mut self) {
        let parent = &self.config.backends.parent;
        let is_there = self.config.backends.order.contains(&Kind::Parent)
            && std::fs::symlink_metadata(parent).is_ok();
        let until = clock::now() + PARENT_ANSWERS;
        while is_there
            && self.config.publish == Publish::WhereNoticed
            && self.noticed != Some(true)
            && clock::now() < until
        {
            let left = clock::timespec(until.saturating_sub(clock::now()));
            let mut poll = [PollFd::new(&self.events, PollFlags::IN)];
            let _ = rustix::event::poll(&mut poll, Some(&left));
            self.hear();
        }
    }

    /// What the noticing thread works by.
    fn plan(&self) -> noticing::Plan {
        let configured = &self.config.backends;
        noticing::Plan {
            order: configured.order.clone(),
            backends: noticing::Settings {
                directory: self.config.directory.clone(),
                vmclock: Some(configured.vmclock.clone()),
                kmsg: configured.kmsg.clone(),
                parent: Some(configured.parent.clone()),
                ..noticing::Settings::default()
            },
            vmclock_interval: configured.vmclock_interval,
        }
    }

    /// Serves until something ends it.
    fn serve(&mut self) -> End {
        let mut events = Vec::with_capacity(64);
        loop {
            let now = clock::now();
            self.time_passed(now);
            let next = self.watchdog.next().into_iter().chain(self.listen_at).min();
            let timeout = next.map(|next| clock::timespec(next.saturating_sub(now)));
            events.clear();
            match epoll::wait(
                self.watch.as_fd(),
                spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => tracing::error!("cannot wait for events: {errno}"),
            }
            for event in &events {
                if let Some(source) = Source::from_data(event.data.u64())
                    && let Some(end) = self.attend(source)
                {
                    return end;
                }
            }
            if self.failed {
                return End::Failed;
            }
        }
    }

    /// Attends to whatever has something to say.
    fn attend(&mut self, source: Source) -> Option<End> {
        match source {
            Source::Caller(index) => return self.serve_caller(index),
            Source::Signals => return self.signalled(),
            Source::Events => self.hear(),
            Source::Tie(index) => self.tie_ended(index),
            Source::Listener => self.accept(),
        }
        None
    }

    /// Hears what other threads have to say.
    fn hear(&mut self) {
        for event in self.events.take() {
            match event {
                Event::Noticed(noticed) => {
                    self.noticed = Some(noticed);
                    // Before the start is finished, that one places the nodes.
                    if self.started
                        && let Err(error) = self.place()
                    {
                        tracing::error!("{error:#}");
                    }
                }
                Event::Ended { serial, error } => {
                    let of_it = |served: &Option<Served>| {
                        served
                            .as_ref()
                            .is_some_and(|served| served.serial == serial)
                    };
                    // It may have been removed.
                    let Some(index) = self.served.iter().position(of_it) else {
                        continue;
                    };
                    let is_host = self.served[index]
                        .as_ref()
                        .is_some_and(|served| served.name.is_host());
                    if let Some(error) = error {
                        tracing::error!("an instance ends here: {error}");
                    }
                    self.remove(index);
                    self.failed |= is_host;
                }
            }
        }
    }

    fn time_passed(&mut self, now: u64) {
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_at = None;
            if let Err(errno) = self.watch.add(self.listener.as_fd(), Source::Listener) {
                tracing::error!("the control socket cannot be watched: {errno}");
            }
        }
        if self.watchdog.is_due(now) {
            let busy = self
                .served
                .iter()
                .flatten()
                .filter_map(|served| Some((served.name.as_str(), served.instance.busy_since()?)))
                .chain(
                    self.noticing.iter().filter_map(|noticing| {
                        Some(("the noticing thread", noticing.busy_since()?))
                    }),
                );
            if self.watchdog.all_well(now, busy)
                && let Err(error) = self.keeper.manager().watchdog()
            {
                tracing::warn!("{error}");
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
        let before = std::mem::replace(&mut self.config, config);
        if let Err(error) = self.place() {
            self.config = before;
            return Err(error).context(unchanged);
        }
        if self.config.publish == Publish::Never && before.publish != Publish::Never {
            publish::unpublish(&self.config.directory, Path::new(DEVICES))?;
        }
        if self.config.backends != before.backends {
            let plan = self.plan();
            if let Some(noticing) = &self.noticing
                && !noticing.reconfigure(plan)
            {
                tracing::warn!("the backends are still being looked for");
            }
            self.hear();
        }
        self.reconcile()?;
        tracing::info!("the configuration has been read again");
        Ok(())
    }

    /// Ends everything: whoever sleeps is woken with an error, and nothing is left behind but the pages, which
    /// say that they are not live.
    fn stop(mut self) {
        let _ = self.keeper.manager().stopping();
        if self.config.publish != Publish::Never
            && let Err(error) = publish::unpublish(&self.config.directory, Path::new(DEVICES))
        {
            tracing::warn!("{error}");
        }
        if let Some(noticing) = self.noticing.take() {
            noticing.stop(true);
        }
        for index in (0..self.served.len()).rev() {
            self.begin_to_remove(index);
        }
        for index in (0..self.served.len()).rev() {
            self.finish_removing(index);
        }
        self.keeper.forget_all();
        tracing::info!("stopped");
    }

    /// Leaves everything to the next process: it finds all that matters as it is, at whatever point this one
    /// ends.
    fn hand_over(mut self) {
        if let Some(noticing) = self.noticing.take() {
            noticing.stop(false);
        }
        let until = clock::now() + LAST_COPIES;
        let mut instances = self.served.iter().flatten();
        // While a copy is being renewed, somebody may wait for the process that does it, and cannot be killed.
        while instances.any(|served| served.instance.is_renewing()) && clock::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            instances = self.served.iter().flatten();
        }
        tracing::info!("handing over to the next process");
    }
}
