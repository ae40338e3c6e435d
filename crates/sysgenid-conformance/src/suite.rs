// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the cases, each in a process of its own, and reports them as TAP.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process_group, set_child_subreaper, setpgid, waitpgid,
};

use crate::cases::Case;
use crate::node::{self, Node};
use crate::outcome::{Failure, Outcome, fail};
use crate::process::Process;

/// How long the processes of a case may take to die once they are killed.
const DEATH: Duration = Duration::from_secs(10);

/// How many cases came to what, in the terms of the kernel's self tests.
#[derive(Debug, Default)]
struct Totals {
    passed: usize,
    failed: usize,
    known_failures: usize,
    unexpected_passes: usize,
    skipped: usize,
}

/// Runs `cases` against `node` and reports on standard output. Returns whether none failed.
///
/// # Errors
///
/// If the node cannot be examined at all, or standard output fails.
pub(crate) fn run(
    node: &Node,
    cases: &[&Case],
    known_failures: &[String],
    time_limit: Duration,
) -> anyhow::Result<bool> {
    // The suite inherits what its cases leave behind, to see it die.
    set_child_subreaper(Some(getpid())).context("becoming the reaper of the cases")?;
    // A case reports its own panic.
    std::panic::set_hook(Box::new(|_| {}));

    if let Err(Failure::Skip(why) | Failure::Fail(why)) = confined(time_limit, || node::probe(node))
    {
        bail!("{why}");
    }

    let mut totals = Totals::default();
    say(&format!("TAP version 13\n1..{}\n", cases.len()))?;
    for (number, case) in (1..).zip(cases) {
        let started = Instant::now();
        let outcome = confined(time_limit, || (case.run)(node));
        let known = known_failures.iter().any(|name| name == case.name);
        let mut report = totals.add(number, case.name, &outcome, known);
        let took = started.elapsed();
        if took > Duration::from_secs(3) {
            report.push_str(&format!("# took {:.1} s\n", took.as_secs_f64()));
        }
        say(&report)?;
    }
    say(&totals.report())?;
    Ok(totals.failed == 0)
}

impl Totals {
    /// Takes note of a case, and returns its lines.
    fn add(&mut self, number: usize, name: &str, outcome: &Outcome, known: bool) -> String {
        let directive = if known { " # TODO known limit" } else { "" };
        match outcome {
            Ok(()) => {
                if known {
                    self.unexpected_passes += 1;
                } else {
                    self.passed += 1;
                }
                format!("ok {number} - {name}{directive}\n")
            }
            Err(Failure::Skip(why)) => {
                self.skipped += 1;
                format!("ok {number} - {name} # SKIP {}\n", why.replace('\n', " "))
            }
            Err(Failure::Fail(why)) => {
                if known {
                    self.known_failures += 1;
                } else {
                    self.failed += 1;
                }
                let mut lines = format!("not ok {number} - {name}{directive}\n");
                for line in why.lines() {
                    lines.push_str(&format!("# {line}\n"));
                }
                lines
            }
        }
    }

    fn report(&self) -> String {
        let Self {
            passed,
            failed,
            known_failures,
            unexpected_passes,
            skipped,
        } = self;
        let mut report = format!(
            "# Totals: pass:{passed} fail:{failed} xfail:{known_failures} xpass:{unexpected_passes} \
             skip:{skipped} error:0\n"
        );
        report.push_str(&format!(
            "{} passed, {failed} failed, {skipped} skipped",
            passed + unexpected_passes
        ));
        if *known_failures > 0 {
            report.push_str(&format!(", {known_failures} known to fail"));
        }
        report.push('\n');
        report
    }
}

/// Runs `body` in a process group of its own, for no longer than `time_limit`, and leaves nothing of
/// it behind.
///
/// What cannot be killed is reported and left: the suite goes on without it.
fn confined(time_limit: Duration, body: impl FnOnce() -> Outcome) -> Outcome {
    let process = Process::spawn(|| {
        setpgid(None, None)?;
        body()
    })?;
    let outcome = process
        .outcome(time_limit)
        .unwrap_or_else(|| fail(format!("timed out after {time_limit:?}")));
    let left_behind = process
        .kill_within(DEATH)
        .and(kill_group(process.pid(), DEATH));
    match (outcome, left_behind) {
        (outcome, Ok(())) => outcome,
        (Err(Failure::Fail(why)), Err(Failure::Fail(left))) => fail(format!("{why}\n{left}")),
        (_, left) => left,
    }
}

/// Kills all that is left of a process group, and waits until it has gone.
fn kill_group(group: Pid, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    loop {
        // One may have been forked since the last time.
        let _ = kill_process_group(group, Signal::KILL);
        match waitpgid(group, WaitOptions::NOHANG) {
            // Nobody is left.
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
            Ok(Some(_)) => {}
            Ok(None) if Instant::now() > deadline => {
                return fail(format!(
                    "a process of its group {} is not gone {limit:?} after SIGKILL",
                    group.as_raw_nonzero()
                ));
            }
            Ok(None) => crate::call::look_again_soon(),
        }
    }
}

/// Writes at once, so that progress is seen.
fn say(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::skip;

    #[test]
    fn each_outcome_has_its_line_and_its_count() {
        let mut totals = Totals::default();
        assert_eq!(totals.add(1, "a", &Ok(()), false), "ok 1 - a\n");
        assert_eq!(
            totals.add(2, "b", &fail("one\ntwo"), false),
            "not ok 2 - b\n# one\n# two\n"
        );
        assert_eq!(
            totals.add(3, "c", &skip("no\nroot"), false),
            "ok 3 - c # SKIP no root\n"
        );
        assert_eq!(
            totals.add(4, "d", &fail("why"), true),
            "not ok 4 - d # TODO known limit\n# why\n"
        );
        assert_eq!(
            totals.add(5, "e", &Ok(()), true),
            "ok 5 - e # TODO known limit\n"
        );
        assert_eq!(
            totals.report(),
            "# Totals: pass:1 fail:1 xfail:1 xpass:1 skip:1 error:0\n\
             2 passed, 1 failed, 1 skipped, 1 known to fail\n"
        );
    }

    #[test]
    fn a_case_that_hangs_times_out_with_all_its_processes() {
        let hangs = || {
            Process::spawn(|| {
                loop {
                    std::thread::park();
                }
            })?;
            loop {
                std::thread::park();
            }
        };
        let Err(Failure::Fail(why)) = confined(Duration::from_millis(50), hangs) else {
            panic!("it must fail");
        };
        assert_eq!(why, "timed out after 50ms");
    }

    #[test]
    fn a_case_that_dies_or_panics_fails() {
        let died = confined(DEATH, || {
            rustix::process::kill_process(getpid(), Signal::TERM)?;
            Ok(())
        });
        let Err(Failure::Fail(why)) = died else {
            panic!("it must fail");
        };
        assert!(why.contains("signal 15"), "{why}");
        assert_eq!(
            confined(DEATH, || panic!("no {}", "way")),
            fail("panicked: no way")
        );
        assert_eq!(confined(DEATH, || skip("why")), skip("why"));
        assert_eq!(confined(DEATH, || Ok(())), Ok(()));
    }
}
