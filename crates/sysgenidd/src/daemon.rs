// SPDX-License-Identifier: MIT OR Apache-2.0

//! The one thread that serves everything: requests, backends, the control socket, signals and time.
//!
//! It never touches a file of its own mounts, for it would wait for itself, and never waits for a
//! client.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::backends::{self, Restores};
use crate::capability::Owner;
use crate::clock;
use crate::config::{self, Accounts, Attributes, BackendKind, Config, InstanceName, Parent};
use crate::control::{self, Origin, Progress, Request, Response};
use crate::fuse::{Buffer, Received};
use crate::instance::{Agreement, Instance, Kept, Settings};
use crate::keeper::{Definition, Keeper};
use crate::mounts;
use crate::node::Access;
use crate::publish;
use crate::renewal::Renewals;
use crate::report;
use crate::supervise;
use crate::watch::{Source, Watch};

/// Where the nodes are published.
const DEVICES: &str = "/dev";

/// How many requests of one instance are answered before the others get their turn.
const BURST: usize = 256;

/// How long the kernel may take to begin talking.
const PATIENCE: Duration = Duration::from_secs(10);

/// The shortest and longest time between two attempts to open a backend that went away.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How soon a backend is looked at again that was busy.
const SOON: Duration = Duration::from_millis(1);

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

/// One instance and where it comes from.
struct Served {
    name: InstanceName,
    instance: Instance,
    definition: Definition,
}

/// One backend, working or not.
struct Watched {
    kind: backends::Kind,
    backend: Option<Box<dyn backends::Backend>>,
    /// When to try again, and how long to wait if that fails.
    retry: Option<(u64, Duration)>,
}

/// Somebody at the control socket.
struct Caller {
    connection: control::Connection,
    /// Whether the request has been carried out, and the response is on its way.
    is_answered: bool,
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

/// Signals, as flags and a descriptor that becomes readable with each.
struct Signals {
    wake: OwnedFd,
    reload: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> anyhow::Result<Self> {
        let (wake, from_handler) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )?;
        let flag = |signals: &[i32]| -> anyhow::Result<Arc<AtomicBool>> {
            let flag = Arc::new(AtomicBool::new(false));
            for signal in signals {
                signal_hook::flag::register(*signal, Arc::clone(&flag))?;
                signal_hook::low_level::pipe::register(*signal, from_handler.try_clone()?)?;
            }
            Ok(flag)
        };
        Ok(Self {
            reload: flag(&[SIGHUP])?,
            stop: flag(&[SIGINT, SIGQUIT])?,
            terminate: flag(&[SIGTERM])?,
            wake,
        })
    }
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
    let directory = options.load()?.directory;
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
    let mut config = options.load()?;
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
    let started = daemon.start(&mut inherited);
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
    fn start(&mut self, inherited: &mut crate::store::Inherited) -> anyhow::Result<()> {
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
        self.reconcile();
        self.follow_host();
        for index in 0..self.instances.len() {
            self.go_on(index);
        }
        if self.config.publish
            && let Err(error) = self.publish()
        {
            if !succeeds {
                return Err(error);
            }
            // Those who use the nodes already are worth more than those who cannot find them.
            tracing::error!("{error:#}");
        }
        let status = format!("serving {}", self.config.directory.display());
        self.keeper.manager().ready(&status)?;
        tracing::info!(
            directory = %self.config.directory.display(),
            published = self.config.publish,
            "ready"
        );
        Ok(())
    }

    /// Goes on with an instance of the process before this one. One with which that cannot be done ends,
    /// so that the others go on.
    fn resume(&mut self, name: &InstanceName, kept: Kept, definition: Definition) {
        if let Err(error) = self.try_resume(name, kept, definition) {
            tracing::error!(
                instance = %name,
                "it cannot be taken over from the process before, and ends: {error:#}"
            );
            self.keeper.forget_instance(name);
            let path = self.config.directory.join(name.as_str());
            if let Err(error) = mounts::detach(&path) {
                tracing::error!("{} cannot be unmounted: {error}", path.display());
            }
        }
    }

