// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was measured, for a person: a line for each work, a column for each that did it.

use comfy_table::Table;
use sysgenid_guest::measurement::Footprint;
use sysgenid_guest::measurement::Measurement;
use sysgenid_guest::measurement::OPEN_BESIDE_TENANT;
use sysgenid_guest::measurement::PAGE_BEHIND_HOST;

use crate::bench::DAEMON;
use crate::bench::Results;
use crate::bench::Run;
use crate::bench::drivers;
use crate::table;

/// The yardstick of the short calls, and the two works that are held against it; the names are the
/// benchmark's.
const EVENTFD_READ: &str = "eventfd read";
const COUNT: &str = "ioctl GET_OUTDATED_WATCHERS";
const READ: &str = "non-blocking read, nothing new";

/// The works of the daemon's goals, by the same names.
const PROBE: &str = "1000 probes: has it changed? (mapped loads)";
const OWN_MEMORY: &str = "load of own memory";
const WAKE_UP: &str = "wake-up of one sleeping reader";
const EVENT_LOOP: &str = "bump until an event loop has acknowledged for 1000";

/// The daemon's goals.
const WAKE_UP_GOAL_NS: u64 = 100_000;
const EVENT_LOOP_GOAL_NS: u64 = 50_000_000;
const PAGE_BEHIND_HOST_GOAL_NS: u64 = 5_000_000;
const OPEN_BESIDE_TENANT_GOAL_NS: u64 = 2_000_000;
const MEMORY_GOAL_BYTES: u64 = 4_000_000;
const WATCHER_GOAL_BYTES: u64 = 200;

/// Prints all that was measured.
pub(super) fn print(results: &Results) {
    if let Some(guest) = &results.guest {
        println!(
            "\nKernel {} in an emulated machine: compare the numbers with each other, not with those \
             of hardware.\nMedian times of one operation in ns; a ratio is to the eventfd of the same \
             run.\n",
            guest.kernel
        );
        println!("{}", table(&guest.runs));
        if let Some(module) = guest.runs.first() {
            println!("{}", verdict(&module.measurements));
        }
    }
    if let Some(drivers) = &results.drivers {
        drivers::print(drivers);
    }
    if let Some(host) = &results.host {
        println!("\nsysgenidd on this machine: median times of one operation in ns.\n");
        let run = Run {
            name: DAEMON.to_owned(),
            measurements: host.measurements.clone(),
        };
        println!("{}", table(&[run]));
        for line in goals(&host.measurements, &host.footprint) {
            println!("{line}");
        }
    }
}

/// A line for each work, with the yardsticks of the first run and each run's front end.
fn table(runs: &[Run]) -> Table {
    let mut headings = vec![
        "work".to_owned(),
        "eventfd".to_owned(),
        "timerfd".to_owned(),
    ];
    for run in runs {
        headings.extend([run.name.clone(), "ratio".to_owned()]);
    }
    let columns = headings.len();
    let mut table = table::new(headings);
    let mut works: Vec<&str> = Vec::new();
    for measurement in runs.iter().flat_map(|run| &run.measurements) {
        if !works.contains(&measurement.work.as_str()) {
            works.push(&measurement.work);
        }
    }
    for work in works {
        let number = |run: Option<&Run>, candidate: &str| {
            run.and_then(|run| median(&run.measurements, work, candidate))
        };
        let shown = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
        let mut row = vec![work.to_owned()];
        row.extend(["eventfd", "timerfd"].map(|name| shown(number(runs.first(), name))));
        for run in runs {
            let mine = number(Some(run), &run.name);
            let yardstick = number(Some(run), "eventfd");
            row.push(shown(mine));
            row.push(match (mine, yardstick) {
                (Some(mine), Some(yardstick)) => ratio(mine, yardstick),
                _ => String::new(),
            });
        }
        table.add_row(row);
    }
    table::align_right(&mut table, 1..columns);
    table
}

