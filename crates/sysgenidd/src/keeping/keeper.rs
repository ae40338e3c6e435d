// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the daemon leaves to its successor: files in [`Folder`], and the descriptors that no file stands
//! for in the fd store.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use sysgenid_core::PageWord;

use crate::config::InstanceName;
use crate::control;
use crate::keeping::definition::{Definition, Stored};
use crate::keeping::folder::Folder;
use crate::keeping::lock;
use crate::keeping::page::Page;
use crate::keeping::state::{State, StateError};
use crate::keeping::store::{self, Inherited, Store};
use crate::service::Manager;

/// What the lock is called in the store.
pub(super) const LOCK: &str = "lock";

/// How long the service manager may take to read what it is to keep.
const PATIENCE: Duration = Duration::from_secs(1);

/// After so many instances have ended it is looked whether what is kept of them is still of use.
const TIDY: usize = 128;

/// An instance that a process before this one served.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Of `/dev/fuse`.
    pub(crate) connection: OwnedFd,
    /// Its page, as that process left it.
    pub(crate) page: Page,
    /// Its state, if it can be read. If not, page and definition are gone on with all the same, and the
    /// watchers are lost.
    pub(crate) state: Result<State, StateError>,
    pub(crate) definition: Definition,
}

/// What a descriptor of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Connection,
    UserNamespace,
}

impl Part {
    /// What it is called in the store: short, for the list of all names must not become too long.
    fn name(self, serial: u64) -> String {
        let letter = match self {
            Self::Connection => 'f',
            Self::UserNamespace => 'u',
        };
        format!("{letter}{}", base_62(serial))
    }

    fn parse(name: &str) -> Option<(Self, u64)> {
        let mut characters = name.chars();
        let part = match characters.next()? {
            'f' => Self::Connection,
            'u' => Self::UserNamespace,
            _ => return None,
        };
        Some((part, from_base_62(characters.as_str())?))
    }
}

/// Everything that outlives the process, of one directory, which is locked.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    directory: PathBuf,
    folder: Folder,
    /// Until everything is forgotten.
    lock: Option<OwnedFd>,
    /// What the descriptors of an instance are called in the store.
    serials: BTreeMap<InstanceName, u64>,
    /// The numbers below the last that nothing is called by: the names had better stay short.
    free: BTreeSet<u64>,
    last_serial: u64,
    ended: usize,
}

impl Keeper {
    /// Makes sure that nobody else serves `directory`, and opens what is kept there.
    pub(crate) fn lock(
        store: Store,
        inherited: &mut Inherited,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let lock = match inherited.take(LOCK) {
            Some(lock) => lock,
            None => {
                let lock = lock::take(directory)?;
                store.keep(LOCK, lock.as_fd())?;
                lock
            }
        };
        Ok(Self {
            folder: Folder::open(directory)?,
            store,
            directory: directory.to_owned(),
            lock: Some(lock),
            serials: BTreeMap::new(),
            free: BTreeSet::new(),
            last_serial: 0,
            ended: 0,
        })
    }

    pub(crate) fn manager(&self) -> &Manager {
        self.store.manager()
    }

    /// Whether a successor would find what is kept.
    pub(crate) fn outlives_the_process(&self) -> bool {
        self.store.is_present()
    }

    /// Where pages and states are.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The instances that a process before this one served. One that it had not finished, or half removed, is
    /// forgotten, and so is one of which something is missing: its page ends.
    pub(crate) fn sort(
        &mut self,
        inherited: &mut Inherited,
    ) -> anyhow::Result<BTreeMap<InstanceName, Kept>> {
        let mut found = BTreeMap::new();
        let mut claimed = BTreeSet::new();
        for name in self.folder.names()? {
            let path = self.folder.definition(&name);
            if !path.exists() {
                // Nobody serves it: only its page should be there.
                if let Err(error) = self.folder.end(&name) {
                    tracing::error!(instance = %name, "{error}");
                }
                continue;
            }
            match self.assemble(&name, &path, inherited, &mut claimed) {
                Ok(kept) => {
                    found.insert(name, kept);
                }
                Err(error) => {
                    tracing::warn!(
                        instance = %name,
                        "it cannot be taken over from the process before, and ends: {error:#}"
                    );
                    self.forget_instance(&name);
                }
            }
        }
        let orphans: Vec<(String, u64)> = inherited
            .names()
            .filter_map(|name| Some((name.to_owned(), Part::parse(name)?.1)))
            .collect();
        for (name, serial) in orphans {
            drop(inherited.take(&name));
            if !self.forget(&name) {
                claimed.insert(serial);
            }
        }
        self.last_serial = claimed.last().copied().unwrap_or(0);
        self.free = (1..self.last_serial)
            .filter(|serial| !claimed.contains(serial))
            .collect();
        Ok(found)
    }

