// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file system that a guest boots into: busybox, our static programs, and the modules.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::cache;
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::modules;
use crate::modules::Modules;
use crate::progress;
use crate::tree::Tree;

/// The package with our own programs, and its binary.
const PROGRAM: &str = "sysgenid-guest";

/// The package with the conformance suite, and its binary.
const SUITE: &str = "sysgenid-conformance";

/// The triple for which they are built: static programs need no libraries in the guest.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The first program: mounts what a system has, then hands over to busybox's init.
const INIT: &str = r"#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
hostname guest
exec /bin/init
";

/// What init keeps running: the agent, and a shell on the console for whoever attaches to it.
const INITTAB: &str = r"
::respawn:/bin/sysgenid-guest agent
ttyS0::respawn:/bin/cttyhack /bin/sh -l
::shutdown:/bin/umount -a -r
";

const PROFILE: &str = r"
export PATH=/bin HOME=/root PS1='guest:\w# '
cd /root
";

/// Packs a file system for a guest. `programs` is the folder from [`build_programs`]; `modules` are left
/// out for a guest without the driver.
pub(crate) fn build(
    cache: &Cache,
    tree: &Tree,
    kernel: &Kernel,
    programs: &Path,
    modules: Option<&Modules>,
) -> Result<PathBuf> {
    let name = if modules.is_some() {
        "initramfs"
    } else {
        "initramfs-without-driver"
    };
    let root = cache.target().join(format!("{name}.d"));
    cache::empty_folder(&root)?;
    for folder in ["bin", "dev", "etc", "proc", "root", "sys"] {
        std::fs::create_dir(root.join(folder))?;
    }
    let bin = root.join("bin");
    std::fs::copy(tree.root().join("bin/busybox"), bin.join("busybox"))
        .context("the tree has no busybox")?;
    std::os::unix::fs::symlink("busybox", bin.join("sh"))?;
    for program in [PROGRAM, SUITE] {
        std::fs::copy(programs.join(program), bin.join(program))
            .with_context(|| format!("cannot copy {program}"))?;
    }
    std::fs::write(root.join("init"), INIT)?;
    std::fs::set_permissions(root.join("init"), PermissionsExt::from_mode(0o755))?;
    std::fs::write(root.join("etc/inittab"), INITTAB)?;
    std::fs::write(root.join("etc/profile"), PROFILE)?;
    if let Some(modules) = modules {
        add_modules(cache, tree, kernel, modules, &root)?;
    }

    let image = cache.target().join(format!("{name}.cpio"));
    progress::run_into(
        &cache.log("initramfs")?,
        tree.command("sh")
            .args(["-ec", PACK, "pack"])
            .args([&root, &image]),
        &mut |_| (),
    )
    .context("cannot pack the guest's file system")?;
    Ok(image)
}

/// Packs the folder $1 into the archive $2, which is there whole or not at all.
const PACK: &str = r#"
cd "$1"
find . -print0 | cpio --null --quiet --create --format=newc --owner=0:0 > "$2.unfinished"
mv "$2.unfinished" "$2"
"#;

/// Puts the modules where `modprobe` looks, with the lists that it needs.
fn add_modules(
    cache: &Cache,
    tree: &Tree,
    kernel: &Kernel,
    modules: &Modules,
    root: &Path,
) -> Result<()> {
    let folder = root.join("lib/modules").join(&kernel.version.release);
    std::fs::create_dir_all(folder.join("updates"))?;
    // Debian makes these lists when the kernel is installed; ours load without them.
    for list in ["modules.builtin", "modules.order"] {
        std::fs::write(folder.join(list), "")?;
    }
    for name in modules::NAMES {
        let target = folder.join("updates").join(format!("{name}.ko"));
        std::fs::copy(modules.file(name), target)?;
    }
    progress::run_into(
        &cache.log("depmod")?,
        tree.command("depmod")
            .arg("--basedir")
            .arg(root)
            .arg(&kernel.version.release),
        &mut |_| (),
    )
    .context("cannot list the modules' dependencies")
}

/// Builds our programs as static ones and returns their folder.
pub(crate) fn build_programs(cache: &Cache) -> Result<PathBuf> {
    // A folder of its own: other flags would make the main one build everything again each time.
    let target = cache.target().join("programs");
    let folder = target.join(TARGET).join("release");
    let build = |package: &str| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(cache.repository())
            .args(["build", "--release", "--target", TARGET])
            .args(["--config", "profile.release.strip=true"])
            .args(["--package", package, "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static");
        progress::run_logged(
            &format!("build {package} for the guest"),
            &cache.log(package)?,
            &mut command,
        )
    };
    build(PROGRAM)?;
    build(SUITE)?;
    Ok(folder)
}