/// The median of the candidate whose name begins so.
fn median(measurements: &[Measurement], work: &str, candidate: &str) -> Option<u64> {
    find(measurements, work, candidate).map(|found| found.median_ns)
}

fn find<'a>(
    measurements: &'a [Measurement],
    work: &str,
    candidate: &str,
) -> Option<&'a Measurement> {
    measurements
        .iter()
        .find(|found| found.work == work && found.candidate.starts_with(candidate))
}

/// Whether the module's short calls take about as long as an eventfd's non-blocking read.
fn verdict(results: &[Measurement]) -> String {
    let beside_eventfd = |work: &str| {
        let mine = median(results, work, "sysgenid")?;
        Some((mine, median(results, work, EVENTFD_READ)?.max(1)))
    };
    let (Some(count), Some(read)) = (beside_eventfd(COUNT), beside_eventfd(READ)) else {
        return "within 1.2 x of an eventfd read: not measured".to_owned();
    };
    let is_within = |(mine, yardstick): (u64, u64)| mine * 10 <= yardstick * 12;
    format!(
        "within 1.2 x of an eventfd read: {} (ioctl {}, read {})",
        yes(is_within(count) && is_within(read)),
        ratio(count.0, count.1),
        ratio(read.0, read.1)
    )
}

/// Units of time: their signs, and how many nanoseconds they are.
const MICROSECONDS: (&str, u64) = ("µs", 1000);
const MILLISECONDS: (&str, u64) = ("ms", 1_000_000);

/// What was to be, whether it is so, and what was measured.
fn goal(
    what: &str,
    kept: bool,
    measured: &Measurement,
    (unit, nanoseconds): (&str, u64),
) -> String {
    format!(
        "{what}: {} (median {} {unit}, p99 {} {unit})",
        yes(kept),
        measured.median_ns / nanoseconds,
        measured.p99_ns / nanoseconds
    )
}

/// What became of the daemon's goals.
fn goals(measurements: &[Measurement], footprint: &Footprint) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(wake_up) = find(measurements, WAKE_UP, DAEMON) {
        let what = format!(
            "a sleeping reader returns within {} µs",
            WAKE_UP_GOAL_NS / 1000
        );
        let kept = wake_up.median_ns <= WAKE_UP_GOAL_NS;
        lines.push(goal(&what, kept, wake_up, MICROSECONDS));
    }
    if let Some(done) = find(measurements, EVENT_LOOP, DAEMON) {
        let what = format!(
            "1000 watchers in epoll have acknowledged within {} ms",
            EVENT_LOOP_GOAL_NS / 1_000_000
        );
        let kept = done.median_ns <= EVENT_LOOP_GOAL_NS;
        lines.push(goal(&what, kept, done, MILLISECONDS));
    }
    if let Some(behind) = find(measurements, PAGE_BEHIND_HOST, DAEMON) {
        let what = format!(
            "with 100 000 pollers of strangers, a container's page is at most {} ms behind the host's",
            PAGE_BEHIND_HOST_GOAL_NS / 1_000_000
        );
        let kept = behind.p99_ns <= PAGE_BEHIND_HOST_GOAL_NS;
        lines.push(goal(&what, kept, behind, MICROSECONDS));
    }
    if let Some(open) = find(measurements, OPEN_BESIDE_TENANT, DAEMON) {
        let what = format!(
            "while a tenant triggers, an open of the host's node takes at most {} ms (p99)",
            OPEN_BESIDE_TENANT_GOAL_NS / 1_000_000
        );
        let kept = open.p99_ns <= OPEN_BESIDE_TENANT_GOAL_NS;
        lines.push(goal(&what, kept, open, MICROSECONDS));
    }
    let probe = (
        median(measurements, PROBE, DAEMON),
        median(measurements, PROBE, OWN_MEMORY),
    );
    if let (Some(probe), Some(own)) = probe {
        lines.push(format!(
            "a mapped probe is one load: {} (1000 take {probe} ns, and {own} ns of own memory)",
            yes(probe * 10 <= own * 15)
        ));
    }
    for memory in &footprint.memory {
        let goal = MEMORY_GOAL_BYTES + WATCHER_GOAL_BYTES * memory.watchers;
        lines.push(format!(
            "resident with {} watchers below {} kB: {} ({} kB)",
            memory.watchers,
            goal / 1000,
            yes(memory.resident_bytes < goal),
            memory.resident_bytes / 1000
        ));
    }
    lines.push(format!(
        "idle, it is never woken: {} ({} times in {} s)",
        yes(footprint.idle_wake_ups == 0),
        footprint.idle_wake_ups,
        footprint.idle_seconds
    ));
    lines
}

