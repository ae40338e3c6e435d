// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instances that the daemon serves: taking them over, adding, changing and removing them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use sysgenid_core::Generation;

use crate::config::{self, Accounts as People, Attributes, InstanceName, Parent};
use crate::control::{Origin, Token};
use crate::judging::Owner;
use crate::judging::process::Process;
use crate::keeping::definition::Definition;
use crate::keeping::keeper::Kept;
use crate::keeping::page::Page;
use crate::keeping::state::State;
use crate::noticing;
use crate::noticing::reseed;
use crate::placing::mounts;
use crate::protocol::Connection;
use crate::serving::accounts::Accounts;
use crate::serving::files::Access;
use crate::serving::handshake;
use crate::serving::instance::{Instance, Settings};
use crate::serving::recovery;
use crate::serving::server::{Ended, Server};

use super::Daemon;
use super::events::Event;
use super::watch::Source;

/// The stack of an instance's thread, in bytes. It calls nothing deep.
const STACK: usize = 256 * 1024;

/// How much the threads of containers stand back behind the others (`nice`).
const NICE: i32 = 5;

/// How long an instance's thread may take to refuse those who sleep.
const PATIENCE: Duration = Duration::from_secs(2);

/// One instance and where it comes from.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) name: InstanceName,
    pub(super) instance: Arc<Instance>,
    pub(super) definition: Definition,
    /// Which start of a thread it is; numbers are not used twice.
    pub(super) serial: u64,
    /// The process that it goes with.
    pub(super) tie: Option<Process>,
    /// Says that the thread has ended; `None` before it was started.
    done: Option<mpsc::Receiver<()>>,
}

impl Served {
    /// Whether its thread has yet to be started.
    pub(super) fn waits(&self) -> bool {
        self.done.is_none()
    }
}

/// What somebody asks of a new instance.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) attributes: Attributes,
    pub(super) origin: Origin,
    /// The user namespace that owns it, if it is open already.
    pub(super) owner: Option<OwnedFd>,
    /// The process that it goes with.
    pub(super) tie: Option<Process>,
    /// What it is removed by, if a request adds it.
    pub(super) token: Option<Token>,
    /// It begins above this.
    pub(super) above: Option<Generation>,
}

impl Wanted {
    pub(super) fn configured(attributes: Attributes) -> Self {
        Self {
            attributes,
            origin: Origin::Configuration,
            owner: None,
            tie: None,
            token: None,
            above: None,
        }
    }
}

impl Daemon {
    /// Goes on with an instance of the process before this one. One with whose watchers that cannot be done
    /// begins anew with its page, so that nobody who maps it goes blind.
    pub(super) fn resume(&mut self, name: &InstanceName, kept: Kept) {
        let Kept {
            connection,
            page,
            state,
            definition,
        } = kept;
        let connection = Connection::resume(connection);
        let prepared = match state {
            Ok(state) => self.prepare(name, connection, state, page, &definition),
            Err(error) => {
                recovery::refuse_all(&connection);
                Err(error.into())
            }
        };
        let error = match prepared {
            Ok(instance) => {
                self.take_over(name, Arc::new(instance), definition);
                return;
            }
            Err(error) => error,
        };
        tracing::error!(
            instance = %name,
            "the state of its watchers cannot be taken over from the process before ({error:#}): they get an \
             error and have to open the node again; its generation goes on"
        );
        self.discard(name);
        let wanted = Wanted {
            attributes: definition.attributes,
            origin: definition.origin,
            owner: definition.owner,
            tie: definition.tie.and_then(Process::find),
            token: definition.token,
            above: None,
        };
        if let Err(error) = self.add(name, wanted) {
            tracing::error!(instance = %name, "it ends: {error:#}");
        }
    }

    fn prepare(
        &self,
        name: &InstanceName,
        connection: Connection,
        state: State,
        page: Page,
        definition: &Definition,
    ) -> anyhow::Result<Instance> {
        let settings = self.settings(name, definition)?;
        let accounts = Accounts::resume(state, page, self.config.limits);
        Ok(Instance::new(
            settings,
            definition.access,
            connection,
            accounts,
        )?)
    }

