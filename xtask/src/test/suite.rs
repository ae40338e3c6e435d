// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the conformance suite says of a node.

use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;

/// How long the suite may take on one node.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// Fails unless the suite found the node to conform, and skipped nothing but what is expected.
pub(crate) fn check(
    what: &str,
    status: Option<i32>,
    output: &str,
    is_expected_skip: impl Fn(&str) -> bool,
) -> Result<()> {
    let faults = faults(output, is_expected_skip);
    ensure!(
        status == Some(0) && faults.is_empty(),
        "{what}: exit status {status:?}, {}:\n{output}",
        faults.join(", ")
    );
    Ok(())
}

/// What is wrong with the suite's output (TAP): nothing passed, something failed, something was skipped
/// for a reason that is not expected, or a known failure is none any more.
fn faults(output: &str, is_expected_skip: impl Fn(&str) -> bool) -> Vec<String> {
    let mut passed = 0;
    let mut faults = Vec::new();
    for line in output.lines() {
        let is_known = line.contains("# TODO");
        if line.starts_with("not ok ") {
            if !is_known {
                faults.push(format!("failed: {line}"));
            }
        } else if line.starts_with("ok ") {
            match line.split_once("# SKIP") {
                None if is_known => {
                    faults.push(format!("passed, and is no known failure any more: {line}"));
                }
                None => passed += 1,
                Some((_, reason)) if is_expected_skip(reason.trim()) => {}
                Some(_) => faults.push(format!("skipped, and should not be: {line}")),
            }
        }
    }
    if passed == 0 {
        faults.push("no case passed".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_no_pass() {
        let skips = "ok 1 - a # SKIP not here\n";
        assert_eq!(faults(skips, |_| true), ["no case passed"]);
        let passes = format!("{skips}ok 2 - b\n");
        assert!(faults(&passes, |reason| reason == "not here").is_empty());
        assert_eq!(
            faults(&passes, |_| false),
            ["skipped, and should not be: ok 1 - a # SKIP not here"]
        );
    }

    #[test]
    fn a_failure_is_a_fault_unless_it_is_known() {
        assert_eq!(faults("ok 1 - a\nnot ok 2 - b\n", |_| false).len(), 1);
        let known = "ok 1 - a\nnot ok 2 - b # TODO known limit\n";
        assert!(faults(known, |_| false).is_empty());
    }

    #[test]
    fn a_known_failure_that_passes_is_a_fault() {
        let output = "ok 1 - a\nok 2 - b # TODO known limit\n";
        assert_eq!(faults(output, |_| false).len(), 1);
    }
}
