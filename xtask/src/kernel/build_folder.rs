// SPDX-License-Identifier: MIT OR Apache-2.0

//! A build folder against which modules for a stock kernel are built.
//!
//! The headers package lacks the metadata of the kernel's Rust crates, so that is made again from the
//! source package, with the compiler that built the kernel: then the crates' identities match, and the
//! modules load into the stock kernel.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::arch::Arch;
use crate::cache;
use crate::cache::Cache;
use crate::kernel::Choice;
use crate::kernel::Kernel;
use crate::kernel::Version;
use crate::kernel::offers;
use crate::kernel::offers::Purpose;
use crate::kernel::offers::source_package;
use crate::progress;
use crate::tree::Tree;

/// A kernel that is ready to build modules for, and to boot.
#[derive(Clone)]
pub(crate) struct BuildFolder {
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// What it was built with.
    pub(crate) toolchain: Toolchain,
}

/// What builds a kernel and its modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The compiler that Debian builds its kernels with.
    Debian,
    /// Clang, which is what the address sanitizer wants beside Rust.
    Clang,
    /// The same, with the thread sanitizer in Rust code as well.
    ClangThreadSanitizer,
}

impl BuildFolder {
    /// For the kernel that was asked for by release or package version, or else for the newest.
    pub(crate) fn prepare(cache: &Cache, tree: &Tree, choice: &Choice) -> Result<Self> {
        let version = offers::choose(cache, tree, choice, Purpose::Build)?;
        let kernel = Kernel::prepare_version(cache, tree, version)?;
        let folder = Self {
            kernel,
            toolchain: Toolchain::Debian,
        };
        let stamp = stamp(&folder.kernel.folder);
        let version = &folder.kernel.version;
        if cache::read_stamp::<Version>(&stamp).as_ref() != Some(version) {
            folder.make(cache, tree).with_context(|| {
                format!(
                    "cannot prepare kernel {}; --kernel chooses another",
                    version.release
                )
            })?;
            cache::write_stamp(&stamp, version)?;
        }
        Ok(folder)
    }

    /// Every one that earlier runs prepared for such a processor, the newest first.
    pub(crate) fn prepared(cache: &Cache, arch: Arch) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(cache.root().join("kernels"))? {
            let folder = entry?.path();
            let stamp = stamp(&folder);
            let Ok(metadata) = stamp.metadata() else {
                continue;
            };
            let Some(version) = cache::read_stamp::<Version>(&stamp) else {
                continue;
            };
            if Arch::of_release(&version.release) == arch {
                let kernel = Kernel::at(cache, version);
                let toolchain = Toolchain::Debian;
                found.push((metadata.modified()?, Self { kernel, toolchain }));
            }
        }
        found.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
        Ok(found.into_iter().map(|(_, folder)| folder).collect())
    }

    /// The source, as Debian patched it.
    pub(crate) fn source(&self) -> PathBuf {
        self.kernel.folder.join("source")
    }

    /// What `make -C` is given to build a module.
    pub(crate) fn build(&self) -> PathBuf {
        self.kernel.folder.join("build")
    }

    /// A `make` in the tree, with what the kernel was built with.
    pub(crate) fn make_command(&self, tree: &Tree) -> Command {
        let mut command = match self.toolchain {
            Toolchain::Debian | Toolchain::Clang => tree.command("make"),
            Toolchain::ClangThreadSanitizer => {
                let mut command = tree.command("sh");
                command.args(["-ec", WITH_THREAD_SANITIZER, "make"]);
                command.arg(self.source());
                command
            }
        };
        command.args(self.make_arguments());
        command
    }

    /// What `make` must be told to build as the kernel was built.
    pub(crate) fn make_arguments(&self) -> Vec<String> {
        let release = &self.kernel.version.release;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut arguments = vec![format!("-j{jobs}"), format!("KERNELRELEASE={release}")];
        match self.toolchain {
            Toolchain::Debian => {
                let of_processor = Arch::of_release(release).make_arguments();
                arguments.extend(of_processor.iter().map(ToString::to_string));
            }
            Toolchain::Clang => arguments.push("LLVM=1".to_owned()),
            Toolchain::ClangThreadSanitizer => arguments.extend([
                "LLVM=1".to_owned(),
                format!("KRUSTFLAGS={THREAD_SANITIZER}"),
            ]),
        }
        arguments
    }

    fn make(&self, cache: &Cache, tree: &Tree) -> Result<()> {
        let Version { release, package } = &self.kernel.version;
        let source = format!("{}={package}", source_package(release)?);
        let headers = format!("linux-headers-{release}={package}");
        self.kernel.download(cache, tree, "headers", &[&headers])?;
        self.kernel
            .download(cache, tree, SOURCE_PACKAGE, &[&source])?;
        cache::empty_folder(&self.source())?;
        progress::run_logged(
            "unpack its source",
            &cache.log("kernel-unpack")?,
            tree.command("sh")
                .args(["-euxc", UNPACK, "unpack"])
                .args([self.kernel.folder.join(SOURCE_PACKAGE), self.source()]),
        )?;
        self.make_metadata(cache, tree)
    }

    /// Makes the metadata of the kernel's Rust crates.
    fn make_metadata(&self, cache: &Cache, tree: &Tree) -> Result<()> {
        let build = self.build();
        let release = &self.kernel.version.release;
        let headers = self.kernel.folder.join("headers").join("usr/src");
        let headers = headers.join(format!("linux-headers-{release}"));
        cache::empty_folder(&build)?;
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
                "the tree's toolchain is not the one that built kernel {release}, its modules would \
                 not load; these settings changed:\n    {}",
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

/// Has the compiler tell the kernel's race detector of each access that Rust code makes: what `scripts/Makefile.kcsan`
/// says to the compiler of C code, which is all that the kernel itself thinks of.
const THREAD_SANITIZER: &str = "-Zsanitizer=thread -Cllvm-args=-tsan-distinguish-volatile=1 \
     -Cllvm-args=-tsan-compound-read-before-write=1 -Cllvm-args=-tsan-instrument-func-entry-exit=0";

/// Runs `make` where the source $1 permits that: its description of the machine to the compiler lists which
/// sanitizers there are. The source itself is shared and stays as it is.
const WITH_THREAD_SANITIZER: &str = r#"
file=$1/scripts/generate_rust_target.rs
shift
scratch=$(mktemp)
sed 's/"kernel-address"\]/"kernel-address", "thread"]/' "$file" > "$scratch"
if cmp -s "$file" "$scratch"; then
    echo "this kernel lists its sanitizers in another way; correct WITH_THREAD_SANITIZER" >&2
    exit 1
fi
touch -r "$file" "$scratch"
mount --bind "$scratch" "$file"
rm "$scratch"
exec make "$@"
"#;

/// What is there once modules can be built for the kernel in a folder.
pub(super) fn stamp(folder: &Path) -> PathBuf {
    folder.join("stamp")
}

/// The folder of the kernel's for the source package, while it is unpacked.
const SOURCE_PACKAGE: &str = "source-package";

/// Unpacks the tarball that the source package $1 has in it, to $2.
const UNPACK: &str = r#"
tar -xf "$1"/usr/src/linux-source-*.tar.xz -C "$2" --strip-components=1
rm -r "$1"
"#;

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
