// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the command line says, and the configuration with it.

use std::path::PathBuf;

use crate::config::{Config, Publish};

/// What the command line says; it goes before the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file, if not the usual one.
    pub config: Option<PathBuf>,
    /// Where the folders of the instances are mounted.
    pub directory: Option<PathBuf>,
    /// Whether `/dev/sysgenid` and `/dev/vmgenid` shall lead to the host's nodes.
    pub publish: Publish,
}

impl Options {
    /// The daemon's folder: what the command line says, or the configuration, or if that is of no use, the
    /// usual place.
    pub fn directory(&self) -> PathBuf {
        if let Some(directory) = &self.directory {
            return directory.clone();
        }
        match Config::load(self.config.as_deref()) {
            Ok(config) => config.directory,
            Err(error) => {
                let config = Config::default();
                tracing::warn!("{error}; assuming {}", config.directory.display());
                config.directory
            }
        }
    }

    /// The configuration with what the command line says.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file.
    pub fn load(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(directory) = &self.directory {
            config.directory.clone_from(directory);
        }
        config.publish = config.publish.max(self.publish);
        Ok(config)
    }
}