    fn take_over(&mut self, name: &InstanceName, instance: Arc<Instance>, definition: Definition) {
        if name.is_host() {
            self.common.family.set_host(Some(Arc::clone(&instance)));
        } else if definition.attributes.parent_of(name) == Parent::Host {
            self.common.family.join(Arc::clone(&instance), true);
        }
        let tie = definition.tie.map(Process::find);
        let index = self.insert(name, instance, definition);
        match tie {
            None => {}
            Some(Some(process)) => self.tie(index, process),
            Some(None) => {
                tracing::info!(instance = %name, "its process has ended meanwhile");
                self.remove(index);
            }
        }
    }

    /// Ends what is left of an instance that is not served: its page says so.
    fn discard(&mut self, name: &InstanceName) {
        self.keeper.forget_instance(name);
        let path = self.config.directory.join(name.as_str());
        if let Err(error) = mounts::detach(&path) {
            tracing::error!("{} cannot be unmounted: {error}", path.display());
        }
    }

    /// Starts a new instance, and returns its index.
    pub(super) fn add(&mut self, name: &InstanceName, wanted: Wanted) -> anyhow::Result<usize> {
        let most = usize::try_from(self.config.limits.instances.get()).unwrap_or(usize::MAX);
        if self.served.iter().flatten().count() >= most {
            bail!(
                "there are {most} instances, as many as the configuration allows ([limits] instances): remove \
                 some, or raise it"
            );
        }
        let owner = match (wanted.owner, &wanted.attributes.user_namespace) {
            (Some(owner), _) => Some(owner),
            (None, None) => None,
            (None, Some(path)) => Some(self.open_namespace(path)?),
        };
        let definition = Definition {
            access: access(name, &wanted.attributes, owner.as_ref())?,
            attributes: wanted.attributes,
            origin: wanted.origin,
            owner,
            tie: wanted.tie.as_ref().map(Process::tie),
            token: wanted.token,
        };
        let settings = self.settings(name, &definition)?;
        let path = settings.path.clone();
        let begun = self.begin(name, settings, &definition, wanted.above);
        let instance = match begun {
            Ok(instance) => Arc::new(instance),
            Err(error) => {
                self.discard(name);
                let _ = std::fs::remove_dir(&path);
                return Err(error);
            }
        };
        if name.is_host() {
            self.common.family.set_host(Some(Arc::clone(&instance)));
        } else if definition.attributes.parent_of(name) == Parent::Host {
            self.common.family.join(Arc::clone(&instance), false);
        }
        let index = self.insert(name, instance, definition);
        if let Err(error) = self.start_serving(index, false) {
            self.remove(index);
            return Err(error);
        }
        if let Some(process) = wanted.tie {
            self.tie(index, process);
        }
        Ok(index)
    }

    /// Mounts and keeps a new instance. If that fails, what there is of it is to be discarded.
    fn begin(
        &mut self,
        name: &InstanceName,
        settings: Settings,
        definition: &Definition,
        above: Option<Generation>,
    ) -> anyhow::Result<Instance> {
        std::fs::create_dir_all(&settings.path)?;
        let page = self.keeper.folder().page(name)?;
        let state = self.keeper.folder().new_state(name)?;
        let connection = Connection::mount(&settings.path)?;
        handshake::agree(&connection)?;
        // From here on the page is live, as a successor expects of what is kept.
        let fresh = reseed::reseed_for_trigger();
        let accounts = Accounts::begin(&fresh, state, page, above, self.config.limits);
        self.keeper
            .keep_instance(name, connection.as_fd(), definition)?;
        Ok(Instance::new(
            settings,
            definition.access,
            connection,
            accounts,
        )?)
    }

    /// Has an instance go when a process ends.
    fn tie(&mut self, index: usize, process: Process) {
        if let Err(errno) = self.watch.add(process.as_fd(), Source::Tie(index)) {
            tracing::error!("the process of an instance cannot be watched: {errno}");
        }
        if let Some(Some(served)) = self.served.get_mut(index) {
            served.tie = Some(process);
        }
    }

