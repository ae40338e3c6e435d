// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the command line speaks to the running daemon.
//!
//! A connection carries one request and one response, each a line of JSON. The daemon's side never
//! blocks and holds a bounded amount for a peer, so that one that is slow or silent costs a
//! descriptor and nothing else.

use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;
use serde::Deserialize;
use serde::Serialize;

use crate::config::Attributes;
use crate::config::InstanceName;

/// The socket's name in the daemon's directory; no instance begins with a dot.
const SOCKET: &str = ".control";

/// The longest request. A definition takes a few hundred bytes.
const LONGEST_REQUEST: usize = 64 * 1024;

/// The longest response that the command line takes, a list of some hundred thousand instances.
const LONGEST_RESPONSE: u64 = 64 * 1024 * 1024;

/// How long the command line waits for the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the command line asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Serve another instance, until it is removed or the daemon is stopped.
    Add {
        /// Its name.
        name: InstanceName,
        /// What a configuration file would say of it.
        attributes: Attributes,
    },
    /// Serve an instance no longer.
    Remove {
        /// Its name.
        name: InstanceName,
    },
    /// Tell of every instance.
    List,
    /// End cleanly.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// It is done, or for [`Request::Stop`], begun.
    Done,
    /// Every instance, by name.
    Instances(Vec<InstanceReport>),
    /// It is not done.
    Refused {
        /// What a person should read.
        reason: String,
    },
}

/// One instance, as `sysgenidd instance list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstanceReport {
    /// Its name.
    pub name: InstanceName,
    /// The instance that bumps it.
    pub parent: Option<InstanceName>,
    /// Its generation.
    pub generation: u32,
    /// How many watchers it has.
    pub watchers: u64,
    /// How many of them are tracked.
    pub tracked: u64,
    /// How many of those are outdated.
    pub outdated: u64,
    /// The inode of the user namespace in which the capability is judged, as `lsns` shows it.
    pub user_namespace: u64,
    /// The folder of its nodes.
    pub path: PathBuf,
    /// Who defined it.
    pub origin: Origin,
}

/// Who defined an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file, whose reload changes or removes it.
    Configuration,
    /// A request.
    Runtime,
}

/// Why the daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("sysgenidd is not running: nobody listens at {}; start it, or name its directory by --directory", .0.display())]
    NotRunning(PathBuf),
    /// The socket is another user's.
    #[error("not permitted to control sysgenidd at {}; run this as root", .0.display())]
    NotPermitted(PathBuf),
    /// The daemon has not answered in time.
    #[error(
        "sysgenidd has not answered at {} within {} s; see its log", .0.display(), PATIENCE.as_secs()
    )]
    NoAnswer(PathBuf),
    /// The daemon and the command line are of different versions, or the peer is no such program.
    #[error(
        "cannot understand {0}; are the daemon and the command line of the same version? restart the daemon"
    )]
    Malformed(String),
    /// The peer has closed the connection too early.
    #[error("the other side has closed the control connection before the end of its message")]
    Closed,
    /// The peer has sent more than a request can be.
    #[error("a control request is longer than {LONGEST_REQUEST} bytes")]
    TooLong,
    /// A system call failed.
    #[error("cannot {doing} the control socket {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call on a connection failed.
    #[error("the control connection failed: {0}")]
    Connection(#[from] io::Error),
}

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
    /// Reads what has arrived.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::TooLong`], [`Error::Malformed`] and [`Error::Connection`]. The
    /// second and third are worth a [`Response::Refused`].
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
                return parse_request(&self.incoming[..end]).map(Progress::Done);
            }
            if self.incoming.len() > LONGEST_REQUEST {
                return Err(Error::TooLong);
            }
        }
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

/// Understands a request, without its end of line.
///
/// # Errors
///
/// [`Error::Malformed`].
pub fn parse_request(line: &[u8]) -> Result<Request, Error> {
    serde_json::from_slice(line).map_err(|error| Error::Malformed(format!("the request: {error}")))
}

/// Asks the daemon of `directory`, and waits for its answer for ten seconds.
///
/// # Errors
///
/// [`Error::NotRunning`], [`Error::NotPermitted`], [`Error::NoAnswer`], [`Error::Closed`],
/// [`Error::Malformed`] and [`Error::System`].
pub fn call(directory: &Path, request: &Request) -> Result<Response, Error> {
    call_within(directory, request, PATIENCE)
}

fn call_within(directory: &Path, request: &Request, limit: Duration) -> Result<Response, Error> {
    let path = directory.join(SOCKET);
    let stream = connect(&path, limit).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED => Error::NotRunning(path.clone()),
        Errno::ACCESS | Errno::PERM => Error::NotPermitted(path.clone()),
        Errno::AGAIN => Error::NoAnswer(path.clone()),
        errno => Error::System {
            doing: "connect to",
            path: path.clone(),
            source: errno.into(),
        },
    })?;
    let exchange = || {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new((&stream).take(LONGEST_RESPONSE)).read_until(b'\n', &mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => Error::NoAnswer(path.clone()),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Closed,
        _ => Error::System {
            doing: "speak over",
            path: path.clone(),
            source,
        },
    })?;
    match answer.strip_suffix(b"\n") {
        Some(line) => serde_json::from_slice(line)
            .map_err(|error| Error::Malformed(format!("the response: {error}"))),
        None => Err(Error::Closed),
    }
}

