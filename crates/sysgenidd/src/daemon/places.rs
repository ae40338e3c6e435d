// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether the usual paths lead to the nodes of the host.
//!
//! A program that finds a node leaves its own precautions out. So where nothing notices restores of this
//! machine, there is none to be found, unless somebody says that he sees to it.

use std::path::Path;

use crate::config::Publish;
use crate::placing::publish;

use super::{DEVICES, Daemon};

impl Daemon {
    /// Lets the usual paths lead to the nodes of the host, or takes that back, as the configuration and those
    /// who notice have it.
    pub(super) fn place(&self) -> anyhow::Result<()> {
        let directory = &self.config.directory;
        let devices = Path::new(DEVICES);
        let noticed = self.noticed == Some(true);
        match self.config.publish {
            Publish::Never => return Ok(()),
            Publish::WhereNoticed if !noticed => {
                publish::unpublish(directory, devices)?;
                tracing::error!(
                    "nothing is published at {DEVICES}: no backend can notice a restore of this machine, and \
                     programs that rely on the nodes, as AWS-LC does where it finds them, would be worse off \
                     than without; where whoever restores the machine calls the trigger, say publish = \
                     \"always\" or --publish=always"
                );
                return Ok(());
            }
            Publish::WhereNoticed => {}
            Publish::Always if !noticed => tracing::warn!(
                "no backend can notice a restore of this machine: whoever restores it must call the trigger, \
                 or programs that rely on the nodes are worse off than without"
            ),
            Publish::Always => {}
        }
        match publish::publish(directory, devices) {
            Err(error @ publish::Error::Device(_)) => tracing::warn!("{error}"),
            result => result?,
        }
        Ok(())
    }

    /// Whether the usual paths lead to the nodes of the host.
    pub(super) fn is_published(&self) -> bool {
        publish::is_published(&self.config.directory, Path::new(DEVICES))
    }
}