    /// The process of an instance has ended.
    pub(super) fn tie_ended(&mut self, index: usize) {
        let Some(Some(served)) = self.served.get(index) else {
            return;
        };
        if served.tie.as_ref().is_some_and(Process::has_ended) {
            tracing::info!(instance = %served.name, "its process has ended");
            self.remove(index);
        }
    }

    /// Opens the file of a user namespace, without asking the daemon itself for any file.
    fn open_namespace(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        if config::process_of(path).is_none() {
            let own = mounts::devices(&self.config.directory);
            return Ok(noticing::foreign::open(path, &own)?);
        }
        rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .with_context(|| format!("{} cannot be opened: does the process run?", path.display()))
    }

    fn settings(&self, name: &InstanceName, definition: &Definition) -> anyhow::Result<Settings> {
        let owner = owner(definition.owner.as_ref())?;
        let trusted = owner.inode() == Owner::of_current_process()?.inode();
        Ok(Settings {
            name: name.to_string(),
            path: self.config.directory.join(name.as_str()),
            owner,
            trusted,
            passthrough: self.config.passthrough,
        })
    }

    /// Gives an instance its place, and returns the index. Nobody serves it yet.
    fn insert(
        &mut self,
        name: &InstanceName,
        instance: Arc<Instance>,
        definition: Definition,
    ) -> usize {
        self.serial += 1;
        let served = Served {
            name: name.clone(),
            instance,
            definition,
            serial: self.serial,
            tie: None,
            done: None,
        };
        match self.served.iter().position(Option::is_none) {
            Some(index) => {
                self.served[index] = Some(served);
                index
            }
            None => {
                self.served.push(Some(served));
                self.served.len() - 1
            }
        }
    }

    /// Starts the thread that serves an instance. One that `goes_on` first deals with what the process before
    /// this one left.
    pub(super) fn start_serving(&mut self, index: usize, goes_on: bool) -> anyhow::Result<()> {
        let Some(Some(served)) = self.served.get_mut(index) else {
            return Ok(());
        };
        let (tell, done) = mpsc::channel();
        let events = self.events_in.clone();
        let common = self.common.clone();
        let instance = Arc::clone(&served.instance);
        let serial = served.serial;
        let stands_back = !served.name.is_host();
        std::thread::Builder::new()
            .name(served.name.as_str().chars().take(15).collect())
            .stack_size(STACK)
            .spawn(move || {
                if stands_back {
                    stand_back();
                }
                let error = match serve(&instance, common, goes_on) {
                    Ok(Ended::AsTold) => None,
                    Ok(Ended::Gone) => Some("somebody else unmounted or aborted it".to_owned()),
                    Err(error) => Some(format!("{error:#}")),
                };
                let _ = tell.send(());
                events.send(Event::Ended { serial, error });
            })
            .context("the thread of an instance cannot be started")?;
        served.done = Some(done);
        tracing::info!(
            instance = %served.name,
            path = %served.instance.path().display(),
            generation = %served.instance.accounts().registry().generation(),
            "serving"
        );
        Ok(())
    }

    /// Ends an instance: its page changes once more and is not live, whoever sleeps gets an error, and its
    /// folder goes.
    pub(super) fn remove(&mut self, index: usize) {
        self.begin_to_remove(index);
        self.finish_removing(index);
    }

    /// The first half of it, for all that end together: no thread waits for another.
    pub(super) fn begin_to_remove(&mut self, index: usize) {
        let Some(Some(served)) = self.served.get(index) else {
            return;
        };
        tracing::info!(instance = %served.name, "ending");
        if let Some(process) = &served.tie {
            self.watch.remove(process.as_fd());
        }
        // First of all: from here on nothing changes it any more.
        served.instance.end();
        if served.name.is_host() {
            self.common.family.set_host(None);
        } else {
            self.common.family.forget(&served.instance);
        }
    }

