// SPDX-License-Identifier: MIT OR Apache-2.0

//! What has passed, so that a long run which was broken off goes on where it was.
//!
//! It is kept for one commit at a time, and only while nothing in the checkout differs from that.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::cache;
use crate::cache::Cache;

/// The tests that have passed.
pub(crate) struct Passed {
    file: PathBuf,
    repository: PathBuf,
    /// `None` if there is nothing that they could be remembered for.
    stamp: Option<Stamp>,
}

#[derive(Serialize, Deserialize)]
struct Stamp {
    commit: String,
    /// The kernel that was asked for, if one was.
    kernel: Option<String>,
    tests: BTreeSet<String>,
}

impl Passed {
    /// What has passed for the commit that is checked out, with this choice of a kernel.
    pub(crate) fn open(cache: &Cache, kernel: Option<&str>) -> Self {
        Self::open_at(
            &cache.root().join("passed.json"),
            cache.repository(),
            kernel,
        )
    }

    fn open_at(file: &Path, repository: &Path, kernel: Option<&str>) -> Self {
        let commit = commit(repository);
        if commit.is_none() {
            eprintln!(
                "what passes is not remembered: the checkout differs from its commit, or is none of git's"
            );
        }
        let stamp = commit.map(|commit| {
            cache::read_stamp::<Stamp>(file)
                .filter(|stamp| stamp.commit == commit && stamp.kernel.as_deref() == kernel)
                .unwrap_or_else(|| Stamp {
                    commit,
                    kernel: kernel.map(str::to_owned),
                    tests: BTreeSet::new(),
                })
        });
        Self {
            file: file.to_owned(),
            repository: repository.to_owned(),
            stamp,
        }
    }

    /// Whether a test has passed.
    pub(crate) fn contains(&self, name: &str) -> bool {
        let stamp = self.stamp.as_ref();
        stamp.is_some_and(|stamp| stamp.tests.contains(name))
    }

    /// Notes that a test has passed, unless the checkout was changed meanwhile.
    pub(crate) fn add(&mut self, name: &str) -> Result<()> {
        match &mut self.stamp {
            Some(stamp) if commit(&self.repository).as_ref() == Some(&stamp.commit) => {
                stamp.tests.insert(name.to_owned());
                cache::write_stamp(&self.file, stamp)
            }
            _ => Ok(()),
        }
    }

    /// Takes these for tests that have not passed.
    pub(crate) fn forget<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let Some(stamp) = &mut self.stamp else {
            return Ok(());
        };
        for name in names {
            stamp.tests.remove(name);
        }
        cache::write_stamp(&self.file, stamp)
    }
}

/// The commit that is checked out, if nothing differs from it.
fn commit(repository: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(repository)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    git(&["status", "--porcelain"])
        .filter(String::is_empty)
        .and_then(|_| git(&["rev-parse", "HEAD"]))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A checkout, and a file for what passes.
    struct Checkout(TempDir);

    impl Checkout {
        fn new() -> Self {
            let checkout = Self(tempfile::tempdir().expect("a folder"));
            std::fs::create_dir(checkout.repository()).expect("a folder in it");
            checkout.git(&["init", "--quiet"]);
            checkout.commit("first");
            checkout
        }

        fn repository(&self) -> PathBuf {
            self.0.path().join("checkout")
        }

        fn git(&self, arguments: &[&str]) {
            let status = Command::new("git")
                .arg("-C")
                .arg(self.repository())
                .args(["-c", "user.name=a", "-c", "user.email=a@example"])
                .args(arguments)
                .status()
                .expect("git starts");
            assert!(status.success(), "{arguments:?}: {status}");
        }

        fn commit(&self, subject: &str) {
            self.git(&["commit", "--quiet", "--allow-empty", "--message", subject]);
        }

        fn change(&self) {
            std::fs::write(self.repository().join("file"), "new").expect("a file");
        }

        fn open(&self, kernel: Option<&str>) -> Passed {
            Passed::open_at(
                &self.0.path().join("passed.json"),
                &self.repository(),
                kernel,
            )
        }
    }

    #[test]
    fn what_passes_is_remembered_for_its_commit_and_kernel() {
        let checkout = Checkout::new();
        checkout.open(None).add("a").expect("it is kept");
        assert!(checkout.open(None).contains("a"));
        assert!(!checkout.open(None).contains("b"));
        assert!(!checkout.open(Some("7.2")).contains("a"));
        checkout.commit("second");
        assert!(!checkout.open(None).contains("a"));
    }

    #[test]
    fn nothing_is_remembered_of_a_checkout_that_differs_from_its_commit() {
        let checkout = Checkout::new();
        let mut passed = checkout.open(None);
        passed.add("a").expect("it is kept");
        checkout.change();
        passed.add("b").expect("it is left out");
        let mut changed = checkout.open(None);
        assert!(!changed.contains("a"));
        changed.add("c").expect("it is left out");
        std::fs::remove_file(checkout.repository().join("file")).expect("it is there");
        let passed = checkout.open(None);
        assert!(passed.contains("a") && !passed.contains("b") && !passed.contains("c"));
    }

    #[test]
    fn only_what_is_run_again_is_forgotten() {
        let checkout = Checkout::new();
        let mut passed = checkout.open(None);
        passed.add("a").expect("it is kept");
        passed.add("b").expect("it is kept");
        passed.forget(["a", "c"]).expect("it is kept");
        let passed = checkout.open(None);
        assert!(!passed.contains("a") && passed.contains("b"));
    }
}
