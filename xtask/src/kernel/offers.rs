// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which kernels Debian offers, and which of them is meant.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::arch::Arch;
use crate::cache;
use crate::cache::Cache;
use crate::kernel::Version;
use crate::kernel::bootable_stamp;
use crate::kernel::build_folder;
use crate::kernel::folder;
use crate::tree::BACKPORTS;
use crate::tree::SUITE;
use crate::tree::Tree;

/// What the releases have in their names of kernels that have not been tried.
const OTHER_KINDS: &[&str] = &["-rt-"];

/// For how long the answer to "which kernel is the newest?" is good.
const NEWEST_IS_GOOD_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which kernel is wanted.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// The kernel to use instead of the newest: its release (`uname -r`), or the numbers that it
    /// begins with
    #[arg(long = "kernel", value_name = "RELEASE|VERSION", global = true)]
    pub(crate) kernel: Option<String>,
    /// Look for a newer kernel now, not only once a week
    #[arg(long, global = true)]
    pub(crate) update: bool,
    /// The processor that it is for
    #[arg(skip)]
    pub(crate) arch: Arch,
}

/// What a kernel is wanted for. That decides which ones will do, and which one is meant if none is
/// named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To boot it as it is. The release itself has one, without Rust; those in backports do as well.
    Boot,
    /// To build modules for it: only backports have kernels with Rust.
    Build,
}

impl Purpose {
    /// Where the kernel comes from if none is named.
    fn suite(self) -> &'static str {
        match self {
            Self::Boot => SUITE,
            Self::Build => BACKPORTS,
        }
    }

    /// All the places that have kernels which will do.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Boot => &[SUITE, BACKPORTS],
            Self::Build => &[BACKPORTS],
        }
    }

    /// Where it is written which kernel was the newest.
    fn newest_stamp(self, cache: &Cache, arch: Arch) -> PathBuf {
        cache.root().join(match (self, arch) {
            (Self::Boot, Arch::Amd64) => "newest-to-boot.stamp",
            (Self::Build, Arch::Amd64) => "newest.stamp",
            (Self::Boot, Arch::Arm64) => "newest-to-boot-arm64.stamp",
            (Self::Build, Arch::Arm64) => "newest-arm64.stamp",
        })
    }

    /// What is there of a kernel that is prepared for this.
    fn stamp(self, cache: &Cache, release: &str) -> PathBuf {
        let folder = folder(cache, release);
        match self {
            Self::Boot => bootable_stamp(&folder),
            Self::Build => build_folder::stamp(&folder),
        }
    }
}

/// The version that a choice means.
pub(super) fn choose(
    cache: &Cache,
    tree: &Tree,
    choice: &Choice,
    purpose: Purpose,
) -> Result<Version> {
    if let Some(wanted) = &choice.kernel {
        if let Some(version) = cache::read_stamp(&purpose.stamp(cache, wanted)) {
            return Ok(version);
        }
        tree.update_package_lists(cache)?;
        let available = available(tree, purpose)?;
        return available
            .iter()
            .find(|version| version.is_called(wanted))
            .cloned()
            .with_context(|| {
                let names: Vec<_> = available.iter().map(|v| v.release.as_str()).collect();
                let with_what = match purpose {
                    Purpose::Boot => "",
                    Purpose::Build => " with its source",
                };
                format!(
                    "{} has no kernel {wanted}{with_what}; there are {}",
                    purpose.suites().join(" or "),
                    names.join(", ")
                )
            });
    }
    let stamp = purpose.newest_stamp(cache, tree.arch());
    let known = cache::read_stamp::<Version>(&stamp);
    let is_fresh = stamp
        .metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|age| age < NEWEST_IS_GOOD_FOR));
    if let Some(known) = &known
        && is_fresh
        && !choice.update
    {
        return Ok(known.clone());
    }
    match (newest(cache, tree, purpose), known) {
        (Ok(newest), _) => {
            cache::write_stamp(&stamp, &newest)?;
            Ok(newest)
        }
        (Err(error), Some(known)) => {
            eprintln!(
                "cannot look for a newer kernel, going on with {}: {error:#}",
                known.release
            );
            Ok(known)
        }
        (Err(error), None) => Err(error),
    }
}

/// The package that stands for the newest kernel.
fn meta_package(arch: Arch) -> String {
    format!("linux-image-cloud-{}", arch.debian())
}

/// The kernel that Debian's meta package stands for.
fn newest(cache: &Cache, tree: &Tree, purpose: Purpose) -> Result<Version> {
    tree.update_package_lists(cache)?;
    let suite = purpose.suite();
    let meta_package = meta_package(tree.arch());
    let offers = madison(tree, &[suite], &[&meta_package])?;
    let (_, package) = offers
        .first()
        .with_context(|| format!("{suite} has no {meta_package}"))?;
    let wanted = format!("{meta_package}={package}");
    let depends = tree.output("apt-cache", &["depends", &wanted])?;
    let release = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(|| format!("{wanted} depends on no linux-image-*"))?;
    Ok(Version {
        package: package.clone(),
        release: release.to_owned(),
    })
}