    fn assemble(
        &mut self,
        name: &InstanceName,
        path: &Path,
        inherited: &mut Inherited,
        claimed: &mut BTreeSet<u64>,
    ) -> anyhow::Result<Kept> {
        let stored = Stored::read(path)?;
        if !claimed.insert(stored.serial) {
            bail!("another instance has its connection");
        }
        self.serials.insert(name.clone(), stored.serial);
        let mut take = |part: Part| inherited.take(&part.name(stored.serial));
        let connection = take(Part::Connection);
        let owner = take(Part::UserNamespace);
        if stored.has_owner && owner.is_none() {
            bail!("its user namespace was not kept");
        }
        // The kernel passes mappings on to one file only, which another cannot take the place of.
        let page = self.folder.existing_page(name)?;
        let page = page.filter(|page| page.word() != PageWord::default());
        Ok(Kept {
            connection: connection.context("its connection was not kept")?,
            page: page.context("its page is not there, or was never shown to anybody")?,
            state: self.folder.state(name),
            definition: Definition {
                attributes: stored.attributes,
                origin: stored.origin,
                access: stored.access,
                owner,
                token: stored.token,
                tie: stored.tie,
            },
        })
    }

    /// Keeps the connection and the definition of a new instance, whose page and state are in the folder.
    ///
    /// # Errors
    ///
    /// If the store is full, or the file system. Then it is not kept, and should be forgotten.
    pub(crate) fn keep_instance(
        &mut self,
        name: &InstanceName,
        connection: BorrowedFd<'_>,
        definition: &Definition,
    ) -> anyhow::Result<()> {
        let serial = self.free.pop_first().unwrap_or_else(|| {
            self.last_serial += 1;
            self.last_serial
        });
        self.serials.insert(name.clone(), serial);
        Stored::new(serial, definition).write(&self.folder.definition(name))?;
        if let Some(owner) = &definition.owner {
            let name = Part::UserNamespace.name(serial);
            self.store.keep(&name, owner.as_fd())?;
        }
        // With this it is whole.
        Ok(self
            .store
            .keep(&Part::Connection.name(serial), connection)?)
    }

    /// Waits, once for many messages, until the service manager has read what it is to keep: systemd asks to
    /// whom a message belongs when it reads it, and the sender had better be alive then.
    pub(crate) fn settle(&self) {
        if let Err(error) = self.store.barrier(PATIENCE) {
            tracing::warn!("{error}");
        }
    }

    /// Stores what an instance is asked to be now.
    ///
    /// # Errors
    ///
    /// If it cannot be written; then its successor is what it was before.
    pub(crate) fn redefine(
        &self,
        name: &InstanceName,
        definition: &Definition,
    ) -> anyhow::Result<()> {
        match self.serials.get(name) {
            Some(&serial) => {
                Ok(Stored::new(serial, definition).write(&self.folder.definition(name))?)
            }
            None => Ok(()),
        }
    }

    /// Forgets an instance. Its page stays, and shows that it has ended.
    pub(crate) fn forget_instance(&mut self, name: &InstanceName) {
        if let Err(error) = self.folder.end(name) {
            tracing::error!(instance = %name, "{error}");
        }
        if let Some(serial) = self.serials.remove(name) {
            let parts = [Part::UserNamespace, Part::Connection];
            // What is still called by it must not be taken for another's.
            if parts.map(|part| self.forget(&part.name(serial))) == [true; 2] {
                self.free.insert(serial);
            }
        }
        self.ended += 1;
        if self.ended.is_multiple_of(TIDY)
            && let Err(error) = self.folder.tidy(|name| self.serials.contains_key(name))
        {
            tracing::warn!("{error}");
        }
    }

    /// Closes what a process before this one left, here and in the store.
    pub(crate) fn close_all(&self, inherited: Inherited) {
        for name in inherited.names() {
            self.forget(name);
        }
        drop(inherited);
        // The manager has the last copies.
        self.settle();
    }

    /// Forgets what belongs to no instance, and removes what stands for a running daemon.
    pub(crate) fn forget_all(&mut self) {
        control::remove(&self.directory);
        lock::remove(&self.directory);
        self.forget(LOCK);
        self.lock = None;
    }

