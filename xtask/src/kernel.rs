// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's stock kernel with Rust, and a build folder against which modules for it are built.
//!
//! No kernel is compiled. The headers package lacks the metadata of the kernel's Rust crates, so that
//! is made again from the source package, with the compiler that built the kernel: then the crates'
//! identities match, and the modules load into the stock kernel.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;
use serde::Serialize;

use crate::cache;
use crate::cache::Cache;
use crate::progress;
use crate::tree::BACKPORTS;
use crate::tree::Tree;

/// The package that stands for the newest kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The packages that there is one of for each kernel; among them those in [`OTHER_KINDS`].
const HEADERS_PATTERN: &str = "^linux-headers-[0-9].*-amd64$";

/// What the releases have in their names of kernels that have not been tried.
const OTHER_KINDS: &[&str] = &["-rt-"];

/// For how long the answer to "which kernel is the newest?" is good.
const NEWEST_IS_GOOD_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// One version of the stock kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// The packages' version, as in `7.3.4-1~bpo13+1`.
    pub(crate) package: String,
    /// What `uname -r` prints, as in `7.3.4+deb13-cloud-amd64`.
    pub(crate) release: String,
}

impl Version {
    /// Whether a person may mean this one: by its release, its package version, or the numbers that
    /// either begins with.
    fn is_called(&self, name: &str) -> bool {
        [&self.release, &self.package].iter().any(|full| {
            full.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '-', '~']))
        })
    }
}

/// A kernel that is ready to build modules for and to boot.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// Which one.
    pub(crate) version: Version,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel that was asked for by release or package version, or else the newest.
    pub(crate) fn prepare(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Self> {
        let version = choose(cache, tree, choice)?;
        let kernel = Self::at(cache, version);
        if cache::read_stamp::<Version>(&kernel.stamp()).as_ref() != Some(&kernel.version) {
            kernel.make(cache, tree).with_context(|| {
                format!(
                    "cannot prepare kernel {}; --kernel chooses another",
                    kernel.version.release
                )
            })?;
        }
        Ok(kernel)
    }

    /// Every kernel that earlier runs prepared, the newest first.
    pub(crate) fn prepared(cache: &Cache) -> Result<Vec<Self>> {
        let folder = cache.root().join("kernels");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder)? {
            let stamp = entry?.path().join("stamp");
            let Ok(metadata) = stamp.metadata() else {
                continue;
            };
            if let Some(version) = cache::read_stamp(&stamp) {
                found.push((metadata.modified()?, Self::at(cache, version)));
            }
        }
        found.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
        Ok(found.into_iter().map(|(_, kernel)| kernel).collect())
    }

    fn at(cache: &Cache, version: Version) -> Self {
        Self {
            folder: cache.root().join("kernels").join(&version.release),
            version,
        }
    }

    /// The source, as Debian patched it.
    pub(crate) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// The build folder: what `make -C` is given to build a module.
    pub(crate) fn build(&self) -> PathBuf {
        self.folder.join("build")
    }

    /// The kernel itself.
    pub(crate) fn image(&self) -> PathBuf {
        self.modules().join("vmlinuz")
    }

    /// The stock modules, and the lists about them.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder
            .join("root/usr/lib/modules")
            .join(&self.version.release)
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("stamp")
    }

    /// A `make` in the tree, with what the kernel was built with.
    pub(crate) fn make_command(&self, tree: &Tree) -> Command {
        let mut command = tree.command("make");
        command.args(self.make_arguments());
        command
    }

    /// What `make` must be told to build as the kernel was built.
    pub(crate) fn make_arguments(&self) -> [String; 4] {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        [
            format!("-j{jobs}"),
            "CROSS_COMPILE=x86_64-linux-gnu-".to_owned(),
            "CC=x86_64-linux-gnu-gcc-14".to_owned(),
            format!("KERNELRELEASE={}", self.version.release),
        ]
    }

    fn make(&self, cache: &Cache, tree: &Tree) -> Result<()> {
        let release = &self.version.release;
        cache::empty_folder(&self.folder)?;
        let packages = self.folder.join("packages");
        std::fs::create_dir_all(&packages)?;

        let mut names = vec![format!(
            "{}={}",
            source_package(release)?,
            self.version.package
        )];
        for part in ["headers", "modules", "binary"] {
            names.push(format!("linux-{part}-{release}"));
        }
        progress::run_logged(
            &format!("download kernel {release}"),
            &cache.log("kernel-download")?,
            // `apt-get download` writes to the folder that it is started in.
            tree.command("env")
                .arg("-C")
                .arg(&packages)
                .args(["apt-get", "download", "-o", "APT::Sandbox::User=root"])
                .args(&names),
        )?;
        progress::run_logged(
            "unpack its source, headers and modules",
            &cache.log("kernel-unpack")?,
            tree.command("sh")
                .args(["-c", UNPACK, "unpack"])
                .arg(&self.folder),
        )?;
        self.make_metadata(cache, tree)?;
        std::fs::remove_dir_all(&packages)?;
        cache::write_stamp(&self.stamp(), &self.version)
    }

    /// Makes the metadata of the kernel's Rust crates.
    fn make_metadata(&self, cache: &Cache, tree: &Tree) -> Result<()> {
        let build = self.build();
        let headers = self.folder.join("headers").join("usr/src");
        let headers = headers.join(format!("linux-headers-{}", self.version.release));
        std::fs::create_dir_all(&build)?;
        let stock = headers.join(".config");
        std::fs::copy(&stock, build.join(".config"))
            .with_context(|| format!("cannot copy {}", stock.display()))?;

        let make = || {
            let mut command = self.make_command(tree);
            command.arg("-C").arg(self.source());
            command.arg(format!("O={}", build.display()));
            command
        };
        progress::run_logged(
            "configure it as Debian did",
            &cache.log("kernel-config")?,
            make().arg("olddefconfig"),
        )?;
        let changed = config_changes(&stock, &build.join(".config"))?;
        if !changed.is_empty() {
            bail!(
                "the tree's toolchain is not the one that built kernel {}, its modules would not \
                 load; these settings changed:\n    {}",
                self.version.release,
                changed.join("\n    ")
            );
        }
        progress::run_logged(
            "make the metadata of its Rust crates",
            &cache.log("kernel-metadata")?,
            make().arg("modules_prepare"),
        )?;
        std::fs::copy(headers.join("Module.symvers"), build.join("Module.symvers"))?;
        Ok(())
    }
}

