// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon on this machine dies at every point, is overrun, and reads what nobody should send it.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;
use rustix::process::Resource;
use rustix::process::getrlimit;

use crate::host_daemon::HostDaemon;
use crate::host_packages;
use crate::host_packages::Needed;
use crate::host_packages::needed;
use crate::progress;
use crate::test::Context;
use crate::test::Test;
use crate::test::skip;

/// The programs of tests that kill the daemon, or have it replaced.
const DEATHS: [&str; 5] = ["points", "kill", "stop", "takeover", "requests"];

/// Those of what a node promises.
const PROMISES: [&str; 4] = ["ends", "notice", "pages", "patience"];

/// Those that measure the daemon as it is shipped.
const SOAK: &str = "soak";
const STRANGERS: &str = "strangers";

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "the daemon may die at any point, and nothing is lost",
        |context| debug(context, "survival", &DEATHS, &[]),
    ),
    Test::new(
        "ten thousand watchers and a hundred changes a second leave no trace",
        |context| shipped(context, "soak", SOAK, &[]),
    ),
    Test::new("nobody pays for a stranger", |context| {
        shipped(context, "strangers", STRANGERS, &[])
    }),
    Test::new("what a node of the daemon promises stays true", promises),
    Test::new("no input makes the daemon's parsers panic", |context| {
        fuzz(context, 8)
    }),
];

/// The same, longer than anybody waits every day.
pub(crate) const LONG_TESTS: &[Test] = &[
    Test::long(
        "the daemon may die a thousand times in each way, and nothing is lost",
        |context| {
            let rounds = [("SYSGENIDD_KILL_ROUNDS", "1000")];
            debug(context, "kill-long", &["kill"], &rounds)
        },
    ),
    Test::long(
        "ten thousand watchers and a hundred changes a second leave no trace in a minute",
        |context| {
            shipped(
                context,
                "soak-long",
                SOAK,
                &[("SYSGENIDD_SOAK_SECONDS", "60")],
            )
        },
    ),
    Test::long(
        "nobody pays for a hundred thousand strangers and as many instances as there may be",
        |context| {
            let instances = instances(getrlimit(Resource::Nofile).maximum).to_string();
            let many = [
                ("SYSGENIDD_STRANGERS", "100000"),
                ("SYSGENIDD_INSTANCES", &instances),
            ];
            shipped(context, "strangers-long", STRANGERS, &many)
        },
    ),
    Test::long(
        "in a hundred thousand histories each restore is a change",
        authority,
    ),
    Test::long(
        "no input makes the daemon's parsers panic in a minute each",
        |context| fuzz(context, 60),
    ),
];

fn promises(context: &Context<'_>) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    host_packages::install(context.cache, &[needed("rsync", "rsync")])?;
    debug(context, "promises", &PROMISES, &[])
}

/// Programs of tests that kill the daemon where it says, and need root.
fn debug(
    context: &Context<'_>,
    log: &str,
    tests: &[&str],
    environment: &[(&str, &str)],
) -> Result<()> {
    let mut options = vec!["--features", "fault-injection"];
    options.extend(tests.iter().flat_map(|test| ["--test", test]));
    on_this_machine(context, log, &options, environment)
}

/// One with the daemon as it is shipped, for its memory and its haste are measured.
fn shipped(
    context: &Context<'_>,
    log: &str,
    test: &str,
    environment: &[(&str, &str)],
) -> Result<()> {
    on_this_machine(context, log, &["--release", "--test", test], environment)
}

fn on_this_machine(
    context: &Context<'_>,
    log: &str,
    options: &[&str],
    environment: &[(&str, &str)],
) -> Result<()> {
    if let Some(reason) = HostDaemon::cannot_run() {
        return skip(reason);
    }
    let mut arguments = vec!["test", "--package", "sysgenidd"];
    arguments.extend(options);
    arguments.extend(["--", "--ignored", "--test-threads=1"]);
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, OsStr::new(*value)))
        .collect();
    context.cargo(log, &arguments, &environment)
}

/// How many instances there may be, unless the configuration says so.
const INSTANCES: u64 = 10_000;

/// How many files the daemon has for an instance at most, and has besides.
const FILES: u64 = 8;
const OTHER_FILES: u64 = 500;

/// As many instances as there may be, and as the limit of open files has room for.
fn instances(limit: Option<u64>) -> u64 {
    let room = limit.map(|limit| limit.saturating_sub(OTHER_FILES) / FILES);
    room.map_or(INSTANCES, |room| room.min(INSTANCES))
}

/// What decides whether there is a change, in a world that errs.
fn authority(context: &Context<'_>) -> Result<()> {
    let tests = "noticing::authority::tests";
    context.cargo(
        "authority",
        &[
            "test",
            "--release",
            "--package",
            "sysgenidd",
            "--lib",
            tests,
        ],
        &[("PROPTEST_CASES", OsStr::new("100000"))],
    )
}

/// The targets of `crates/sysgenidd/fuzz`, each for a bounded time.
const FUZZ_TARGETS: [&str; 5] = ["request", "config", "kmsg", "vmclock", "control"];

/// What `cargo fuzz` would pass on a stable compiler: every branch and comparison reports to the fuzzer.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module \
                          -Cllvm-args=-sanitizer-coverage-level=4 \
                          -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                          -Cllvm-args=-sanitizer-coverage-pc-table \
                          -Cllvm-args=-sanitizer-coverage-trace-compares \
                          --cfg=fuzzing -Ccodegen-units=1";

/// With a target triple, the flags are not for build scripts.
const FUZZ_TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Runs each target for some seconds.
fn fuzz(context: &Context<'_>, seconds: u32) -> Result<()> {
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
                .arg(format!("-max_total_time={seconds}"))
                // What made it fail is told by its log, in hexadecimal.
                .arg(format!("-artifact_prefix={}/", findings.path().display()))
                .arg("-timeout=10")
                .arg(corpus)
                .arg(folder.join("seeds").join(name)),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The programs below a folder of the daemon's.
    fn programs(folder: &str) -> BTreeSet<String> {
        let daemon = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/sysgenidd");
        std::fs::read_dir(daemon.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn each_program_of_tests_is_run_by_one_of_these() {
        // It needs no root: `cargo test` runs it.
        let by_cargo = ["publish_into"];
        let run = DEATHS.iter().chain(&PROMISES).chain([&SOAK, &STRANGERS]);
        let run: BTreeSet<_> = run.chain(&by_cargo).map(ToString::to_string).collect();
        assert_eq!(run, programs("tests"));
        let targets: BTreeSet<_> = FUZZ_TARGETS.iter().map(ToString::to_string).collect();
        assert_eq!(targets, programs("fuzz/fuzz_targets"));
    }

    #[test]
    fn there_are_no_more_instances_than_files_for_them() {
        assert_eq!(instances(None), INSTANCES);
        assert_eq!(instances(Some(131_072)), INSTANCES);
        let few = instances(Some(20_000));
        assert!(few < INSTANCES && few * FILES + OTHER_FILES <= 20_000);
        assert_eq!(instances(Some(100)), 0);
    }
}
