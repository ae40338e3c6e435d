// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian trixie trees: one with the toolchain that built the stock kernel and with QEMU, and for another
//! processor than this machine's one more of that kind, and one that builds programs.
//!
//! Commands run inside it by `chroot`, each in a mount namespace of its own, so that no mount
//! outlives its command. The cache folder and the checkout have the same paths inside as outside.

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;
use serde::Serialize;

use crate::arch::Arch;
use crate::cache;
use crate::cache::Cache;
use crate::host_packages;
use crate::host_packages::Needed;
use crate::progress;

/// The Debian release whose toolchain built the kernels that we use.
pub(crate) const SUITE: &str = "trixie";

/// The pocket of that release with the kernels that have Rust.
pub(crate) const BACKPORTS: &str = "trixie-backports";

/// What a tree is made of.
struct Recipe {
    /// The name of its folder.
    name: &'static str,
    /// What it is for, as people read it.
    title: &'static str,
    /// Whose programs it is for.
    arch: Arch,
    /// Where packages come from that several have.
    suite: &'static str,
    packages: &'static [&'static str],
}

/// What builds the kernel's metadata and modules, what runs guests, and a `criu` that knows the kernels of
/// today.
const GUESTS: Recipe = Recipe {
    name: "tree",
    title: "make a Debian trixie tree with the kernel's toolchain and QEMU",
    arch: Arch::Amd64,
    suite: SUITE,
    packages: GUESTS_PACKAGES,
};

/// The same for guests with another processor: this machine's programs build for it and emulate it.
const ARM64_GUESTS: Recipe = Recipe {
    name: "tree-arm64",
    title: "make a Debian trixie tree with the kernel's toolchain and QEMU for arm64",
    arch: Arch::Arm64,
    suite: SUITE,
    packages: ARM64_GUESTS_PACKAGES,
};

/// What builds programs for another processor. The compiler of the release itself, which is the kernel's, is
/// too old for ours.
const ARM64_PROGRAMS: Recipe = Recipe {
    name: "tree-arm64-programs",
    title: "make a Debian trixie tree that builds programs for arm64",
    arch: Arch::Arm64,
    suite: BACKPORTS,
    packages: ARM64_PROGRAMS_PACKAGES,
};

/// `openssl` is there because the kernel's configuration asks what it can do.
const GUESTS_PACKAGES: &[&str] = &[
    "gcc-14",
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "openssl",
    "perl",
    "python3",
    "xz-utils",
    "cpio",
    "kmod",
    "pahole",
    "cargo",
    "rustc",
    "rust-src",
    "rustfmt",
    "bindgen",
    "busybox-static",
    "qemu-system-x86",
    "acpica-tools",
    "criu",
];

/// The C library for arm64 is there because the kernel's configuration asks whether programs can be linked.
const ARM64_GUESTS_PACKAGES: &[&str] = &[
    "gcc-14-aarch64-linux-gnu",
    "gcc-14-arm-linux-gnueabihf",
    "libc6-dev-arm64-cross",
    "gcc-14",
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "openssl",
    "perl",
    "python3",
    "xz-utils",
    "cpio",
    "kmod",
    "pahole",
    "rustc",
    "rust-src",
    "bindgen",
    "busybox-static:arm64",
    "qemu-system-arm",
    "device-tree-compiler",
];

const ARM64_PROGRAMS_PACKAGES: &[&str] = &[
    "cargo",
    "rustc",
    "libstd-rust-dev:arm64",
    "gcc",
    "libc6-dev",
    "gcc-14-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
];

/// With what Debian signs its archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Enters the tree. Its arguments: the tree, the cache, the checkout, and the command.
const ENTER: &str = r#"
set -e
tree=$1 cache=$2 repository=$3
shift 3
mkdir -p "$tree$cache" "$tree$repository"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mount --bind "$cache" "$tree$cache"
mount --bind "$repository" "$tree$repository"
exec chroot "$tree" "$@"
"#;

/// Installs packages in the tree.
const INSTALL: &str = r#"
export DEBIAN_FRONTEND=noninteractive
apt-get update -o APT::Sandbox::User=root
apt-get install --yes --no-install-recommends -o APT::Sandbox::User=root "$@"
"#;

/// With what a tree was made.
#[derive(Serialize, Deserialize, PartialEq)]
struct Stamp {
    suite: String,
    packages: Vec<String>,
}

/// A finished tree.
#[derive(Clone)]
pub(crate) struct Tree {
    root: PathBuf,
    arch: Arch,
    cache: PathBuf,
    repository: PathBuf,
}

impl Tree {
    /// Makes the tree for guests like this machine, if it is not there.
    pub(crate) fn prepare(cache: &Cache) -> Result<Self> {
        Self::prepare_for_guests(cache, Arch::Amd64)
    }

    /// Makes the tree for guests with such a processor, if it is not there.
    pub(crate) fn prepare_for_guests(cache: &Cache, arch: Arch) -> Result<Self> {
        let recipe = match arch {
            Arch::Amd64 => &GUESTS,
            Arch::Arm64 => &ARM64_GUESTS,
        };
        Self::prepare_by(cache, recipe)
    }

    /// Makes the tree that builds programs for arm64, if it is not there.
    pub(crate) fn prepare_for_arm64_programs(cache: &Cache) -> Result<Self> {
        Self::prepare_by(cache, &ARM64_PROGRAMS)
    }

