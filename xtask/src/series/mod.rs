// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask series`: the patches for the kernel, made of this tree.
//!
//! What is to be sent stands in `docs/upstream/`: patches to files of the kernel's as they are, and how the
//! others are made of the very sources of the modules, so that the series never says anything else than
//! these. Each declared difference must be where it was expected; else nothing is made.

mod check;
mod derive;
mod manifest;
mod repository;

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use clap::Args;

use crate::cache;
use crate::cache::Cache;
use crate::kernel::BuildFolder;
use crate::kernel::Choice;
use crate::series::manifest::Derived;
use crate::series::manifest::Patch;
use crate::series::repository::Person;
use crate::series::repository::Repository;
use crate::tree::Tree;

/// What to make.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Where the mails go [default: target/series/mails]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Do not build after each patch, which takes a quarter of an hour
    #[arg(long)]
    no_build: bool,
}

/// The series, as mails.
struct Series {
    /// The mails in their order; the first is the cover letter.
    mails: Vec<PathBuf>,
    /// The paths of all files that it touches.
    paths: Vec<PathBuf>,
    /// Who signs it off.
    person: Person,
}

/// Makes the series, checks it, and says where it is.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    let _lock = cache.lock("prepare")?;
    let tree = Tree::prepare(cache)?;
    let folder = BuildFolder::prepare(cache, &tree, &options.choice)?;
    let out = match &options.out {
        Some(out) => std::path::absolute(out)?,
        None => cache.repository().join("target/series/mails"),
    };
    let series = make(cache, &tree, &folder, &out)?;
    check::all(cache, &tree, &folder, &series, !options.no_build)?;
    for mail in &series.mails {
        println!("{}", mail.display());
    }
    Ok(())
}

/// Makes the series and makes every check of it.
pub(crate) fn prove(cache: &Cache, tree: &Tree, folder: &BuildFolder) -> Result<()> {
    let out = cache.repository().join("target/series/mails");
    let series = make(cache, tree, folder, &out)?;
    check::all(cache, tree, folder, &series, true)
}

/// Makes the series, and returns a folder with the files that it touches as they are after it.
pub(crate) fn files(cache: &Cache, tree: &Tree, folder: &BuildFolder) -> Result<PathBuf> {
    let ours = cache.repository();
    make(cache, tree, folder, &ours.join("target/series/mails"))?;
    Ok(ours.join("target/series/repository"))
}

/// Makes the series, for the kernel's source in a build folder.
fn make(cache: &Cache, tree: &Tree, folder: &BuildFolder, out: &Path) -> Result<Series> {
    let ours = cache.repository();
    let patches = manifest::read(&ours.join("docs/upstream"))?;
    let person = Person::of(ours)?;
    let paths = touched(&patches);
    let repository = Repository::create(
        ours.join("target/series/repository"),
        folder.source(),
        person.clone(),
    )?;
    repository.commit_base(paths.iter().map(PathBuf::as_path))?;

    let places = Places::find(ours, &folder.source(), &person)?;
    for patch in &patches {
        match patch {
            Patch::Kept { message, diff } => {
                let file = repository.folder().join(".git/kept.patch");
                std::fs::write(&file, diff)?;
                repository
                    .git([Path::new("apply"), &file])
                    .with_context(|| format!("`{}` does not apply", title(message)))?;
                repository.commit(message)?;
            }
            Patch::Derived(derived) => {
                let message = derived.message();
                for file in &derived.files {
                    let text =
                        derive::text(ours, repository.folder(), file).with_context(|| {
                            format!("in `{}`, {}", title(&message), file.to.display())
                        })?;
                    repository.write(&file.to, &places.fill(&text))?;
                }
                format(tree, folder, repository.folder(), derived)?;
                repository.commit(&message)?;
            }
        }
    }
    let mails = write_mails(ours, &repository, patches.len(), out, &places)?;
    Ok(Series {
        mails,
        paths,
        person,
    })
}

/// Gives the Rust files that are made of ours the format of the kernel.
fn format(tree: &Tree, folder: &BuildFolder, place: &Path, derived: &Derived) -> Result<()> {
    let files: Vec<PathBuf> = derived
        .files
        .iter()
        .filter(|file| file.is_ours() && file.to.extension().is_some_and(|end| end == "rs"))
        .map(|file| place.join(&file.to))
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    let output = tree
        .command("rustfmt")
        .args(["--edition", "2021", "--config-path"])
        .arg(folder.source().join(".rustfmt.toml"))
        .args(&files)
        .output()?;
    ensure!(
        output.status.success(),
        "rustfmt: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The paths of all files that the patches touch, each once.
fn touched(patches: &[Patch]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for patch in patches {
        match patch {
            Patch::Kept { diff, .. } => {
                let names = diff.lines().filter_map(|line| line.strip_prefix("+++ b/"));
                paths.extend(names.map(PathBuf::from));
            }
            Patch::Derived(derived) => {
                paths.extend(derived.files.iter().map(|file| file.to.clone()));
            }
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

fn title(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// What stands in the files of `docs/upstream/` for what is known only now.
struct Places(Vec<(&'static str, String)>);

impl Places {
    fn find(ours: &Path, kernel: &Path, person: &Person) -> Result<Self> {
        let makefile = std::fs::read_to_string(kernel.join("Makefile"))?;
        let number = |name: &str| -> Result<u32> {
            let value = makefile
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('='));
            let value = value.with_context(|| format!("the kernel's Makefile has no {name}"))?;
            Ok(value.trim().parse()?)
        };
        let (version, patch_level) = (number("VERSION")?, number("PATCHLEVEL")?);
        let format = ["log", "-1", "--format=%cd", "--date=format:%B %Y"];
        Ok(Self(vec![
            ("@NAME@", person.name.clone()),
            ("@AUTHOR@", format!("{} <{}>", person.name, person.email)),
            ("@MONTH@", repository::output(ours, &format)?),
            ("@KERNEL@", format!("{version}.{patch_level}")),
            ("@NEXT@", format!("{version}.{}", patch_level + 1)),
        ]))
    }

    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (place, value)| {
            text.replace(place, value)
        })
    }
}

/// Writes the mails, with what `cover.txt` says in the first.
fn write_mails(
    ours: &Path,
    repository: &Repository,
    count: usize,
    out: &Path,
    places: &Places,
) -> Result<Vec<PathBuf>> {
    cache::empty_folder(out)?;
    let output = format!("--output-directory={}", out.display());
    repository.git([
        "format-patch",
        "--quiet",
        "--cover-letter",
        "--no-signature",
        "--no-base",
        "--subject-prefix=PATCH",
        &output,
        &format!("HEAD~{count}"),
    ])?;
    let mut mails = std::fs::read_dir(out)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    mails.sort();

    let cover = std::fs::read_to_string(ours.join("docs/upstream/cover.txt"))?;
    let (subject, text) = cover
        .split_once("\n\n")
        .context("cover.txt begins with a subject and an empty line")?;
    let first = mails.first().context("git made no cover letter")?;
    let letter = std::fs::read_to_string(first)?
        .replace("*** SUBJECT HERE ***", subject)
        .replace("*** BLURB HERE ***", places.fill(text).trim_end());
    std::fs::write(first, letter)?;
    Ok(mails)
}