fn yes(condition: bool) -> &'static str {
    if condition { "yes" } else { "no" }
}

// Times of single operations are far below what a float holds exactly.
#[allow(clippy::cast_precision_loss)]
fn ratio(median_ns: u64, yardstick_ns: u64) -> String {
    format!("{:.2}", median_ns as f64 / yardstick_ns.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use sysgenid_guest::measurement::Memory;

    use super::*;

    fn measured(work: &str, yardstick: u64, mine: u64) -> [Measurement; 3] {
        [
            (EVENTFD_READ, yardstick),
            ("timerfd read", 1),
            ("sysgenid", mine),
        ]
        .map(|(candidate, median_ns)| Measurement {
            work: work.to_owned(),
            candidate: candidate.to_owned(),
            samples: 1,
            batch: 1,
            median_ns,
            p99_ns: median_ns,
        })
    }

    #[test]
    fn one_slow_call_is_enough_for_a_no() {
        let quick = [measured(COUNT, 100, 120), measured(READ, 100, 103)].concat();
        assert!(verdict(&quick).ends_with("yes (ioctl 1.20, read 1.03)"));
        let slow = [measured(COUNT, 100, 121), measured(READ, 100, 103)].concat();
        assert!(verdict(&slow).ends_with("no (ioctl 1.21, read 1.03)"));
    }

    #[test]
    fn each_watcher_may_cost_some_memory() {
        let verdict = |watchers, resident_bytes| {
            let footprint = Footprint {
                memory: vec![Memory {
                    watchers,
                    resident_bytes,
                }],
                idle_wake_ups: 1,
                idle_seconds: 5,
            };
            goals(&[], &footprint)
        };
        assert!(verdict(10_000, 5_999_999)[0].contains(": yes"));
        assert!(verdict(9_999, 5_999_999)[0].contains(": no"));
        assert!(verdict(0, 0)[1].contains(": no (1 times in 5 s)"));
    }

    #[test]
    fn what_strangers_cost_is_held_against_the_slowest() {
        let verdicts = |p99_ns| {
            let measured = [PAGE_BEHIND_HOST, OPEN_BESIDE_TENANT].map(|work| Measurement {
                work: work.to_owned(),
                candidate: DAEMON.to_owned(),
                samples: 1,
                batch: 1,
                median_ns: 1,
                p99_ns,
            });
            let footprint = Footprint {
                memory: Vec::new(),
                idle_wake_ups: 0,
                idle_seconds: 5,
            };
            let lines = goals(&measured, &footprint);
            [&lines[0], &lines[1]].map(|line| line.contains(": yes"))
        };
        assert_eq!(verdicts(2_000_000), [true, true]);
        assert_eq!(verdicts(2_000_001), [true, false]);
        assert_eq!(verdicts(5_000_001), [false, false]);
    }

    #[test]
    fn a_ratio_is_to_the_yardstick_of_the_same_run() {
        let run = |name: &str, yardstick, mine| Run {
            name: name.to_owned(),
            measurements: measured(COUNT, yardstick, mine).to_vec(),
        };
        let runs = [run("sysgenid", 100, 200), run("sysgenid", 400, 200)];
        let text = table(&runs).to_string();
        assert!(text.contains("2.00") && text.contains("0.50"), "{text}");
    }
}
