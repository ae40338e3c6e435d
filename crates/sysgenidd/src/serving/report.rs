// SPDX-License-Identifier: MIT OR Apache-2.0

//! How an instance stands, as text: for people, and for collectors of metrics.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sysgenid_core::{Epoch, Node};

use crate::clock;
use crate::keeping::state::{Mapping, Slot};
use crate::noticing::Kind;

use super::accounts::Accounts;
use super::instance::Instance;

/// How all backends stand, as whoever looks after them keeps it.
pub type SharedReports = Arc<Mutex<Vec<Backend>>>;

/// How many watchers are written while the accounts are held.
const AT_ONCE: usize = 256;

/// A backend, as the daemon sees it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Which one.
    pub kind: Kind,
    /// Whether it would notice a change.
    pub works: bool,
    /// The device and its window, or why it does not work.
    pub description: String,
}

/// The length of the list of watchers, in bytes.
pub(crate) fn length_of_watchers(instance: &Instance) -> u64 {
    let lines = instance.accounts().watchers() + 1;
    u64::try_from(lines * LINE).unwrap_or(u64::MAX)
}

/// The length of each line of the list of watchers, in bytes.
const LINE: usize = 10 + 1 + 8 + 1 + 12 + 1 + 15 + 1 + 9 + 1 + 16 + 1;

/// A line a watcher: the process that opened the node, whether it is tracked, the generation that it
/// acknowledged, for how long it has been outdated, the node, and the program.
pub fn watchers(instance: &Instance) -> String {
    let mut text = format!(
        "{:<10} {:<8} {:<12} {:<15} {:<9} {:<16}\n",
        "pid", "tracked", "acknowledged", "outdated", "node", "command"
    );
    let mut first = 0;
    loop {
        let accounts = instance.accounts();
        let end = accounts.slots().min(first + AT_ONCE);
        let some: Vec<_> = (first..end)
            .filter_map(|index| accounts.state().at(index))
            .map(|slot| (outdated_since(&accounts, &slot), slot))
            .collect();
        drop(accounts);
        if end == first {
            break;
        }
        first = end;
        for (since, slot) in some {
            let outdated = since.map_or_else(
                || "-".to_owned(),
                |since| format!("{:.3}s", age(since).as_secs_f64()),
            );
            let pid = match slot.opener.pid {
                0 => "-".to_owned(),
                pid => pid.to_string(),
            };
            let tracked = if slot.watcher.tracked { "yes" } else { "no" };
            let _ = writeln!(
                text,
                "{pid:<10} {tracked:<8} {:<12} {outdated:<15} {:<9} {:<16}",
                slot.watcher.acknowledged_generation,
                slot.node.name(),
                command(&slot)
            );
        }
    }
    text
}

/// A line a fact. What changes by itself has a fixed width, here and in the metrics, so that a program which
/// copies a report and goes by its size is right more often.
pub fn status(instance: &Instance, backends: &SharedReports) -> String {
    let accounts = instance.accounts();
    let registry = accounts.registry();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{:<12} {value}", format!("{name}:"));
    };
    line("instance", instance.name());
    line("version", env!("CARGO_PKG_VERSION"));
    line("generation", &registry.generation().to_string());
    let last = if registry.epoch() == Epoch::START {
        "never".to_owned()
    } else {
        let since = age(accounts.time(registry.epoch()));
        format!("{:.3}s ago", since.as_secs_f64())
    };
    let changed = format!("{} times, last {last}", registry.epoch().get());
    line("changed", &format!("{changed:<60}"));
    line(
        "watchers",
        &format!(
            "{}, {} tracked, {} outdated",
            accounts.watchers(),
            registry.tracked_watchers(),
            registry.outdated_watchers()
        ),
    );
    let mapping = match accounts.state().mapping() {
        Mapping::Unsettled => "not used yet",
        Mapping::Passthrough(_) => {
            "passthrough: programs map the page itself, and see a change at once"
        }
        Mapping::Store => {
            "store: the kernel keeps a copy, which is renewed before anybody is woken; programs that \
             map it must do so anew once the daemon is gone"
        }
    };
    line("mapping", mapping);
    let noticed = if accounts.is_noticed() {
        "yes: restores are noticed without anybody telling"
    } else {
        "no: whoever restores this must call the trigger"
    };
    line("noticed", noticed);
    drop(accounts);
    for backend in lock(backends).iter() {
        let state = if backend.works { "" } else { "not in use: " };
        line(
            "backend",
            &format!("{}: {state}{}", backend.kind, backend.description),
        );
    }
    line("backend", "software: the trigger ioctl; always there");
    text
}

