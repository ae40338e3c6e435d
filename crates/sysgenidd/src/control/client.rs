// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line's side, which waits.

use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use crate::clock;

use super::Error;
use super::SOCKET;
use super::messages::Message;
use super::messages::Request;
use super::messages::Response;

/// The longest response that the command line takes, a list of some hundred thousand instances.
const LONGEST_RESPONSE: u64 = 64 * 1024 * 1024;

/// How long the command line waits for the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon of `directory`, and waits for its answer for ten seconds. What it has not begun by then it does
/// not do.
///
/// # Errors
///
/// [`Error::NotRunning`], [`Error::NotPermitted`], [`Error::NoAnswer`], [`Error::Closed`],
/// [`Error::Malformed`] and [`Error::System`].
pub fn call(directory: &Path, request: &Request) -> Result<Response, Error> {
    call_within(directory, request, PATIENCE)
}

/// The same for another time.
///
/// # Errors
///
/// As [`call`].
pub fn call_within(
    directory: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Response, Error> {
    let path = directory.join(SOCKET);
    let message = Message {
        request: request.clone(),
        until: clock::now().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
    };
    // What it begins at the last moment is to be heard of.
    let stream = connect(&path, limit + limit / 10).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED => Error::NotRunning(path.clone()),
        Errno::ACCESS | Errno::PERM => Error::NotPermitted(path.clone()),
        Errno::AGAIN => Error::NoAnswer(path.clone(), limit),
        errno => Error::System {
            doing: "connect to",
            path: path.clone(),
            source: errno.into(),
        },
    })?;
    let exchange = || {
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new((&stream).take(LONGEST_RESPONSE)).read_until(b'\n', &mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => Error::NoAnswer(path.clone(), limit),
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

pub(super) fn connect(path: &Path, limit: Duration) -> rustix::io::Result<UnixStream> {
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
