// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the service manager is told.
//!
//! The words are those of the crate `sd-notify`. What it sends them by is not used: it knows no abstract address,
//! and waits for as long as the manager does not read, in a thread on which others wait.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;
use rustix::time::ClockId;
use sd_notify::NotifyState;

/// How long a message waits for room in the manager's queue. Everybody who asks something of this thread waits
/// as long.
const PATIENCE: Duration = Duration::from_millis(100);

/// Why the service manager was not told, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message could not be sent.
    #[error("cannot tell the service manager {message:?}: {source}")]
    Send {
        /// The first line of the message.
        message: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// `$NOTIFY_SOCKET` is not the address of a Unix socket.
    #[error(
        "NOTIFY_SOCKET={0} is not an address of the service manager; start the daemon by it, or without the variable"
    )]
    Address(String),
}

/// The way to the service manager that started this process, if one did.
#[derive(Debug)]
pub struct Manager(Link);

#[derive(Debug)]
enum Link {
    /// Nobody waits for messages.
    None,
    /// systemd, and whoever speaks its protocol. A socket is made for each message: the daemon may
    /// live longer than the manager's.
    Address(SocketAddrUnix),
    /// The socket that [`crate::keeping::supervisor`] shares with its child alone.
    Pair(OwnedFd),
}

impl Manager {
    /// Whoever `$NOTIFY_SOCKET` names.
    ///
    /// # Errors
    ///
    /// [`Error::Address`].
    pub fn from_environment() -> Result<Self, Error> {
        match env::var_os("NOTIFY_SOCKET") {
            Some(address) => Self::named(&address),
            None => Ok(Self(Link::None)),
        }
    }

    fn named(address: &OsStr) -> Result<Self, Error> {
        let bytes = address.as_encoded_bytes();
        let parsed = match bytes {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
            [b'/', ..] => SocketAddrUnix::new(bytes),
            _ => Err(rustix::io::Errno::INVAL),
        };
        parsed
            .map(|address| Self(Link::Address(address)))
            .map_err(|_| Error::Address(address.to_string_lossy().into_owned()))
    }

    pub(crate) fn at(socket: OwnedFd) -> Self {
        Self(Link::Pair(socket))
    }

    /// Whether there is anybody to tell.
    #[must_use]
    pub fn is_present(&self) -> bool {
        !matches!(self.0, Link::None)
    }

    /// The nodes are there.
    ///
    /// # Errors
    ///
    /// [`Error::Send`], as all the following.
    pub fn ready(&self, status: &str) -> Result<(), Error> {
        self.notify(&[NotifyState::Ready, NotifyState::Status(&line(status))])
    }

    /// The configuration is being read again; [`Manager::ready`] ends it.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn reloading(&self) -> Result<(), Error> {
        // The time tells the manager which of several requests to reload is answered.
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec / 1000);
        self.notify(&[
            NotifyState::Reloading,
            NotifyState::MonotonicUsec(microseconds),
        ])
    }

    /// The daemon ends.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn stopping(&self) -> Result<(), Error> {
        self.notify(&[NotifyState::Stopping])
    }

    /// What `systemctl status` shows.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn status(&self, status: &str) -> Result<(), Error> {
        self.notify(&[NotifyState::Status(&line(status))])
    }

    /// How often [`Manager::watchdog`] is to be called: three times within the time after which the manager takes
    /// this process for one that hangs (`WatchdogSec=`). `None` where it does not watch.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        match self.0 {
            Link::Address(_) | Link::Pair(_) => {
                sd_notify::watchdog_enabled().map(|limit| limit / 3)
            }
            Link::None => None,
        }
    }

    /// This process does not hang. Never waits: a manager that has no room for this has heard enough.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn watchdog(&self) -> Result<(), Error> {
        let message = NotifyState::Watchdog.to_string();
        self.send_with(&message, None, SendFlags::DONTWAIT)
    }

    fn notify(&self, states: &[NotifyState<'_>]) -> Result<(), Error> {
        let lines: Vec<_> = states.iter().map(NotifyState::to_string).collect();
        self.send(&lines.join("\n"), None)
    }

    /// Sends one message, and a descriptor with it. Waits for room for a moment at most.
    pub(crate) fn send(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.send_with(message, fd, SendFlags::empty())
    }

    fn send_with(
        &self,
        message: &str,
        fd: Option<BorrowedFd<'_>>,
        flags: SendFlags,
    ) -> Result<(), Error> {
        let sent = match &self.0 {
            Link::None => Ok(()),
            Link::Address(address) => send_to(address, message, fd, flags),
            Link::Pair(socket) => send_over(socket.as_fd(), message, fd, flags),
        };
        sent.map_err(|errno| Error::Send {
            message: message.lines().next().unwrap_or_default().to_owned(),
            source: errno.into(),
        })
    }
}

