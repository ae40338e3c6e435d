// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon's folder, and what stands in the way of nodes there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Makes the daemon's folder if it is not there, and returns its true path, as the kernel's list of mounts has
/// it. The folder is for everybody to enter, whatever the umask is.
///
/// # Errors
///
/// If it cannot be made or entered.
pub fn prepare_directory(directory: &Path) -> anyhow::Result<PathBuf> {
    let failed = || format!("{} cannot be made", directory.display());
    if let Some(above) = directory.parent() {
        std::fs::create_dir_all(above).with_context(failed)?;
    }
    match std::fs::create_dir(directory) {
        Ok(()) => std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
            .with_context(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(failed),
    }
    std::fs::canonicalize(directory)
        .with_context(|| format!("{} has no true path", directory.display()))
}

/// An administrator can have the kernel give up on file systems that leave a request unanswered, as a
/// reader that waits for a change does.
pub(super) fn warn_of_time_limits() {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let limit = std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}"));
        if limit.is_ok_and(|limit| limit.trim() != "0") {
            tracing::warn!(
                "fs.fuse.{name} is set: the kernel will abort a node in which a program sleeps for \
                 longer; set it to 0"
            );
        }
    }
}
