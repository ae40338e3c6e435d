// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon on this machine dies at every point, is overrun, and reads what nobody should send it.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;

use crate::host_daemon::HostDaemon;
use crate::host_packages;
use crate::host_packages::Needed;
use crate::progress;
use crate::test::Context;
use crate::test::Test;
use crate::test::skip;

pub(crate) const TESTS: &[Test] = &[
    Test::new("the daemon may die at any point, and nothing is lost", die),
    Test::new(
        "ten thousand watchers and a hundred changes a second leave no trace",
        soak,
    ),
    Test::new("no input makes the daemon's parsers panic", fuzz),
];

fn die(context: &Context<'_>) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    context.cargo(
        "survival",
        &[
            "test",
            "--package",
            "sysgenidd",
            "--features",
            "fault-injection",
            "--test",
            "points",
            "--test",
            "kill",
            "--test",
            "stop",
            "--test",
            "takeover",
            "--",
            "--ignored",
            "--test-threads=1",
        ],
        &[],
    )
}

/// With the program as it is shipped, for its memory is measured.
fn soak(context: &Context<'_>) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    context.cargo(
        "soak",
        &[
            "test",
            "--release",
            "--package",
            "sysgenidd",
            "--test",
            "soak",
            "--",
            "--ignored",
        ],
        &[],
    )
}

/// The targets of `crates/sysgenidd/fuzz`, each for a bounded time.
const FUZZ_TARGETS: [&str; 5] = ["request", "config", "kmsg", "vmclock", "control"];

/// How long each target runs, in seconds.
const FUZZ_SECONDS: u32 = 8;

/// What `cargo fuzz` would pass on a stable compiler: every branch and comparison reports to the fuzzer.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module \
                          -Cllvm-args=-sanitizer-coverage-level=4 \
                          -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                          -Cllvm-args=-sanitizer-coverage-pc-table \
                          -Cllvm-args=-sanitizer-coverage-trace-compares \
                          --cfg=fuzzing -Ccodegen-units=1";

/// With a target triple, the flags are not for build scripts.
const FUZZ_TRIPLE: &str = "x86_64-unknown-linux-gnu";

fn fuzz(context: &Context<'_>) -> Result<()> {
    host_packages::install(
        context.cache,
        &[Needed {
            program: "c++",
            package: "g++",
        }],
    )?;
    let folder = context.cache.repository().join("crates/sysgenidd/fuzz");
    let target = context.cache.target().join("fuzz");
    let manifest = folder.join("Cargo.toml");
    context.cargo(
        "build-fuzz",
        &[
            "build",
            "--release",
            "--bins",
            "--locked",
            "--target",
            FUZZ_TRIPLE,
            "--manifest-path",
            &manifest.to_string_lossy(),
            "--target-dir",
            &target.to_string_lossy(),
        ],
        &[("RUSTFLAGS", OsStr::new(FUZZ_FLAGS))],
    )?;
    let findings = context.cache.temporary_folder()?;
    for name in FUZZ_TARGETS {
        let corpus = findings.path().join(name);
        std::fs::create_dir(&corpus)?;
        progress::run_logged(
            &format!("fuzz {name}"),
            &context.cache.log(&format!("fuzz-{name}"))?,
            Command::new(target.join(FUZZ_TRIPLE).join("release").join(name))
                .arg(format!("-max_total_time={FUZZ_SECONDS}"))
                // What made it fail is told by its log, in hexadecimal.
                .arg(format!("-artifact_prefix={}/", findings.path().display()))
                .arg("-timeout=10")
                .arg(corpus)
                .arg(folder.join("seeds").join(name)),
        )?;
    }
    Ok(())
}
