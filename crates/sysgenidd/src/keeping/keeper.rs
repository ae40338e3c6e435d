// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the daemon leaves to its successor: which descriptors, under which names.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::{Attributes, InstanceName};
use crate::control::{self, Origin};
use crate::keeping::store::{Inherited, Store};
use crate::service::Manager;
use crate::serving::files::Access;
use crate::serving::instance::{Instance, Kept};

/// Held by the daemon of a directory, and by the store between two of them.
const LOCK: &str = ".lock";

/// What the parts of an instance are called in the store: `PART/NAME`.
const PARTS: [&str; 5] = ["definition", "state", "page", "fuse", "userns"];

/// The size of a stored definition in bytes: within one page, a write of it is whole or not at all.
const DEFINITION: usize = 4096;

/// How long the service manager may take to read what it is to keep. Everybody waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an instance was asked to be, and by whom.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) attributes: Attributes,
    pub(crate) origin: Origin,
    /// Who may open its nodes, by numbers: what its names stand for may be gone later, the process that it
    /// was named by among them.
    pub(crate) access: [Access; 2],
    /// The user namespace that owns it, if it is not the daemon's own.
    pub(crate) owner: Option<OwnedFd>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    attributes: Attributes,
    origin: Origin,
    access: [Access; 2],
    has_owner: bool,
}

/// The store, and what is in it.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    /// The stored definitions, which change.
    definitions: BTreeMap<InstanceName, File>,
    lock: Option<OwnedFd>,
}

impl Keeper {
    /// Finds the store, and what a process before this one left in it.
    pub(crate) fn take() -> anyhow::Result<(Self, Inherited)> {
        let (store, inherited) = Store::take()?;
        let keeper = Self {
            store,
            definitions: BTreeMap::new(),
            lock: None,
        };
        Ok((keeper, inherited))
    }

    pub(crate) fn manager(&self) -> &Manager {
        self.store.manager()
    }

    /// Whether a successor would find what is kept.
    pub(crate) fn outlives_the_process(&self) -> bool {
        self.store.is_present()
    }

