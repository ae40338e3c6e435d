// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the command line speaks to the running daemon.
//!
//! A connection carries one request and one response, each a line of JSON. A request is carried out only while
//! whoever has asked waits for it: who was told that something failed does not find it done later.

pub mod client;
pub mod messages;
pub mod server;
mod token;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use self::client::call;
pub use self::messages::Added;
pub use self::messages::InstanceReport;
pub use self::messages::Message;
pub use self::messages::Origin;
pub use self::messages::Request;
pub use self::messages::Response;
pub use self::server::Connection;
pub use self::server::Listener;
pub use self::server::Progress;
pub use self::server::remove;
pub use self::token::Token;
pub use self::token::check_removal;

/// The socket's name in the daemon's directory; no instance begins with a dot.
const SOCKET: &str = ".control";

/// The longest request. A definition takes a few hundred bytes.
const LONGEST_REQUEST: usize = 64 * 1024;

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
        "sysgenidd has not answered at {} within {:?}, and will not do it later; see its log", .0.display(), .1
    )]
    NoAnswer(PathBuf, Duration),
    /// Whoever has asked does not wait any more, so that it must not be done.
    #[error("a control request came too late and is not carried out: whoever asked has given up")]
    GivenUp,
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

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::io::BufReader;
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    use rustix::event::PollFd;
    use rustix::event::PollFlags;

    use crate::clock;
    use crate::config::Attributes;
    use crate::config::InstanceName;

    use super::client::call_within;
    use super::client::connect;
    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn line(request: Request, until: u64) -> Vec<u8> {
        let mut line = serde_json::to_vec(&Message { request, until }).unwrap();
        line.push(b'\n');
        line
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
            pid: None,
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
            generation: Some(7),
            pid: None,
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
        silent.write_all(&line(Request::List, u64::MAX)).unwrap();
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
        let line = line(Request::Stop, u64::MAX);
        let (begin, end) = line.split_at(line.len() / 2);
        client.write_all(begin).unwrap();
        assert_eq!(connection.read_request().unwrap(), Progress::Pending);
        client.write_all(end).unwrap();
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
        assert!(matches!(call(), Error::NoAnswer(..)));
        // Its queue fills up with clients that have gone.
        let crowd: Vec<_> = (0..20)
            .map_while(|_| connect(&folder.path().join(SOCKET), short).ok())
            .collect();
        assert!(crowd.len() < 20);
        assert!(matches!(call(), Error::NoAnswer(..)));
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
        let _client = connect(&folder.path().join(SOCKET), Duration::from_secs(10)).unwrap();
        assert!(next.accept().unwrap().is_some());
        drop(next);
        assert!(Listener::bind(folder.path()).is_ok());
    }

    #[test]
    fn a_request_whose_client_has_given_up_is_not_carried_out() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        // A daemon that is stopped meanwhile accepts nothing.
        let error = call_within(folder.path(), &Request::Stop, Duration::from_millis(20));
        assert!(matches!(error, Err(Error::NoAnswer(..))), "{error:?}");
        assert!(matches!(next_request(&listener).1, Err(Error::GivenUp)));
    }

    #[test]
    fn who_has_gone_waits_no_more_however_long_he_would_have() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let mut client = UnixStream::connect(folder.path().join(SOCKET)).unwrap();
        // More than the request, so that the end of the stream is hidden.
        let mut bytes = line(Request::Stop, u64::MAX);
        bytes.extend_from_slice(b"more");
        client.write_all(&bytes).unwrap();
        drop(client);
        assert!(matches!(next_request(&listener).1, Err(Error::GivenUp)));
    }

    #[test]
    fn a_request_that_comes_too_late_is_not_carried_out_though_its_client_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path()).unwrap();
        let mut client = UnixStream::connect(folder.path().join(SOCKET)).unwrap();
        client
            .write_all(&line(Request::Stop, clock::now()))
            .unwrap();
        assert!(matches!(next_request(&listener).1, Err(Error::GivenUp)));
    }
}
