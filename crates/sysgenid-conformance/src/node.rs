// SPDX-License-Identifier: MIT OR Apache-2.0

//! The node under examination, its watchers, and the one who changes its generation.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::abi::{self, Kind};
use crate::call::look_again_soon;
use crate::outcome::{Outcome, fail, name_of, skip};
use crate::sys::{self, Mapping};

/// How long watchers of an earlier case may take to go away.
const QUIET_WITHIN: Duration = Duration::from_secs(5);

/// The node under examination.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Which of the two it is.
    pub(crate) kind: Kind,
    /// Whether it has just been created, so that its generation must still be 0.
    pub(crate) fresh: bool,
    /// Whether its module sends uevents, if it is served by one.
    pub(crate) sends_uevents: bool,
}

impl Node {
    /// Whether it is a character device, as a kernel module serves it.
    pub(crate) fn is_char_device(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.file_type().is_char_device())
    }

    /// The other node of the same generation, beside this one.
    pub(crate) fn sibling(&self) -> Outcome<Self> {
        let kind = self.kind.sibling();
        let sibling = Self {
            path: self.path.with_file_name(kind.name()),
            kind,
            fresh: false,
            sends_uevents: self.sends_uevents,
        };
        if self.path.file_name() != Some(self.kind.name().as_ref()) {
            return skip("the node has a name of its own, so its sibling cannot be found");
        }
        if !sibling.path.exists() {
            return skip(format!("there is no {}", sibling.path.display()));
        }
        Ok(sibling)
    }

    /// Opens a watcher. It does not survive `exec`.
    pub(crate) fn open(&self, flags: OFlags) -> Result<Watcher, Errno> {
        let fd = rustix::fs::open(&self.path, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Watcher { fd })
    }

    /// Opens a watcher for reading and writing that is tracked, whichever node this is.
    pub(crate) fn tracked(&self) -> Result<Watcher, Errno> {
        let watcher = self.open(OFlags::RDWR)?;
        watcher.track(true)?;
        Ok(watcher)
    }

    /// Opens a watcher for reading and writing that is not tracked, whichever node this is.
    pub(crate) fn untracked(&self) -> Result<Watcher, Errno> {
        let watcher = self.open(OFlags::RDWR)?;
        watcher.track(false)?;
        Ok(watcher)
    }

    /// Maps the page through a watcher that is closed at once, as libraries do.
    pub(crate) fn map(&self) -> Result<Mapping, Errno> {
        self.open(OFlags::RDONLY)?.map()
    }

    /// The one who changes the generation in a case. There must be no tracked, outdated watcher but
    /// those that the case makes.
    ///
    /// # Errors
    ///
    /// A failure that says so if there is one.
    pub(crate) fn control(&self) -> Outcome<Control> {
        let control = self.anyway()?;
        match control.others()? {
            0 => Ok(control),
            others => fail(self.not_quiet(others)),
        }
    }

    /// As [`control`](Self::control), but does not look for others.
    fn anyway(&self) -> Result<Control, Errno> {
        let watcher = self.open(OFlags::RDWR | OFlags::NONBLOCK)?;
        watcher.track(false)?;
        let control = Control { watcher };
        control.bump()?;
        Ok(control)
    }

    fn not_quiet(&self, others: i32) -> String {
        format!(
            "{} is not quiet: it has {others} tracked watchers that are not this suite's. Stop the \
             programs that hold it (`fuser -v {}` names them)",
            self.path.display(),
            self.path.display()
        )
    }
}

/// One open file description of a node.
#[derive(Debug)]
pub(crate) struct Watcher {
    fd: OwnedFd,
}

