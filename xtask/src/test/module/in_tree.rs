// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel's own compiler and build system say.

use std::path::PathBuf;

use anyhow::Result;

use crate::progress;
use crate::test::Context;
use crate::test::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the core builds with the kernel's compiler", core_builds),
    Test::new(
        "the folder builds inside the kernel's source",
        builds_in_tree,
    ),
    Test::new(
        "a copy of the folder builds outside the kernel's source",
        builds_out_of_tree,
    ),
];

fn core_builds(context: &Context<'_>) -> Result<()> {
    let tree = &context.environment()?.tree;
    let source = context.cache.repository().join("crates/sysgenid-core/src");
    progress::run_logged(
        "compile the core as the kernel does",
        &context.cache.log("core")?,
        tree.command("rustc")
            .args(["--edition", "2021", "--crate-type", "lib"])
            .args(["--crate-name", "sysgenid_core", "-D", "warnings"])
            .arg("--out-dir")
            .arg(context.cache.target().join("core"))
            .arg(source.join("lib.rs")),
    )
}

/// Builds the folder at its place in the kernel's source. Source and build folder are overlaid, so
/// that they keep their paths (else everything would be built again) and nothing in them changes.
const BUILD_IN_TREE: &str = r#"
set -eux
source=$1 build=$2 ours=$3
shift 3
scratch=/mnt
mount -t tmpfs -o size=4g tmpfs "$scratch"
for name in source build; do
    eval "folder=\$$name"
    mkdir -p "$scratch/$name" "$scratch/$name.work"
    mount -t overlay overlay -o \
        "lowerdir=$folder,upperdir=$scratch/$name,workdir=$scratch/$name.work" "$folder"
done
cp -rL "$ours" "$source/drivers/virt/sysgenid"
echo 'obj-$(CONFIG_SYSGENID) += sysgenid/' >> "$source/drivers/virt/Makefile"
sed -i '/^endif/i source "drivers/virt/sysgenid/Kconfig"' "$source/drivers/virt/Kconfig"
cd "$source"
for option in SYSGENID SYSGENID_VMFORK SYSGENID_ACPI; do
    scripts/config --file "$build/.config" --module "$option"
done
"$@" -C "$source" "O=$build" olddefconfig
for option in SYSGENID SYSGENID_VMFORK SYSGENID_ACPI; do
    grep "^CONFIG_$option=m" "$build/.config"
done
"$@" -C "$source" "O=$build" drivers/virt/sysgenid/
ls "$build"/drivers/virt/sysgenid/sysgenid.o "$build"/drivers/virt/sysgenid/sysgenid_vmfork.o \
    "$build"/drivers/virt/sysgenid/sysgenid_acpi.o
"#;

fn builds_in_tree(context: &Context<'_>) -> Result<()> {
    let folder = &context.environment()?.modules()?.build_folder;
    run(
        context,
        "build drivers/virt/sysgenid/",
        "in-tree",
        BUILD_IN_TREE,
        &[folder.source(), folder.build()],
    )
}

/// Builds a copy of the folder where it lies, without a folder of its own for the results, as whoever
/// packs it would.
const BUILD_OUT_OF_TREE: &str = r#"
set -eux
build=$1 ours=$2
shift 2
mount -t tmpfs -o size=1g tmpfs /mnt
cp -rL "$ours" /mnt/sysgenid
"$@" -C "$build" M=/mnt/sysgenid modules
cd /mnt/sysgenid
ls sysgenid.ko sysgenid_vmfork.ko sysgenid_acpi.ko
"#;

fn builds_out_of_tree(context: &Context<'_>) -> Result<()> {
    let folder = &context.environment()?.modules()?.build_folder;
    run(
        context,
        "build a copy of kernel/",
        "out-of-tree",
        BUILD_OUT_OF_TREE,
        &[folder.build()],
    )
}

/// Runs a script in the tree. Its arguments are some folders of the kernel's, our own folder, and a
/// `make` with what it must be told.
fn run(
    context: &Context<'_>,
    title: &str,
    log: &str,
    script: &str,
    folders: &[PathBuf],
) -> Result<()> {
    let environment = context.environment()?;
    progress::run_logged(
        title,
        &context.cache.log(log)?,
        environment
            .tree
            .command("sh")
            .args(["-c", script, "build"])
            .args(folders)
            .arg(context.cache.repository().join("kernel"))
            .arg("make")
            .args(environment.modules()?.build_folder.make_arguments()),
    )
}