    fn prepare_by(cache: &Cache, recipe: &Recipe) -> Result<Self> {
        let tree = Self {
            root: cache.root().join(recipe.name),
            arch: recipe.arch,
            cache: cache.root().to_owned(),
            repository: cache.repository().to_owned(),
        };
        let wanted = Stamp {
            suite: recipe.suite.to_owned(),
            packages: recipe.packages.iter().map(ToString::to_string).collect(),
        };
        let stamp = cache.root().join(format!("{}.stamp", recipe.name));
        require_root()?;
        if cache::read_stamp::<Stamp>(&stamp).as_ref() != Some(&wanted) {
            if stamp.exists() {
                std::fs::remove_file(&stamp)?;
            }
            tree.make(cache, recipe)?;
            cache::write_stamp(&stamp, &wanted)?;
        }
        Ok(tree)
    }

    /// The processor whose programs it is for.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// The folder on the host that is `/` inside.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A command inside the tree. It is killed when this program ends, however it ends.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.enter(&["setpriv", "--pdeathsig", "KILL"]);
        command.arg(program);
        command
    }

    /// A command inside the tree that goes on when this program ends.
    pub(crate) fn lasting_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.enter(&["setsid"]);
        command.arg(program);
        command
    }

    fn enter(&self, wrapper: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(wrapper)
            .args(["sh", "-c", ENTER, "enter"])
            .args([&self.root, &self.cache, &self.repository])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8");
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// What a short command inside the tree prints.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program).args(arguments).output()?;
        if !output.status.success() {
            bail!(
                "{program} {} failed in {}: {}",
                arguments.join(" "),
                self.root.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Installs more packages, for what few runs do. They are called by one name.
    pub(crate) fn add(&self, cache: &Cache, name: &str, packages: &[&str]) -> Result<()> {
        // Inside, so that it goes when the tree does.
        let stamp = self
            .root
            .join("var/lib")
            .join(format!("sysgenid-{name}.stamp"));
        let wanted: Vec<String> = packages.iter().map(ToString::to_string).collect();
        if cache::read_stamp::<Vec<String>>(&stamp).as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.use_the_hosts_resolver();
        progress::run_logged(
            &format!("install {name} in the tree"),
            &cache.log(&format!("tree-{name}"))?,
            self.command("sh")
                .args(["-euxc", INSTALL, "install"])
                .args(packages),
        )?;
        cache::write_stamp(&stamp, &wanted)
    }

    /// The tree has no name resolution of its own.
    fn use_the_hosts_resolver(&self) {
        let _ = std::fs::copy("/etc/resolv.conf", self.root.join("etc/resolv.conf"));
    }

    /// Brings the tree's package lists up to date.
    pub(crate) fn update_package_lists(&self, cache: &Cache) -> Result<()> {
        self.use_the_hosts_resolver();
        progress::run_logged(
            "look for the newest kernel",
            &cache.log("apt-update")?,
            self.command("apt-get")
                .args(["update", "-o", "APT::Sandbox::User=root"]),
        )
    }

    fn make(&self, cache: &Cache, recipe: &Recipe) -> Result<()> {
        host_packages::install(
            cache,
            &[
                Needed {
                    program: "mmdebstrap",
                    package: "mmdebstrap",
                },
                Needed {
                    program: KEYRING,
                    package: "debian-archive-keyring",
                },
            ],
        )?;
        let mirror = mirror()?;
        cache::empty_folder(&self.root)?;
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--mode=root", "--variant=minbase"])
            .arg(format!("--keyring={KEYRING}"))
            .arg(format!("--include={}", recipe.packages.join(",")));
        if recipe.suite != SUITE {
            command.arg(format!(
                "--aptopt=APT::Default-Release \"{}\"",
                recipe.suite
            ));
        }
        let debian = recipe.arch.debian();
        if recipe.arch != Arch::default() {
            let own = Arch::default().debian();
            command.arg(format!("--architectures={own},{debian}"));
        }
        for option in proxy_options()? {
            command.arg(format!("--aptopt={option}"));
        }
        command.arg(SUITE).arg(&self.root).args([
            format!("deb {mirror} {SUITE} main"),
            format!("deb {mirror} {BACKPORTS} main"),
        ]);
        progress::run_logged(recipe.title, &cache.log(recipe.name)?, &mut command)
            .context("is the network there, and does the mirror have trixie? then try again")?;
        if recipe.arch != Arch::default() {
            // All that is downloaded from now on are kernels.
            let configuration = self.root.join("etc/apt/apt.conf.d/99architecture");
            std::fs::write(configuration, format!("APT::Architecture \"{debian}\";\n"))?;
        }
        Ok(())
    }
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "building modules and running guests needs root (chroot, mount, apt-get): run this as \
             root, or run only the part that does not need it: cargo xtask test --no-vm"
        );
    }
    Ok(())
}

/// The Debian mirror that the host uses: apt knows which of its sources say of themselves that they are
/// Debian's. One with the security updates alone has no whole release.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE)", "Origin: Debian"])
        .output()
        .context("cannot start apt-get")?;
    first_mirror(&String::from_utf8_lossy(&output.stdout)).context(
        "apt on this machine has no mirror of Debian's main archive (a source of origin Debian \
         whose URL ends in /debian); add one to its sources and run apt-get update",
    )
}

fn first_mirror(sites: &str) -> Option<String> {
    sites
        .lines()
        .map(|site| site.trim_end_matches('/'))
        .find(|site| site.ends_with("/debian"))
        .map(str::to_owned)
}

/// The host's own way through a proxy, as apt options.
fn proxy_options() -> Result<Vec<String>> {
    let output = Command::new("apt-config")
        .arg("dump")
        .output()
        .context("cannot start apt-config")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| {
            ["Acquire::http::Proxy", "Acquire::https::Proxy"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_not_the_archive_of_security_updates() {
        let sites = "http://deb.example/debian-security\nhttp://deb.example/debian/\n";
        assert_eq!(
            first_mirror(sites).as_deref(),
            Some("http://deb.example/debian")
        );
        assert_eq!(first_mirror("http://deb.example/debian-security\n"), None);
    }
}