    /// Makes sure that nobody else serves `directory`.
    pub(crate) fn lock(
        &mut self,
        directory: &Path,
        inherited: &mut Inherited,
    ) -> anyhow::Result<()> {
        if let Some(lock) = inherited.take("lock") {
            self.lock = Some(lock);
            return Ok(());
        }
        let path = directory.join(LOCK);
        let lock = rustix::fs::open(
            &path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
        .with_context(|| format!("{} cannot be opened", path.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!(
                "another sysgenidd serves {}: stop that one, or name another --directory",
                directory.display()
            ),
            Err(errno) => bail!("{} cannot be locked: {errno}", path.display()),
        }
        // A daemon that ends removes the file. Who opened it just before has locked nothing.
        let locked = rustix::fs::fstat(&lock)?.st_ino;
        if rustix::fs::stat(&path).map(|found| found.st_ino) != Ok(locked) {
            bail!(
                "another sysgenidd has just ended at {}: try again",
                directory.display()
            );
        }
        self.store.keep("lock", lock.as_fd())?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Keeps a descriptor that belongs to no instance.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        Ok(self.store.keep(name, fd)?)
    }

    /// The instances among what was inherited. One that its process had not finished, or half removed, is
    /// forgotten.
    pub(crate) fn sort(
        &mut self,
        inherited: &mut Inherited,
    ) -> BTreeMap<InstanceName, (Kept, Definition)> {
        let names: Vec<InstanceName> = inherited
            .names()
            .filter_map(|name| {
                let (part, instance) = name.split_once('/')?;
                PARTS.contains(&part).then(|| instance.parse().ok())?
            })
            .collect();
        let mut found = BTreeMap::new();
        for name in names {
            if found.contains_key(&name) {
                continue;
            }
            match self.assemble(&name, inherited) {
                Some(instance) => {
                    found.insert(name, instance);
                }
                None => {
                    tracing::warn!(instance = %name, "the process before left it unfinished");
                    self.forget_instance(&name);
                }
            }
        }
        found
    }

    fn assemble(
        &mut self,
        name: &InstanceName,
        inherited: &mut Inherited,
    ) -> Option<(Kept, Definition)> {
        let mut take = |part: &str| inherited.take(&format!("{part}/{name}"));
        let definition = take("definition");
        let state = take("state");
        let page = take("page");
        let connection = take("fuse");
        let owner = take("userns");
        let file = File::from(definition?);
        let mut bytes = [0; DEFINITION];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let stored: Stored = serde_json::from_slice(bytes.trim_ascii()).ok()?;
        if stored.has_owner && owner.is_none() {
            return None;
        }
        let kept = Kept {
            connection: connection?,
            state: state?,
            page: page?,
        };
        self.definitions.insert(name.clone(), file);
        let definition = Definition {
            attributes: stored.attributes,
            origin: stored.origin,
            access: stored.access,
            owner,
        };
        Some((kept, definition))
    }

    /// Keeps a new instance.
    pub(crate) fn keep_instance(
        &mut self,
        name: &InstanceName,
        instance: &Instance,
        definition: &Definition,
    ) -> anyhow::Result<()> {
        let file = File::from(rustix::fs::memfd_create(
            c"sysgenid-definition",
            MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL,
        )?);
        write(&file, definition)?;
        let keep = |part: &str, fd: BorrowedFd<'_>| self.store.keep(&format!("{part}/{name}"), fd);
        keep("definition", file.as_fd())?;
        keep("state", instance.state().as_fd())?;
        keep("page", instance.page().as_fd())?;
        if let Some(owner) = &definition.owner {
            keep("userns", owner.as_fd())?;
        }
        keep("fuse", instance.connection().as_fd())?;
        // systemd asks to whom a message belongs when it reads it; the sender had better be alive then.
        if let Err(error) = self.store.barrier(PATIENCE) {
            tracing::warn!("{error}");
        }
        self.definitions.insert(name.clone(), file);
        Ok(())
    }

    /// Stores what an instance is asked to be now.
    pub(crate) fn redefine(
        &self,
        name: &InstanceName,
        definition: &Definition,
    ) -> anyhow::Result<()> {
        match self.definitions.get(name) {
            Some(file) => write(file, definition),
            None => Ok(()),
        }
    }

    /// Forgets an instance.
    pub(crate) fn forget_instance(&mut self, name: &InstanceName) {
        self.definitions.remove(name);
        for part in PARTS {
            self.forget(&format!("{part}/{name}"));
        }
    }

    /// Forgets what belongs to no instance, and removes what stands for a running daemon.
    pub(crate) fn forget_all(&mut self, directory: &Path) {
        control::remove(directory);
        let _ = std::fs::remove_file(directory.join(LOCK));
        self.forget("control");
        self.forget("lock");
        self.lock = None;
        // Empty unless somebody put something else there.
        let _ = std::fs::remove_dir(directory);
    }

    fn forget(&self, name: &str) {
        if let Err(error) = self.store.forget(name) {
            tracing::warn!("{error}");
        }
    }
}

/// Whether a daemon serves `directory`, or its state is kept for the next.
pub(crate) fn is_locked(directory: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(lock) = rustix::fs::open(directory.join(LOCK), flags, Mode::empty()) else {
        return false;
    };
    let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
    locked == Err(Errno::WOULDBLOCK)
}

/// The directory that the process before served, if its lock was handed over.
pub(crate) fn directory_before(inherited: &Inherited) -> Option<PathBuf> {
    Some(inherited.path("lock")?.parent()?.to_owned())
}

fn write(file: &File, definition: &Definition) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec(&Stored {
        attributes: definition.attributes.clone(),
        origin: definition.origin,
        access: definition.access,
        has_owner: definition.owner.is_some(),
    })?;
    if bytes.len() > DEFINITION {
        bail!("the definition of an instance is too long to be kept: use shorter paths");
    }
    bytes.resize(DEFINITION, b' ');
    file.write_all_at(&bytes, 0)?;
    Ok(())
}
