// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a caller may bump an instance: `ns_capable()` of the kernel, asked from outside.
//!
//! An instance is owned by a user namespace, and the right to bump it is `CAP_CHECKPOINT_RESTORE` or
//! `CAP_SYS_ADMIN` *there*. A process's capabilities hold in its own user namespace and in those below it;
//! besides, the user who made a namespace has all capabilities in it as long as he is in its parent. So
//! root in a namespace of one's own is nobody to the instance of the machine.
//!
//! The caller waits for the answer to its request meanwhile, so that its thread id stays its own, and
//! what is read of it in `/proc` is true. This needs the right to look at foreign processes
//! (`CAP_SYS_PTRACE`). What cannot be read is refused.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FsWord, Mode, OFlags};
use rustix::io::Errno;

use crate::sys;

/// `CAP_SYS_ADMIN` and `CAP_CHECKPOINT_RESTORE`, as bits of a set.
const CAPABILITIES: u64 = 1 << 21 | 1 << 40;

/// Where the files of namespaces are (`NSFS_MAGIC`).
const NSFS: FsWord = 0x6e73_6673;

/// The inode of the initial user namespace (`USER_NS_INIT_INO` of `include/uapi/linux/nsfs.h`).
const INITIAL: u64 = 0xefff_fffd;

/// What an id that is not mapped looks like, unless an administrator changed it.
const OVERFLOW_USER: u32 = 65534;

/// Why a user namespace cannot be an owner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else. Another file has to be named.
    #[error("{} is not a user namespace: name a file such as /proc/PID/ns/user", path.display())]
    NotAUserNamespace {
        /// What was opened.
        path: PathBuf,
    },

    /// The process is in another user namespace than the instance's. Another process has to be named.
    #[error("{} is not in the user namespace that owns the instance: name a process that is", process.display())]
    NotInNamespace {
        /// The process's folder.
        process: PathBuf,
    },

    /// It cannot be read: no such process, or no right to look at it.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
}

/// The user namespace that owns an instance. It exists for as long as this is kept.
#[derive(Debug)]
pub struct Owner(OwnedFd);

/// Who root of a user namespace is on the daemon's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The user; `None` if the namespace maps no root.
    pub uid: Option<u32>,
    /// The group; `None` if the namespace maps none.
    pub gid: Option<u32>,
}

/// The identity of a user namespace: device and inode of its file. No two that exist share it.
type Identity = (u64, u64);

