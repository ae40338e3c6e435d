// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that tests look at from outside.

use std::fs;
use std::path::Path;

/// Whether a process is there and not only waits to be reaped.
pub(crate) fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    // The name before it, in parentheses, may have any character.
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
