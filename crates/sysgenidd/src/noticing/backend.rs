// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a backend is: something that notices. It neither knows watchers nor changes anything.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::authority::{Doubt, Presence};
use super::evidence::Counters;

/// Which backend. The order is that of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The hypervisor's page, see [`vmclock`](super::vmclock).
    Vmclock,
    /// The kernel's own notice, counted, see [`kprobe`](super::kprobe).
    Kprobe,
    /// The kernel's own notice in its log, see [`kmsg`](super::kmsg).
    Kmsg,
    /// Another node, see [`parent`](super::parent).
    Parent,
}

impl Kind {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 4] = [Self::Vmclock, Self::Kprobe, Self::Kmsg, Self::Parent];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vmclock => "vmclock",
            Self::Kprobe => "kprobe",
            Self::Kmsg => "kmsg",
            Self::Parent => "parent",
        })
    }
}

/// Something that notices changes.
pub trait Backend: fmt::Debug + Send {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// A descriptor that becomes readable when there may be something to say. `None`: it has to be asked
    /// at each opportunity.
    ///
    /// It is to be watched *edge-triggered* (`EPOLLET`): a parent node stays readable for ever after its
    /// first change, because this watcher never acknowledges. Whatever comes, an error or a hang-up too,
    /// is a reason to [`look`](Self::look), which says what to do.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Looks now, and takes in all that there is, so that no edge is left over.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: nothing was lost, look again soon. [`Error::Gone`] and all others: drop it, and
    /// [`open`] it again when it is back.
    fn look(&mut self) -> Result<Seen, Error>;

    /// What it has reported so far, as a number that outlives the process: the counter of the vmclock page,
    /// the count of the kernel's probe, the sequence number of the last record of the kernel's log, the
    /// generation of the parent. `None` while it does not know yet.
    fn position(&self) -> Option<u64>;

    /// Takes what it would report now as dealt with. Only a backend that repeats a report until then has
    /// anything to do.
    ///
    /// # Errors
    ///
    /// Those of [`look`](Self::look); then it goes on reporting.
    fn deal(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether it would notice a restore.
    fn presence(&self) -> Presence {
        Presence::Notices
    }

    /// For people: what it watches, and how long a restore may go unnoticed.
    fn description(&self) -> String;

    /// Leaves nothing behind in the kernel. Without this, a successor finds what it left.
    fn remove(self: Box<Self>) {}
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many restores were reported since the last look.
    pub reports: u64,
    /// What may have hidden one.
    pub doubt: Option<Doubt>,
    /// That there will be nothing more, and why.
    pub ended: Option<Error>,
}

/// The position of what was there and went away: whatever it says when it is back, it is another.
pub const GONE: u64 = u64::MAX;

/// The position that is stored of what went away, when the change for that is still to be made. No backend comes
/// to it, so it is a doubt for a successor, whether the backend is back by then or not.
pub const LOST: u64 = GONE - 1;

/// Where the backends find what they watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The daemon's folder: what it leaves in the kernel is named after that, so that two daemons do not take
    /// it from each other.
    pub directory: PathBuf,
    /// Where the kernel's drivers for the VM Generation ID have their devices.
    pub drivers: Vec<PathBuf>,
    /// The tracing file system. `None`: where it usually is, or else a mount of the daemon's own.
    pub tracefs: Option<PathBuf>,
    /// The counts of ACPI's interrupts, and of all: what shows that no notice was lost with a piece of the log.
    pub evidence: Counters,
    /// The vmclock device. `None`: the first of `/dev/vmclock0` and so on that counts restores.
    pub vmclock: Option<PathBuf>,
    /// The kernel's log.
    pub kmsg: PathBuf,
    /// The parent node. `None`: `/dev/sysgenid`, where the module or another daemon put it.
    pub parent: Option<PathBuf>,
    /// The device numbers (major, minor) of the daemon's own mounts. Nothing there is opened or even
    /// looked up: the daemon would wait for itself.
    pub own_devices: Vec<(u32, u32)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/run/sysgenid"),
            drivers: DRIVERS.map(PathBuf::from).to_vec(),
            tracefs: None,
            evidence: Counters::default(),
            vmclock: None,
            kmsg: PathBuf::from("/dev/kmsg"),
            parent: None,
            own_devices: Vec::new(),
        }
    }
}

