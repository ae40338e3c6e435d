// SPDX-License-Identifier: MIT OR Apache-2.0

//! How an instance stands, as text: for people, and for collectors of metrics.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sysgenid_core::{Epoch, Node};

use crate::clock;
use crate::keeping::state::{Mapping, Slot};
use crate::noticing::Kind;
use crate::serving::instance::Instance;

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

/// The most bytes that any report about this many watchers has.
pub fn longest(watchers: usize) -> u64 {
    const OF_A_WATCHER: usize = 128;
    const OF_THE_REST: usize = 16 * 1024;
    u64::try_from(watchers * OF_A_WATCHER + OF_THE_REST).unwrap_or(u64::MAX)
}

/// A line a watcher: the process that opened the node, whether it is tracked, the generation that it
/// acknowledged, for how long it has been outdated, the node, and the program.
pub fn watchers(instance: &Instance) -> String {
    let mut text = format!(
        "{:<10} {:<8} {:<12} {:<12} {:<9} {}\n",
        "pid", "tracked", "acknowledged", "outdated", "node", "command"
    );
    for slot in instance.slots() {
        let outdated = outdated_since(instance, &slot).map_or_else(
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
            "{pid:<10} {tracked:<8} {:<12} {outdated:<12} {:<9} {}",
            slot.watcher.acknowledged_generation,
            slot.node.name(),
            command(&slot)
        );
    }
    text
}

/// A line a fact.
pub fn status(instance: &Instance, backends: &[Backend]) -> String {
    let registry = instance.registry();
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
        let since = age(instance.time(registry.epoch()));
        format!("{:.3}s ago", since.as_secs_f64())
    };
    line(
        "changed",
        &format!("{} times, last {last}", registry.epoch().get()),
    );
    line(
        "watchers",
        &format!(
            "{}, {} tracked, {} outdated",
            instance.watchers(),
            registry.tracked_watchers(),
            registry.outdated_watchers()
        ),
    );
    let mapping = match instance.state().mapping() {
        Mapping::Unsettled => "not used yet",
        Mapping::Passthrough(_) => {
            "passthrough: programs map the page itself, and see a change at once"
        }
        Mapping::Store => {
            "store: the kernel keeps a copy, which is renewed before anybody is woken; programs that \
             map it get SIGBUS once the daemon is gone"
        }
    };
    line("mapping", mapping);
    for backend in backends {
        let state = if backend.works { "" } else { "not in use: " };
        line(
            "backend",
            &format!("{}: {state}{}", backend.kind, backend.description),
        );
    }
    line("backend", "software: the trigger ioctl; always there");
    text
}

/// The same in the OpenMetrics text format.
pub fn metrics(instance: &Instance, backends: &[Backend]) -> String {
    let registry = instance.registry();
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
        let count = instance.watchers_of(node);
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
    let oldest = instance
        .slots()
        // Not worth a walk if there is none.
        .take_while(|_| registry.outdated_watchers() > 0)
        .filter(|slot| slot.watcher.tracked)
        .filter_map(|slot| outdated_since(instance, &slot))
        .min()
        .map_or(Duration::ZERO, age);
    metric(
        "outdated_seconds",
        "gauge",
        "For how long the tracked watcher that is furthest behind has been outdated.",
        &one(format!("{:.3}", oldest.as_secs_f64())),
    );
    if registry.epoch() != Epoch::START {
        let when = SystemTime::now()
            .checked_sub(age(instance.time(registry.epoch())))
            .and_then(|when| when.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        metric(
            "last_change_timestamp_seconds",
            "gauge",
            "When the generation changed last, in seconds since 1970.",
            &one(format!("{:.3}", when.as_secs_f64())),
        );
    }
    let works: Vec<_> = backends
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

/// When a watcher became outdated, in nanoseconds of the monotonic clock, if it is.
fn outdated_since(instance: &Instance, slot: &Slot) -> Option<u64> {
    let missed = slot.watcher.first_missed(instance.registry().epoch())?;
    Some(instance.time(missed))
}

fn age(since: u64) -> Duration {
    Duration::from_nanos(clock::now().saturating_sub(since))
}

fn command(slot: &Slot) -> String {
    let command = &slot.opener.command;
    let end = command.iter().position(|byte| *byte == 0);
    let command = &command[..end.unwrap_or(command.len())];
    String::from_utf8_lossy(command)
        .chars()
        .map(|character| {
            if character.is_control() {
                '?'
            } else {
                character
            }
        })
        .collect()
}
