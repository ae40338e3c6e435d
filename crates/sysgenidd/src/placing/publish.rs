// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts nodes where programs look for them: the host's into `/dev`, an instance's into a container.

use std::io;
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
use serde_json::json;

use crate::config::InstanceName;

/// The names of the nodes, in an instance's folder and in `/dev`.
pub const NODES: [&str; 2] = ["sysgenid", "vmgenid"];

/// The kind of our devices, for `--device sysgenid/instance=NAME`.
///
/// A kind is a vendor and a class. The vendor may be a domain, but no domain belongs to this
/// contract, which any program may serve; so it is the name of the node.
pub const CDI_KIND: &str = "sysgenid/instance";

/// The first version in which the name of a device may begin with a digit, as that of an instance.
const CDI_VERSION: &str = "0.5.0";

/// Why nodes cannot be put where they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device that the kernel serves.
    #[error(
        "{} is a device already: the kernel module serves it, and programs are better off with it; run sysgenidd without --publish, or unload the module", .0.display()
    )]
    Device(PathBuf),
    /// Something else, which nobody must overwrite.
    #[error("{} exists and is not a link of sysgenidd; move it away, or run sysgenidd without --publish", .0.display())]
    Foreign(PathBuf),
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
    #[error("cannot {doing} {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |error| Error::System {
        doing,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// Makes links in `devices` (`/dev`) to the host's nodes below `directory`: both, or none.
///
/// It follows no link below `directory`, so that the daemon can call it while it serves nothing.
///
/// # Errors
///
/// [`Error::Device`], [`Error::Foreign`] and [`Error::System`].
pub fn publish(directory: &Path, devices: &Path) -> Result<(), Error> {
    let host = directory.join(InstanceName::host().as_str());
    let links = NODES.map(|node| (devices.join(node), host.join(node)));
    let mut found = Vec::new();
    for (link, _) in &links {
        found.push(look(link, directory)?);
    }
    for (index, (link, target)) in links.iter().enumerate() {
        let made = match &found[index] {
            Some(existing) if existing == target => Ok(()),
            Some(_) => replace_link(target, link),
            // Fails where something has come into being meanwhile.
            None => std::os::unix::fs::symlink(target, link),
        };
        if let Err(error) = made {
            for ((made, _), before) in links[..index].iter().zip(&found) {
                if before.is_none() {
                    let _ = std::fs::remove_file(made);
                }
            }
            return Err(failed("make the link", link)(error));
        }
    }
    Ok(())
}

/// Removes the links in `devices` that lead below `directory`, and nothing else.
///
/// # Errors
///
/// [`Error::System`].
pub fn unpublish(directory: &Path, devices: &Path) -> Result<(), Error> {
    for node in NODES {
        let link = devices.join(node);
        if matches!(look(&link, directory), Ok(Some(_))) {
            std::fs::remove_file(&link).map_err(failed("remove the link", &link))?;
        }
    }
    Ok(())
}

/// Where our own link leads; nothing if nothing is there.
fn look(link: &Path, directory: &Path) -> Result<Option<PathBuf>, Error> {
    use std::os::unix::fs::FileTypeExt as _;

    let file_type = match std::fs::symlink_metadata(link) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("look at", link)(error)),
    };
    if file_type.is_char_device() {
        return Err(Error::Device(link.to_owned()));
    }
    match std::fs::read_link(link) {
        Ok(target) if target.starts_with(directory) => Ok(Some(target)),
        _ => Err(Error::Foreign(link.to_owned())),
    }
}

/// Replaces a link without a moment in which there is none.
fn replace_link(target: &Path, link: &Path) -> io::Result<()> {
    let new = link.with_extension(format!("new-{}", std::process::id()));
    std::os::unix::fs::symlink(target, &new)?;
    std::fs::rename(&new, link).inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
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
            errno => failed("copy the mount of", &path)(errno),
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

/// Enters the mount namespace of a process, as root of its user namespace.
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
        rustix::fs::openat(&process, name, flags, Mode::empty())
            .map_err(failed("open", &folder.join(name)))
    };
    let user = open("ns/user")?;
    let mount = open("ns/mnt")?;
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
        .map_err(failed("enter", &folder.join("ns/mnt")))
}

/// The container's `/dev`. The container's root file system may come from anybody, so no link in
/// it leads out of it.
fn open_devices(root: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty()).map_err(failed("open", root))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&folder, "dev", flags, Mode::empty(), resolve)
        .map_err(failed("open", &root.join("dev")))
}

