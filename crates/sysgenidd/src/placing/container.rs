// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts an instance's nodes where the programs of a container look for them: into its `/dev`.

use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::process::Gid;
use rustix::process::Pid;
use rustix::process::Uid;
use rustix::thread::LinkNameSpaceType;

use crate::config::InstanceName;
use crate::failure::{Failure, failed};

use super::NODES;

/// Why nodes cannot be put into a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container has a file of that name.
    #[error("{} exists in the container of process {pid}: if an instance that was removed has left it there, unmount and remove it in the container, else start the container without it", path.display())]
    Occupied {
        /// The file, as the container sees it.
        path: PathBuf,
        /// The process that was named.
        pid: u32,
    },
    /// The process has no `/dev` of its own.
    #[error(
        "process {0} has this machine's own /dev, which is not for an instance: name a process of a container, or run sysgenidd with --publish"
    )]
    SharedDevices(u32),
    /// The process is not there.
    #[error("there is no process {0} whose namespaces could be entered; is the container running?")]
    NoProcess(u32),
    /// The instance is not there.
    #[error("there is no node {}; see `sysgenidd instance list`, or add the instance first", .0.display())]
    NoNode(PathBuf),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] Failure),
}

/// Binds the nodes of an instance to `/dev` of the container in which process `pid` lives.
///
/// `root` is the container's root as that process's mount namespace sees it: `/` for a container
/// that runs, and the root file system's path for an OCI hook of `createRuntime`, which runs before
/// that becomes `/`.
///
/// It enters the container's namespaces for good, and root of a user namespace: for a process of one
/// thread that ends soon, never for the daemon.
///
/// # Errors
///
/// [`Error::NoNode`], [`Error::NoProcess`], [`Error::SharedDevices`], [`Error::Occupied`] and
/// [`Error::System`].
pub fn into_container(
    directory: &Path,
    instance: &InstanceName,
    pid: u32,
    root: &Path,
) -> Result<(), Error> {
    // Copies of the mounts keep their flags (nosuid, nodev, noexec), and outlive the way here.
    let mut trees = Vec::new();
    for node in NODES {
        let path = directory.join(instance.as_str()).join(node);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &path, flags).map_err(|errno| match errno {
            Errno::NOENT => Error::NoNode(path.clone()),
            errno => failed("copy the mount of", &path)(errno).into(),
        })?;
        trees.push((node, tree));
    }
    // What is mounted there would be seen by the container only, but the files that it is mounted on by
    // everybody.
    let ours = rustix::fs::stat("/dev").map(|found| (found.st_dev, found.st_ino));
    enter(pid)?;
    let folder = open_devices(root)?;
    let found = rustix::fs::fstat(&folder).map(|found| (found.st_dev, found.st_ino));
    if ours == found {
        return Err(Error::SharedDevices(pid));
    }
    for (node, tree) in trees {
        bind(tree.as_fd(), folder.as_fd(), node, pid)?;
    }
    Ok(())
}

/// Enters the mount namespace of a process, as root of its user namespace. The groups of whoever calls stay outside.
fn enter(pid: u32) -> Result<(), Error> {
    // One descriptor of the process's folder in /proc, so that all is of the same process.
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let process = Pid::from_raw(i32::try_from(pid).unwrap_or(0))
        .ok_or(Errno::NOENT)
        .and_then(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&folder, flags, Mode::empty())
        })
        .map_err(|_| Error::NoProcess(pid))?;
    let open = |name: &str| -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&process, name, flags, Mode::empty());
        Ok(opened.map_err(failed("open", &folder.join(name)))?)
    };
    let user = open("ns/user")?;
    let mount = open("ns/mnt")?;
    leave_groups().map_err(failed("leave the groups of root for", &folder))?;
    let own = rustix::fs::stat("/proc/self/ns/user")
        .map_err(failed("look at", Path::new("/proc/self/ns/user")))?;
    let theirs = rustix::fs::fstat(&user).map_err(failed("look at", &folder.join("ns/user")))?;
    if (own.st_dev, own.st_ino) != (theirs.st_dev, theirs.st_ino) {
        // A file system of that namespace takes files of users that it knows, and no others.
        rustix::thread::move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
            .and_then(|()| rustix::thread::set_thread_gid(Gid::ROOT))
            .and_then(|()| rustix::thread::set_thread_uid(Uid::ROOT))
            .map_err(failed("enter", &folder.join("ns/user")))?;
    }
    rustix::thread::move_into_link_name_space(mount.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(failed("enter", &folder.join("ns/mnt")))?;
    Ok(())
}

/// Whatever this thread is in besides its own group, a file system of the container shall not know.
fn leave_groups() -> Result<(), Errno> {
    match rustix::thread::set_thread_groups(&[]) {
        // In a user namespace that does not let its root choose groups, they are those of whoever made it.
        Err(Errno::PERM) => Ok(()),
        left => left,
    }
}

/// The container's `/dev`. The container's root file system may come from anybody, so no link in
/// it leads out of it.
fn open_devices(root: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty()).map_err(failed("open", root))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let devices = rustix::fs::openat2(&folder, "dev", flags, Mode::empty(), resolve);
    Ok(devices.map_err(failed("open", &root.join("dev")))?)
}

fn bind(tree: BorrowedFd<'_>, devices: BorrowedFd<'_>, node: &str, pid: u32) -> Result<(), Error> {
    let path = Path::new("/dev").join(node);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(devices, node, flags, Mode::empty()).map_err(|errno| {
        if errno == Errno::EXIST {
            let path = path.clone();
            return Error::Occupied { path, pid };
        }
        failed("make, in the container,", &path)(errno).into()
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", &file, "", flags).map_err(|errno| {
        // An empty file that nobody can open would stand in the way of the next attempt.
        let _ = rustix::fs::unlinkat(devices, node, rustix::fs::AtFlags::empty());
        failed("mount, in the container, on", &path)(errno).into()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_dev_of_an_image_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(folder.path().join("outside")).unwrap();
        symlink("../../outside", root.join("dev")).unwrap();
        assert!(open_devices(&root).is_err());
        std::fs::remove_file(root.join("dev")).unwrap();
        symlink("/etc", root.join("dev")).unwrap();
        let found = rustix::fs::fstat(open_devices(&root).unwrap()).unwrap();
        let inside = rustix::fs::stat(root.join("etc")).unwrap();
        assert_eq!(found.st_ino, inside.st_ino);
    }

    #[test]
    fn no_group_of_the_machine_comes_along() {
        // A thread has groups of its own, which end with it.
        let left = std::thread::spawn(|| {
            let groups = [7, 8].map(Gid::from_raw);
            if rustix::thread::set_thread_groups(&groups).is_err() {
                eprintln!("skipped: not run as root");
                return None;
            }
            leave_groups().unwrap();
            Some(rustix::process::getgroups().unwrap())
        });
        assert!(left.join().unwrap().is_none_or(|left| left.is_empty()));
    }
}