impl Owner {
    /// The daemon's own user namespace: the initial one, unless the daemon is in a container.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn of_current_process() -> Result<Self, Error> {
        Self::open("/proc/self/ns/user")
    }

    /// The namespace behind a file such as `/proc/PID/ns/user`, or a mount of one.
    ///
    /// # Errors
    ///
    /// [`Error::NotAUserNamespace`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = open_at(CWD, path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_fd(file).map_err(|not| not.map_path(path))
    }

    /// The namespace behind a descriptor, as [`as_fd`](AsFd::as_fd) gives one.
    ///
    /// # Errors
    ///
    /// [`Error::NotAUserNamespace`], [`Error::Io`].
    pub fn from_fd(file: OwnedFd) -> Result<Self, Error> {
        let path = PathBuf::from("the descriptor of a user namespace");
        match is_user_namespace(&file) {
            Ok(true) => Ok(Self(file)),
            Ok(false) => Err(Error::NotAUserNamespace { path }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// Whether it is the initial user namespace, that of the machine itself.
    pub fn is_initial(&self) -> bool {
        identity(&self.0).is_ok_and(|(_, inode)| inode == INITIAL)
    }

    /// The number of the namespace, as `lsns` shows it.
    pub fn inode(&self) -> u64 {
        identity(&self.0).map_or(0, |(_, inode)| inode)
    }

    /// Whether the thread `tid`, as this process numbers threads, may bump what this namespace owns.
    ///
    /// `tid` 0 stands for a caller that cannot be seen from here, and is refused. So are those who are in
    /// a namespace above this process's own, which cannot be seen either, and an owner without a number of
    /// his own here, because all of these look alike.
    pub fn judges_capable(&self, tid: u32) -> bool {
        tid != 0 && self.is_capable(tid).unwrap_or(false)
    }

    fn is_capable(&self, tid: u32) -> Result<bool, Errno> {
        let caller = Caller::of(tid)?;
        let mut namespace = rustix::io::fcntl_dupfd_cloexec(&self.0, 0)?;
        // The kernel allows 32 levels, so this ends.
        loop {
            if identity(&namespace)? == caller.namespace {
                return Ok(caller.capabilities & CAPABILITIES != 0);
            }
            let parent = match sys::parent_of_user_namespace(&namespace) {
                Ok(parent) => parent,
                // The caller is neither in this namespace nor in one above it.
                Err(Errno::PERM) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            if identity(&parent)? == caller.namespace
                && caller.user != overflow_user()
                && sys::owner_of_user_namespace(&namespace)? == caller.user
            {
                return Ok(true);
            }
            namespace = parent;
        }
    }

    /// Who root of this namespace is on the daemon's side, by the maps of `process` (`/proc/PID`), which
    /// is in it.
    ///
    /// # Errors
    ///
    /// [`Error::NotInNamespace`], [`Error::Io`].
    pub fn root_of(&self, process: impl AsRef<Path>) -> Result<Root, Error> {
        let process = process.as_ref();
        let failed = |source| Error::Io {
            path: process.to_owned(),
            source,
        };
        // All is read by way of one descriptor, which never stands for another process.
        let folder = rustix::fs::open(
            process,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        let identity_of_it = identity(&self.0).map_err(failed)?;
        let namespace = open_at(&folder, Path::new("ns/user")).map_err(failed)?;
        if identity(&namespace).map_err(failed)? != identity_of_it {
            return Err(Error::NotInNamespace {
                process: process.to_owned(),
            });
        }
        let own = open_at(CWD, Path::new("/proc/self/ns/user")).map_err(failed)?;
        if identity(&own).map_err(failed)? == identity_of_it {
            // The maps would tell of the namespace above.
            return Ok(Root {
                uid: Some(0),
                gid: Some(0),
            });
        }
        let read = |name: &str| read_at(&folder, Path::new(name)).map_err(failed);
        Ok(Root {
            uid: outside_of_zero(&read("uid_map")?),
            gid: outside_of_zero(&read("gid_map")?),
        })
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Error {
    fn map_path(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::NotAUserNamespace { .. } => Self::NotAUserNamespace { path },
            Self::Io { source, .. } => Self::Io { path, source },
            other @ Self::NotInNamespace { .. } => other,
        }
    }
}

/// What decides about a thread.
struct Caller {
    namespace: Identity,
    /// Its effective user, as this process sees users.
    user: u32,
    /// Its effective capabilities, in its own namespace.
    capabilities: u64,
}

impl Caller {
    fn of(tid: u32) -> Result<Self, Errno> {
        let folder = rustix::fs::open(
            format!("/proc/{tid}"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let namespace = identity(&open_at(&folder, Path::new("ns/user"))?)?;
        let status = read_at(&folder, Path::new("status"))?;
        let (user, capabilities) = parse_status(&status).ok_or(Errno::INVAL)?;
        Ok(Self {
            namespace,
            user,
            capabilities,
        })
    }
}

/// The effective user and the effective capabilities of `/proc/TID/status`.
fn parse_status(status: &str) -> Option<(u32, u64)> {
    // A name cannot forge a line: the kernel escapes its line ends.
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let user = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    Some((user, capabilities))
}

/// What id 0 of the inside is outside, by a `uid_map` or `gid_map`.
fn outside_of_zero(map: &str) -> Option<u32> {
    let mut extents = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let (_, outside) = extents.find(|&(inside, _)| inside == 0)?;
    // The number of those who do not exist outside either.
    (outside != u32::MAX).then_some(outside)
}

/// The user id that stands for all that are not mapped here.
fn overflow_user() -> u32 {
    read_at(CWD, Path::new("/proc/sys/kernel/overflowuid"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(OVERFLOW_USER)
}

fn is_user_namespace(file: &OwnedFd) -> Result<bool, Errno> {
    // First where it is: another file may take the request for something else.
    Ok(rustix::fs::fstatfs(file)?.f_type == NSFS
        && sys::namespace_type(file)? == sys::USER_NAMESPACE)
}

fn identity(file: &OwnedFd) -> Result<Identity, Errno> {
    let found = rustix::fs::fstat(file)?;
    Ok((found.st_dev, found.st_ino))
}

fn open_at(at: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        at,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn read_at(at: impl AsFd, path: &Path) -> Result<String, Errno> {
    let mut text = String::new();
    File::from(open_at(at, path)?)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that lives until this is dropped.
    struct Process(Child);

    impl Process {
        /// Starts `words`, a command that runs the command that follows it. `None`, with the reason
        /// printed, if that is not allowed here.
        fn start(words: &[&str]) -> Option<Self> {
            let mut child = Command::new(words[0])
                .args(&words[1..])
                // Each of these replaces the process, so that the id stays the child's.
                .args(["sh", "-c", "echo ready; exec cat >&2"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a program of util-linux");
            let mut line = String::new();
            let output = child.stdout.take().expect("it is piped");
            BufReader::new(output).read_line(&mut line).expect("a line");
            let process = Self(child);
            if line != "ready\n" {
                eprintln!("skipped: {words:?} is not allowed here");
                return None;
            }
            Some(process)
        }

        fn tid(&self) -> u32 {
            self.0.id()
        }

        fn folder(&self) -> String {
            format!("/proc/{}", self.tid())
        }

        fn namespace(&self) -> Owner {
            Owner::open(format!("{}/ns/user", self.folder())).unwrap()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            // It may have ended on its own; it is a child, so the id is still its own.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    const OWN_NAMESPACE: [&str; 2] = ["unshare", "-Ur"];

    fn as_user(id: &str) -> Vec<String> {
        ["setpriv", "--reuid", id, "--regid", id, "--clear-groups"]
            .map(str::to_owned)
            .to_vec()
    }

    fn start(words: &[String]) -> Option<Process> {
        Process::start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn here() -> Owner {
        Owner::of_current_process().unwrap()
    }

    #[test]
    fn root_of_the_machine_is_accepted_for_the_machine() {
        let Some(root) = Process::start(&["setpriv", "--no-new-privs"]) else {
            return;
        };
        let capable = Caller::of(root.tid()).unwrap().capabilities & CAPABILITIES != 0;
        if !capable {
            eprintln!("skipped: not run as root");
            return;
        }
        assert!(here().judges_capable(root.tid()));
    }

    #[test]
    fn root_in_an_own_namespace_is_refused_for_the_machine_and_accepted_there() {
        let Some(root) = Process::start(&OWN_NAMESPACE) else {
            return;
        };
        assert_ne!(
            Caller::of(root.tid()).unwrap().capabilities & CAPABILITIES,
            0
        );
        assert!(!here().judges_capable(root.tid()));
        assert!(root.namespace().judges_capable(root.tid()));
        assert!(!root.namespace().is_initial());
    }

    #[test]
    fn capabilities_reach_down_but_neither_up_nor_aside() {
        let Some(above) = Process::start(&OWN_NAMESPACE) else {
            return;
        };
        let aside = Process::start(&OWN_NAMESPACE).unwrap();
        // Below `above`: made by its root, in its namespace.
        let target = above.tid().to_string();
        let below = Process::start(&[
            "nsenter",
            "-U",
            "--preserve-credentials",
            "-t",
            &target,
            "unshare",
            "-Ur",
        ])
        .unwrap();
        let deepest = Process::start(&[
            "nsenter",
            "-U",
            "--preserve-credentials",
            "-t",
            &target,
            "unshare",
            "-Ur",
            "unshare",
            "-Ur",
        ])
        .unwrap();
        let judge =
            |owner: &Process, caller: &Process| owner.namespace().judges_capable(caller.tid());
        assert!(judge(&below, &above));
        assert!(judge(&deepest, &above));
        assert!(judge(&deepest, &deepest));
        assert!(!judge(&above, &below));
        assert!(!judge(&above, &deepest));
        assert!(!judge(&aside, &above));
        assert!(!judge(&aside, &below));
        assert!(!judge(&below, &deepest));
    }

    #[test]
    fn the_user_who_made_a_namespace_is_accepted_from_its_parent() {
        let mut made = as_user("1234");
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let maker = start(&as_user("1234")).unwrap();
        let stranger = start(&as_user("1235")).unwrap();
        assert_eq!(Caller::of(maker.tid()).unwrap().capabilities, 0);
        assert!(inside.namespace().judges_capable(maker.tid()));
        assert!(!inside.namespace().judges_capable(stranger.tid()));
        assert!(!here().judges_capable(maker.tid()));

        // He has the namespaces below, too, of which his own is not the parent.
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let below = start(&made).unwrap();
        assert!(below.namespace().judges_capable(maker.tid()));
        assert!(!below.namespace().judges_capable(stranger.tid()));
    }

    #[test]
    fn nobody_is_not_taken_for_an_owner_who_is_not_mapped() {
        let overflow = overflow_user().to_string();
        let mut made = as_user(&overflow);
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let nobody = start(&as_user(&overflow)).unwrap();
        assert!(!inside.namespace().judges_capable(nobody.tid()));
        assert!(inside.namespace().judges_capable(inside.tid()));
    }

    #[test]
    fn either_capability_is_enough_and_no_other_is() {
        let judged = |kept: &str| {
            let set = format!("-all,{kept}");
            let caller =
                Process::start(&["setpriv", "--inh-caps", "-all", "--bounding-set", &set])?;
            let capable = here().judges_capable(caller.tid());
            Some(capable)
        };
        let Some(capable) = judged("+checkpoint_restore") else {
            return;
        };
        assert!(capable);
        assert_eq!(judged("+sys_admin"), Some(true));
        assert_eq!(judged("+sys_ptrace,+dac_override,+setuid"), Some(false));
    }

    #[test]
    fn who_cannot_be_seen_is_refused() {
        assert!(!here().judges_capable(0));
        assert!(!here().judges_capable(u32::MAX));
        let mut gone = Command::new("true").spawn().unwrap();
        let tid = gone.id();
        gone.wait().unwrap();
        assert!(!here().judges_capable(tid));
    }

    #[test]
    fn only_a_user_namespace_can_be_an_owner() {
        for path in ["/proc/self/ns/mnt", "/dev/null", "/proc/self/status"] {
            let error = Owner::open(path).unwrap_err();
            assert!(matches!(error, Error::NotAUserNamespace { .. }), "{error}");
            assert!(error.to_string().contains(path));
        }
        let error = Owner::open("/nonexistent").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    source: Errno::NOENT,
                    ..
                }
            ),
            "{error}"
        );
        let kept = rustix::io::fcntl_dupfd_cloexec(here().as_fd(), 0).unwrap();
        assert_eq!(
            Owner::from_fd(kept).unwrap().is_initial(),
            here().is_initial()
        );
    }

    #[test]
    fn root_of_a_namespace_is_who_made_it_outside() {
        let mut made = as_user("1234");
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let root = inside.namespace().root_of(inside.folder()).unwrap();
        assert_eq!((root.uid, root.gid), (Some(1234), Some(1234)));
        assert_eq!(
            here().root_of("/proc/self").unwrap(),
            Root {
                uid: Some(0),
                gid: Some(0)
            }
        );
        let error = here().root_of(inside.folder()).unwrap_err();
        assert!(matches!(error, Error::NotInNamespace { .. }), "{error}");
    }

    #[test]
    fn a_namespace_without_a_map_has_no_root() {
        let Some(inside) = Process::start(&["unshare", "-U"]) else {
            return;
        };
        let root = inside.namespace().root_of(inside.folder()).unwrap();
        assert_eq!((root.uid, root.gid), (None, None));
    }

    #[test]
    fn a_map_is_searched_for_root() {
        assert_eq!(
            outside_of_zero("         0     100000      65536\n"),
            Some(100_000)
        );
        assert_eq!(outside_of_zero("  1  5  1\n  0  7  1\n"), Some(7));
        assert_eq!(outside_of_zero("  1000  1000  1\n"), None);
        assert_eq!(outside_of_zero("  0  4294967295  1\n"), None);
        assert_eq!(outside_of_zero(""), None);
    }

    #[test]
    fn a_status_is_read_for_what_is_effective() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nCapPrm:\tff\nCapEff:\t0000010000200000\n";
        assert_eq!(parse_status(status), Some((2, CAPABILITIES)));
        assert_eq!(parse_status("Uid:\t1\t2\t3\t4\n"), None);
        assert_eq!(parse_status("CapEff:\t0\n"), None);
    }
}
