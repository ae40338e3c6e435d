// SPDX-License-Identifier: MIT OR Apache-2.0

//! A git repository with those files of the kernel that the series touches.

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::cache;

/// Who makes the series, as git knows him.
#[derive(Clone)]
pub(super) struct Person {
    /// The name.
    pub(super) name: String,
    /// The address.
    pub(super) email: String,
}

impl Person {
    /// The one whom git knows in a folder.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let get = |key: &str| {
            output(folder, &["config", key]).with_context(|| {
                format!("a patch needs a person who signs it off: git config {key} …")
            })
        };
        Ok(Self {
            name: get("user.name")?,
            email: get("user.email")?,
        })
    }
}

/// The repository.
pub(super) struct Repository {
    folder: PathBuf,
    kernel: PathBuf,
    person: Person,
}

impl Repository {
    /// An empty one, for files of this kernel.
    pub(super) fn create(folder: PathBuf, kernel: PathBuf, person: Person) -> Result<Self> {
        cache::empty_folder(&folder)?;
        let repository = Self {
            folder,
            kernel,
            person,
        };
        repository.git(["init", "--quiet", "--initial-branch=series"])?;
        Ok(repository)
    }

    /// Its work tree.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Commits those of some files that the kernel has, as it has them.
    pub(super) fn commit_base<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Result<()> {
        for path in paths {
            let (source, copy) = (self.kernel.join(path), self.folder.join(path));
            if source.exists() {
                make_parent(&copy)?;
                std::fs::copy(&source, &copy)
                    .with_context(|| format!("cannot copy {}", source.display()))?;
            }
        }
        self.commit("The kernel")
    }

    /// Commits everything that is there.
    pub(super) fn commit(&self, message: &str) -> Result<()> {
        self.git(["add", "--all", "--force"])?;
        self.git([
            "commit",
            "--quiet",
            "--signoff",
            "--cleanup=whitespace",
            "--message",
            message,
        ])
    }

    /// Writes a file.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<()> {
        let file = self.folder.join(path);
        make_parent(&file)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Copies the files that the last commit changed.
    pub(super) fn copy_changed(&self, to: &Path) -> Result<Vec<PathBuf>> {
        let names = output(
            &self.folder,
            &["diff", "--name-only", "HEAD~1", "HEAD", "--"],
        )?;
        let changed: Vec<PathBuf> = names.lines().map(PathBuf::from).collect();
        for path in &changed {
            let copy = to.join(path);
            make_parent(&copy)?;
            std::fs::copy(self.folder.join(path), &copy)
                .with_context(|| format!("a patch must not remove {}", path.display()))?;
        }
        Ok(changed)
    }

    /// Runs git.
    pub(super) fn git<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<()> {
        let mut command = command(&self.folder);
        command
            .env("GIT_AUTHOR_NAME", &self.person.name)
            .env("GIT_AUTHOR_EMAIL", &self.person.email)
            .env("GIT_COMMITTER_NAME", &self.person.name)
            .env("GIT_COMMITTER_EMAIL", &self.person.email)
            .args(arguments);
        run(&mut command).map(drop)
    }
}

/// What git prints.
pub(super) fn output(folder: &Path, arguments: &[&str]) -> Result<String> {
    Ok(run(command(folder).args(arguments))?.trim_end().to_owned())
}

/// A git that nothing in the user's configuration makes behave in another way.
fn command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(folder)
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(["-c", "core.autocrlf=false"])
        .args(["-c", "commit.gpgSign=false"])
        .args(["-c", "format.signOff=false"])
        .args(["-c", "diff.noprefix=false"]);
    command
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot start git")?;
    if !output.status.success() {
        bail!(
            "git failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn make_parent(file: &Path) -> Result<()> {
    let folder = file.parent().context("a file is in no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}
