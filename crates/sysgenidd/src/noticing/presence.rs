// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finding what is absent once it is there.
//!
//! A device may appear after the daemon has started, a module be loaded again, another daemon be started. Nobody
//! tries again for ever: what tells that something may have appeared starts a short burst of attempts, which
//! lasts longer than a driver or a daemon takes from its first sign to its last, and then it is quiet.
//!
//! - A new name in the nearest folder that exists on the way to a missing path (inotify).
//! - A mount (`/proc/self/mountinfo`).
//! - The kernel's own word about a device of one of our kinds (a uevent): a driver that is bound makes no file
//!   that inotify would tell of.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::event::epoll::EventFlags;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, inotify};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The first and the last wait of a burst, in nanoseconds: from 20 ms, doubled each time, to 1 s.
const WAITS: (u64, u64) = (20_000_000, 1_000_000_000);

/// As many as the kernel follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// The group of the kernel's own uevents.
const KERNEL_EVENTS: u32 = 1;

/// What a uevent says that may be about a backend.
const OURS: [&[u8]; 3] = [b"vmgenid", b"vmclock", b"sysgenid"];

/// What is at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing, or it may not be looked at.
    Nothing,
    /// A file.
    Something,
    /// A daemon has to be asked, which was not done. This is the device of its mount.
    Served((u32, u32)),
}

/// A path, as far as it goes.
#[derive(Debug)]
pub(crate) struct Way {
    /// What is at its end.
    pub(crate) found: Found,
    /// The folders in which a new name would make a difference, and that name.
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
}

/// Follows a path and its links as far as it can be done without asking any file system in user space.
pub(crate) fn find(path: &Path) -> Way {
    let served = served_devices();
    let mut way = Way {
        found: Found::Nothing,
        names: BTreeMap::new(),
    };
    let mut at = PathBuf::from("/");
    let mut ahead = components(path);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Some((kind, device)) = look_at(&next) else {
            way.await_in(&at, name);
            return way;
        };
        if served.contains(&device) {
            way.found = Found::Served(device);
            return way;
        }
        if kind == FileType::Symlink && links < MOST_LINKS {
            links += 1;
            let Ok(target) = fs::read_link(&next) else {
                return way;
            };
            way.await_in(&at, name);
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            ahead.extend(components(&target));
        } else {
            if ahead.is_empty() {
                way.await_in(&at, name);
            }
            at = next;
        }
    }
    way.found = Found::Something;
    way
}

impl Way {
    fn await_in(&mut self, folder: &Path, name: OsString) {
        self.names
            .entry(folder.to_owned())
            .or_default()
            .insert(name);
    }
}

/// The names of a path, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .map(|component| component.as_os_str().to_owned())
        .filter(|name| name != "/" && name != ".")
        .collect()
}

/// The type and the device of a file, which is not opened, and whose file system is not asked.
fn look_at(path: &Path) -> Option<(FileType, (u32, u32))> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(&file, c"", flags, StatxFlags::TYPE).ok()?;
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    Some((kind, (found.stx_dev_major, found.stx_dev_minor)))
}

/// The devices of all mounts that a process serves.
fn served_devices() -> BTreeSet<(u32, u32)> {
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else {
        return BTreeSet::new();
    };
    mounts
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let line = String::from_utf8_lossy(line);
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("fuse").then_some(())?;
            let (major, minor) = before.split_whitespace().nth(2)?.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect()
}

/// Which of the descriptors has something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// A name appeared in a folder.
    Name,
    /// Something was mounted.
    Mount,
    /// The kernel speaks of a device.
    Device,
}

impl Sign {
    pub(crate) const ALL: [Self; 3] = [Self::Name, Self::Mount, Self::Device];
}

/// Tells when to look again for what is missing.
#[derive(Debug)]
pub(crate) struct Arrivals {
    inotify: Option<OwnedFd>,
    mounts: Option<File>,
    devices: Option<OwnedFd>,
    /// The folders that are watched, and for which names.
    watched: BTreeMap<PathBuf, (i32, BTreeSet<OsString>)>,
    /// Whether anything is missing at all.
    is_expecting: bool,
    /// When to try next, and how long to wait then.
    burst: Option<(u64, u64)>,
}

impl Arrivals {
    /// Whatever of it cannot be had is left out.
    pub(crate) fn new() -> Self {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        Self {
            inotify: inotify
                .inspect_err(|errno| tracing::warn!("files that appear are not noticed: {errno}"))
                .ok(),
            mounts: File::open("/proc/self/mountinfo").ok(),
            devices: device_events()
                .inspect_err(|errno| tracing::debug!("the kernel's uevents are not heard: {errno}"))
                .ok(),
            watched: BTreeMap::new(),
            is_expecting: false,
            burst: None,
        }
    }