    /// Returns whether nothing is kept under this name now.
    fn forget(&self, name: &str) -> bool {
        if !self.store.keeps(name) {
            return true;
        }
        self.store
            .forget(name)
            .inspect_err(|error| tracing::warn!("{error}"))
            .is_ok()
    }
}

/// The directory that the process before served, if its lock was handed over.
pub(crate) fn directory_before(inherited: &Inherited) -> Option<PathBuf> {
    Some(inherited.path(LOCK)?.parent()?.to_owned())
}

/// The store, and what a process before this one left in it.
pub(crate) fn take() -> Result<(Store, Inherited), store::Error> {
    Store::take()
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn base_62(mut number: u64) -> String {
    let mut digits = Vec::new();
    while {
        let digit = usize::try_from(number % 62).unwrap_or(0);
        digits.push(char::from(DIGITS[digit]));
        number /= 62;
        number > 0
    } {}
    digits.into_iter().rev().collect()
}

fn from_base_62(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0_u64, |number, byte| {
        let digit = DIGITS.iter().position(|&digit| digit == byte)?;
        number
            .checked_mul(62)?
            .checked_add(u64::try_from(digit).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;
    use sysgenid_core::Generation;

    use crate::config::Attributes;
    use crate::control::Origin;
    use crate::serving::files::Access;

    use super::*;

    /// The store of one process after another.
    struct Stage {
        directory: tempfile::TempDir,
        peer: UnixDatagram,
        kept: BTreeMap<String, OwnedFd>,
    }

    impl Stage {
        fn new() -> (Self, Keeper) {
            let (ours, peer) = UnixDatagram::pair().unwrap();
            peer.set_nonblocking(true).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let mut inherited = Inherited::default();
            let store = Store::new(Manager::at(ours.into()), usize::MAX, &inherited);
            let keeper = Keeper::lock(store, &mut inherited, directory.path()).unwrap();
            let stage = Self {
                directory,
                peer,
                kept: BTreeMap::new(),
            };
            (stage, keeper)
        }

        /// What a service manager does with what it was sent.
        fn read(&mut self) {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            while let Ok(Some((message, fds))) =
                crate::keeping::handover::receive(self.peer.as_fd(), flags)
            {
                let fields = crate::service::assignments(&message);
                let name = fields["FDNAME"].to_owned();
                for fd in fds {
                    self.kept.insert(name.clone(), fd);
                }
                if fields.contains_key("FDSTOREREMOVE") {
                    self.kept.remove(&name);
                }
            }
        }

        /// The process dies, and the next one starts.
        fn next(&mut self, dead: Keeper) -> (Keeper, BTreeMap<InstanceName, Kept>) {
            drop(dead);
            self.read();
            let kept = self.kept.iter();
            let kept = kept.map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
            let mut inherited = Inherited::of(kept.collect());
            let (ours, peer) = UnixDatagram::pair().unwrap();
            peer.set_nonblocking(true).unwrap();
            self.peer = peer;
            let store = Store::new(Manager::at(ours.into()), usize::MAX, &inherited);
            let mut keeper = Keeper::lock(store, &mut inherited, self.directory.path()).unwrap();
            let found = keeper.sort(&mut inherited).unwrap();
            assert_eq!(inherited.names().count(), 0);
            self.read();
            (keeper, found)
        }

        fn names(&self) -> Vec<&str> {
            self.kept.keys().map(String::as_str).collect()
        }
    }

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn definition(owner: bool) -> Definition {
        let access = Access {
            mode: 0o644,
            uid: 1,
            gid: 2,
        };
        Definition {
            attributes: Attributes::default(),
            origin: Origin::Runtime,
            access: [access; 2],
            owner: owner.then(|| std::fs::File::open("/proc/self/ns/user").unwrap().into()),
            token: None,
            tie: None,
        }
    }

    const LIVE: PageWord = PageWord {
        generation: Generation::new(5),
        live: true,
        noticed: false,
    };

    fn add(keeper: &mut Keeper, text: &str, owner: bool) -> Page {
        let name = name(text);
        keeper.folder().new_state(&name).unwrap();
        let page = keeper.folder().page(&name).unwrap();
        page.store(LIVE);
        let connection = std::fs::File::open("/dev/null").unwrap();
        keeper
            .keep_instance(&name, connection.as_fd(), &definition(owner))
            .unwrap();
        page
    }

    #[test]
    fn a_successor_finds_every_instance_with_all_that_belongs_to_it() {
        let (mut stage, mut keeper) = Stage::new();
        add(&mut keeper, "host", false);
        add(&mut keeper, "web", true);
        let mut changed = definition(true);
        changed.origin = Origin::Configuration;
        keeper.redefine(&name("web"), &changed).unwrap();
        let (mut keeper, found) = stage.next(keeper);
        assert_eq!(stage.names(), ["f1", "f2", "lock", "u2"]);
        assert_eq!(found.len(), 2);
        let web = &found[&name("web")];
        assert_eq!(web.page.word(), LIVE);
        assert_eq!(web.state.as_ref().unwrap().slots(), 0);
        assert_eq!(web.definition.origin, Origin::Configuration);
        assert!(web.definition.owner.is_some());
        assert!(found[&name("host")].definition.owner.is_none());
        // A name is used again when nothing has it any more, and not before.
        keeper.forget_instance(&name("host"));
        add(&mut keeper, "third", true);
        add(&mut keeper, "fourth", false);
        let (mut keeper, found) = stage.next(keeper);
        assert_eq!(stage.names(), ["f1", "f2", "f3", "lock", "u1", "u2"]);
        assert_eq!(found.len(), 3);
        keeper.forget_instance(&name("web"));
        let (mut keeper, _) = stage.next(keeper);
        add(&mut keeper, "fifth", false);
        let (_keeper, found) = stage.next(keeper);
        assert_eq!(stage.names(), ["f1", "f2", "f3", "lock", "u1"]);
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn what_is_forgotten_ends_and_leaves_only_its_page() {
        let (mut stage, mut keeper) = Stage::new();
        let page = add(&mut keeper, "web", true);
        keeper.forget_instance(&name("web"));
        assert!(!page.word().live);
        let path = stage.directory.path().join(".keep/web");
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 1);
        let (keeper, found) = stage.next(keeper);
        assert_eq!(stage.names(), ["lock"]);
        assert!(found.is_empty());
        let page = keeper.folder().page(&name("web")).unwrap();
        assert_eq!(page.word().generation, LIVE.generation.next());
    }

    #[test]
    fn an_instance_of_which_something_is_missing_ends_and_the_others_go_on() {
        let (mut stage, mut keeper) = Stage::new();
        let pages = ["a", "b", "c", "d", "good"].map(|name| add(&mut keeper, name, true));
        add(&mut keeper, "e", true);
        stage.read();
        stage.kept.remove("f1");
        stage.kept.remove("u2");
        let folder = stage.directory.path().join(".keep");
        std::fs::remove_file(folder.join("c/definition")).unwrap();
        std::fs::remove_file(folder.join("e/page")).unwrap();
        // As if of two of one name.
        std::fs::copy(folder.join("good/definition"), folder.join("d/definition")).unwrap();
        let (_keeper, found) = stage.next(keeper);
        // Which of the two is taken for the right one is not said.
        assert_eq!(found.len(), 1);
        let ended = pages.iter().filter(|page| !page.word().live).count();
        assert_eq!(ended, 4);
        assert_eq!(stage.names(), ["f5", "lock", "u5"]);
    }

    #[test]
    fn a_state_that_cannot_be_read_costs_neither_page_nor_definition() {
        let (mut stage, mut keeper) = Stage::new();
        add(&mut keeper, "web", false);
        std::fs::write(stage.directory.path().join(".keep/web/state"), [1; 8192]).unwrap();
        let (_keeper, found) = stage.next(keeper);
        let web = &found[&name("web")];
        assert!(matches!(web.state, Err(StateError::OtherVersion)));
        assert_eq!(web.page.word(), LIVE);
    }

    #[test]
    fn ten_thousand_instances_fit_into_the_store() {
        let (ours, peer) = UnixDatagram::pair().unwrap();
        let reader = std::thread::spawn(move || while peer.recv(&mut [0; 512]).unwrap() > 8 {});
        let store = Store::new(Manager::at(ours.into()), 20_100, &Inherited::default());
        store.keep(LOCK, rustix::stdio::stdin()).unwrap();
        for serial in 1..=10_000 {
            for part in [Part::Connection, Part::UserNamespace] {
                store
                    .keep(&part.name(serial), rustix::stdio::stdin())
                    .unwrap();
            }
        }
        store.manager().send("END", None).unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn other_names_are_no_parts() {
        for name in ["", "f", "lock", "x1", "f-1", "fé", "fzzzzzzzzzzzz"] {
            assert_eq!(Part::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_in_the_store_says_whose_it_is(serial in any::<u64>()) {
            for part in [Part::Connection, Part::UserNamespace] {
                prop_assert_eq!(Part::parse(&part.name(serial)), Some((part, serial)));
            }
        }
    }
}
