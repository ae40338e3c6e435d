// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which node is meant.

use std::path::{Path, PathBuf};

use sysgenid::{Error, Orchestrator, PATH_VARIABLE, PATHS, Tracking, Watcher};

use crate::front_end::Identity;

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
        let named = self.0.clone().or_else(of_environment);
        named.map_or_else(|| PATHS.join(" or "), |path| path.display().to_string())
    }

    /// Whether the node at a path is the machine's own, by whatever name.
    pub(crate) fn is_machines_own(path: &Path) -> bool {
        Identity::of(path).is_ok_and(|node| {
            PATHS
                .iter()
                .any(|own| Identity::of(Path::new(own)).is_ok_and(|own| own == node))
        })
    }

    /// What has named it, if anything did.
    pub(crate) fn named_by(&self) -> Option<&'static str> {
        match (&self.0, of_environment()) {
            (Some(_), _) => Some("--node"),
            (None, Some(_)) => Some(PATH_VARIABLE),
            (None, None) => None,
        }
    }
}

fn of_environment() -> Option<PathBuf> {
    let path = std::env::var_os(PATH_VARIABLE)?;
    (!path.is_empty()).then(|| path.into())
}