    /// What to watch, edge-triggered, and for what.
    pub(crate) fn fds(&self) -> impl Iterator<Item = (Sign, BorrowedFd<'_>, EventFlags)> {
        let inotify = self.inotify.as_ref().map(AsFd::as_fd);
        let mounts = self.mounts.as_ref().map(AsFd::as_fd);
        let devices = self.devices.as_ref().map(AsFd::as_fd);
        [
            (Sign::Name, inotify, EventFlags::IN),
            (Sign::Mount, mounts, EventFlags::PRI),
            (Sign::Device, devices, EventFlags::IN),
        ]
        .into_iter()
        .filter_map(|(sign, fd, flags)| Some((sign, fd?, flags | EventFlags::ET)))
    }

    /// These are missing, and no others. New ones are tried again soon, since they may have appeared before
    /// they were watched.
    pub(crate) fn expect(&mut self, paths: &[PathBuf], now: u64) {
        /// While it is looked, the way may become longer.
        const MOST_ATTEMPTS: usize = 8;
        self.is_expecting = true;
        for _ in 0..MOST_ATTEMPTS {
            let mut wanted: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
            for path in paths {
                for (folder, names) in find(path).names {
                    wanted.entry(folder).or_default().extend(names);
                }
            }
            if !self.watch(wanted) {
                return;
            }
            self.begin(now);
        }
    }

    /// Whether any folder is new.
    fn watch(&mut self, wanted: BTreeMap<PathBuf, BTreeSet<OsString>>) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        self.watched.retain(|folder, (watch, names)| {
            if let Some(wanted) = wanted.get(folder) {
                names.clone_from(wanted);
                return true;
            }
            // It fails if the folder is gone.
            let _ = inotify::remove_watch(inotify, *watch);
            false
        });
        let mut is_new = false;
        for (folder, names) in wanted {
            if self.watched.contains_key(&folder) {
                continue;
            }
            let flags = inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::ATTRIB
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF
                | inotify::WatchFlags::ONLYDIR;
            match inotify::add_watch(inotify, &folder, flags) {
                Ok(watch) => {
                    self.watched.insert(folder, (watch, names));
                    is_new = true;
                }
                Err(errno) => tracing::debug!("{} is not watched: {errno}", folder.display()),
            }
        }
        is_new
    }

    /// Something may be there from now on.
    pub(crate) fn begin(&mut self, now: u64) {
        self.burst = Some((now + WAITS.0, WAITS.0));
    }

    /// Takes in what a descriptor has to say, and begins a burst if it is of interest.
    pub(crate) fn hear(&mut self, sign: Sign, now: u64) {
        let is_news = match sign {
            Sign::Name => self.hear_names(),
            Sign::Mount => true,
            Sign::Device => self.devices.as_ref().is_some_and(hear_devices),
        };
        if is_news && self.is_expecting {
            self.begin(now);
        }
    }

    fn hear_names(&mut self) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut is_news = false;
        // It ends with EAGAIN.
        while let Ok(event) = events.next() {
            let watch = event.wd();
            let gone = inotify::ReadFlags::DELETE_SELF
                | inotify::ReadFlags::MOVE_SELF
                | inotify::ReadFlags::IGNORED;
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                is_news = true;
            } else if event.events().intersects(gone) {
                // One that was taken back is not there any more.
                let before = self.watched.len();
                self.watched.retain(|_, (number, _)| *number != watch);
                is_news |= self.watched.len() < before;
            } else if let Some(name) = event.file_name() {
                let name = OsStr::from_bytes(name.to_bytes());
                let mut watched = self.watched.values();
                is_news |= watched.any(|(number, names)| *number == watch && names.contains(name));
            }
        }
        is_news
    }

    /// Whether it is time to try again.
    pub(crate) fn is_due(&mut self, now: u64) -> bool {
        let Some((at, wait)) = self.burst else {
            return false;
        };
        if now < at {
            return false;
        }
        let next = wait * 2;
        self.burst = (next <= WAITS.1).then_some((now + next, next));
        true
    }

    /// When to try again, if nothing is heard.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.burst.map(|(at, _)| at)
    }

    /// There is nothing that is missing.
    pub(crate) fn expect_nothing(&mut self) {
        self.watch(BTreeMap::new());
        self.is_expecting = false;
        self.burst = None;
    }
}

/// Listens to the kernel's own uevents, which no program can send: those come to another group, and any other
/// sender's are not the kernel's.
fn device_events() -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::KOBJECT_UEVENT),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    Ok(socket)
}

