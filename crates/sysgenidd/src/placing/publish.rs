// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts the host's nodes where programs look for them: links in `/dev`.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::config::InstanceName;
use crate::failure::{Failure, failed};

use super::NODES;

/// Why the links cannot be made or removed.
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
    /// A system call failed.
    #[error(transparent)]
    System(#[from] Failure),
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
            return Err(failed("make the link", link)(error).into());
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

/// Whether links in `devices` lead to the host's nodes below `directory`.
pub fn is_published(directory: &Path, devices: &Path) -> bool {
    NODES
        .iter()
        .all(|node| matches!(look(&devices.join(node), directory), Ok(Some(_))))
}

/// Where our own link leads; nothing if nothing is there.
fn look(link: &Path, directory: &Path) -> Result<Option<PathBuf>, Error> {
    use std::os::unix::fs::FileTypeExt as _;

    let file_type = match std::fs::symlink_metadata(link) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("look at", link)(error).into()),
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
}
