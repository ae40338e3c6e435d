// SPDX-License-Identifier: MIT OR Apache-2.0

//! Opening a file that is certainly not the daemon's own.
//!
//! A path may lead into a mount that this daemon serves: `/dev/sysgenid` is a link to it where the daemon
//! publishes its nodes. Then already the lookup of the last name is a request to the daemon, which waits
//! for itself. So the path is walked here, a name at a time, and each file that is come by, so also the
//! root of each mount, is asked for its device before anything below it is.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::Error;

/// As many as the kernel follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Opens `path`, a char device or a regular file, for reading without blocking.
pub(crate) fn open(path: &Path, own_devices: &[(u32, u32)]) -> Result<OwnedFd, Error> {
    let (file, kind) = find(path, own_devices)?;
    if !matches!(kind, FileType::CharacterDevice | FileType::RegularFile) {
        return Err(Error::Unsuitable {
            path: path.to_owned(),
            needed: "a device or a regular file",
        });
    }
    // This way no name is looked up again.
    rustix::fs::open(
        format!("/proc/self/fd/{}", file.as_raw_fd()),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::opening(path, errno))
}

/// Finds `path` without asking any of `own_devices` anything.
fn find(path: &Path, own_devices: &[(u32, u32)]) -> Result<(OwnedFd, FileType), Error> {
    let failed = |errno| Error::opening(path, errno);
    let mut at = reference(CWD, Path::new(".")).map_err(failed)?;
    let mut kind = FileType::Directory;
    let mut ahead = names(path);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        let next = reference(&at, Path::new(&name)).map_err(failed)?;
        kind = look_at(&next, own_devices)
            .map_err(failed)?
            .ok_or_else(|| Error::OwnNode {
                path: path.to_owned(),
            })?;
        if kind == FileType::Symlink {
            links += 1;
            if links > MOST_LINKS {
                return Err(failed(Errno::LOOP));
            }
            let target = rustix::fs::readlinkat(&next, c"", Vec::new()).map_err(failed)?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            ahead.extend(names(&target));
        } else {
            at = next;
        }
    }
    Ok((at, kind))
}

/// The names of a path, the last one first. An absolute path starts with the name `/`.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// A descriptor that only stands for a file: the file is not opened, its driver or server not asked.
fn reference(at: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        at,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What type of file it is; `None` if it is on one of `own_devices`.
fn look_at(file: &OwnedFd, own_devices: &[(u32, u32)]) -> Result<Option<FileType>, Errno> {
    let found = rustix::fs::statx(
        file,
        c"",
        // A server is asked nothing: what the kernel remembers from the lookup is enough.
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT,
        StatxFlags::TYPE,
    )?;
    let device = (found.stx_dev_major, found.stx_dev_minor);
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    Ok((!own_devices.contains(&device)).then_some(kind))
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::mount::{MountFlags, UnmountFlags};

    use super::*;

    /// A FUSE mount that nobody serves: whoever asks it anything waits until this is dropped.
    pub(in crate::noticing) struct Unserved {
        // Dropping it ends the connection, and with it all waiting.
        connection: Option<OwnedFd>,
        at: PathBuf,
    }

    impl Unserved {
        pub(in crate::noticing) fn mount(at: &Path) -> Result<Self, Errno> {
            let connection =
                rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let data = format!(
                "fd={},rootmode=40755,user_id=0,group_id=0",
                connection.as_raw_fd()
            );
            let data = CString::new(data).unwrap();
            rustix::mount::mount("unserved", at, "fuse", MountFlags::empty(), data.as_c_str())?;
            Ok(Self {
                connection: Some(connection),
                at: at.to_owned(),
            })
        }

        fn device(&self) -> (u32, u32) {
            let root = reference(CWD, &self.at).unwrap();
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            let found = rustix::fs::statx(&root, c"", flags, StatxFlags::TYPE).unwrap();
            (found.stx_dev_major, found.stx_dev_minor)
        }
    }

    impl Drop for Unserved {
        fn drop(&mut self) {
            self.connection = None;
            rustix::mount::unmount(&self.at, UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn a_path_into_an_own_mount_is_refused_without_asking_the_mount() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("host");
        fs::create_dir(&at).unwrap();
        let mount = match Unserved::mount(&at) {
            Ok(mount) => mount,
            Err(errno) => {
                eprintln!("skipped: no FUSE mount can be made here: {errno}");
                return;
            }
        };
        let own = [mount.device()];
        let link = folder.path().join("sysgenid");
        symlink(at.join("sysgenid"), &link).unwrap();

        for path in [
            link,
            at.join("sysgenid"),
            at.join("../host/sysgenid"),
            at.clone(),
        ] {
            let (tell, told) = mpsc::channel();
            let asked = path.clone();
            thread::spawn(move || tell.send(open(&asked, &own).unwrap_err()));
            // Only a defect waits: for as long as `mount` lives.
            let error = told
                .recv_timeout(Duration::from_secs(30))
                .expect("an answer that does not depend on the mount");
            assert!(matches!(error, Error::OwnNode { .. }), "{path:?}: {error}");
        }
    }

    #[test]
    fn links_are_followed_as_the_kernel_follows_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::create_dir(folder.join("below")).unwrap();
        fs::write(folder.join("file"), "here").unwrap();
        symlink("below/../file", folder.join("relative")).unwrap();
        symlink(folder.join("relative"), folder.join("absolute")).unwrap();
        symlink("../absolute", folder.join("below/up")).unwrap();
        symlink(folder.join("below"), folder.join("aside")).unwrap();
        for name in [
            "file",
            "relative",
            "absolute",
            "below/up",
            "aside/up",
            "./aside/../file",
        ] {
            let file = File::from(open(&folder.join(name), &[]).unwrap());
            assert_eq!(std::io::read_to_string(file).unwrap(), "here", "{name}");
        }

        symlink("circle", folder.join("circle")).unwrap();
        let error = open(&folder.join("circle"), &[]).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    source: Errno::LOOP,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn what_is_neither_device_nor_file_is_refused_unopened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in [folder.path(), &pipe] {
            let error = open(path, &[]).unwrap_err();
            assert!(
                matches!(error, Error::Unsuitable { .. }),
                "{path:?}: {error}"
            );
        }
    }
}
