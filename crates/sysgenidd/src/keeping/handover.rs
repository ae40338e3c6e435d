// SPDX-License-Identifier: MIT OR Apache-2.0

//! How a supervisor and its daemon talk: what the child is started with, and what it says afterwards.
//!
//! What it says is systemd's protocol (`FDSTORE=1`, `FDSTOREREMOVE=1`, `BARRIER=1`, `READY=1`,
//! `WATCHDOG=1`), over a pair of sockets that nobody else can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::keeping::store::{self, Error};
use crate::service;

/// What the daemon keeps, by name. Unlike every other descriptor of the supervisor these are inherited: the
/// daemon is the only program that it ever runs.
pub(super) type Kept = BTreeMap<String, OwnedFd>;

/// What the supervisor tells its child in `$SYSGENIDD_SUPERVISED`: `SUPERVISOR NOTIFY LIST`.
///
/// Unlike `LISTEN_FDS` the list names each number, because moving descriptors to fixed numbers between fork
/// and exec would take `unsafe`; it is a file, for which the environment is too small; and the parent is named,
/// which is known before the fork, instead of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    /// The process of the supervisor.
    pub(super) supervisor: i32,
    /// The socket for messages to the supervisor.
    pub(super) notify: RawFd,
    /// The file with the [`List`].
    pub(super) list: RawFd,
}

impl Handover {
    pub(super) const VARIABLE: &str = "SYSGENIDD_SUPERVISED";

    /// What the parent of this process handed over to it.
    pub(super) fn from_environment() -> Result<Option<Self>, Error> {
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

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.supervisor, self.notify, self.list)
    }
}

impl FromStr for Handover {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers = text.split(' ').map(number);
        let [supervisor, notify, list] = numbers
            .collect::<Result<Vec<_>, ()>>()?
            .try_into()
            .map_err(|_| ())?;
        if notify == list {
            return Err(());
        }
        Ok(Self {
            supervisor,
            notify,
            list,
        })
    }
}

/// The name and number of each kept descriptor, `FD=NAME` on each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List(pub(super) Vec<(String, RawFd)>);

impl List {
    pub(super) fn of(kept: &Kept) -> Self {
        let named = kept.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd()));
        Self(named.collect())
    }

    /// A file with it, which a child inherits.
    pub(super) fn to_file(&self) -> io::Result<OwnedFd> {
        let file = rustix::fs::memfd_create(c"sysgenidd-kept", MemfdFlags::NOEXEC_SEAL)?;
        let file = File::from(file);
        // Where the child begins to read does not change by that.
        file.write_all_at(self.to_string().as_bytes(), 0)?;
        Ok(file.into())
    }

    /// What is in the file. A number of `others` is none of a kept descriptor.
    pub(super) fn from_file(file: OwnedFd, others: &[RawFd]) -> Result<Self, Error> {
        let mut text = String::new();
        File::from(file)
            .read_to_string(&mut text)
            .map_err(|error| Error::Inherited(format!("their list: {error}")))?;
        let list: Self = text
            .parse()
            .map_err(|()| Error::Inherited("their list is not one".to_owned()))?;
        if list.0.iter().any(|(_, fd)| others.contains(fd)) {
            return Err(Error::Inherited("their list has others".to_owned()));
        }
        Ok(list)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, fd) in &self.0 {
            writeln!(f, "{fd}={name}")?;
        }
        Ok(())
    }
}

impl FromStr for List {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = BTreeSet::new();
        let entry = |line: &str| {
            let (fd, name) = line.split_once('=').ok_or(())?;
            let fd = number(fd)?;
            // One number cannot be owned twice.
            numbers.insert(fd).then(|| (name.to_owned(), fd)).ok_or(())
        };
        text.lines().map(entry).collect::<Result<_, ()>>().map(Self)
    }
}

fn number(text: &str) -> Result<RawFd, ()> {
    text.parse().ok().filter(|&fd: &RawFd| fd >= 0).ok_or(())
}

