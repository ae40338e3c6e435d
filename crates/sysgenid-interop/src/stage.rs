// SPDX-License-Identifier: MIT OR Apache-2.0

//! A mount namespace in which a test may put what it likes.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use crate::tool;

/// The devices that programs, containers and the daemon expect.
const DEVICES: &[&str] = &[
    "full", "fuse", "kmsg", "null", "random", "tty", "urandom", "zero",
];

/// What a file system of control groups, version 2, says it is.
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// Where a test plays: the machine, but with a `/run` and a `/dev` of its own.
///
/// It belongs to one thread, and whatever that thread starts is on the stage, too.
#[derive(Debug)]
pub struct Stage(());

impl Stage {
    /// Plays a test on a stage of its own. All mounts are gone with the last process on it.
    pub fn play(test: impl FnOnce(&Stage) -> Result<()> + Send + 'static) {
        // A mount namespace belongs to a thread; the test runner's threads go on to other tests.
        let played = std::thread::spawn(|| test(&Self::set()?)).join();
        match played {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{error:#}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn set() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("this test makes mounts and containers: run it as root");
        }
        // SAFETY: Only this thread is moved, and nobody relies on the mounts that it sees: it was
        // started for this.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
            .context("cannot make a mount namespace")?;
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        mount_tmpfs("/run")?;
        lay_devices()?;
        if rustix::fs::statfs("/sys/fs/cgroup")?.f_type != CGROUP2_MAGIC {
            // Container runtimes look here to learn which version there is, and are confused by both.
            rustix::mount::mount(
                "cgroup2",
                "/sys/fs/cgroup",
                "cgroup2",
                MountFlags::empty(),
                None,
            )?;
        }
        // As systemd has it: what is mounted later is seen in the namespaces of podman's users, too. Only
        // now, because nothing can be moved to a shared place.
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::SHARED | MountPropagationFlags::REC,
        )?;
        leave_files_behind()?;
        Ok(Self(()))
    }

    /// Puts a program where everybody can run it, and says where.
    pub fn install(&self, program: impl AsRef<Path>) -> Result<PathBuf> {
        let name = program.as_ref().file_name();
        self.install_as(name.context("a program has a name")?, &program)
    }

    /// The same, under another name.
    pub fn install_as(&self, name: impl AsRef<Path>, program: impl AsRef<Path>) -> Result<PathBuf> {
        let installed = self.folder("/run/bin")?.join(name);
        // A copy could not be run while another test happens to be starting a program: that one has
        // whatever is open, and nothing runs that is open for writing.
        File::create(&installed)?;
        self.bind(program.as_ref(), &installed)?;
        Ok(installed)
    }

    /// Writes a script that everybody can run, over what is there.
    pub fn write_program(&self, path: &Path, text: &str) -> Result<()> {
        // Another process writes it: what this one has open for writing, another test's child may have open, and
        // it could not be run.
        let mut command = Command::new("sh");
        command.args([
            "-ec",
            "rm -f \"$1\"; printf %s \"$2\" >\"$1\"; chmod 755 \"$1\"",
            "sh",
        ]);
        tool::run(command.arg(path).arg(text)).map(drop)
    }

    /// Makes a folder that everybody can look into.
    pub fn folder(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        Ok(path.to_owned())
    }

    /// Lets a folder be changed on the stage, but not on the machine.
    pub fn lay_over(&self, folder: &str) -> Result<()> {
        let changes = PathBuf::from(format!("/run/changes{folder}"));
        let (upper, work) = (changes.join("upper"), changes.join("work"));
        self.folder(&upper)?;
        self.folder(&work)?;
        let options = format!(
            "lowerdir={folder},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        rustix::mount::mount(
            "overlay",
            folder,
            "overlay",
            MountFlags::empty(),
            Some(CString::new(options)?.as_c_str()),
        )
        .with_context(|| format!("cannot mount an overlay over {folder}"))
    }

    /// Lets a file be seen at a path that exists, over what is there.
    pub fn bind(&self, file: &Path, over: &Path) -> Result<()> {
        rustix::mount::mount_bind(file, over)
            .with_context(|| format!("cannot bind {} to {}", file.display(), over.display()))
    }
}

/// Lets no program on the stage have a file of the machine, beyond the three that are given to it: CRIU
/// could not find it again.
fn leave_files_behind() -> Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: RawFd = entry?.file_name().to_string_lossy().parse()?;
        if number > 2 {
            // SAFETY: The number is used for this call alone. Should another thread have closed it and
            // opened a file of its own as this number, then that one is closed at exec already.
            let file = unsafe { BorrowedFd::borrow_raw(number) };
            match rustix::io::fcntl_setfd(file, FdFlags::CLOEXEC) {
                Ok(()) | Err(Errno::BADF) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn mount_tmpfs(path: &str) -> Result<()> {
    rustix::mount::mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=755"),
    )
    .with_context(|| format!("cannot mount a tmpfs at {path}"))
}

/// A `/dev` like the machine's, but without its nodes, and where links can be made.
fn lay_devices() -> Result<()> {
    let folder = Path::new("/run/dev");
    std::fs::create_dir(folder)?;
    mount_tmpfs("/run/dev")?;
    for name in DEVICES {
        let Ok(device) = std::fs::metadata(Path::new("/dev").join(name)) else {
            continue;
        };
        if device.file_type().is_char_device() {
            let copy = folder.join(name);
            let mode = Mode::from_raw_mode(device.mode() & 0o777);
            rustix::fs::mknodat(CWD, &copy, FileType::CharacterDevice, mode, device.rdev())?;
            std::fs::set_permissions(&copy, device.permissions())?;
        }
    }
    for (name, mode) in [("pts", 0o755), ("mqueue", 0o1777), ("shm", 0o1777)] {
        std::fs::create_dir(folder.join(name))?;
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(mode))?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", folder.join("fd"))?;
    std::os::unix::fs::symlink("pts/ptmx", folder.join("ptmx"))?;
    rustix::mount::mount_bind("/dev/pts", folder.join("pts"))?;
    rustix::mount::mount_move(folder, "/dev").context("cannot put the stage's devices at /dev")
}