impl Watcher {
    /// Reads into `buffer`.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.fd, buffer)
    }

    /// Reads the generation. It blocks while the watcher is current, unless it was opened with
    /// `O_NONBLOCK`.
    pub(crate) fn generation(&self) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        match self.read(&mut bytes)? {
            4 => Ok(u32::from_ne_bytes(bytes)),
            _ => Err(Errno::IO),
        }
    }

    /// Writes `bytes`.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::write(&self.fd, bytes)
    }

    /// Writes a generation.
    pub(crate) fn acknowledge(&self, generation: u32) -> Result<(), Errno> {
        match self.write(&generation.to_ne_bytes())? {
            4 => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// What `poll` says at once, of the events that mean that there is something to read or that a
    /// write does not block, or that something is wrong.
    pub(crate) fn events(&self) -> Result<PollFlags, Errno> {
        let asked =
            PollFlags::IN | PollFlags::RDNORM | PollFlags::OUT | PollFlags::WRNORM | PollFlags::PRI;
        let mut polled = [PollFd::new(&self.fd, asked)];
        poll(&mut polled, Some(&Timespec::default()))?;
        Ok(polled[0].revents())
    }

    /// Whether `poll` says that there is something to read.
    pub(crate) fn is_readable(&self) -> Result<bool, Errno> {
        Ok(self.events()?.contains(PollFlags::IN))
    }

    /// Makes an ioctl.
    pub(crate) fn ioctl(&self, request: u32, argument: u64) -> Result<i32, Errno> {
        sys::ioctl(&self.fd, request, argument)
    }

    /// Starts or stops counting it.
    pub(crate) fn track(&self, on: bool) -> Result<(), Errno> {
        self.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, u64::from(on))
            .map(drop)
    }

    /// The number of tracked, outdated watchers.
    pub(crate) fn outdated(&self) -> Result<i32, Errno> {
        self.ioctl(abi::VMGENID_GET_OUTDATED_WATCHERS, 0)
    }

    /// Maps the page as libraries do: 4 bytes.
    pub(crate) fn map(&self) -> Result<Mapping, Errno> {
        self.map_with(4, ProtFlags::READ, MapFlags::SHARED, 0)
    }

    /// Maps it in any way.
    pub(crate) fn map_with(
        &self,
        length: usize,
        protection: ProtFlags,
        flags: MapFlags,
        offset: u64,
    ) -> Result<Mapping, Errno> {
        Mapping::new(&self.fd, length, protection, flags, offset)
    }

    /// A second descriptor of the same description, so the same watcher.
    pub(crate) fn duplicate(&self) -> Result<Self, Errno> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        Ok(Self { fd })
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The one who changes the generation in a case: not tracked, outdated for good, so that a read
/// always tells it the current generation.
#[derive(Debug)]
pub(crate) struct Control {
    watcher: Watcher,
}

impl Control {
    /// The current generation.
    pub(crate) fn generation(&self) -> Result<u32, Errno> {
        self.watcher.generation()
    }

    /// Bumps the generation by one and returns the new one.
    pub(crate) fn bump(&self) -> Result<u32, Errno> {
        self.watcher.ioctl(abi::VMGENID_FORCE_GEN_UPDATE, 0)?;
        self.generation()
    }

    /// Bumps the generation to at least `minimum` and returns the new one.
    pub(crate) fn raise(&self, minimum: u32) -> Result<u32, Errno> {
        self.watcher
            .ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, u64::from(minimum))?;
        self.generation()
    }

    /// Returns the current generation after it has seen to it that it can be bumped `room` times
    /// without going past `u32::MAX`.
    pub(crate) fn leave_room(&self, room: u32) -> Outcome<u32> {
        let generation = self.generation()?;
        if u32::MAX - generation >= room {
            return Ok(generation);
        }
        if generation != u32::MAX {
            self.raise(u32::MAX)?;
        }
        match self.bump()? {
            1 => Ok(1),
            other => fail(format!("the generation after u32::MAX is {other}, not 1")),
        }
    }

    /// The number of tracked, outdated watchers.
    pub(crate) fn outdated(&self) -> Result<i32, Errno> {
        self.watcher.outdated()
    }

    /// Checks the number of tracked, outdated watchers.
    pub(crate) fn counts(&self, expected: i32, when: &str) -> Outcome {
        let found = self.outdated()?;
        if found == expected {
            Ok(())
        } else {
            fail(format!(
                "{when}: {found} watchers are counted as outdated, expected {expected}"
            ))
        }
    }

    /// The number of tracked, outdated watchers that do not go away.
    fn others(&self) -> Result<i32, Errno> {
        let deadline = Instant::now() + QUIET_WITHIN;
        loop {
            match self.outdated()? {
                others if others == 0 || Instant::now() > deadline => return Ok(others),
                _ => look_again_soon(),
            }
        }
    }

    /// Its watcher, to make other calls.
    pub(crate) fn watcher(&self) -> &Watcher {
        &self.watcher
    }
}

/// Checks that the node is there and can be examined by this caller. A fresh one is left
/// unchanged.
///
/// # Errors
///
/// The reason to leave it unexamined.
pub(crate) fn probe(node: &Node) -> Outcome {
    let path = node.path.display();
    let watcher = match node.open(OFlags::RDWR | OFlags::NONBLOCK) {
        Ok(watcher) => watcher,
        Err(Errno::NOENT) => {
            return skip(format!(
                "there is no {path}: load the module (`modprobe sysgenid`), or start whatever \
                 else serves it, or name another node with --node"
            ));
        }
        Err(Errno::ACCESS | Errno::PERM) => {
            return skip(format!(
                "{path} may not be opened for reading and writing: run the suite as root"
            ));
        }
        Err(errno) => {
            return skip(format!(
                "{path} cannot be opened ({}): is its server running?",
                name_of(errno)
            ));
        }
    };
    // A minimum that is not valid: it says whether the caller may trigger, and does nothing.
    match watcher.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, 1 << 32) {
        Err(Errno::ACCESS | Errno::PERM) => skip(format!(
            "this caller may not change the generation of {path}: it needs CAP_CHECKPOINT_RESTORE or \
             CAP_SYS_ADMIN in the user namespace that the node belongs to; run the suite as root there"
        )),
        // Whatever else is wrong, the cases will tell.
        _ => Ok(()),
    }?;
    // It is tracked on one of the nodes, and must not be counted as somebody else's.
    drop(watcher);
    if node.fresh {
        return Ok(());
    }
    match node.anyway().and_then(|control| control.others()) {
        Ok(others) if others > 0 => skip(node.not_quiet(others)),
        _ => Ok(()),
    }
}
