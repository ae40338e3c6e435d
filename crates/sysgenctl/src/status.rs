// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl status`: how things stand.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use sysgenid::Orchestrator;

use crate::clock;
use crate::front_end::FrontEnd;
use crate::machine::{Machine, Module};
use crate::output::{self, BAD, DOUBTFUL, GOOD, STRONG};
use crate::place::Place;
use crate::watchers::{daemon, fdinfo};

/// How things stand, for programs.
#[derive(Debug, PartialEq, Serialize)]
struct Status {
    node: PathBuf,
    front_end: &'static str,
    /// Of the daemon: the name of the instance, and the daemon's version.
    instance: Option<String>,
    version: Option<String>,
    generation: u32,
    /// Whether it has ever changed, as far as the front end tells.
    ever_changed: Option<bool>,
    changed_at: Option<String>,
    changed_seconds_ago: Option<f64>,
    watchers: Option<usize>,
    tracked: Option<usize>,
    /// Whether the two counts above leave out what this user cannot see.
    counts_are_of_visible: bool,
    outdated: u32,
    backends: Vec<Backend>,
    vmclock: Vec<VmclockReport>,
}

/// Something that notices restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) works: bool,
    pub(crate) description: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct VmclockReport {
    path: PathBuf,
    counts: bool,
    description: String,
}