/// Why a backend cannot be opened, or cannot look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it watches does not exist. It may appear; try again later.
    #[error("{} does not exist on this machine", path.display())]
    NotPresent {
        /// What was looked for.
        path: PathBuf,
    },

    /// The daemon may not open it. An operator has to change that.
    #[error("{} may not be opened: run sysgenidd as root, with the capabilities and the device access that its service unit lists", path.display())]
    NoPermission {
        /// What was to be opened.
        path: PathBuf,
    },

    /// The kernel notices nothing that it could tell of. A device or its driver has to appear.
    #[error("the kernel has found no VM Generation ID device, so it will notice no restore")]
    NoGenerationId,

    /// The kernel does not let itself be probed. An operator may change that.
    #[error("the kernel cannot be probed: {reason} ({source})")]
    NoProbe {
        /// Why.
        reason: &'static str,
        /// What the kernel said.
        source: Errno,
    },

    /// It is served by this very daemon, which would wait for itself. Another path has to be configured.
    #[error("{} is this daemon's own node and cannot be its parent: name another one, or none", path.display())]
    OwnNode {
        /// What was to be opened.
        path: PathBuf,
    },

    /// It is not what the backend needs. Another path has to be configured.
    #[error("{} is not {needed}: name another file", path.display())]
    Unsuitable {
        /// What was opened.
        path: PathBuf,
        /// What the backend needs.
        needed: &'static str,
    },

    /// The page does not hold what this program knows how to read. Nothing on this machine can be done.
    #[error("{} cannot be used: {reason}", path.display())]
    Malformed {
        /// The device.
        path: PathBuf,
        /// What is wrong with its page.
        reason: sysgenid_vmclock::Malformed,
    },

    /// The page was being changed at every attempt. Nothing is lost; look again soon.
    #[error("{} is being updated by the hypervisor and could not be read yet", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },

    /// It was there and is not any more: a module was unloaded, a daemon stopped. Open it again later.
    #[error("{} went away", path.display())]
    Gone {
        /// What was open.
        path: PathBuf,
    },

    /// Something else failed.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

impl Error {
    /// Why `path` could not be opened.
    pub(crate) fn opening(path: &Path, source: Errno) -> Self {
        let path = path.to_owned();
        match source {
            Errno::NOENT | Errno::NOTDIR | Errno::NXIO | Errno::NODEV => Self::NotPresent { path },
            Errno::ACCESS | Errno::PERM => Self::NoPermission { path },
            _ => Self::Io {
                path,
                action: "opened",
                source,
            },
        }
    }

    /// Why `path`, which is open, could not be read. The errors of a server that died count as the
    /// device's going away.
    pub(crate) fn reading(path: &Path, source: Errno) -> Self {
        let path = path.to_owned();
        match source {
            Errno::NODEV | Errno::NXIO | Errno::NOTCONN | Errno::CONNABORTED => Self::Gone { path },
            _ => Self::Io {
                path,
                action: "read",
                source,
            },
        }
    }
}

/// Opens a backend.
///
/// `resume_at` is the [`position`](Backend::position) that a predecessor reached: then the first look
/// reports what happened in between, or a doubt. [`GONE`] is a doubt whatever it says. `None`: only what
/// happens from now on counts.
///
/// # Errors
///
/// Any [`Error`] but [`Error::Gone`]; each says whether it is worth trying again.
pub fn open(
    kind: Kind,
    settings: &Settings,
    resume_at: Option<u64>,
) -> Result<Box<dyn Backend>, Error> {
    Ok(match kind {
        Kind::Vmclock => Box::new(super::vmclock::Vmclock::open(settings, resume_at)?),
        Kind::Kprobe => Box::new(super::kprobe::Kprobe::open(settings, resume_at)?),
        Kind::Kmsg => Box::new(super::kmsg::Kmsg::open(settings, resume_at)?),
        Kind::Parent => Box::new(super::parent::Parent::open(settings, resume_at)?),
    })
}