/// Whether any of what there is to hear may be about a backend. A lost message may.
fn hear_devices(socket: &OwnedFd) -> bool {
    let mut is_news = false;
    let mut buffer = [0; 8192];
    loop {
        match rustix::io::read(socket, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => return is_news,
            Ok(length) => is_news |= is_ours(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(Errno::NOBUFS) => is_news = true,
            Err(errno) => {
                tracing::debug!("the kernel's uevents cannot be read: {errno}");
                return true;
            }
        }
    }
}

fn is_ours(message: &[u8]) -> bool {
    let message = message.to_ascii_lowercase();
    OURS.iter()
        .any(|word| message.windows(word.len()).any(|part| part == *word))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    /// Waits for a sign of a name, and takes it in.
    fn hear(arrivals: &mut Arrivals, now: u64) -> bool {
        let mut poll = [PollFd::new(
            arrivals.inotify.as_ref().unwrap(),
            PollFlags::IN,
        )];
        // Whatever is done to a file is queued before the call returns.
        rustix::event::poll(&mut poll, Some(&Timespec::default())).unwrap();
        arrivals.hear(Sign::Name, now);
        arrivals.next_deadline().is_some()
    }

    fn expecting(path: &Path) -> Arrivals {
        let mut arrivals = Arrivals::new();
        arrivals.expect(&[path.to_owned()], 0);
        arrivals.burst = None;
        arrivals
    }

    #[test]
    fn what_appears_is_heard_of_wherever_its_way_begins() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let path = folder.join("a/b/node");
        let mut arrivals = expecting(&path);
        fs::write(folder.join("other"), "").unwrap();
        assert!(!hear(&mut arrivals, 1));
        fs::create_dir(folder.join("a")).unwrap();
        assert!(hear(&mut arrivals, 1));
        arrivals.burst = None;
        arrivals.expect(std::slice::from_ref(&path), 1);
        arrivals.burst = None;
        fs::create_dir(folder.join("a/b")).unwrap();
        assert!(hear(&mut arrivals, 2));
        arrivals.expect(std::slice::from_ref(&path), 2);
        arrivals.burst = None;
        fs::write(folder.join("a/b/new"), "").unwrap();
        assert!(!hear(&mut arrivals, 3));
        fs::rename(folder.join("a/b/new"), &path).unwrap();
        assert!(hear(&mut arrivals, 3));
    }

    #[test]
    fn the_way_leads_over_links() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(folder.join("run")).unwrap();
        symlink("run/node", folder.join("link")).unwrap();
        let path = folder.join("link");
        assert_eq!(find(&path).found, Found::Nothing);
        let mut arrivals = expecting(&path);
        fs::write(folder.join("run/node"), "").unwrap();
        assert!(hear(&mut arrivals, 1));
        assert_eq!(find(&path).found, Found::Something);
        // The link itself may be replaced.
        let mut arrivals = expecting(&path);
        symlink("/", folder.join("new")).unwrap();
        fs::rename(folder.join("new"), &path).unwrap();
        assert!(hear(&mut arrivals, 1));
        symlink("circle", folder.join("circle")).unwrap();
    }

    #[test]
    fn a_folder_that_goes_away_is_heard_of() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(folder.join("run")).unwrap();
        let path = folder.join("run/node");
        let mut arrivals = expecting(&path);
        fs::remove_dir(folder.join("run")).unwrap();
        assert!(hear(&mut arrivals, 1));
        arrivals.expect(std::slice::from_ref(&path), 1);
        arrivals.burst = None;
        fs::create_dir(folder.join("run")).unwrap();
        assert!(hear(&mut arrivals, 2));
    }

    #[test]
    fn a_burst_ends_by_itself() {
        let mut arrivals = Arrivals::new();
        arrivals.begin(0);
        let mut now = 0;
        let mut attempts = 0;
        while let Some(next) = arrivals.next_deadline() {
            assert!(!arrivals.is_due(next - 1));
            now = next;
            assert!(arrivals.is_due(now));
            attempts += 1;
        }
        assert_eq!(attempts, 6);
        assert!(now > 1_000_000_000 && now < 2_000_000_000);
    }

    #[test]
    fn only_the_devices_of_our_kinds_are_news() {
        assert!(is_ours(
            b"bind@/devices/platform/QEMUVGID:00\0DRIVER=vmgenid\0"
        ));
        assert!(is_ours(b"add@/devices/virtual/misc/vmclock0\0"));
        assert!(!is_ours(b"add@/devices/virtual/net/veth0\0"));
    }
}
