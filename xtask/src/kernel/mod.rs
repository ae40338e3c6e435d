// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's stock kernels.
//!
//! None is compiled: a [`Kernel`] is unpacked from its packages and boots as it is. A [`BuildFolder`]
//! is more than that, and only kernels with Rust can have one: modules are built against it.

mod build_folder;
pub(crate) mod debug;
mod offers;

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::cache;
use crate::cache::Cache;
use crate::progress;
use crate::tree::Tree;

pub(crate) use crate::kernel::build_folder::BuildFolder;
use crate::kernel::build_folder::Toolchain;
pub(crate) use crate::kernel::offers::Choice;
use crate::kernel::offers::Purpose;

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

/// A kernel that is ready to boot.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// Which one.
    pub(crate) version: Version,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel that was asked for by release or package version, or else the one that the release
    /// itself has. It needs no Rust.
    pub(crate) fn prepare(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Self> {
        let version = offers::choose(cache, tree, choice, Purpose::Boot)?;
        Self::prepare_version(cache, tree, version)
    }

    fn prepare_version(cache: &Cache, tree: &Tree, version: Version) -> Result<Self> {
        let kernel = Self::at(cache, version);
        let stamp = bootable_stamp(&kernel.folder);
        if cache::read_stamp::<Version>(&stamp).as_ref() != Some(&kernel.version) {
            kernel.make(cache, tree).with_context(|| {
                format!(
                    "cannot prepare kernel {}; --kernel chooses another",
                    kernel.version.release
                )
            })?;
            cache::write_stamp(&stamp, &kernel.version)?;
        }
        Ok(kernel)
    }

    fn at(cache: &Cache, version: Version) -> Self {
        Self {
            folder: folder(cache, &version.release),
            version,
        }
    }

    /// The kernel itself.
    pub(crate) fn image(&self) -> PathBuf {
        self.modules().join("vmlinuz")
    }

    /// The stock modules, as they are packed: compressed, and without the lists about them that an
    /// installation makes.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder
            .join("root/usr/lib/modules")
            .join(&self.version.release)
    }

    fn make(&self, cache: &Cache, tree: &Tree) -> Result<()> {
        let packages = self.packages(tree)?;
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        self.download(cache, tree, "root", &names)?;
        // Until some version the image lay in /boot; later ones have it beside the modules.
        let image = self
            .folder
            .join("root/boot")
            .join(format!("vmlinuz-{}", self.version.release));
        if image.exists() {
            std::fs::rename(&image, self.image())?;
        }
        let image = self.image();
        image
            .metadata()
            .with_context(|| format!("the kernel's packages have no {}", image.display()))?;
        Ok(())
    }

    /// The packages with the image and its modules: all of them bear its release.
    fn packages(&self, tree: &Tree) -> Result<Vec<String>> {
        let release = &self.version.release;
        let wanted = format!("linux-image-{release}={}", self.version.package);
        let depends = tree.output("apt-cache", &["depends", &wanted])?;
        let parts = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.ends_with(release.as_str()))
            .map(|name| format!("{name}={}", self.version.package));
        Ok(std::iter::once(wanted.clone()).chain(parts).collect())
    }

    /// Downloads packages and unpacks them into one folder of the kernel's, which has nothing else in
    /// it then.
    fn download(&self, cache: &Cache, tree: &Tree, name: &str, packages: &[&str]) -> Result<()> {
        let folder = self.folder.join(name);
        cache::empty_folder(&folder)?;
        progress::run_logged(
            &format!("download kernel {} ({name})", self.version.release),
            &cache.log(&format!("kernel-download-{name}"))?,
            tree.command("sh")
                .args(["-euxc", DOWNLOAD, "download"])
                .arg(&folder)
                .args(packages),
        )
    }
}

/// Downloads packages and unpacks them into the folder $1. `apt-get download` writes to the folder that
/// it is started in.
const DOWNLOAD: &str = r#"
cd "$1"
shift
mkdir packages
(cd packages && apt-get download -o APT::Sandbox::User=root "$@")
for package in packages/*.deb; do
    dpkg-deb -x "$package" .
done
rm -r packages
"#;

/// Where the kernel with this release is.
fn folder(cache: &Cache, release: &str) -> PathBuf {
    cache.root().join("kernels").join(release)
}

/// What is there once the kernel in a folder can be booted.
fn bootable_stamp(folder: &Path) -> PathBuf {
    folder.join("bootable.stamp")
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
}
