// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fd store: what outlives this process at its service manager.
//!
//! systemd keeps descriptors for a service (`FileDescriptorStoreMax=`), and so does
//! [`crate::keeping::supervise`]. A descriptor is kept from the moment in which [`Store::keep`] returns: the
//! message then lies in a queue of the kernel, which the manager empties before it deals with the end
//! of this process. [`Store::barrier`] waits until it is known to have been read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::pipe::PipeFlags;

use crate::service;
use crate::service::Manager;

/// Why the fd store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manager was not told.
    #[error(transparent)]
    Manager(#[from] service::Error),
    /// The descriptors that were handed over at the start do not agree with their description.
    #[error(
        "the service manager described the descriptors that it hands over wrongly: {0}; stop the service, then start it again"
    )]
    Inherited(String),
    /// The name of a descriptor that no manager takes.
    #[error(
        "{0:?} cannot name a stored descriptor: a name is 1 to 255 printable characters without `:`"
    )]
    Name(String),
    /// The store has no room for another descriptor.
    #[error(
        "the service manager cannot keep another descriptor ({0} are kept); remove instances, or raise FileDescriptorStoreMax= if that is lower than it could be"
    )]
    Full(usize),
    /// The manager has not read its messages in time.
    #[error("the service manager has not answered within {0:?}; is it stopped?")]
    Barrier(Duration),
    /// A system call failed.
    #[error("cannot wait for the service manager: {0}")]
    System(#[from] io::Error),
}

/// How long the list of kept descriptors may become. The next process gets it as one variable of its
/// environment, for which the kernel has 128 KiB; beyond that no process could be started at all.
const LONGEST_LIST: usize = 100 * 1024;

/// What the list takes for a descriptor besides its name: separators and a number.
const LIST_ENTRY: usize = 8;

/// Where descriptors are kept for the next process.
#[derive(Debug)]
pub struct Store {
    manager: Manager,
    /// How many descriptors are kept; a manager drops what is too much without a word. None at all
    /// is the absence of a store.
    room: usize,
    /// What is kept. In a cell, because keeping something changes nothing for the caller.
    kept: RefCell<BTreeSet<String>>,
}

/// The descriptors that the previous process had kept, by name.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<String, OwnedFd>);

impl Store {
    /// Finds the store in the environment, and takes over what is in it.
    ///
    /// To be called once, first of all: it owns what the manager handed over, and a second call
    /// finds the numbers already taken.
    ///
    /// # Errors
    ///
    /// [`Error::Inherited`] and [`Error::Manager`].
    pub fn take() -> Result<(Self, Inherited), Error> {
        if let Some(handover) = Handover::from_environment()? {
            let manager = Manager::at(adopt(handover.notify)?);
            let inherited = Inherited::adopt(handover.fds)?;
            return Ok((Self::new(manager, usize::MAX, &inherited), inherited));
        }
        let described = sd_notify::listen_fds_with_names()
            .map_err(|error| Error::Inherited(error.to_string()))?;
        let inherited = Inherited::adopt(described.map(|(fd, name)| (name, fd)))?;
        let manager = Manager::from_environment()?;
        let announced = env::var("FDSTORE").ok().and_then(|room| room.parse().ok());
        let room = match announced {
            _ if !manager.is_present() => 0,
            Some(room) => room,
            // systemd before version 254 says only by handing them over that it keeps descriptors.
            None if inherited.0.is_empty() => 0,
            None => usize::MAX,
        };
        Ok((Self::new(manager, room, &inherited), inherited))
    }

    fn new(manager: Manager, room: usize, inherited: &Inherited) -> Self {
        Self {
            manager,
            room,
            kept: RefCell::new(inherited.names().map(str::to_owned).collect()),
        }
    }