    fn try_resume(
        &mut self,
        name: &InstanceName,
        kept: Kept,
        definition: Definition,
    ) -> anyhow::Result<()> {
        let settings = self.settings(name, &definition)?;
        let mut instance = Instance::resume(settings, kept)?;
        instance.recover(&mut self.buffer, &self.renewals, &self.backend_reports)?;
        self.insert(Served {
            name: name.clone(),
            instance,
            definition,
        })
    }

    /// Starts a new instance.
    fn add(
        &mut self,
        name: &InstanceName,
        attributes: Attributes,
        origin: Origin,
    ) -> anyhow::Result<()> {
        let owner = match &attributes.user_namespace {
            None => None,
            Some(path) => Some(self.open_namespace(path)?),
        };
        let definition = Definition {
            access: access(name, &attributes, owner.as_ref())?,
            attributes,
            origin,
            owner,
        };
        let settings = self.settings(name, &definition)?;
        let path = settings.path.clone();
        std::fs::create_dir(&path).or_else(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        let mut instance = Instance::create(settings)?;
        // What was before it is none of its own.
        self.adopt(&mut instance, &definition, name);
        let kept = self.keeper.keep_instance(name, &instance, &definition);
        if let Err(error) = kept.and_then(|()| self.agree(&mut instance)) {
            self.keeper.forget_instance(name);
            instance.stop();
            return Err(error);
        }
        self.insert(Served {
            name: name.clone(),
            instance,
            definition,
        })
    }

    /// Has an instance follow the host from now on, if it is to follow it at all.
    fn adopt(&self, instance: &mut Instance, definition: &Definition, name: &InstanceName) {
        if definition.attributes.parent_of(name) == Parent::Host
            && let Some(host) = self.host()
        {
            let epoch = host.instance.registry().epoch();
            instance.note(|record| record.parent_epoch = epoch);
        }
    }

    /// Opens the file of a user namespace, without asking the daemon itself for any file.
    fn open_namespace(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        if config::process_of(path).is_none() {
            let own = mounts::devices(&self.config.directory);
            return Ok(backends::foreign::open(path, &own)?);
        }
        rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .with_context(|| format!("{} cannot be opened: does the process run?", path.display()))
    }

    /// Waits until kernel and daemon have agreed on how to talk. INIT is the first request.
    fn agree(&mut self, instance: &mut Instance) -> anyhow::Result<()> {
        let connection = Arc::clone(instance.connection());
        let until = clock::now() + nanoseconds(PATIENCE);
        loop {
            match instance.agreement() {
                Agreement::Reached => return Ok(()),
                Agreement::Impossible(reason) => bail!("{reason}"),
                Agreement::Pending => {}
            }
            match connection.receive(&mut self.buffer)? {
                Received::Request(request) => {
                    instance.handle(&request, &self.renewals, &self.backend_reports);
                }
                Received::Nothing => {
                    let left = until.saturating_sub(clock::now());
                    let timeout = Timespec::try_from(Duration::from_nanos(left))?;
                    let mut poll = [PollFd::new(&*connection, PollFlags::IN)];
                    if rustix::event::poll(&mut poll, Some(&timeout))? == 0 {
                        bail!("the kernel does not talk to the file system it has just mounted");
                    }
                }
                Received::Gone => bail!("somebody unmounted it at once"),
            }
        }
    }

    fn settings(&self, name: &InstanceName, definition: &Definition) -> anyhow::Result<Settings> {
        Ok(Settings {
            name: name.to_string(),
            path: self.config.directory.join(name.as_str()),
            access: definition.access,
            owner: owner(definition.owner.as_ref())?,
            passthrough: self.config.passthrough,
        })
    }

    fn insert(&mut self, served: Served) -> anyhow::Result<()> {
        let index = match self.instances.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.instances.push(None);
                self.instances.len() - 1
            }
        };
        self.watch.add(
            served.instance.connection().as_fd(),
            Source::Instance(index),
        )?;
        tracing::info!(
            instance = %served.name,
            path = %served.instance.path().display(),
            generation = %served.instance.generation(),
            "serving"
        );
        self.instances[index] = Some(served);
        Ok(())
    }

    fn remove(&mut self, index: usize) {
        let Some(served) = self.instances[index].take() else {
            return;
        };
        tracing::info!(instance = %served.name, "ending");
        self.watch.remove(served.instance.connection().as_fd());
        self.keeper.forget_instance(&served.name);
        served.instance.stop();
    }

    fn host(&self) -> Option<&Served> {
        self.instances.first()?.as_ref()
    }

    fn find(&self, name: &InstanceName) -> Option<usize> {
        self.instances
            .iter()
            .position(|served| served.as_ref().is_some_and(|served| served.name == *name))
    }

    /// Makes the instances what the configuration says. What was added at run time stays.
    fn reconcile(&mut self) {
        let gone: Vec<_> = self
            .instances
            .iter()
            .enumerate()
            .filter_map(|(index, served)| Some((index, served.as_ref()?)))
            .filter(|(_, served)| {
                served.definition.origin == Origin::Configuration
                    && !self.config.instances.contains_key(&served.name)
            })
            .map(|(index, _)| index)
            .collect();
        for index in gone {
            self.remove(index);
        }
        for (name, attributes) in self.config.instances.clone() {
            let result = match self.find(&name) {
                None => self.add(&name, attributes, Origin::Configuration),
                Some(index) => self.redefine(index, attributes),
            };
            if let Err(error) = result {
                tracing::error!(instance = %name, "{error:#}");
            }
        }
    }

    fn redefine(&mut self, index: usize, attributes: Attributes) -> anyhow::Result<()> {
        let Some(mut served) = self.instances[index].take() else {
            return Ok(());
        };
        let result = self.redefine_taken(&mut served, attributes);
        self.instances[index] = Some(served);
        result
    }

    fn redefine_taken(&self, served: &mut Served, attributes: Attributes) -> anyhow::Result<()> {
        let Served {
            name,
            instance,
            definition,
        } = served;
        let is_same = definition.attributes == attributes;
        if is_same && definition.owner.is_some() {
            // The process that its namespace was named by may be gone.
            return Ok(());
        }
        if attributes.user_namespace != definition.attributes.user_namespace {
            bail!("its user namespace cannot change: remove the instance, and add it again");
        }
        let followed = definition.attributes.parent_of(name) == Parent::Host;
        definition.access = access(name, &attributes, definition.owner.as_ref())?;
        definition.attributes = attributes;
        definition.origin = Origin::Configuration;
        instance.set_access(definition.access);
        if !followed {
            self.adopt(instance, definition, name);
        }
        self.keeper.redefine(name, definition)
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

    fn is_renewing(&self) -> bool {
        let mut served = self.instances.iter().flatten();
        served.any(|served| served.instance.is_renewing())
    }

    fn serve_instance(&mut self, index: usize) -> Option<End> {
        for _ in 0..BURST {
            let served = self.instances.get_mut(index)?.as_mut()?;
            let connection = Arc::clone(served.instance.connection());
            match connection.receive(&mut self.buffer) {
                Ok(Received::Request(request)) => {
                    let instance = &mut served.instance;
                    instance.handle(&request, &self.renewals, &self.backend_reports);
                    self.go_on(index);
                }
                Ok(Received::Nothing) => return None,
                Ok(Received::Gone) => {
                    tracing::error!(
                        instance = %served.name,
                        "somebody else unmounted or aborted it; it ends here"
                    );
                    self.remove(index);
                    return (index == 0).then_some(End::Failed);
                }
                Err(errno) => {
                    tracing::error!(instance = %served.name, "cannot read a request: {errno}");
                    return None;
                }
            }
        }
        None
    }

    /// Answers what an instance has put off. Whoever changed the host's generation then finds it changed
    /// everywhere.
    fn go_on(&mut self, index: usize) {
        while let Some(Some(served)) = self.instances.get(index)
            && served.instance.is_held_up()
        {
            if index == 0 {
                self.follow_host();
                if self.is_renewing() {
                    // It goes on when that has ended.
                    return;
                }
            }
            if let Some(Some(served)) = self.instances.get_mut(index) {
                served.instance.go_on(&self.renewals, &self.backend_reports);
            }
        }
    }

    fn renewed(&mut self) {
        for connection in self.renewals.finished() {
            let of_it = |served: &Option<Served>| {
                served
                    .as_ref()
                    .is_some_and(|served| Arc::ptr_eq(served.instance.connection(), &connection))
            };
            // It may have been removed.
            let Some(index) = self.instances.iter().position(of_it) else {
                continue;
            };
            if let Some(served) = &mut self.instances[index] {
                served.instance.renewed();
            }
            self.go_on(index);
            self.go_on(0);
        }
    }

    /// Bumps the instances that follow the host, as often as the host was.
    fn follow_host(&mut self) {
        let Some((Some(host), others)) = self.instances.split_first_mut() else {
            return;
        };
        let epoch = host.instance.registry().epoch();
        for served in others.iter_mut().flatten() {
            if served.definition.attributes.parent_of(&served.name) != Parent::Host {
                continue;
            }
            if served.instance.record().parent_epoch > epoch {
                // The host's instance is a new one. Whatever it was that ended the old one was a change.
                served.instance.bump(&self.renewals, |record| {
                    record.parent_epoch = epoch;
                });
            }
            while served.instance.record().parent_epoch < epoch {
                let next = served.instance.record().parent_epoch.get() + 1;
                served.instance.bump(&self.renewals, |record| {
                    record.parent_epoch = sysgenid_core::Epoch::new(next);
                });
            }
        }
    }

    /// Lets the usual paths lead to the nodes of the host, unless the kernel has nodes of its own there.
    fn publish(&self) -> anyhow::Result<()> {
        match publish::publish(&self.config.directory, Path::new(DEVICES)) {
            Err(error @ publish::Error::Device(_)) => tracing::warn!("{error}"),
            result => result?,
        }
        if !self.backend_reports.iter().any(|backend| backend.works) {
            tracing::warn!(
                "no backend can notice a restore of this machine: unless whoever restores it calls the \
                 trigger, programs that rely on the nodes, as AWS-LC does where it finds them, are worse \
                 off than without"
            );
        }
        Ok(())
    }

    /// Opens the backends that the configuration names and that are not open yet.
    fn open_backends(&mut self) {
        let wanted: Vec<_> = self.config.backends.order.iter().map(kind).collect();
        for index in (0..self.backends.len()).rev() {
            if let Some(backend) = &self.backends[index].backend
                && let Some(fd) = backend.fd()
            {
                self.watch.remove(fd);
            }
        }
        self.backends = wanted
            .into_iter()
            .map(|kind| Watched {
                kind,
                backend: None,
                retry: None,
            })
            .collect();
        self.backend_reports = self
            .backends
            .iter()
            .map(|watched| report::Backend {
                kind: watched.kind,
                works: false,
                description: "not looked for yet".to_owned(),
            })
            .collect();
        for index in 0..self.backends.len() {
            self.open_backend(index, RETRY.0);
        }
    }

    /// Opens one backend, and looks at once for what happened while it was not open.
    fn open_backend(&mut self, index: usize, wait: Duration) {
        let kind = self.backends[index].kind;
        let settings = self.backend_settings();
        let Some(host) = self.instances.first_mut().and_then(Option::as_mut) else {
            return;
        };
        let position = host.instance.record().positions[place(kind)];
        match backends::open(kind, &settings, position) {
            Ok(backend) => {
                if let Some(fd) = backend.fd()
                    && let Err(errno) = self.watch.add_edges(fd, Source::Backend(index))
                {
                    tracing::error!(backend = %kind, "cannot be watched: {errno}");
                }
                if position.is_none() {
                    host.instance.note(|record| {
                        let mut restores = Restores::from_words(record.restores);
                        restores.join(kind);
                        record.restores = restores.to_words();
                        record.positions[place(kind)] = Some(backend.position());
                    });
                }
                tracing::info!(backend = %kind, "watching {}", backend.description());
                self.backend_reports[index] = report::Backend {
                    kind,
                    works: backend.can_notice(),
                    description: backend.description(),
                };
                self.backends[index].retry = None;
                self.backends[index].backend = Some(backend);
                self.look(index);
            }
            Err(error) => {
                // What was there once is expected back; what never was is not waited for, and the published
                // link to the own node is no news.
                let was_there = self.backends[index].retry.is_some() || position.is_some();
                let (is_news, may_pass) = match error {
                    backends::Error::NotPresent { .. } => (false, was_there),
                    backends::Error::OwnNode { .. } => (false, false),
                    backends::Error::NoPermission { .. }
                    | backends::Error::Unsuitable { .. }
                    | backends::Error::Malformed { .. } => (true, false),
                    _ => (!was_there, true),
                };
                if is_news {
                    tracing::warn!(backend = %kind, "{error}");
                } else {
                    tracing::debug!(backend = %kind, "{error}");
                }
                self.backends[index].retry =
                    may_pass.then(|| (clock::now() + nanoseconds(wait), (wait * 2).min(RETRY.1)));
                self.backend_reports[index] = report::Backend {
                    kind,
                    works: false,
                    description: error.to_string(),
                };
            }
        }
    }

    fn backend_settings(&self) -> backends::Settings {
        let configured = &self.config.backends;
        backends::Settings {
            vmclock: Some(configured.vmclock.clone()),
            kmsg: configured.kmsg.clone(),
            parent: Some(configured.parent.clone()),
            own_devices: mounts::devices(&self.config.directory),
        }
    }

    /// Asks a backend whether there was a change.
    fn look(&mut self, index: usize) {
        let Some(watched) = self.backends.get_mut(index) else {
            return;
        };
        let Some(backend) = &mut watched.backend else {
            return;
        };
        let Some(host) = self.instances.first_mut().and_then(Option::as_mut) else {
            return;
        };
        match backend.look() {
            Ok(changes) => {
                let kind = watched.kind;
                let position = backend.position();
                let host = &mut host.instance;
                let mut restores = Restores::from_words(host.record().restores);
                let bumps = restores.notice(kind, changes);
                if changes > 0 {
                    tracing::info!(backend = %kind, changes, bumps, "noticed a restore");
                    self.settle_at = Some(clock::now() + nanoseconds(Restores::SETTLE));
                }
                for left in (0..bumps).rev() {
                    // All of it with the last: rather one too many than one too few.
                    host.bump(&self.renewals, |record| {
                        if left == 0 {
                            record.restores = restores.to_words();
                            record.positions[place(kind)] = Some(position);
                        }
                    });
                }
                host.note(|record| {
                    record.restores = restores.to_words();
                    record.positions[place(kind)] = Some(position);
                });
            }
            Err(backends::Error::Busy { .. }) => {
                watched.retry = Some((clock::now() + nanoseconds(SOON), RETRY.0));
            }
            Err(error) => {
                tracing::warn!(backend = %watched.kind, "{error}; trying again from time to time");
                if let Some(fd) = backend.fd() {
                    self.watch.remove(fd);
                }
                watched.backend = None;
                watched.retry = Some((clock::now() + nanoseconds(RETRY.0), RETRY.0));
                self.backend_reports[index] = report::Backend {
                    kind: watched.kind,
                    works: false,
                    description: error.to_string(),
                };
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.host()
            .is_none_or(|host| Restores::from_words(host.instance.record().restores).is_settled())
    }

    /// Some backends cannot say when to look at them: they are looked at whenever anything happens.
    fn look_at_the_silent(&mut self) {
        for index in 0..self.backends.len() {
            let silent = self.backends[index]
                .backend
                .as_ref()
                .is_some_and(|backend| backend.fd().is_none());
            if silent {
                self.look(index);
            }
        }
    }

    /// How often a silent backend is looked at for want of anything that happens.
    fn interval(&self) -> Option<Duration> {
        let works = |kind| {
            self.backends
                .iter()
                .filter(|watched| watched.kind == kind)
                .find_map(|watched| watched.backend.as_ref())
        };
        let silent = works(backends::Kind::Vmclock).is_some_and(|backend| backend.fd().is_none());
        let kmsg = works(backends::Kind::Kmsg).is_some_and(|backend| backend.can_notice());
        if silent && !kmsg {
            self.config.backends.vmclock_interval
        } else {
            None
        }
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
            tracing::error!("the configuration stays what it was: {error:#}");
        }
        None
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        let manager = self.keeper.manager();
        let _ = manager.reloading();
        let loaded = self.options.load();
        let result = loaded.and_then(|mut config| {
            config.directory = prepare_directory(&config.directory)?;
            if config.directory != self.config.directory {
                bail!("the directory cannot change while the daemon runs: restart it");
            }
            let was_published = self.config.publish;
            self.config = config;
            self.open_backends();
            self.reconcile();
            if self.config.publish {
                self.publish()?;
            } else if was_published {
                publish::unpublish(&self.config.directory, Path::new(DEVICES))?;
            }
            tracing::info!("the configuration has been read again");
            Ok(())
        });
        let status = format!("serving {}", self.config.directory.display());
        let _ = self.keeper.manager().ready(&status);
        result
    }

    fn accept(&mut self) {
        loop {
            let connection = match self.listener.accept() {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                Err(error) => {
                    // There may be no descriptor left. The caller waits, and would be reported again at once.
                    tracing::warn!("{error}");
                    self.watch.remove(self.listener.as_fd());
                    self.listen_at = Some(clock::now() + nanoseconds(RETRY.0));
                    return;
                }
            };
            let index = match self.callers.iter().position(Option::is_none) {
                Some(index) => index,
                None => {
                    self.callers.push(None);
                    self.callers.len() - 1
                }
            };
            match self
                .watch
                .add_both(connection.as_fd(), Source::Caller(index))
            {
                Ok(()) => {
                    self.callers[index] = Some(Caller {
                        connection,
                        is_answered: false,
                    });
                }
                Err(errno) => tracing::warn!("a caller cannot be served: {errno}"),
            }
        }
    }

    fn serve_caller(&mut self, index: usize) -> Option<End> {
        let mut caller = self.callers.get_mut(index)?.take()?;
        let (progress, end) = self.advance(&mut caller);
        match progress {
            Ok(Progress::Pending) if end.is_none() => self.callers[index] = Some(caller),
            Ok(_) | Err(control::Error::Closed) => self.watch.remove(caller.connection.as_fd()),
            Err(error) => {
                tracing::warn!("{error}");
                self.watch.remove(caller.connection.as_fd());
            }
        }
        end
    }

    /// Carries out the request once all of it is there, and sends as much of the response as goes.
    fn advance(
        &mut self,
        caller: &mut Caller,
    ) -> (Result<Progress<()>, control::Error>, Option<End>) {
        if caller.is_answered {
            return (caller.connection.flush(), None);
        }
        let (response, end) = match caller.connection.read_request() {
            Ok(Progress::Pending) => return (Ok(Progress::Pending), None),
            Ok(Progress::Done(request)) => self.carry_out(request),
            Err(error @ (control::Error::TooLong | control::Error::Malformed(_))) => {
                let reason = error.to_string();
                (Response::Refused { reason }, None)
            }
            Err(error) => return (Err(error), None),
        };
        caller.is_answered = true;
        (caller.connection.respond(&response), end)
    }

    fn carry_out(&mut self, request: Request) -> (Response, Option<End>) {
        let result = match request {
            Request::List => return (Response::Instances(self.list()), None),
            Request::Stop => return (Response::Done, Some(End::Stop)),
            Request::Reload => self.reload(),
            Request::Add { name, attributes } => match self.find(&name) {
                Some(_) => Err(anyhow::anyhow!("there is an instance {name} already")),
                None => crate::config::check_attributes(&name, &attributes)
                    .map_err(anyhow::Error::msg)
                    .and_then(|()| self.add(&name, attributes, Origin::Runtime)),
            },
            Request::Remove { name } => match self.find(&name) {
                None => Err(anyhow::anyhow!("there is no instance {name}")),
                Some(0) => Err(anyhow::anyhow!(
                    "the host's own instance cannot be removed: stop the daemon instead"
                )),
                Some(index) => {
                    self.remove(index);
                    Ok(())
                }
            },
        };
        let response = match result {
            Ok(()) => Response::Done,
            Err(error) => Response::Refused {
                reason: format!("{error:#}"),
            },
        };
        (response, None)
    }

    fn list(&self) -> Vec<control::InstanceReport> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let mut list: Vec<_> = self
            .instances
            .iter()
            .flatten()
            .map(|served| {
                let registry = served.instance.registry();
                let parent = served.definition.attributes.parent_of(&served.name);
                control::InstanceReport {
                    name: served.name.clone(),
                    parent: (parent == Parent::Host).then(InstanceName::host),
                    generation: registry.generation().get(),
                    watchers: count(served.instance.watchers()),
                    tracked: count(registry.tracked_watchers()),
                    outdated: count(registry.outdated_watchers()),
                    user_namespace: served.instance.settings().owner.inode(),
                    path: served.instance.path().to_owned(),
                    origin: served.definition.origin,
                }
            })
            .collect();
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
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

/// Who owns an instance: the namespace that is open, or the daemon's own.
fn owner(namespace: Option<&OwnedFd>) -> anyhow::Result<Owner> {
    Ok(match namespace {
        None => Owner::of_current_process()?,
        Some(fd) => Owner::from_fd(fd.try_clone()?)?,
    })
}

/// Who may open the nodes, by numbers.
fn access(
    name: &InstanceName,
    attributes: &Attributes,
    namespace: Option<&OwnedFd>,
) -> anyhow::Result<[Access; 2]> {
    let owner = owner(namespace)?;
    let root_of = |process: &Path| {
        let root = owner.root_of(process).map_err(|error| error.to_string())?;
        root.uid
            .zip(root.gid)
            .ok_or_else(|| "nobody is root in it".to_owned())
    };
    let ownership = attributes.ownership(name, &Accounts::read(), root_of)?;
    Ok(
        [ownership.sysgenid_mode, ownership.vmgenid_mode].map(|mode| Access {
            mode: u32::from(mode.bits()),
            uid: ownership.user,
            gid: ownership.group,
        }),
    )
}

fn kind(configured: &BackendKind) -> backends::Kind {
    match configured {
        BackendKind::Vmclock => backends::Kind::Vmclock,
        BackendKind::Kmsg => backends::Kind::Kmsg,
        BackendKind::Parent => backends::Kind::Parent,
    }
}

/// Where a record keeps how far a backend has looked.
const fn place(kind: backends::Kind) -> usize {
    match kind {
        backends::Kind::Vmclock => 0,
        backends::Kind::Kmsg => 1,
        backends::Kind::Parent => 2,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