/// The same in the OpenMetrics text format, complete but for what [`add_oldest`] adds.
pub fn metrics(instance: &Instance, backends: &SharedReports) -> String {
    let accounts = instance.accounts();
    let registry = accounts.registry();
    let mut text = String::new();
    let label = format!("{{instance=\"{}\"}}", instance.name());
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
        let _ = writeln!(text, "# TYPE sysgenid_{name} {kind}");
        let _ = writeln!(text, "# HELP sysgenid_{name} {help}");
        let suffix = if kind == "counter" { "_total" } else { "" };
        for (labels, value) in samples {
            let _ = writeln!(text, "sysgenid_{name}{suffix}{labels} {value}");
        }
    };
    let one = |value: String| vec![(label.clone(), value)];
    metric(
        "generation",
        "gauge",
        "The current generation.",
        &one(registry.generation().to_string()),
    );
    metric(
        "changes",
        "counter",
        "Generation changes since the start.",
        &one(registry.epoch().get().to_string()),
    );
    let of_node = |node: Node| {
        let count = accounts.watchers_of(node);
        let labels = format!(
            "{{instance=\"{}\",node=\"{}\"}}",
            instance.name(),
            node.name()
        );
        (labels, count.to_string())
    };
    metric(
        "watchers",
        "gauge",
        "Open file descriptions of a node.",
        &[of_node(Node::Sysgenid), of_node(Node::Vmgenid)],
    );
    metric(
        "tracked_watchers",
        "gauge",
        "Watchers that others wait for.",
        &one(registry.tracked_watchers().to_string()),
    );
    metric(
        "outdated_watchers",
        "gauge",
        "Tracked watchers that have not acknowledged the current generation.",
        &one(registry.outdated_watchers().to_string()),
    );
    metric(
        "outdated_seconds",
        "gauge",
        "For how long the tracked watcher that is furthest behind has been outdated.",
        &one(seconds(Duration::ZERO)),
    );
    if registry.epoch() != Epoch::START {
        let when = SystemTime::now()
            .checked_sub(age(accounts.time(registry.epoch())))
            .and_then(|when| when.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        metric(
            "last_change_timestamp_seconds",
            "gauge",
            "When the generation changed last, in seconds since 1970.",
            &one(format!("{:.3}", when.as_secs_f64())),
        );
    }
    metric(
        "noticed",
        "gauge",
        "Whether something notices restores without being told.",
        &one(u8::from(accounts.is_noticed()).to_string()),
    );
    drop(accounts);
    let works: Vec<_> = lock(backends)
        .iter()
        .map(|backend| {
            let labels = format!(
                "{{instance=\"{}\",backend=\"{}\"}}",
                instance.name(),
                backend.kind
            );
            (labels, u8::from(backend.works).to_string())
        })
        .collect();
    if !works.is_empty() {
        metric(
            "backend_works",
            "gauge",
            "Whether a backend would notice a change.",
            &works,
        );
    }
    text.push_str("# EOF\n");
    text
}

/// Puts into the metrics for how long somebody has been outdated. That takes a walk over all watchers, which is
/// for who reads them and not for who looks at their size: it has the width of the zeros that stand there.
pub fn add_oldest(metrics: &mut String, instance: &Instance) {
    const SAMPLE: &str = "\nsysgenid_outdated_seconds{";
    let Some(oldest) = oldest_outdated(instance) else {
        return;
    };
    let (zeros, value) = (seconds(Duration::ZERO), seconds(age(oldest)));
    let sample = metrics.find(SAMPLE).unwrap_or(metrics.len());
    if let Some(within) = metrics[sample..].find(&zeros) {
        let start = sample + within;
        metrics.replace_range(start..start + zeros.len(), &value);
    }
}

/// A duration in seconds, of always the same width.
fn seconds(duration: Duration) -> String {
    format!("{:014.3}", duration.as_secs_f64())
}

fn lock(backends: &SharedReports) -> std::sync::MutexGuard<'_, Vec<Backend>> {
    backends.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a watcher became outdated, in nanoseconds of the clock of changes, if it is.
fn outdated_since(accounts: &Accounts, slot: &Slot) -> Option<u64> {
    let missed = slot.watcher.first_missed(accounts.registry().epoch())?;
    Some(accounts.time(missed))
}

/// When the tracked watcher that is furthest behind became outdated.
fn oldest_outdated(instance: &Instance) -> Option<u64> {
    // Not worth a walk if there is none.
    if instance.accounts().registry().outdated_watchers() == 0 {
        return None;
    }
    let oldest_of = |first: usize| {
        let accounts = instance.accounts();
        let end = accounts.slots().min(first + AT_ONCE);
        let oldest = (first..end)
            .filter_map(|index| accounts.state().at(index))
            .filter(|slot| slot.watcher.tracked)
            .filter_map(|slot| outdated_since(&accounts, &slot))
            .min();
        (first < end).then_some(oldest)
    };
    (0..).step_by(AT_ONCE).map_while(oldest_of).flatten().min()
}

fn age(since: u64) -> Duration {
    Duration::from_nanos(clock::boottime().saturating_sub(since))
}

fn command(slot: &Slot) -> String {
    let command = &slot.opener.command;
    let end = command.iter().position(|byte| *byte == 0);
    let command = &command[..end.unwrap_or(command.len())];
    command
        .iter()
        .map(|&byte| {
            let is_plain = byte == b' ' || byte.is_ascii_graphic();
            if is_plain { char::from(byte) } else { '?' }
        })
        .collect()
}