    pub(super) fn finish_removing(&mut self, index: usize) {
        let Some(served) = self.served.get_mut(index).and_then(Option::take) else {
            return;
        };
        if let Some(done) = &served.done
            && done.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            tracing::error!(instance = %served.name, "its thread hangs");
        }
        let path = served.instance.path();
        if let Err(errno) = Connection::unmount(path) {
            tracing::warn!("{} cannot be unmounted: {errno}", path.display());
        }
        // The mount point is ours; if something else is in it, it stays.
        let _ = std::fs::remove_dir(path);
        self.keeper.forget_instance(&served.name);
    }

    pub(super) fn host(&self) -> Option<&Served> {
        self.served
            .iter()
            .flatten()
            .find(|served| served.name.is_host())
    }

    pub(super) fn find(&self, name: &InstanceName) -> Option<usize> {
        self.served
            .iter()
            .position(|served| served.as_ref().is_some_and(|served| served.name == *name))
    }

    /// Makes the instances what the configuration says. What was added at run time stays.
    ///
    /// # Errors
    ///
    /// What of it could not be done; the rest is.
    pub(super) fn reconcile(&mut self) -> anyhow::Result<()> {
        let gone: Vec<_> = self
            .served
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
        for served in self.served.iter().flatten() {
            served.instance.accounts().set_limits(self.config.limits);
        }
        let mut faults = Vec::new();
        for (name, attributes) in self.config.instances.clone() {
            let result = match self.find(&name) {
                None => self.add(&name, Wanted::configured(attributes)).map(drop),
                Some(index) => self.redefine(index, attributes),
            };
            if let Err(error) = result {
                faults.push(format!("instance {name}: {error:#}"));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        bail!(
            "the configuration is in use, but for this: {}",
            faults.join("; ")
        )
    }

    fn redefine(&mut self, index: usize, attributes: Attributes) -> anyhow::Result<()> {
        let Some(Some(served)) = self.served.get_mut(index) else {
            return Ok(());
        };
        let Served {
            name,
            instance,
            definition,
            tie,
            ..
        } = served;
        // What the configuration names stays until the configuration changes, whoever added it first.
        definition.origin = Origin::Configuration;
        definition.token = None;
        definition.tie = None;
        if let Some(process) = tie.take() {
            self.watch.remove(process.as_fd());
        }
        let is_same = definition.attributes == attributes;
        if is_same && definition.owner.is_some() {
            // The process that its namespace was named by may be gone.
            return self.keeper.redefine(name, definition);
        }
        if attributes.user_namespace != definition.attributes.user_namespace {
            bail!("its user namespace cannot change: remove the instance, and add it again");
        }
        let followed = definition.attributes.parent_of(name) == Parent::Host;
        definition.access = access(name, &attributes, definition.owner.as_ref())?;
        definition.attributes = attributes;
        instance.set_access(definition.access);
        let follows = definition.attributes.parent_of(name) == Parent::Host;
        if follows && !followed {
            self.common.family.join(Arc::clone(instance), false);
        } else if followed && !follows {
            self.common
                .family
                .leave(instance, &reseed::reseed_for_trigger());
        }
        self.keeper.redefine(name, definition)
    }
}

/// What the thread of an instance does.
fn serve(
    instance: &Arc<Instance>,
    common: crate::serving::server::Common,
    goes_on: bool,
) -> anyhow::Result<Ended> {
    let mut server = Server::new(Arc::clone(instance), common)?;
    if goes_on {
        server.recover()?;
    }
    server.serve()
}

/// Lets the machine's own instance and those who notice go before the calling thread.
fn stand_back() {
    let this = rustix::thread::gettid();
    if let Err(errno) = rustix::process::setpriority_process(Some(this), NICE) {
        tracing::debug!("a thread cannot stand back: {errno}");
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
    let ownership = attributes.ownership(name, &People::read(), root_of)?;
    Ok(
        [ownership.sysgenid_mode, ownership.vmgenid_mode].map(|mode| Access {
            mode: u32::from(mode.bits()),
            uid: ownership.user,
            gid: ownership.group,
        }),
    )
}