/// Where the drivers of the VM Generation ID are, by kernel: it moved from one bus to the other with Linux
/// 6.10.
const DRIVERS: [&str; 2] = [
    "/sys/bus/platform/drivers/vmgenid",
    "/sys/bus/acpi/drivers/vmgenid",
];

/// Whether one of `drivers` has a device: its folder then holds a link to it, beside a few files. Only then
/// will the kernel notice a restore by itself.
pub(crate) fn kernel_notices(drivers: &[PathBuf]) -> bool {
    drivers.iter().any(|driver| {
        fs::read_dir(driver).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                entry.file_type().is_ok_and(|kind| kind.is_symlink())
                    && entry.file_name() != "module"
            })
        })
    })
}

/// How a backend stands that tells of the kernel's own notice.
pub(crate) fn presence_of_the_kernel(drivers: &[PathBuf]) -> Presence {
    if kernel_notices(drivers) {
        Presence::Notices
    } else {
        Presence::Follows
    }
}

/// Whether `poll` on a file tells when there is something to read.
///
/// A file whose driver cannot poll is always ready for everything, so also for writing, which no device
/// here ever is. A hang-up says that nothing will ever be told.
pub(crate) fn tells_when_readable(file: impl AsFd) -> Result<bool, Errno> {
    let mut asked = [PollFd::from_borrowed_fd(
        file.as_fd(),
        PollFlags::IN | PollFlags::OUT,
    )];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut asked, Some(&Timespec::default())))?;
    let never = PollFlags::OUT | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    Ok(!asked[0].revents().intersects(never))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_kind_is_written_the_same_everywhere() {
        for kind in Kind::ALL {
            let text = serde_json::to_string(&kind).unwrap();
            assert_eq!(text, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<Kind>(&text).unwrap(), kind);
        }
        assert!(Kind::ALL.is_sorted());
    }

    #[test]
    fn only_a_file_that_can_wait_tells_when_it_is_readable() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(tells_when_readable(&reader).unwrap());
        rustix::io::write(&writer, b"x").unwrap();
        assert!(tells_when_readable(&reader).unwrap());
        drop(writer);
        assert!(!tells_when_readable(&reader).unwrap());
        assert!(!tells_when_readable(tempfile::tempfile().unwrap()).unwrap());
        assert!(!tells_when_readable(File::open("/dev/null").unwrap()).unwrap());
    }

    #[test]
    fn what_is_missing_is_said_to_be_missing() {
        let settings = Settings {
            vmclock: Some("/nonexistent/vmclock".into()),
            kmsg: "/nonexistent/kmsg".into(),
            parent: Some("/dev/null/sysgenid".into()),
            drivers: vec!["/nonexistent/driver".into()],
            ..Settings::default()
        };
        for kind in Kind::ALL {
            let error = open(kind, &settings, None).unwrap_err();
            assert!(
                matches!(error, Error::NotPresent { .. } | Error::NoGenerationId),
                "{kind}: {error}"
            );
        }
    }

    #[test]
    fn the_kernel_notices_where_its_driver_has_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = [folder.path().to_owned(), "/nonexistent".into()];
        fs::write(folder.path().join("bind"), "").unwrap();
        std::os::unix::fs::symlink("/nonexistent", folder.path().join("module")).unwrap();
        assert!(!kernel_notices(&drivers));
        std::os::unix::fs::symlink("/nonexistent", folder.path().join("QEMUVGID:00")).unwrap();
        assert!(kernel_notices(&drivers));
    }
}