/// A second line would be another message.
fn line(status: &str) -> String {
    status.replace('\n', " ")
}

fn send_to(
    address: &SocketAddrUnix,
    message: &str,
    fd: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> rustix::io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, address)?;
    send_over(socket.as_fd(), message, fd, flags)
}

fn send_over(
    socket: BorrowedFd<'_>,
    message: &str,
    fd: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> rustix::io::Result<()> {
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(message.as_bytes())],
            &mut control,
            flags | SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// The variables by which a service manager hands things to the process that it starts; a process
/// that starts another must take them off.
pub(crate) const MANAGER_VARIABLES: [&str; 8] = [
    "NOTIFY_SOCKET",
    "FDSTORE",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
];

/// The assignments of a message of the notification protocol.
pub(crate) fn assignments(message: &str) -> HashMap<&str, &str> {
    message
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    use super::*;

    fn manager_and_peer() -> (Manager, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        (Manager::at(ours.into()), theirs)
    }

    fn received(peer: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = peer.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_is_told_each_step() {
        let (manager, peer) = manager_and_peer();
        manager.ready("serving host\nand more").unwrap();
        assert_eq!(received(&peer), "READY=1\nSTATUS=serving host and more");
        manager.status("idle").unwrap();
        assert_eq!(received(&peer), "STATUS=idle");
        manager.stopping().unwrap();
        assert_eq!(received(&peer), "STOPPING=1");
        manager.watchdog().unwrap();
        assert_eq!(received(&peer), "WATCHDOG=1");

        let before = rustix::time::clock_gettime(ClockId::Monotonic).tv_sec;
        manager.reloading().unwrap();
        let message = received(&peer);
        let fields = assignments(&message);
        assert_eq!(fields["RELOADING"], "1");
        let microseconds: i64 = fields["MONOTONIC_USEC"].parse().unwrap();
        assert!((before..before + 60).contains(&(microseconds / 1_000_000)));
    }

    #[test]
    fn a_manager_is_reached_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::named(path.as_os_str()).unwrap();
        manager.status("a").unwrap();
        assert_eq!(received(&by_path), "STATUS=a");

        let name = format!("sysgenidd-test-{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let by_name = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
        rustix::net::bind(&by_name, &address).unwrap();
        let manager = Manager::named(OsStr::new(&format!("@{name}"))).unwrap();
        manager.status("b").unwrap();
        assert_eq!(received(&UnixDatagram::from(by_name)), "STATUS=b");

        for bad in ["", "relative", "vsock:2:1234"] {
            let refused = Manager::named(OsStr::new(bad));
            assert!(matches!(refused, Err(Error::Address(_))), "{bad:?}");
        }
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_nothing_fails() {
        let manager = Manager(Link::None);
        assert!(!manager.is_present());
        manager.ready("x").unwrap();
        manager.reloading().unwrap();
    }

    #[test]
    fn a_manager_that_has_gone_is_an_error_that_names_the_message() {
        let (manager, peer) = manager_and_peer();
        drop(peer);
        let error = manager.stopping().unwrap_err().to_string();
        assert!(error.contains("STOPPING=1"), "{error}");
    }

    #[test]
    fn a_manager_that_does_not_read_holds_up_nobody() {
        let (manager, _peer) = manager_and_peer();
        while manager.watchdog().is_ok() {}
        let begun = Instant::now();
        let error = manager.status("unheard").unwrap_err();
        let Error::Send { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
        assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
    }
}
