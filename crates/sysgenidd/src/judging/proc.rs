// SPDX-License-Identifier: MIT OR Apache-2.0

//! The `/proc` by which callers are looked at.
//!
//! FUSE numbers callers as the daemon's own pid namespace does. A `/proc` of another namespace has somebody else
//! under the same number, by whose rights a caller must never be judged: so it is examined once, kept open, and
//! everything is looked up by that descriptor, whatever is mounted at `/proc` later.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, FsWord, Mode, OFlags};
use rustix::io::Errno;

/// What `/proc` is (`PROC_SUPER_MAGIC`).
const PROC: FsWord = 0x9fa0;

/// Why `/proc` is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It numbers processes as another pid namespace does, or is something else altogether.
    #[error(
        "/proc is not that of the daemon's own pid namespace, so that nobody is judged capable of a trigger: mount it \
         before the daemon starts (mount -t proc proc /proc, or unshare --fork --pid --mount-proc)"
    )]
    Foreign,

    /// It cannot be read.
    #[error(
        "/proc cannot be read, so that nobody is judged capable of a trigger: {0}; mount it before the daemon starts"
    )]
    Io(#[from] Errno),
}

/// The descriptor of a `/proc` of this process's own pid namespace.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// That of this process, which is opened and examined by the first call. One that is of no use is logged then.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`], [`Error::Io`]; the same for as long as the process lives.
    pub fn own() -> Result<&'static Self, &'static Error> {
        static OWN: OnceLock<Result<Proc, Error>> = OnceLock::new();

        OWN.get_or_init(|| Self::open().inspect_err(|error| tracing::error!("{error}")))
            .as_ref()
    }

    fn open() -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = Self(rustix::fs::openat(CWD, "/proc", flags, Mode::empty())?);
        if proc.is_own()? {
            Ok(proc)
        } else {
            Err(Error::Foreign)
        }
    }

    fn is_own(&self) -> Result<bool, Errno> {
        // Who is not in its namespace has no number there.
        let missing = |errno| match errno {
            Errno::NOENT => Ok(None),
            errno => Err(errno),
        };
        if rustix::fs::fstatfs(&self.0)?.f_type != PROC {
            return Ok(false);
        }
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let link = rustix::fs::readlinkat(&self.0, "self", Vec::new());
        if link
            .map(Some)
            .or_else(missing)?
            .as_deref()
            .map(|link| link.to_bytes())
            != Some(own.as_bytes())
        {
            return Ok(false);
        }
        // In a namespace above, the number can be the same by chance. There a process has a number for each
        // namespace from that one down.
        let status = Status::of(self, std::process::id())?;
        let numbers = status.field("NSpid").map(<[u8]>::trim_ascii);
        Ok(numbers == Some(own.as_bytes()))
    }

    /// Opens the folder of a process or thread, which never stands for another one.
    pub(super) fn folder(&self, number: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, number.to_string(), flags, Mode::empty())
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The `status` file of a process or thread.
pub(super) struct Status(Vec<u8>);

impl Status {
    pub(super) fn of(proc: &Proc, number: u32) -> Result<Self, Errno> {
        Self::in_folder(proc.folder(number)?)
    }

    pub(super) fn in_folder(folder: impl AsFd) -> Result<Self, Errno> {
        read_at(folder, "status").map(Self)
    }

    #[cfg(test)]
    pub(super) fn from_text(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// What stands behind a name and its colon. A process's own name is of any bytes, but cannot forge a line: the
    /// kernel escapes its line ends.
    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        let mut lines = self.0.split(|byte| *byte == b'\n');
        let value =
            lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"))?;
        Some(value.trim_ascii())
    }

    /// A field that is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.field(name)?).ok()
    }

    /// A field that is a set of bits.
    pub(super) fn set(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.text(name)?, 16).ok()
    }
}

/// Opens a file for reading.
pub(super) fn open_at(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        at,
        path.as_ref(),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Reads a file.
pub(super) fn read_at(at: impl AsFd, path: impl AsRef<Path>) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    File::from(open_at(at, path)?)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use crate::judging::Owner;

    use super::*;

    /// The judge of the test below, in a process of its own: it says whom it takes for capable.
    #[test]
    #[ignore = "the judge of another test"]
    fn part_judge() {
        let owner = Owner::of_current_process().unwrap();
        let capable = (1..300).filter(|&tid| owner.judges_capable(tid)).count();
        println!("judge {}: {capable} capable", std::process::id());
    }

    fn judge_in(unshare: &[&str]) -> Option<String> {
        let output = Command::new("unshare")
            .args(unshare)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "judging::proc::tests::part_judge"])
            .args(["--ignored", "--nocapture"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let line = said.lines().find(|line| line.contains("judge "));
        if line.is_none() {
            eprintln!("skipped: unshare {unshare:?} is not allowed here");
        }
        line.map(str::to_owned)
    }

    #[test]
    fn a_judge_with_the_proc_of_another_pid_namespace_takes_nobody_for_capable() {
        // Its own /proc shows a judge who is capable, so that the test can fail.
        let Some(own) = judge_in(&["--pid", "--fork", "--mount-proc"]) else {
            return;
        };
        assert!(own.starts_with("judge 1:"), "{own}");
        assert!(!own.ends_with(" 0 capable"), "{own}");
        let foreign = judge_in(&["--pid", "--fork"]).unwrap();
        assert!(foreign.ends_with("judge 1: 0 capable"), "{foreign}");
    }

    #[test]
    fn what_is_no_proc_at_all_is_foreign() {
        let folder = Proc(File::open("/").unwrap().into());
        assert_eq!(folder.is_own(), Ok(false));
        assert!(Proc::own().is_ok());
    }

    #[test]
    fn a_name_of_any_bytes_hides_no_field() {
        let status = Status(b"Name:\t\xff\nSigCgt:\t00000000000000ff\n".to_vec());
        assert_eq!(status.field("Name"), Some(&b"\xff"[..]));
        assert_eq!(status.text("Name"), None);
        assert_eq!(status.set("SigCgt"), Some(0xff));
        assert_eq!(status.set("Sig"), None);
    }
}