pub(crate) fn run(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let status = Status::of(&place.orchestrator()?)?;
    if json {
        output::json(&status)?;
    } else {
        for (name, text) in status.lines() {
            let name = output::styled(STRONG, &format!("{name:<11}"));
            output::line(&format!("{name} {text}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Status {
    fn of(orchestrator: &Orchestrator) -> anyhow::Result<Self> {
        let node = orchestrator.path().to_owned();
        let front_end = FrontEnd::of(&node)?;
        let mut status = Self {
            front_end: front_end.name(),
            instance: None,
            version: None,
            generation: orchestrator.generation()?.get(),
            ever_changed: None,
            changed_at: None,
            changed_seconds_ago: None,
            watchers: None,
            tracked: None,
            counts_are_of_visible: false,
            outdated: orchestrator.outdated_watchers()?,
            backends: Vec::new(),
            vmclock: vmclock(),
            node,
        };
        match front_end {
            FrontEnd::Module => status.add_module(),
            FrontEnd::Daemon {
                folder: Some(folder),
            } => status.add_daemon(&folder)?,
            FrontEnd::Daemon { folder: None } => {}
        }
        Ok(status)
    }

    fn add_module(&mut self) {
        if let Some(changed) = fdinfo::own(&self.node).and_then(|info| info.changed) {
            self.set_changed((changed != 0).then(|| clock::age(changed, clock::boottime())));
        }
        let others: Vec<_> = fdinfo::descriptors(&self.node)
            .into_iter()
            .filter(|descriptor| descriptor.pid != std::process::id())
            .collect();
        let tracked = others.iter().filter(|one| one.info.tracked).count();
        self.watchers = Some(others.len());
        self.tracked = Some(tracked);
        self.counts_are_of_visible = true;
        self.backends = backends_of_module(&Machine::this());
    }

    fn add_daemon(&mut self, folder: &Path) -> anyhow::Result<()> {
        let report = Report::parse(&std::fs::read_to_string(folder.join("status"))?);
        if let Some(last) = report.changed {
            self.set_changed(last);
        }
        self.instance = report.instance;
        self.version = report.version;
        // This very process watches, too.
        self.watchers = report.watchers.map(|count| count.saturating_sub(1));
        self.tracked = report.tracked;
        self.backends = report.backends;
        Ok(())
    }

    fn set_changed(&mut self, age: Option<Duration>) {
        self.ever_changed = Some(age.is_some());
        self.changed_at = age.map(clock::timestamp);
        self.changed_seconds_ago = age.map(|age| age.as_secs_f64());
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let since = match (self.ever_changed, self.changed_seconds_ago) {
            (Some(false), _) => ", from the start".to_owned(),
            (_, Some(seconds)) => {
                let age = Duration::from_secs_f64(seconds);
                let (time, length) = (clock::local_time(age), clock::length(age));
                format!(", since {time} ({length} ago)")
            }
            _ => String::new(),
        };
        let server = match (self.front_end, &self.instance, &self.version) {
            ("daemon", Some(instance), Some(version)) => {
                format!("the daemon sysgenidd {version}, instance {instance}")
            }
            ("daemon", ..) => {
                "the daemon sysgenidd, whose reports cannot be seen from here".to_owned()
            }
            _ => "the kernel module sysgenid".to_owned(),
        };
        let mut lines = vec![
            ("node", self.node.display().to_string()),
            ("generation", format!("{}{since}", self.generation)),
            ("served by", server),
            ("watchers", self.watchers_text()),
        ];
        for backend in &self.backends {
            let (style, word) = if backend.works {
                (GOOD, "works")
            } else {
                (DOUBTFUL, "not in use")
            };
            let word = output::styled(style, word);
            let text = format!("{}: {word}: {}", backend.name, backend.description);
            lines.push(("noticed by", text));
        }
        for device in &self.vmclock {
            let text = format!("{}: {}", device.path.display(), device.description);
            lines.push(("vmclock", text));
        }
        lines
    }

    fn watchers_text(&self) -> String {
        let style = if self.outdated > 0 { BAD } else { GOOD };
        let outdated = output::styled(style, &format!("{} outdated", self.outdated));
        let visible = if self.counts_are_of_visible {
            ", as far as can be seen"
        } else {
            ""
        };
        match (self.watchers, self.tracked) {
            (Some(all), Some(tracked)) => format!("{all}, {tracked} tracked{visible}; {outdated}"),
            _ => outdated,
        }
    }
}

/// The daemon's report `status`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    instance: Option<String>,
    version: Option<String>,
    /// Nothing if the report does not tell; the inner is nothing if there was no change.
    changed: Option<Option<Duration>>,
    watchers: Option<usize>,
    tracked: Option<usize>,
    pub(crate) backends: Vec<Backend>,
}

impl Report {
    /// Reads it. What is not understood is left out: it is for people first.
    pub(crate) fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match name {
                "instance" => report.instance = Some(value.to_owned()),
                "version" => report.version = Some(value.to_owned()),
                "changed" => report.changed = changed(value),
                "watchers" => {
                    let counts: Vec<_> = value
                        .split(", ")
                        .filter_map(|part| part.split(' ').next()?.parse().ok())
                        .collect();
                    report.watchers = counts.first().copied();
                    report.tracked = counts.get(1).copied();
                }
                "backend" => report.backends.extend(backend(value)),
                _ => {}
            }
        }
        report
    }
}

/// `2 times, last 3.210s ago`, or `0 times, last never`.
fn changed(value: &str) -> Option<Option<Duration>> {
    let (_, last) = value.split_once("last ")?;
    if last == "never" {
        return Some(None);
    }
    Some(Some(daemon::seconds(last.strip_suffix(" ago")?)?))
}

/// `vmclock: /dev/vmclock0…`, or `kmsg: not in use: …`.
fn backend(value: &str) -> Option<Backend> {
    let (name, description) = value.split_once(": ")?;
    let unused = description.strip_prefix("not in use: ");
    Some(Backend {
        name: name.to_owned(),
        works: unused.is_none(),
        description: unused.unwrap_or(description).to_owned(),
    })
}

/// What notices restores for the module.
pub(crate) fn backends_of_module(machine: &Machine) -> Vec<Backend> {
    let devices = machine.generation_devices();
    let bound_to = |driver: &str| {
        devices
            .iter()
            .find(|device| device.driver.as_deref() == Some(driver))
    };
    let judge = |name: &str, driver: &str, what: &str| {
        let (works, description) = match (machine.module(name), bound_to(driver)) {
            (Module::Loaded | Module::BuiltIn, Some(device)) => {
                (true, format!("{what}, from the device {}", device.name))
            }
            (Module::Loaded | Module::BuiltIn, None) => (
                false,
                format!("loaded, but no device is bound to the driver {driver}"),
            ),
            _ => (false, "the module is not loaded".to_owned()),
        };
        Backend {
            name: name.to_owned(),
            works,
            description,
        }
    };
    vec![
        judge("sysgenid_vmfork", "vmgenid", "the kernel's own notice"),
        judge("sysgenid_acpi", "sysgenid_acpi", "the hypervisor's notice"),
        Backend {
            name: "software".to_owned(),
            works: true,
            description: "the trigger ioctl; always there".to_owned(),
        },
    ]
}

fn vmclock() -> Vec<VmclockReport> {
    let devices = Machine::this().vmclocks();
    devices
        .into_iter()
        .map(|device| VmclockReport {
            counts: device.page.is_ok(),
            description: match &device.page {
                Ok(page) => format!("counts restores, {} so far", page.generation_counter),
                Err(error) => error.to_string(),
            },
            path: device.path,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_the_daemon_is_read() {
        let text = "instance:    web\nversion:     0.1.0\ngeneration:  3\n\
                    changed:     2 times, last 3.210s ago\nwatchers:    5, 4 tracked, 1 outdated\n\
                    mapping:     passthrough: programs map the page itself\n\
                    backend:     vmclock: /dev/vmclock0, at once\n\
                    backend:     kmsg: not in use: the kernel: too old\n\
                    backend:     software: the trigger ioctl; always there\nfuture:      9\n";
        let report = Report::parse(text);
        assert_eq!(report.instance.as_deref(), Some("web"));
        assert_eq!(report.changed, Some(Some(Duration::from_millis(3210))));
        assert_eq!((report.watchers, report.tracked), (Some(5), Some(4)));
        let works: Vec<_> = report
            .backends
            .iter()
            .map(|backend| (backend.name.as_str(), backend.works))
            .collect();
        assert_eq!(
            works,
            [("vmclock", true), ("kmsg", false), ("software", true)]
        );
        assert_eq!(report.backends[1].description, "the kernel: too old");
    }

    #[test]
    fn a_generation_that_never_changed_is_told_from_one_that_nothing_is_known_of() {
        assert_eq!(
            Report::parse("changed: 0 times, last never").changed,
            Some(None)
        );
        assert_eq!(Report::parse("changed: later").changed, None);
        assert_eq!(Report::parse(""), Report::default());
    }
}
