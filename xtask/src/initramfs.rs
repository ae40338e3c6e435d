// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file system that a guest boots into: busybox, our static programs, and modules.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::cache;
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::modules::Modules;
use crate::programs;
use crate::programs::Programs;
use crate::progress;
use crate::tree::Tree;

/// The kernel's own modules that guests may load, where the kernel has them and not built in, with all that
/// they need.
const STOCK_MODULES: &[&str] = &[
    "ptp_vmclock",
    "virtio_blk",
    "wireguard",
    "ip6_udp_tunnel",
    "libchacha",
    "libchacha20poly1305",
    "libcurve25519",
    "libpoly1305",
    "udp_tunnel",
];

/// The first program: mounts what a system has, then hands over to busybox's init. A machine with a disk goes on from
/// what was hibernated to it, if there is that, and the rest is not run.
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
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest
if grep -qx 0x0002 /sys/bus/virtio/devices/*/device; then
    modprobe virtio_blk
    cat /sys/class/block/vda/dev > /sys/power/resume
fi
exec /bin/init
";

/// What init keeps running: the agent, and a shell on the console for whoever attaches to it.
fn inittab(console: &str) -> String {
    format!(
        "
::respawn:/bin/sysgenid-guest agent
{console}::respawn:/bin/cttyhack /bin/sh -l
::shutdown:/bin/umount -a -r
"
    )
}

const PROFILE: &str = r"
export PATH=/bin HOME=/root PS1='guest:\w# '
cd /root
";

/// Packs a file system for a guest; `modules` are left out for a guest without the driver.
pub(crate) fn build(
    cache: &Cache,
    tree: &Tree,
    kernel: &Kernel,
    programs: &Programs,
    modules: Option<&Modules>,
) -> Result<PathBuf> {
    let release = &kernel.version.release;
    let name = match modules {
        Some(_) => format!("initramfs-{release}"),
        None => format!("initramfs-{release}-without-driver"),
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
    for program in programs::NAMES {
        std::fs::copy(programs.file(program), bin.join(program))
            .with_context(|| format!("cannot copy {program}"))?;
    }
    std::fs::write(root.join("init"), INIT)?;
    std::fs::set_permissions(root.join("init"), PermissionsExt::from_mode(0o755))?;
    std::fs::write(root.join("etc/inittab"), inittab(tree.arch().console()))?;
    std::fs::write(root.join("etc/profile"), PROFILE)?;
    add_modules(cache, tree, kernel, modules, &root)?;

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

/// Puts modules, ours and the kernel's own, where `modprobe` looks, with the lists that it needs.
fn add_modules(
    cache: &Cache,
    tree: &Tree,
    kernel: &Kernel,
    modules: Option<&Modules>,
    root: &Path,
) -> Result<()> {
    let folder = root.join("lib/modules").join(&kernel.version.release);
    for part in ["updates", "kernel"] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    // Debian makes these lists when the kernel is installed; the modules load without them.
    for list in ["modules.builtin", "modules.order"] {
        std::fs::write(folder.join(list), "")?;
    }
    if let Some(modules) = modules {
        for file in modules.files() {
            let name = file.file_name().context("a module has a name")?;
            std::fs::copy(&file, folder.join("updates").join(name))?;
        }
    }
    for name in STOCK_MODULES {
        progress::run_into(
            &cache.log("stock-modules")?,
            tree.command("sh")
                .args(["-ec", UNPACK_MODULE, "unpack"])
                .args([kernel.modules(), folder.join("kernel")])
                .arg(name),
            &mut |_| (),
        )
        .with_context(|| format!("cannot unpack the kernel's module {name}"))?;
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

/// Puts the module $3, if $1 has it, uncompressed into the folder $2.
const UNPACK_MODULE: &str = r#"
find "$1" -name "$3.ko.xz" -exec xz --decompress --stdout {} \; > "$2/$3.ko"
test -s "$2/$3.ko" || rm "$2/$3.ko"
"#;
