// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon's side, which never blocks and holds a bounded amount for a peer: one that is slow or silent costs a
//! descriptor and nothing else.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::Mode;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::Error;
use super::LONGEST_REQUEST;
use super::SOCKET;
use super::messages;
use super::messages::Request;
use super::messages::Response;

/// How far an operation that must not block has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// Call again once the descriptor is ready.
    Pending,
    /// It is complete.
    Done(T),
}

/// The daemon's socket. It goes on to the next process through the fd store.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Makes the socket in `directory`, in place of one that a predecessor has left: whoever calls this
    /// holds the daemon's lock.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn bind(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(SOCKET);
        remove(directory);
        Self::try_bind(&path)
            .map(Self)
            .map_err(|errno| Error::System {
                doing: "make",
                path,
                source: errno.into(),
            })
    }

    fn try_bind(path: &Path) -> rustix::io::Result<UnixListener> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Linux gives the mode of an unbound socket to the file, so there is no moment in which
        // anybody else could connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 16)?;
        Ok(UnixListener::from(socket))
    }

    /// Takes over the socket of the previous process.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next connection of somebody who may control the daemon.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`], of which `EMFILE` leaves the connection waiting.
    pub fn accept(&self) -> Result<Option<Connection>, Error> {
        loop {
            let stream = match self.0.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => return Err(error.into()),
                },
            };
            // The mode of the file has kept everybody else away, unless somebody has changed it.
            let peer = sockopt::socket_peercred(&stream).map_err(io::Error::from)?;
            if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
                tracing::warn!("user {} may not control the daemon", peer.uid.as_raw());
                continue;
            }
            stream.set_nonblocking(true)?;
            return Ok(Some(Connection {
                stream,
                incoming: Vec::new(),
                outgoing: Vec::new(),
                written: 0,
            }));
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Removes the socket of a daemon that ends.
pub fn remove(directory: &Path) {
    let path = directory.join(SOCKET);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

/// One client at the daemon's side.
///
/// Wait for input until [`Connection::read_request`] is done, then for output while
/// [`Connection::respond`] or [`Connection::flush`] is pending; then drop it. After an error, drop it
/// too.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Reads what has arrived. A request that this returns is wanted still: it is to be carried out at once.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::TooLong`], [`Error::Malformed`], [`Error::GivenUp`] and
    /// [`Error::Connection`]. The second and third are worth a [`Response::Refused`].
    pub fn read_request(&mut self) -> Result<Progress<Request>, Error> {
        let mut bytes = [0; 4096];
        loop {
            let length = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Error::Closed),
                Ok(length) => length,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Progress::Pending),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error.into()),
                },
            };
            self.incoming.extend_from_slice(&bytes[..length]);
            if let Some(end) = self.incoming.iter().position(|&byte| byte == b'\n') {
                let message = messages::parse(&self.incoming[..end])?;
                if message.is_late() || self.is_left() {
                    return Err(Error::GivenUp);
                }
                return Ok(Progress::Done(message.request));
            }
            if self.incoming.len() > LONGEST_REQUEST {
                return Err(Error::TooLong);
            }
        }
    }

    /// Whether the peer has closed its end, or only half of it, which it does not do as long as it waits.
    fn is_left(&self) -> bool {
        let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut poll = [PollFd::new(&self.stream, left)];
        let now = Timespec::default();
        let looked = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&now)));
        looked.is_err() || poll[0].revents().intersects(left)
    }

    /// Writes as much of the response as the peer takes now; the rest is for [`Connection::flush`].
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn respond(&mut self, response: &Response) -> Result<Progress<()>, Error> {
        self.outgoing = serde_json::to_vec(response).map_err(io::Error::from)?;
        self.outgoing.push(b'\n');
        self.written = 0;
        self.flush()
    }

    /// Writes more of the response.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`].
    pub fn flush(&mut self) -> Result<Progress<()>, Error> {
        while self.written < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Progress::Pending),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(Progress::Done(()))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
