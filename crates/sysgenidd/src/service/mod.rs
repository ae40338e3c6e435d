// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a service manager is told and asked, and how the log is written for it.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::io::IoSlice;
use std::io::IsTerminal as _;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::process::Command;
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
use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime as _;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::registry::LookupSpan;

/// How long a message waits for room in the manager's queue: a manager that hangs must not stop the
/// daemon for longer than a caller of it would put up with.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// `systemctl` did not run or did not succeed.
    #[error("cannot ask systemd for its jobs: {0}; is systemctl installed?")]
    Systemctl(String),
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
    /// The socket that [`crate::keeping::supervise`] shares with its child alone.
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
        self.send(&format!("READY=1\n{}", status_line(status)), None)
    }

    /// The configuration is being read again; [`Manager::ready`] ends it.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn reloading(&self) -> Result<(), Error> {
        // The time tells the manager which of several requests to reload is answered.
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"), None)
    }

    /// The daemon ends.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn stopping(&self) -> Result<(), Error> {
        self.send("STOPPING=1", None)
    }

    /// What `systemctl status` shows.
    ///
    /// # Errors
    ///
    /// [`Error::Send`].
    pub fn status(&self, status: &str) -> Result<(), Error> {
        self.send(&status_line(status), None)
    }

    /// Sends one message, and a descriptor with it.
    pub(crate) fn send(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let sent = match &self.0 {
            Link::None => Ok(()),
            Link::Address(address) => send_to(address, message, fd),
            Link::Pair(socket) => send_over(socket.as_fd(), message, fd),
        };
        sent.map_err(|errno| Error::Send {
            message: message.lines().next().unwrap_or_default().to_owned(),
            source: errno.into(),
        })
    }
}

fn status_line(status: &str) -> String {
    // A second line would be another message.
    format!("STATUS={}", status.replace('\n', " "))
}

fn send_to(
    address: &SocketAddrUnix,
    message: &str,
    fd: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, address)?;
    send_over(socket.as_fd(), message, fd)
}

fn send_over(
    socket: BorrowedFd<'_>,
    message: &str,
    fd: Option<BorrowedFd<'_>>,
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
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Whether systemd stops `unit` only to start it again.
///
/// For `ExecStop=`, which runs in both cases and is not told which one it is.
///
/// # Errors
///
/// [`Error::Systemctl`].
pub fn restart_is_queued(unit: &str) -> Result<bool, Error> {
    let output = Command::new("systemctl")
        .args([
            "list-jobs",
            "--plain",
            "--no-legend",
            "--full",
            "--no-pager",
        ])
        .output()
        .map_err(|error| Error::Systemctl(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Systemctl(said.trim().to_owned()));
    }
    Ok(has_restart_job(
        &String::from_utf8_lossy(&output.stdout),
        unit,
    ))
}

/// Each line is the number of a job, its unit, what it does and how far it is.
fn has_restart_job(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(unit) && matches!(fields.next(), Some("restart" | "try-restart"))
    })
}

/// Sends what happens at `level` and above to standard error.
///
/// Under a service manager each line begins with its syslog level, which the journal takes off
/// again (`SyslogLevelPrefix=`), and has no time, which the journal knows. Otherwise, and in the
/// foreground, the lines are for a person.
pub fn init_tracing(foreground: bool, level: Level) {
    let format = if !foreground && stderr_is_journal() {
        LineFormat::Journal
    } else {
        LineFormat::Person {
            colors: io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none(),
        }
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(false)
        .event_format(format)
        .finish();
    // An earlier subscriber, as a test may have, is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[derive(Clone, Copy, Debug)]
enum LineFormat {
    Journal,
    Person { colors: bool },
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = event.metadata().level();
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        match self {
            Self::Journal => writer.write_str(&journal_lines(level, &text)),
            Self::Person { colors } => {
                SystemTime.format_time(&mut writer)?;
                if *colors {
                    let color = match *level {
                        Level::ERROR => 31,
                        Level::WARN => 33,
                        _ => 2,
                    };
                    writeln!(writer, " \x1b[{color}m{level:>5}\x1b[0m {text}")
                } else {
                    writeln!(writer, " {level:>5} {text}")
                }
            }
        }
    }
}

/// A line without a level of its own would be taken for an informational one.
fn journal_lines(level: &Level, text: &str) -> String {
    let priority = match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let mut lines = String::new();
    for line in text.lines() {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "<{priority}>{line}");
    }
    lines
}

fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| {
        dev.parse::<u64>() == Ok(device) && ino.parse::<u64>() == Ok(inode)
    })
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
    fn a_restart_is_told_from_a_stop_by_the_job_of_the_unit() {
        let jobs = " 97 sysgenidd.service restart running\n 98 other.service stop waiting\n";
        assert!(has_restart_job(jobs, "sysgenidd.service"));
        assert!(!has_restart_job(jobs, "other.service"));
        assert!(!has_restart_job(jobs, "genidd.service"));
        assert!(has_restart_job(
            "1 a.service try-restart waiting",
            "a.service"
        ));
        assert!(!has_restart_job("1 a.service stop running", "a.service"));
        assert!(!has_restart_job("1 restart restart-me stop", "a.service"));
        assert!(!has_restart_job("", "a.service"));
        assert!(!has_restart_job("No jobs running.\n", "a.service"));
    }

    #[test]
    fn each_line_for_the_journal_has_the_level_of_its_event() {
        assert_eq!(journal_lines(&Level::ERROR, "a\nb"), "<3>a\n<3>b\n");
        assert_eq!(journal_lines(&Level::WARN, "a"), "<4>a\n");
        assert_eq!(journal_lines(&Level::INFO, "a"), "<6>a\n");
        assert_eq!(journal_lines(&Level::TRACE, "a"), "<7>a\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_stream("8:44", 8, 44));
        assert!(!is_stream("8:44", 8, 45));
        assert!(!is_stream("9:44", 8, 44));
        assert!(!is_stream("44", 8, 44));
        assert!(!is_stream("", 0, 0));
    }
}