fn connect(path: &Path, limit: Duration) -> rustix::io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // A stopped daemon's queue may be full, so connecting waits too.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;
    use rustix::event::PollFd;
    use rustix::event::PollFlags;

    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn report(name: &str) -> InstanceReport {
        InstanceReport {
            name: name.parse().unwrap(),
            parent: Some(InstanceName::host()),
            generation: 7,
            watchers: 3,
            tracked: 2,
            outdated: 1,
            user_namespace: 4_026_531_837,
            path: "/run/sysgenid/web".into(),
            origin: Origin::Runtime,
        }
    }

    fn wait(fd: impl AsFd, flags: PollFlags) {
        rustix::event::poll(&mut [PollFd::new(&fd, flags)], None).unwrap();
    }

    /// Accepts a connection and reads its request, as the daemon's loop would.
    fn next_request(listener: &Listener) -> (Connection, Result<Request, Error>) {
        wait(listener, PollFlags::IN);
        let mut connection = listener.accept().unwrap().unwrap();
        loop {
            wait(&connection, PollFlags::IN);
            match connection.read_request() {
                Ok(Progress::Done(request)) => return (connection, Ok(request)),
                Ok(Progress::Pending) => {}
                Err(error) => return (connection, Err(error)),
            }
        }
    }

    #[test]
    fn a_request_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let request = Request::Add {
            name: name("web"),
            attributes: Attributes::default(),
        };
        std::thread::scope(|scope| {
            let client = scope.spawn(|| call(folder.path(), &request));
            let (mut connection, asked) = next_request(&listener);
            assert_eq!(asked.unwrap(), request);
            let response = Response::Instances(vec![report("web")]);
            assert_eq!(connection.respond(&response).unwrap(), Progress::Done(()));
            assert_eq!(client.join().unwrap().unwrap(), response);
        });
    }

    #[test]
    fn a_long_list_arrives_whole_though_the_daemon_never_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let list = (0..20_000).map(|n| report(&format!("i{n}"))).collect();
        let response = Response::Instances(list);
        let mut silent = UnixStream::connect(folder.path().join(SOCKET)).unwrap();
        silent.write_all(b"\"list\"\n").unwrap();
        let (mut connection, asked) = next_request(&listener);
        assert_eq!(asked.unwrap(), Request::List);
        // The peer does not read yet.
        assert_eq!(connection.respond(&response).unwrap(), Progress::Pending);
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(silent).read_line(&mut line).unwrap();
            line
        });
        while connection.flush().unwrap() == Progress::Pending {
            wait(&connection, PollFlags::OUT);
        }
        let line = reader.join().unwrap();
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response);
    }

    #[test]
    fn a_request_in_pieces_is_waited_for_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let mut client = UnixStream::connect(folder.path().join(SOCKET)).unwrap();
        let mut connection = listener.accept().unwrap().unwrap();
        assert_eq!(connection.read_request().unwrap(), Progress::Pending);
        client.write_all(b"\"st").unwrap();
        assert_eq!(connection.read_request().unwrap(), Progress::Pending);
        client.write_all(b"op\"\n").unwrap();
        assert_eq!(
            connection.read_request().unwrap(),
            Progress::Done(Request::Stop)
        );
    }

    #[test]
    fn what_is_no_request_is_refused_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let send = |bytes: &[u8]| {
            let mut client = UnixStream::connect(folder.path().join(SOCKET)).unwrap();
            client.write_all(bytes).unwrap();
            drop(client);
            next_request(&listener).1.unwrap_err()
        };
        assert!(matches!(send(b"nonsense\n"), Error::Malformed(_)));
        assert!(matches!(send(b"\"list\""), Error::Closed));
        assert!(matches!(send(b""), Error::Closed));
        assert!(matches!(
            send(&vec![b' '; LONGEST_REQUEST + 1]),
            Error::TooLong
        ));
    }

    #[test]
    fn a_daemon_that_is_absent_gone_or_silent_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(20);
        let call = || call_within(folder.path(), &Request::List, short).unwrap_err();
        assert!(matches!(call(), Error::NotRunning(_)));
        let listener = Listener::bind(folder.path()).unwrap();
        assert!(matches!(call(), Error::NoAnswer(_)));
        // Its queue fills up with clients that have gone.
        let crowd: Vec<_> = (0..20)
            .map_while(|_| connect(&folder.path().join(SOCKET), short).ok())
            .collect();
        assert!(crowd.len() < 20);
        assert!(matches!(call(), Error::NoAnswer(_)));
        drop(listener);
        assert!(matches!(call(), Error::NotRunning(_)));
        remove(folder.path());
        assert!(!folder.path().join(SOCKET).exists());
    }

    #[test]
    fn a_daemon_that_hangs_up_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| call(folder.path(), &Request::List));
            drop(next_request(&listener));
            assert!(matches!(client.join().unwrap(), Err(Error::Closed)));
        });
    }

    #[test]
    fn only_the_owner_may_connect() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = Listener::bind(folder.path()).unwrap();
        let socket = std::fs::metadata(folder.path().join(SOCKET)).unwrap();
        assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_listener_that_was_kept_goes_on_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let first = Listener::bind(folder.path()).unwrap();
        let kept = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let next = Listener::from_fd(kept).unwrap();
        let _client = connect(&folder.path().join(SOCKET), PATIENCE).unwrap();
        assert!(next.accept().unwrap().is_some());
        drop(next);
        assert!(Listener::bind(folder.path()).is_ok());
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_an_error(line in any::<Vec<u8>>()) {
            let _ = parse_request(&line);
        }

        #[test]
        fn requests_survive_their_line(which in 0..5, web in "[a-z0-9]{1,64}") {
            let name = name(&web);
            let request = match which {
                0 => Request::Add { name, attributes: Attributes::default() },
                1 => Request::Remove { name },
                2 => Request::List,
                3 => Request::Stop,
                _ => Request::Reload,
            };
            let line = serde_json::to_vec(&request).unwrap();
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(parse_request(&line).unwrap(), request);
        }
    }
}
