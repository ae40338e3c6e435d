// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instances that the daemon serves: taking them over, adding, changing and removing them, and answering
//! their requests.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::clock;
use crate::config::{self, Accounts, Attributes, InstanceName, Parent};
use crate::control::Origin;
use crate::daemon::watch::Source;
use crate::judging::capability::Owner;
use crate::keeping::keeper::Definition;
use crate::noticing;
use crate::placing::mounts;
use crate::protocol::Received;
use crate::serving::files::Access;
use crate::serving::instance::{Agreement, Instance, Kept, Settings};

use super::{Daemon, End, nanoseconds};

/// How many requests of one instance are answered before the others get their turn.
const BURST: usize = 256;

/// How long the kernel may take to begin talking.
const PATIENCE: Duration = Duration::from_secs(10);

/// One instance and where it comes from.
pub(super) struct Served {
    pub(super) name: InstanceName,
    pub(super) instance: Instance,
    pub(super) definition: Definition,
}

impl Daemon {
    /// Goes on with an instance of the process before this one. One with which that cannot be done ends,
    /// so that the others go on.
    pub(super) fn resume(&mut self, name: &InstanceName, kept: Kept, definition: Definition) {
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

    pub(super) fn try_resume(
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
    pub(super) fn add(
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
        std::fs::create_dir_all(&path)?;
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
    pub(super) fn adopt(
        &self,
        instance: &mut Instance,
        definition: &Definition,
        name: &InstanceName,
    ) {
        if definition.attributes.parent_of(name) == Parent::Host
            && let Some(host) = self.host()
        {
            let epoch = host.instance.registry().epoch();
            instance.note(|record| record.parent_epoch = epoch);
        }
    }

    /// Opens the file of a user namespace, without asking the daemon itself for any file.
    pub(super) fn open_namespace(&self, path: &Path) -> anyhow::Result<OwnedFd> {
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

    /// Waits until kernel and daemon have agreed on how to talk. INIT is the first request.
    pub(super) fn agree(&mut self, instance: &mut Instance) -> anyhow::Result<()> {
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

    pub(super) fn settings(
        &self,
        name: &InstanceName,
        definition: &Definition,
    ) -> anyhow::Result<Settings> {
        Ok(Settings {
            name: name.to_string(),
            path: self.config.directory.join(name.as_str()),
            access: definition.access,
            owner: owner(definition.owner.as_ref())?,
            passthrough: self.config.passthrough,
        })
    }

    pub(super) fn insert(&mut self, served: Served) -> anyhow::Result<()> {
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

    pub(super) fn remove(&mut self, index: usize) {
        let Some(served) = self.instances[index].take() else {
            return;
        };
        tracing::info!(instance = %served.name, "ending");
        self.watch.remove(served.instance.connection().as_fd());
        self.keeper.forget_instance(&served.name);
        served.instance.stop();
    }

    pub(super) fn host(&self) -> Option<&Served> {
        self.instances.first()?.as_ref()
    }

    pub(super) fn find(&self, name: &InstanceName) -> Option<usize> {
        self.instances
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
        let mut faults = Vec::new();
        for (name, attributes) in self.config.instances.clone() {
            let result = match self.find(&name) {
                None => self.add(&name, attributes, Origin::Configuration),
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

    pub(super) fn redefine(&mut self, index: usize, attributes: Attributes) -> anyhow::Result<()> {
        let Some(mut served) = self.instances[index].take() else {
            return Ok(());
        };
        let result = self.redefine_taken(&mut served, attributes);
        self.instances[index] = Some(served);
        result
    }

    pub(super) fn redefine_taken(
        &self,
        served: &mut Served,
        attributes: Attributes,
    ) -> anyhow::Result<()> {
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

    pub(super) fn is_renewing(&self) -> bool {
        let mut served = self.instances.iter().flatten();
        served.any(|served| served.instance.is_renewing())
    }

    pub(super) fn serve_instance(&mut self, index: usize) -> Option<End> {
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
    pub(super) fn go_on(&mut self, index: usize) {
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

    pub(super) fn renewed(&mut self) {
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
    pub(super) fn follow_host(&mut self) {
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
