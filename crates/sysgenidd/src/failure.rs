// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was done to a file and failed, for the errors of whoever did it.

use std::io;
use std::path::{Path, PathBuf};

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct Failure {
    /// What was tried.
    pub doing: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// Makes one of what the kernel says.
pub(crate) fn failed<E: Into<io::Error>>(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Failure {
    move |error| Failure {
        doing,
        path: path.to_owned(),
        source: error.into(),
    }
}