fn bind(tree: BorrowedFd<'_>, devices: BorrowedFd<'_>, node: &str, pid: u32) -> Result<(), Error> {
    let path = Path::new("/dev").join(node);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(devices, node, flags, Mode::empty()).map_err(|errno| {
        if errno == Errno::EXIST {
            let path = path.clone();
            return Error::Occupied { path, pid };
        }
        failed("make, in the container,", &path)(errno)
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", &file, "", flags).map_err(|errno| {
        // An empty file that nobody can open would stand in the way of the next attempt.
        let _ = rustix::fs::unlinkat(devices, node, rustix::fs::AtFlags::empty());
        failed("mount, in the container, on", &path)(errno)
    })
}

/// What a container runtime needs to know to give an instance's nodes to a container: a file for
/// `/etc/cdi` of the Container Device Interface.
#[must_use]
pub fn cdi(directory: &Path, names: &[InstanceName]) -> serde_json::Value {
    let mount = |name: &InstanceName, node: &str| {
        json!({
            "hostPath": directory.join(name.as_str()).join(node),
            "containerPath": Path::new("/dev").join(node),
            "options": ["bind", "rw", "nosuid", "nodev", "noexec"],
        })
    };
    let device = |name: &InstanceName| {
        json!({
            "name": name,
            "containerEdits": { "mounts": NODES.map(|node| mount(name, node)) },
        })
    };
    json!({
        "cdiVersion": CDI_VERSION,
        "kind": CDI_KIND,
        "devices": names.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Folders {
        _folder: tempfile::TempDir,
        directory: PathBuf,
        devices: PathBuf,
    }

    fn folders() -> Folders {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("run");
        let devices = folder.path().join("dev");
        std::fs::create_dir(&devices).unwrap();
        Folders {
            _folder: folder,
            directory,
            devices,
        }
    }

    impl Folders {
        fn publish(&self) -> Result<(), Error> {
            publish(&self.directory, &self.devices)
        }

        fn unpublish(&self) {
            unpublish(&self.directory, &self.devices).unwrap();
        }

        fn names(&self) -> Vec<OsString> {
            let entries = std::fs::read_dir(&self.devices).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn links_are_made_once_and_removed() {
        let folders = folders();
        for _ in 0..2 {
            folders.publish().unwrap();
            assert_eq!(folders.names(), NODES);
        }
        for node in NODES {
            assert_eq!(
                std::fs::read_link(folders.devices.join(node)).unwrap(),
                folders.directory.join("host").join(node)
            );
        }
        folders.unpublish();
        assert!(folders.names().is_empty());
        folders.unpublish();
    }

    #[test]
    fn a_link_of_ours_that_leads_elsewhere_is_replaced() {
        let folders = folders();
        let link = folders.devices.join("vmgenid");
        symlink(folders.directory.join("old/vmgenid"), &link).unwrap();
        folders.publish().unwrap();
        let target = std::fs::read_link(link).unwrap();
        assert_eq!(target, folders.directory.join("host/vmgenid"));
        assert_eq!(folders.names(), NODES);
    }

    #[test]
    fn what_is_not_ours_is_neither_replaced_nor_removed() {
        let folders = folders();
        let node = folders.devices.join("vmgenid");
        let directory = folders.directory.to_str().unwrap();
        for target in ["/dev/null", &format!("{directory}-other/host/vmgenid")] {
            symlink(target, &node).unwrap();
            assert!(matches!(folders.publish(), Err(Error::Foreign(_))));
            folders.unpublish();
            assert_eq!(folders.names(), ["vmgenid"], "none of the two is made");
            std::fs::remove_file(&node).unwrap();
        }
        std::fs::write(&node, "").unwrap();
        assert!(matches!(folders.publish(), Err(Error::Foreign(_))));
        folders.unpublish();
        assert_eq!(folders.names(), ["vmgenid"]);
    }

    #[test]
    fn a_node_of_the_kernel_is_told_by_its_type() {
        let error = look(Path::new("/dev/null"), Path::new("/dev")).unwrap_err();
        assert!(matches!(error, Error::Device(_)));
        assert!(error.to_string().contains("kernel module"));
    }

    #[test]
    fn the_example_of_the_package_is_what_the_command_prints() {
        let example = include_str!("../../../../packaging/cdi/sysgenid.json");
        let example: serde_json::Value = serde_json::from_str(example).unwrap();
        let names = ["host", "web"].map(|name| name.parse().unwrap());
        assert_eq!(example, cdi(Path::new("/run/sysgenid"), &names));
    }

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
}
