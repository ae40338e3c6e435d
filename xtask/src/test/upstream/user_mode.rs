// SPDX-License-Identifier: MIT OR Apache-2.0

//! The series in a user-mode kernel: the KUnit tests of the core, the selftest, and the conformance suite on the one
//! node that it has. A kernel that looks for mistakes in locks and in Rust's arithmetic.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::progress;
use crate::progress::Step;
use crate::series;
use crate::test::Context;
use crate::test::guest;

/// The suites of KUnit that must have run.
const SUITES: [&str; 5] = [
    "sysgenid_abi",
    "sysgenid_generation",
    "sysgenid_history",
    "sysgenid_registry",
    "sysgenid_timeout",
];

/// How long the kernel may take for all that is run on it.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The first program: the selftest, then the suite.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /run /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
/lib/sysgenid_test
echo "selftest ended with $?"
poweroff -f
"#;

/// Builds a kernel and the selftest from the source $1 with the files of the series $2, in the folder $3, with the
/// settings $4.
const BUILD: &str = r#"
set -eux
source=$1 files=$2 out=$3 settings=$4
shift 4
mount -t tmpfs -o size=1g tmpfs /mnt
mkdir /mnt/source /mnt/work
mount -t overlay overlay -o "lowerdir=$source,upperdir=/mnt/source,workdir=/mnt/work" "$source"
cd "$files"
find . -path ./.git -prune -o -type f -print0 | cpio --null --quiet --pass-through --make-directories "$source"
mkdir -p "$out"
cd "$source"
"$@" ARCH=um "O=$out" "KCONFIG_ALLCONFIG=$settings" allnoconfig
for option in RUST KUNIT SYSGENID SYSGENID_KUNIT_TEST; do
    grep "^CONFIG_$option=y" "$out/.config"
done
"$@" ARCH=um "O=$out" linux headers_install
"$@" -C tools/testing/selftests/sysgenid "OUTPUT=$out" "KHDR_INCLUDES=-isystem $out/usr/include" \
    LDFLAGS=-static
"#;

pub(super) fn tests_pass(context: &Context<'_>) -> Result<()> {
    let environment = context.environment()?;
    let folder = &environment.modules()?.build_folder;
    let files = series::files(context.cache, &environment.tree, folder)?;
    let place = context.cache.repository().join("target/series/user-mode");
    std::fs::create_dir_all(&place)?;
    let settings = place.join("settings");
    std::fs::write(&settings, include_str!("uml.config"))?;
    let out = place.join("build");
    progress::run_logged(
        "build a user-mode kernel with the series",
        &context.cache.log("series-user-mode")?,
        environment
            .tree
            .command("sh")
            .args(["-c", BUILD, "build"])
            .args([&folder.source(), &files, &out, &settings])
            .arg("make")
            .args(folder.make_arguments()),
    )?;

    let initramfs = place.join("initramfs");
    pack(context, &place, &initramfs)?;
    let log = place.join("log");
    let text = boot(context, &out.join("linux"), &initramfs, &log)?;
    guest::check_log(&text)?;
    for suite in SUITES {
        ensure!(
            text.lines().any(|line| {
                line.split_once("] ")
                    .is_some_and(|(_, line)| line.starts_with("ok ") && line.ends_with(suite))
            }),
            "the tests {suite} did not pass; see {}",
            log.display()
        );
    }
    ensure!(
        text.contains("selftest ended with 0"),
        "the selftest did not pass; {}",
        progress::last_lines(&log)
    );
    Ok(())
}

/// The file system of the usual guests, with the selftest and another first program.
fn pack(context: &Context<'_>, place: &Path, initramfs: &Path) -> Result<()> {
    let environment = context.environment()?;
    std::fs::create_dir_all(place.join("root/lib"))?;
    std::fs::copy(
        place.join("build/sysgenid_test"),
        place.join("root/lib/sysgenid_test"),
    )?;
    let init = place.join("root/init");
    std::fs::write(&init, INIT)?;
    std::fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut archives = std::fs::read(environment.machine().initramfs)?;
    archives.extend(super::pack(&environment.tree, &place.join("root"))?);
    File::create(initramfs)?.write_all(&archives)?;
    Ok(())
}

/// Runs the kernel to its end and returns what it printed.
fn boot(context: &Context<'_>, kernel: &Path, initramfs: &Path, log: &Path) -> Result<String> {
    let step = Step::start("run the tests on it");
    let folder = context.cache.temporary_folder()?;
    let output = File::create(log)?;
    let mut child = context
        .environment()?
        .tree
        .command(kernel)
        .args([
            "mem=512M",
            "con=null",
            "con0=null,fd:1",
            "console=tty0",
            "loglevel=7",
        ])
        .arg(format!("initrd={}", initramfs.display()))
        .arg(format!("uml_dir={}", folder.path().display()))
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start the kernel")?;
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            step.failed();
            bail!("the kernel did not end; {}", progress::last_lines(log));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    step.done();
    Ok(String::from_utf8_lossy(&std::fs::read(log)?).into_owned())
}
