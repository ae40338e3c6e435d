// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which node is meant.

use std::path::PathBuf;

use sysgenid::{Error, Orchestrator, PATHS, Tracking, Watcher};

/// The node that was named, or the machine's own.
#[derive(Debug)]
pub(crate) struct Place(Option<PathBuf>);

impl Place {
    pub(crate) fn new(named: Option<PathBuf>) -> Self {
        Self(named)
    }

    /// Opens it for a watcher.
    pub(crate) fn watcher(&self, tracking: Tracking) -> Result<Watcher, Error> {
        match &self.0 {
            Some(path) => Watcher::open_at(path, tracking),
            None => Watcher::open(tracking),
        }
    }

    /// Opens it for somebody whom nobody waits for.
    pub(crate) fn orchestrator(&self) -> Result<Orchestrator, Error> {
        match &self.0 {
            Some(path) => Orchestrator::open_at(path),
            None => Orchestrator::open(),
        }
    }

    /// Where it would be, for people.
    pub(crate) fn name(&self) -> String {
        match &self.0 {
            Some(path) => path.display().to_string(),
            None => match std::env::var(sysgenid::PATH_VARIABLE) {
                Ok(path) if !path.is_empty() => path,
                _ => PATHS.join(" or "),
            },
        }
    }
}
