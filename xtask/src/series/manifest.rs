// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `docs/upstream/` says of the patches.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;

/// The folders of `docs/upstream/` with the patches in them, in the order of the series. In each, the files are in
/// the order of their names.
const ROOMS: [&str; 3] = ["fixes", "rust", "node"];

/// A patch of the series.
pub(super) enum Patch {
    /// A change to files of the kernel, kept as it is.
    Kept {
        /// The commit message.
        message: String,
        /// The difference.
        diff: String,
    },
    /// Made of the sources in this repository.
    Derived(Derived),
}

/// A patch that is made of the sources in this repository.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Derived {
    subject: String,
    body: String,
    /// The files that it adds or changes.
    #[serde(rename = "file")]
    pub(super) files: Vec<File>,
}

/// A file of a patch, from one source or, with none, as the kernel and the patches before have it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Its path in the kernel.
    pub(super) to: PathBuf,
    /// The source, a path in this repository.
    pub(super) from: Option<PathBuf>,
    /// A file that only the kernel has, a path in `docs/upstream/tree/`.
    pub(super) copy: Option<PathBuf>,
    /// What is done to it before the changes.
    #[serde(default)]
    pub(super) rules: Vec<Rule>,
    /// What differs in the kernel, in this order.
    #[serde(default, rename = "change")]
    pub(super) changes: Vec<Change>,
}

/// A way to change a whole file.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Rule {
    /// It becomes part of the kernel crate.
    KernelCrate,
    /// It becomes part of the driver, where modules are where they are looked for.
    Driver,
    /// It is one of the core's, and becomes part of the driver, its tests for KUnit.
    Core,
}

/// A difference that is declared. What it looks for must be there, and only once.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Change {
    /// One text instead of another.
    Replace {
        /// What is there.
        old: String,
        /// What comes instead.
        new: String,
    },
    /// What begins with one text and ends before another, or at the end of the file.
    Cut {
        /// With what it begins.
        cut: String,
        /// What comes after it.
        until: Option<String>,
        /// What comes instead.
        #[serde(default)]
        with: String,
    },
    /// A file of this repository at the end.
    Append {
        /// Its path.
        append: PathBuf,
        /// From behind this text on.
        after: Option<String>,
    },
}

impl File {
    /// Whether it is made of a file in this repository.
    pub(super) fn is_ours(&self) -> bool {
        self.from.is_some() || self.copy.is_some()
    }
}

impl Derived {
    /// The commit message.
    pub(super) fn message(&self) -> String {
        format!("{}\n\n{}", self.subject, self.body)
    }
}

/// Reads all patches.
pub(super) fn read(folder: &Path) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for room in ROOMS {
        let mut files = std::fs::read_dir(folder.join(room))
            .with_context(|| format!("there is no {room}/ in {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        files.sort();
        for file in files {
            let patch = read_one(&file).with_context(|| format!("in {}", file.display()))?;
            patches.push(patch);
        }
    }
    Ok(patches)
}

fn read_one(file: &Path) -> Result<Patch> {
    let text = std::fs::read_to_string(file)?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("patch") => {
            let (message, diff) = text
                .split_once("\n---\n")
                .context("a line `---` must stand between the message and the difference")?;
            ensure!(diff.starts_with("diff --git "), "there is no difference");
            Ok(Patch::Kept {
                message: message.to_owned(),
                diff: diff.to_owned(),
            })
        }
        Some("toml") => Ok(Patch::Derived(toml::from_str(&text)?)),
        _ => bail!("a patch ends in .patch or .toml"),
    }
}
