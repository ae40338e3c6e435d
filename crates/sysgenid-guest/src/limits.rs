// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many files a benchmark may open.

use anyhow::Context;
use anyhow::Result;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

/// Enough for every benchmark.
const WANTED: u64 = 32_768;

/// Lets this process open many files: enough, or else as many as this machine permits.
pub(crate) fn allow_many_files() -> Result<()> {
    allow_files(WANTED)
}

/// Lets this process open so many files, or else as many as this machine permits.
pub(crate) fn allow_files(wanted: u64) -> Result<()> {
    let permitted = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = |files| Rlimit {
        current: Some(files),
        maximum: Some(files.max(permitted)),
    };
    setrlimit(Resource::Nofile, limit(wanted))
        .or_else(|_| setrlimit(Resource::Nofile, limit(permitted.min(wanted))))
        .context("cannot raise the limit of open files")
}