/// The packages that there is one of for each kernel; among them those in [`OTHER_KINDS`].
fn image_pattern(arch: Arch) -> String {
    format!("^linux-image-[0-9].*-{}$", arch.debian())
}

/// The kernels that will do, the newest first. Of those that are to be built for, the source package
/// must be there, too.
fn available(tree: &Tree, purpose: Purpose) -> Result<Vec<Version>> {
    let pattern = image_pattern(tree.arch());
    let found = tree.output("apt-cache", &["search", "--names-only", &pattern])?;
    let images: Vec<_> = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut versions = Vec::new();
    for (name, package) in madison(tree, purpose.suites(), &images)? {
        let Some(release) = name.strip_prefix("linux-image-") else {
            continue;
        };
        if OTHER_KINDS.iter().any(|kind| release.contains(kind)) {
            continue;
        }
        let has_source = || -> Result<bool> {
            let source = source_package(release)?;
            let sources = madison(tree, purpose.suites(), &[&source])?;
            Ok(sources.iter().any(|(_, version)| *version == package))
        };
        if purpose == Purpose::Boot || has_source()? {
            versions.push(Version {
                package,
                release: release.to_owned(),
            });
        }
    }
    versions.sort_by_key(|version| std::cmp::Reverse(rank(&version.release)));
    Ok(versions)
}

/// The order of releases: by their numbers, and of two with the same the cloud kernel, which is the one
/// that is used if nobody asks for another, is the greater.
fn rank(release: &str) -> (Vec<u64>, bool) {
    (numbers(release), release.contains("-cloud-"))
}

/// The numbers in a release.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The names and versions of packages that some suites offer, the newest version of each first.
fn madison(tree: &Tree, suites: &[&str], names: &[&str]) -> Result<Vec<(String, String)>> {
    let table = tree.output("apt-cache", &[&["madison"], names].concat())?;
    Ok(table
        .lines()
        .filter_map(|line| offer(line, suites))
        .collect())
}

/// Name and version from one line of `apt-cache madison`, if one of the suites has it.
fn offer(line: &str, suites: &[&str]) -> Option<(String, String)> {
    let mut cells = line.split('|').map(str::trim);
    let (name, version, source) = (cells.next()?, cells.next()?, cells.next()?);
    // As in `http://deb.example/debian trixie-backports/main amd64 Packages`.
    let (suite, _) = source.split_whitespace().nth(1)?.split_once('/')?;
    suites
        .contains(&suite)
        .then(|| (name.to_owned(), version.to_owned()))
}

/// `linux-source-X.Y` for a release `X.Y.Z+…`.
pub(super) fn source_package(release: &str) -> Result<String> {
    let mut numbers = release.split(['.', '+', '-']);
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok(format!("linux-source-{major}.{minor}")),
        _ => bail!("the kernel release {release} does not begin with two numbers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert!(rank("7.2.12+deb13-cloud-amd64") > rank("7.2.9+deb13-cloud-amd64"));
        assert!(rank("10.0.1+deb13-cloud-amd64") > rank("7.3.4+deb13-cloud-amd64"));
        assert!(rank("7.3.4+deb13-amd64") > rank("7.2.12+deb13-cloud-amd64"));
    }

    #[test]
    fn of_two_kernels_with_the_same_numbers_the_cloud_kernel_comes_first() {
        assert!(rank("7.3.4+deb13-cloud-amd64") > rank("7.3.4+deb13-amd64"));
    }

    #[test]
    fn an_offer_of_backports_is_not_the_releases_own() {
        let line = "linux-image-cloud-amd64 | 7.3.4-1~bpo13+1 | http://deb.example/debian \
                    trixie-backports/main amd64 Packages";
        assert_eq!(offer(line, &["trixie"]), None);
        let wanted = ("linux-image-cloud-amd64", "7.3.4-1~bpo13+1");
        let wanted = Some((wanted.0.to_owned(), wanted.1.to_owned()));
        assert_eq!(offer(line, &["trixie-backports"]), wanted);
    }

    #[test]
    fn source_package_is_named_by_the_first_two_numbers() {
        for (release, package) in [
            ("7.3.4+deb13-cloud-amd64", "linux-source-7.3"),
            ("8.0+deb13-cloud-amd64", "linux-source-8.0"),
        ] {
            assert_eq!(source_package(release).unwrap(), package);
        }
        assert!(source_package("7").is_err());
    }
}