    /// Whether what is kept survives this process.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.room > 0
    }

    /// The service manager that has the store.
    #[must_use]
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Keeps a duplicate of `fd` for the next process. Without a store, does nothing.
    ///
    /// What was inherited is still kept. A name stands for one descriptor: forget the old one
    /// before another takes its name.
    ///
    /// # Errors
    ///
    /// [`Error::Name`], [`Error::Full`] and [`Error::Manager`].
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        check_name(name)?;
        if !self.is_present() {
            return Ok(());
        }
        let mut kept = self.kept.borrow_mut();
        if !kept.contains(name) {
            let list: usize = kept.iter().map(|kept| kept.len() + LIST_ENTRY).sum();
            if kept.len() >= self.room || list + name.len() + LIST_ENTRY > LONGEST_LIST {
                return Err(Error::Full(kept.len()));
            }
        }
        // FDPOLL=0: systemd would drop a descriptor that reports an error or a hang-up, and that
        // of a FUSE connection may do so while the manager starts the next process.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.manager.send(&message, Some(fd))?;
        kept.insert(name.to_owned());
        Ok(())
    }

    /// Lets the store close what is kept under `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] and [`Error::Manager`].
    pub fn forget(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        if !self.is_present() {
            return Ok(());
        }
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        self.manager.send(&message, None)?;
        self.kept.borrow_mut().remove(name);
        Ok(())
    }

    /// Waits until the manager has read everything that was sent.
    ///
    /// # Errors
    ///
    /// [`Error::Barrier`], [`Error::Manager`] and [`Error::System`].
    pub fn barrier(&self, timeout: Duration) -> Result<(), Error> {
        if !self.manager.is_present() {
            return Ok(());
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        self.manager.send("BARRIER=1", Some(write.as_fd()))?;
        // The manager's copy is then the last one, which it closes once it has come to it.
        drop(write);
        let time = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&read, PollFlags::empty())];
        let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&time)))
            .map_err(io::Error::from)?;
        if ended == 0 {
            return Err(Error::Barrier(timeout));
        }
        Ok(())
    }
}

impl Inherited {
    fn adopt(described: impl IntoIterator<Item = (String, RawFd)>) -> Result<Self, Error> {
        let mut fds = BTreeMap::new();
        for (name, fd) in described {
            if fds.insert(name.clone(), adopt(fd)?).is_some() {
                // Which of the two is in use cannot be known.
                return Err(Error::Inherited(format!("two are named {name}")));
            }
        }
        Ok(Self(fds))
    }

    /// Takes the descriptor of this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Where the file is that has not been taken and bears this name.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let fd = self.0.get(name)?.as_raw_fd();
        std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()
    }

    /// The names of those that have not been taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// What [`crate::keeping::supervise`] tells its child in `$SYSGENIDD_SUPERVISED`, on one line:
/// `SUPERVISOR NOTIFY FD=NAME ...`.
///
/// Unlike `LISTEN_FDS` it names each number, because moving descriptors to fixed numbers between
/// fork and exec would take `unsafe`; and it names the parent, which is known before the fork,
/// instead of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    /// The process of the supervisor.
    pub(crate) supervisor: i32,
    /// The socket for messages to the supervisor.
    pub(crate) notify: RawFd,
    /// The name and number of each kept descriptor.
    pub(crate) fds: Vec<(String, RawFd)>,
}

impl Handover {
    pub(crate) const VARIABLE: &str = "SYSGENIDD_SUPERVISED";

    /// What the parent of this process handed over to it.
    pub(crate) fn from_environment() -> Result<Option<Self>, Error> {
        let Ok(text) = env::var(Self::VARIABLE) else {
            return Ok(None);
        };
        let handover: Self = text
            .parse()
            .map_err(|()| Error::Inherited(format!("{}={text}", Self::VARIABLE)))?;
        // Meant for somebody whose environment this process has inherited.
        let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
        Ok((parent == Some(handover.supervisor)).then_some(handover))
    }
}

