// SPDX-License-Identifier: MIT OR Apache-2.0

//! The mounted folders of instances, from the kernel's list. The mounts themselves are never asked: the
//! one who would have to answer may be this very process, or gone.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::protocol::{Connection, FILE_SYSTEM_TYPE};

/// A mounted folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is.
    pub point: PathBuf,
    /// The device number that its files have: major and minor.
    pub device: (u32, u32),
}

/// The mounted folders right below `directory`, in the order in which they were mounted.
///
/// # Errors
///
/// Those of reading `/proc/self/mountinfo`.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<Mount>> {
    let list = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&list, directory))
}

/// The device numbers of the folders below `directory`.
pub(crate) fn devices(directory: &Path) -> Vec<(u32, u32)> {
    let mounts = list(directory).unwrap_or_else(|error| {
        tracing::error!("the list of mounts cannot be read: {error}");
        Vec::new()
    });
    mounts.into_iter().map(|mount| mount.device).collect()
}

/// Unmounts a folder lazily, and removes the mount point.
///
/// # Errors
///
/// Those of umount(2).
pub(crate) fn detach(point: &Path) -> io::Result<()> {
    Connection::unmount(point)?;
    // Not empty if something else was mounted below; that is its owner's concern.
    let _ = std::fs::remove_dir(point);
    Ok(())
}

/// Unmounts what is below `directory` and nobody serves: all whose names are not `kept`.
pub(crate) fn clean(directory: &Path, kept: impl Fn(&str) -> bool) {
    let mounts = match list(directory) {
        Ok(mounts) => mounts,
        Err(error) => {
            tracing::error!("the list of mounts cannot be read: {error}");
            return;
        }
    };
    for mount in mounts.into_iter().rev() {
        let name = mount.point.file_name().and_then(|name| name.to_str());
        if name.is_some_and(&kept) {
            continue;
        }
        match detach(&mount.point) {
            Ok(()) => tracing::warn!(
                path = %mount.point.display(),
                "unmounted what a process that is gone had left"
            ),
            Err(error) => tracing::error!(
                "{} is left of a process that is gone, and cannot be unmounted: {error}",
                mount.point.display()
            ),
        }
    }
}

fn parse(list: &[u8], directory: &Path) -> Vec<Mount> {
    let of_line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let point = unescape(fields.get(4)?);
        // A variable number of optional fields stands before the separator.
        let separator = fields.iter().position(|&field| field == b"-")?;
        let ours = *fields.get(separator + 1)? == FILE_SYSTEM_TYPE.as_bytes();
        let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        (ours && point.parent() == Some(directory)).then_some(Mount { point, device })
    };
    list.split(|&byte| byte == b'\n')
        .filter_map(of_line)
        .collect()
}

/// The kernel writes white space and backslashes of a path as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(code);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mounts_right_below_the_directory_are_found() {
        let list = b"\
22 1 0:5 / /run rw - tmpfs tmpfs rw\n\
40 22 0:44 / /run/sys\\040gen/host rw,nosuid shared:7 - fuse.sysgenid sysgenid rw\n\
41 22 0:45 / /run/sys\\040gen/other rw - fuse.sshfs sysgenid rw\n\
42 22 0:46 / /elsewhere/host rw - fuse.sysgenid sysgenid rw\n\
43 22 0:47 / /run/sys\\040gen/host/below rw - fuse.sysgenid sysgenid rw\n";
        let found = parse(list, Path::new("/run/sys gen"));
        let host = Mount {
            point: "/run/sys gen/host".into(),
            device: (0, 44),
        };
        assert_eq!(found, [host]);
    }

    #[test]
    fn an_escape_that_is_none_is_kept_as_it_is() {
        assert_eq!(unescape(br"/a\0408\b"), Path::new(r"/a 8\b"));
    }
}
