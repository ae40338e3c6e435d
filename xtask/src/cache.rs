// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where everything that is slow to make is kept.
//!
//! A folder is finished when its stamp, a file beside its content, says with what it was made. A
//! folder without one, or with another one, is made again from nothing.

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// The cache folder, and the checkout that it serves.
pub(crate) struct Cache {
    root: PathBuf,
    repository: PathBuf,
}

impl Cache {
    /// Opens the user's cache folder, which is made if it is not there.
    pub(crate) fn open() -> Result<Self> {
        let home = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context(
                "neither XDG_CACHE_HOME nor HOME is set; set one, the cache folder goes there",
            )?)
            .join(".cache"),
        };
        let root = home.join("sysgenid");
        std::fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache folder {}", root.display()))?;
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask is in no repository")?;
        Ok(Self {
            root: root.canonicalize()?,
            repository: repository.canonicalize()?,
        })
    }

    /// The cache folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The checkout.
    pub(crate) fn repository(&self) -> &Path {
        &self.repository
    }

    /// What belongs to this checkout alone: its build results.
    pub(crate) fn target(&self) -> PathBuf {
        self.repository.join("target/guest")
    }

    /// The log file of a long step.
    pub(crate) fn log(&self, step: &str) -> Result<PathBuf> {
        let folder = self.root.join("logs");
        std::fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{step}.log")))
    }

    /// A folder for machines that end with this run. What runs that were killed left behind goes.
    pub(crate) fn temporary_folder(&self) -> Result<TempDir> {
        let folder = self.root.join("run");
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(owner).exists() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(&folder)
            .with_context(|| format!("cannot make a folder in {}", folder.display()))
    }

    /// Waits until no other run works on the same thing; the lock lasts as long as the result.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("waiting for another run that holds {} ...", path.display());
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        }
        Ok(file)
    }
}

/// Reads a stamp; `None` if it is not there or is of another form.
pub(crate) fn read_stamp<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a stamp, whole or not at all.
pub(crate) fn write_stamp<T: Serialize>(path: &Path, stamp: &T) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, serde_json::to_vec_pretty(stamp)?)?;
    std::fs::rename(&unfinished, path)
        .with_context(|| format!("cannot write the stamp {}", path.display()))
}

/// Makes a folder empty, whatever an earlier run left in it.
pub(crate) fn empty_folder(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path)
            .with_context(|| format!("cannot remove the unfinished {}", path.display()))?;
    }
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}