/// What a message says besides what is to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It serves.
    pub(super) ready: bool,
    /// It is alive.
    pub(super) alive: bool,
    /// It wants to be ended.
    pub(super) stuck: bool,
    /// How often it will say that it is alive from now on.
    pub(super) period: Option<Duration>,
}

/// Keeps and forgets what a message says, and returns what else it says. What is not kept is closed, which is
/// all that a `BARRIER=1` asks for.
pub(super) fn apply(message: &str, fds: Vec<OwnedFd>, kept: &mut Kept) -> Said {
    let fields = service::assignments(message);
    let name = fields.get("FDNAME").copied().unwrap_or_default();
    if fields.get("FDSTORE") == Some(&"1") && store::check_name(name).is_ok() {
        for fd in fds {
            kept.insert(name.to_owned(), fd);
        }
    }
    if fields.get("FDSTOREREMOVE") == Some(&"1") {
        kept.remove(name);
    }
    Said {
        ready: fields.get("READY") == Some(&"1"),
        alive: fields.get("WATCHDOG") == Some(&"1"),
        stuck: fields.get("WATCHDOG") == Some(&"trigger"),
        period: fields
            .get("WATCHDOG_USEC")
            .and_then(|period| period.parse().ok())
            .map(Duration::from_micros),
    }
}

/// Receives one message and the inheritable descriptors that come with it; nothing once the sender has closed
/// its end.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> rustix::io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
    Ok(Some((text, fds)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_descriptor_of_a_name_replaces_the_first() {
        let mut kept = Kept::new();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let message = "FDSTORE=1\nFDNAME=a\nFDPOLL=0";
        assert_eq!(apply(message, vec![read], &mut kept), Said::default());
        let second = write.as_raw_fd();
        apply(message, vec![write], &mut kept);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept["a"].as_raw_fd(), second);
        apply("FDSTOREREMOVE=1\nFDNAME=a", Vec::new(), &mut kept);
        assert!(kept.is_empty());
    }

    #[test]
    fn a_message_says_how_the_daemon_is() {
        let said = |message| apply(message, Vec::new(), &mut Kept::new());
        assert!(said("READY=1\nSTATUS=x").ready);
        assert!(said("WATCHDOG=1").alive);
        assert!(said("WATCHDOG=trigger").stuck);
        let period = Some(Duration::from_millis(1500));
        assert_eq!(said("WATCHDOG_USEC=1500000").period, period);
        assert_eq!(said("WATCHDOG_USEC=x\nSTATUS=READY=1"), Said::default());
    }

    #[test]
    fn a_handover_or_list_that_owns_a_number_twice_is_refused() {
        assert!("1 5 6".parse::<Handover>().is_ok());
        for bad in ["", "1", "1 5", "1 5 5", "1 5 x", "1 -5 6", "1 5 6 7"] {
            assert!(bad.parse::<Handover>().is_err(), "{bad:?}");
        }
        assert!("6=a\n7=b\n".parse::<List>().is_ok());
        for bad in ["6=a\n6=b\n", "6", "x=a", "-6=a", "\n"] {
            assert!(bad.parse::<List>().is_err(), "{bad:?}");
        }
        let list = List(vec![("a".to_owned(), 6)]);
        let read = |others: &[RawFd]| List::from_file(list.to_file().unwrap(), others);
        assert!(matches!(read(&[5, 6]), Err(Error::Inherited(_))));
        assert_eq!(read(&[5]).unwrap(), list);
    }

    #[test]
    fn a_list_of_twenty_thousand_descriptors_is_handed_over() {
        let named = (10..20_010).map(|fd| (format!("f{fd}"), fd));
        let list = List(named.collect());
        assert_eq!(List::from_file(list.to_file().unwrap(), &[]).unwrap(), list);
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written(
            names in proptest::collection::btree_set("[a-z]{1,8}/[a-z0-9.=_-]{1,64}", 0..20),
        ) {
            let list = List(names.into_iter().zip(6..).collect());
            prop_assert_eq!(list.to_string().parse::<List>(), Ok(list));
        }

        #[test]
        fn any_text_is_a_handover_or_not(text in any::<String>()) {
            let _ = text.parse::<Handover>();
            let _ = text.parse::<List>();
        }
    }
}