impl std::fmt::Display for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.supervisor, self.notify)?;
        for (name, fd) in &self.fds {
            write!(f, " {fd}={name}")?;
        }
        Ok(())
    }
}

impl FromStr for Handover {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse().ok().filter(|&fd: &RawFd| fd >= 0).ok_or(());
        let mut fields = text.split(' ');
        let supervisor = number(fields.next().ok_or(())?)?;
        let notify = number(fields.next().ok_or(())?)?;
        let mut fds: Vec<(String, RawFd)> = Vec::new();
        for field in fields {
            let (fd, name) = field.split_once('=').ok_or(())?;
            let fd = number(fd)?;
            // One number cannot be owned twice.
            if fd == notify || fds.iter().any(|&(_, other)| other == fd) {
                return Err(());
            }
            fds.push((name.to_owned(), fd));
        }
        Ok(Self {
            supervisor,
            notify,
            fds,
        })
    }
}

/// systemd's rule, without the space that separates names in a [`Handover`].
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if name.is_empty() || name.len() > 255 || !name.bytes().all(good) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// Becomes the owner of a descriptor that this process was started with, and that no child of it
/// shall have.
fn adopt(fd: RawFd) -> Result<OwnedFd, Error> {
    let gone = |error: rustix::io::Errno| Error::Inherited(format!("descriptor {fd}: {error}"));
    if (0..3).contains(&fd) {
        return Err(gone(rustix::io::Errno::BADF));
    }
    // SAFETY: the service manager opened this number for this process before it began, and says so in
    // the environment; `Store::take`, the only caller, runs once and before anything else could
    // close the number. Whether it is open at all is examined by the call below, which ends the
    // borrow before anybody owns it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(gone)?;
    // SAFETY: as above; it is open, and each number is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn store_and_peer() -> (Store, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let manager = Manager::at(ours.into());
        let store = Store::new(manager, usize::MAX, &Inherited::default());
        (store, theirs)
    }

    fn received(peer: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        crate::keeping::supervise::receive(peer.as_fd(), rustix::net::RecvFlags::empty())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_kept_descriptor_arrives_with_its_name_and_is_the_same_file() {
        let (store, peer) = store_and_peer();
        let (read, write) = rustix::pipe::pipe().unwrap();
        store.keep("state/host", read.as_fd()).unwrap();
        drop(read);
        let (message, mut fds) = received(&peer);
        assert_eq!(message, "FDSTORE=1\nFDNAME=state/host\nFDPOLL=0");
        assert_eq!(fds.len(), 1);
        rustix::io::write(&write, b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(fds.remove(0), &mut byte).unwrap();
        assert_eq!(&byte, b"x");

        store.forget("state/host").unwrap();
        let (message, fds) = received(&peer);
        assert_eq!(message, "FDSTOREREMOVE=1\nFDNAME=state/host");
        assert!(fds.is_empty());
    }

    #[test]
    fn what_was_kept_is_there_though_its_keeper_has_gone() {
        let (store, peer) = store_and_peer();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        store.keep("a", read.as_fd()).unwrap();
        drop((store, read));
        assert_eq!(received(&peer).1.len(), 1);
    }

    #[test]
    fn a_barrier_waits_until_its_message_was_read() {
        let (store, peer) = store_and_peer();
        assert!(matches!(store.barrier(SHORT), Err(Error::Barrier(_))));
        let (message, fds) = received(&peer);
        assert_eq!((message.as_str(), fds.len()), ("BARRIER=1", 1));
        drop(fds);

        let reader = std::thread::spawn(move || {
            let (message, fds) = received(&peer);
            assert_eq!(message, "BARRIER=1");
            drop(fds);
            peer
        });
        store.barrier(Duration::from_secs(60)).unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn a_name_that_no_manager_takes_is_refused() {
        let (store, _peer) = store_and_peer();
        for bad in ["", "a:b", "a\nb", "a b", "é", &"a".repeat(256)] {
            let refused = store.keep(bad, store_fd());
            assert!(matches!(refused, Err(Error::Name(_))), "{bad:?}");
            assert!(matches!(store.forget(bad), Err(Error::Name(_))));
        }
    }

    fn store_fd() -> BorrowedFd<'static> {
        rustix::stdio::stdin()
    }

    #[test]
    fn without_a_store_nothing_is_sent() {
        let (mut store, peer) = store_and_peer();
        store.room = 0;
        peer.set_nonblocking(true).unwrap();
        store.keep("a", store_fd()).unwrap();
        store.forget("a").unwrap();
        assert!(peer.recv(&mut [0]).is_err());
    }

    #[test]
    fn what_a_manager_would_drop_is_refused() {
        let (mut store, peer) = store_and_peer();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let inherited = Inherited([("old".to_owned(), write)].into());
        store = Store::new(store.manager, 2, &inherited);
        store.keep("a", read.as_fd()).unwrap();
        store.keep("a", read.as_fd()).unwrap();
        let full = store.keep("b", read.as_fd());
        assert!(matches!(full, Err(Error::Full(2))), "{full:?}");
        store.forget("old").unwrap();
        store.keep("b", read.as_fd()).unwrap();
        drop(peer);
    }

    #[test]
    fn the_list_never_becomes_too_long_to_start_a_process_with() {
        let (store, peer) = store_and_peer();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while peer.recv(&mut buffer).unwrap() != "STATUS=".len() {}
        });
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let name = |n: usize| format!("{n:0>255}");
        let refused = (0..10_000).find(|&n| store.keep(&name(n), read.as_fd()).is_err());
        let fds = (0..refused.unwrap()).map(|n| (name(n), 999_999)).collect();
        let list = Handover {
            supervisor: 4_000_000,
            notify: 5,
            fds,
        }
        .to_string();
        assert!((LONGEST_LIST - 2 * name(0).len()..120 * 1024).contains(&list.len()));
        store.manager().status("").unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn what_is_adopted_is_not_passed_on() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let flags = rustix::io::fcntl_getfd(&read).unwrap();
        assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut inherited = Inherited::adopt([("a".to_owned(), read.into_raw_fd())]).unwrap();
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["a"]);
        assert!(inherited.take("b").is_none());
        let fd = inherited.take("a").unwrap();
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(inherited.names().count(), 0);
    }

    #[test]
    fn two_descriptors_of_one_name_and_one_that_is_not_open_are_errors() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let twice = [
            ("a".to_owned(), read.into_raw_fd()),
            ("a".to_owned(), write.into_raw_fd()),
        ];
        assert!(matches!(Inherited::adopt(twice), Err(Error::Inherited(_))));
        for bad in [0, 2, 1_000_000] {
            let refused = Inherited::adopt([("a".to_owned(), bad)]);
            assert!(matches!(refused, Err(Error::Inherited(_))), "{bad}");
        }
    }

    #[test]
    fn a_handover_that_owns_a_number_twice_is_refused() {
        assert!("1 5 6=a 7=b".parse::<Handover>().is_ok());
        for bad in [
            "",
            "1",
            "1 5 5=a",
            "1 5 6=a 6=b",
            "1 5 x=a",
            "1 -5",
            "1 5 6",
        ] {
            assert!(bad.parse::<Handover>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_handover_survives_the_environment(
            supervisor in 1i32..,
            names in proptest::collection::btree_set("[a-z]{1,8}/[a-z0-9.=_-]{1,64}", 0..20),
        ) {
            let fds = names.into_iter().zip(6..).collect();
            let handover = Handover { supervisor, notify: 5, fds };
            prop_assert_eq!(handover.to_string().parse::<Handover>(), Ok(handover));
        }

        #[test]
        fn any_text_is_a_handover_or_not(text in any::<String>()) {
            let _ = text.parse::<Handover>();
        }
    }
}