/// Unpacks `packages/` beside it. The source package is a tarball inside a package.
const UNPACK: &str = r#"
set -eux
cd "$1"
mkdir source headers root
dpkg-deb -x packages/linux-source-*.deb packages
tar -xf packages/usr/src/linux-source-*.tar.xz -C source --strip-components=1
dpkg-deb -x packages/linux-headers-*.deb headers
dpkg-deb -x packages/linux-modules-*.deb root
dpkg-deb -x packages/linux-binary-*.deb root
"#;

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
}

/// The version that a choice means.
fn choose(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Version> {
    if let Some(wanted) = &choice.kernel {
        let folder = cache.root().join("kernels").join(wanted);
        if let Some(version) = cache::read_stamp(&folder.join("stamp")) {
            return Ok(version);
        }
        tree.update_package_lists(cache)?;
        let available = available(tree)?;
        return available
            .iter()
            .find(|version| version.is_called(wanted))
            .cloned()
            .with_context(|| {
                let names: Vec<_> = available.iter().map(|v| v.release.as_str()).collect();
                format!(
                    "{BACKPORTS} has no kernel {wanted} with its source; it has {}",
                    names.join(", ")
                )
            });
    }
    let stamp = cache.root().join("newest.stamp");
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
    match (newest(cache, tree), known) {
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

/// The kernel that Debian's meta package stands for.
fn newest(cache: &Cache, tree: &Tree) -> Result<Version> {
    tree.update_package_lists(cache)?;
    let offers = madison(tree, &[META_PACKAGE])?;
    let (_, package) = offers
        .first()
        .with_context(|| format!("{BACKPORTS} has no {META_PACKAGE}"))?;
    let wanted = format!("{META_PACKAGE}={package}");
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

/// The kernels in backports whose source package is there, too, the newest first.
fn available(tree: &Tree) -> Result<Vec<Version>> {
    let found = tree.output("apt-cache", &["search", "--names-only", HEADERS_PATTERN])?;
    let headers: Vec<_> = found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut versions = Vec::new();
    for (name, package) in madison(tree, &headers)? {
        let Some(release) = name.strip_prefix("linux-headers-") else {
            continue;
        };
        if OTHER_KINDS.iter().any(|kind| release.contains(kind)) {
            continue;
        }
        let sources = madison(tree, &[&source_package(release)?])?;
        if sources.iter().any(|(_, version)| *version == package) {
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

/// The names and versions of packages that backports offer, the newest version of each first.
fn madison(tree: &Tree, names: &[&str]) -> Result<Vec<(String, String)>> {
    let table = tree.output("apt-cache", &[&["madison"], names].concat())?;
    let offers = table
        .lines()
        .filter(|line| line.contains(BACKPORTS))
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim);
            Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
        });
    Ok(offers.collect())
}

/// `linux-source-X.Y` for a release `X.Y.Z+…`.
fn source_package(release: &str) -> Result<String> {
    let mut numbers = release.split(['.', '+', '-']);
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok(format!("linux-source-{major}.{minor}")),
        _ => bail!("the kernel release {release} does not begin with two numbers"),
    }
}

/// The settings that differ between two configurations, but for their comments.
fn config_changes(before: &Path, after: &Path) -> Result<Vec<String>> {
    let read = |path: &Path| -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .lines()
            .filter(|line| line.contains("CONFIG_"))
            .map(str::to_owned)
            .collect())
    };
    let (before, after) = (read(before)?, read(after)?);
    let missing = before.iter().filter(|line| !after.contains(line));
    let added = after.iter().filter(|line| !before.contains(line));
    Ok(missing
        .map(|line| format!("-{line}"))
        .chain(added.map(|line| format!("+{line}")))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_called_by_what_its_release_begins_with() {
        let version = Version {
            package: "7.2.12-1~bpo13+1".to_owned(),
            release: "7.2.12+deb13-cloud-amd64".to_owned(),
        };
        for name in [
            "7.2",
            "7.2.12",
            "7.2.12+deb13-cloud-amd64",
            "7.2.12-1~bpo13+1",
        ] {
            assert!(version.is_called(name), "{name}");
        }
        for name in ["7.2.1", "2.12", "7.3"] {
            assert!(!version.is_called(name), "{name}");
        }
    }

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
    fn source_package_is_named_by_the_first_two_numbers() {
        for (release, package) in [
            ("7.3.4+deb13-cloud-amd64", "linux-source-7.3"),
            ("8.0+deb13-cloud-amd64", "linux-source-8.0"),
        ] {
            assert_eq!(source_package(release).unwrap(), package);
        }
        assert!(source_package("7").is_err());
    }

    #[test]
    fn only_changed_settings_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let before = write("before", "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\n");
        let after = write("after", "# another\nCONFIG_A=y\nCONFIG_B=y\n");
        assert_eq!(config_changes(&before, &before).unwrap(), [""; 0]);
        assert_eq!(
            config_changes(&before, &after).unwrap(),
            ["-# CONFIG_B is not set", "+CONFIG_B=y"]
        );
    }
}
