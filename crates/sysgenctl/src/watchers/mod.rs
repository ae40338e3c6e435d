// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl watchers`: who watches, and who is late.

pub(crate) mod daemon;
pub(crate) mod fdinfo;
mod owner;
mod process;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use sysgenid::{Generation, Orchestrator};

use self::owner::Owner;
use crate::clock;
use crate::front_end::FrontEnd;
use crate::hooks::Progress;
use crate::output::{self, BAD, DOUBTFUL, FAINT, PLAIN, printable};
use crate::place::Place;

/// How often the list is made anew if it changes while it is made.
const MOST_ATTEMPTS: usize = 5;

/// How much of a command people see.
const MOST_OF_COMMAND: usize = 40;

/// All watchers that can be seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct List {
    pub(crate) generation: u32,
    /// How many tracked watchers are outdated: exact, whatever can be seen.
    pub(crate) outdated: u32,
    /// How many of these are not in the list, at least.
    pub(crate) unseen: u32,
    /// Whether processes have the numbers here that the list gives. The daemon may be in another PID namespace.
    pub(crate) pids_are_of_here: bool,
    pub(crate) watchers: Vec<Seen>,
}

/// A watcher; of the kernel module a descriptor of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Seen {
    /// Its process. Of the daemon the one that opened the node. Nothing where that cannot be seen.
    pub(crate) pid: Option<u32>,
    pub(crate) command: String,
    /// What it was started with, where that can be seen.
    pub(crate) command_line: Option<String>,
    #[serde(flatten)]
    pub(crate) owner: Owner,
    pub(crate) node: &'static str,
    /// Its descriptors. Where there are several watchers of one process, and the daemon does not tell which has
    /// which, all of that process.
    pub(crate) fds: Vec<u32>,
    /// Whether `fds` are those of several watchers.
    pub(crate) fds_are_shared: bool,
    pub(crate) tracked: bool,
    pub(crate) outdated: bool,
    pub(crate) acknowledged: u32,
    pub(crate) outdated_seconds: Option<f64>,
}

/// The answer, for programs.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    list: &'a List,
    /// Whether hooks are still to succeed. If their service was restarted it is not one of the late.
    hooks_pending: bool,
}

pub(crate) fn run(place: &Place, only_outdated: bool, json: bool) -> anyhow::Result<ExitCode> {
    let orchestrator = place.orchestrator()?;
    let mut list = List::make(&orchestrator)?;
    let hooks = Progress::to_wait_for(None, Place::is_machines_own(orchestrator.path()));
    // What cannot be read is said by whoever waits.
    let pending = hooks
        .pending(Generation::new(list.generation))
        .ok()
        .flatten();
    if only_outdated {
        list.watchers.retain(Seen::is_late);
    }
    if json {
        output::json(&Answer {
            list: &list,
            hooks_pending: pending.is_some(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if !list.watchers.is_empty() {
        output::line(&list.table())?;
    } else if only_outdated {
        output::line("no watcher is late, as far as can be seen")?;
    } else {
        output::line("nobody watches, as far as can be seen")?;
    }
    for remark in list.remarks() {
        output::note(FAINT, &remark);
    }
    if let Some(pending) = pending {
        output::note(DOUBTFUL, &pending.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

impl List {
    /// Looks at all watchers but those of this very process.
    pub(crate) fn make(orchestrator: &Orchestrator) -> anyhow::Result<Self> {
        let front_end = FrontEnd::of(orchestrator.path())?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let before = (
                orchestrator.generation()?,
                orchestrator.outdated_watchers()?,
            );
            let (mut watchers, pids_are_of_here) = match &front_end {
                FrontEnd::Module => (of_module(orchestrator.path()), true),
                FrontEnd::Daemon {
                    folder: Some(folder),
                } => of_daemon(folder)?,
                FrontEnd::Daemon { folder: None } => Err(daemon::Error::NotHere)?,
            };
            let (generation, outdated) = (
                orchestrator.generation()?,
                orchestrator.outdated_watchers()?,
            );
            if before != (generation, outdated) && attempts < MOST_ATTEMPTS {
                continue;
            }
            watchers.sort_by(|one, other| {
                let rank = |seen: &Seen| (!seen.is_late(), !seen.tracked);
                let longest = || {
                    let seconds = |seen: &Seen| seen.outdated_seconds.unwrap_or(0.0);
                    seconds(other).total_cmp(&seconds(one))
                };
                rank(one)
                    .cmp(&rank(other))
                    .then_with(longest)
                    .then_with(|| (one.pid, &one.fds).cmp(&(other.pid, &other.fds)))
            });
            let seen = watchers.iter().filter(|seen| seen.is_late()).count();
            let seen = u32::try_from(seen).unwrap_or(u32::MAX);
            return Ok(Self {
                generation: generation.get(),
                outdated,
                unseen: outdated.saturating_sub(seen),
                pids_are_of_here,
                watchers,
            });
        }
    }

    /// Those that others wait for.
    pub(crate) fn late(&self) -> impl Iterator<Item = &Seen> {
        self.watchers.iter().filter(|seen| seen.is_late())
    }

    /// A table of all.
    pub(crate) fn table(&self) -> String {
        let header = [
            "",
            "PID",
            "COMMAND",
            "OWNER",
            "NODE",
            "FD",
            "TRACKED",
            "ACKNOWLEDGED",
            "OUTDATED",
        ];
        let rows: Vec<_> = self
            .watchers
            .iter()
            .map(|seen| {
                let style = if seen.is_late() { BAD } else { PLAIN };
                (style, seen.cells())
            })
            .collect();
        output::table(&header, &rows)
    }

    /// What the table cannot say.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if !self.pids_are_of_here {
            remarks.push(
                "the daemon is in another PID namespace: processes are numbered as it sees them"
                    .to_owned(),
            );
        }
        if self.unseen > 0 {
            remarks.push(format!(
                "{} more outdated cannot be seen: of processes that this user may not look at or that are in other \
                 PID namespaces, or kept only by a mapping",
                self.unseen
            ));
        }
        let late = u32::try_from(self.late().count()).unwrap_or(u32::MAX);
        if late > self.outdated {
            remarks.push(format!(
                "the outdated descriptors stand for {}: some share one, by dup or fork",
                output::count(self.outdated as usize, "watcher")
            ));
        }
        if self.watchers.iter().any(|seen| seen.fds_are_shared) {
            remarks.push(
                "a process with several watchers is shown with all its descriptors at each (marked ?): the daemon \
                 does not tell which is which"
                    .to_owned(),
            );
        }
        remarks
    }
}

impl Seen {
    /// Whether others wait for it.
    pub(crate) fn is_late(&self) -> bool {
        self.tracked && self.outdated
    }

    fn cells(&self) -> Vec<String> {
        let mark = if self.is_late() { "!" } else { "" };
        let outdated = match (self.outdated, self.outdated_seconds) {
            (false, _) => "-".to_owned(),
            (true, None) => "yes".to_owned(),
            (true, Some(seconds)) => clock::length(Duration::from_secs_f64(seconds)),
        };
        vec![
            mark.to_owned(),
            self.pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            self.program(),
            self.owner.to_string(),
            self.node.to_owned(),
            self.fds_text(),
            if self.tracked { "yes" } else { "no" }.to_owned(),
            self.acknowledged.to_string(),
            outdated,
        ]
    }

    /// What it was started with, as far as there is room for it.
    fn program(&self) -> String {
        let whole = self.command_line.as_ref().unwrap_or(&self.command);
        if whole.chars().count() <= MOST_OF_COMMAND {
            return whole.clone();
        }
        let start: String = whole.chars().take(MOST_OF_COMMAND - 1).collect();
        format!("{start}…")
    }

    fn fds_text(&self) -> String {
        let fds: Vec<_> = self.fds.iter().map(u32::to_string).collect();
        match (fds.is_empty(), self.fds_are_shared) {
            (true, _) => "-".to_owned(),
            (false, false) => fds.join(","),
            (false, true) => format!("{}?", fds.join(",")),
        }
    }
}

impl fmt::Display for Seen {
    /// On a line, among others.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(formatter, "process {pid} ({})", printable(&self.program()))?,
            None => write!(
                formatter,
                "a process that cannot be seen ({})",
                printable(&self.program())
            )?,
        }
        if self.owner != Owner::default() {
            write!(formatter, " of {}", printable(&self.owner.to_string()))?;
        }
        if !self.fds.is_empty() {
            write!(formatter, ", descriptor {}", self.fds_text())?;
        }
        write!(formatter, ", acknowledged {}", self.acknowledged)?;
        if let Some(seconds) = self.outdated_seconds {
            let length = clock::length(Duration::from_secs_f64(seconds));
            write!(formatter, ", outdated for {length}")?;
        }
        Ok(())
    }
}

fn of_module(path: &Path) -> Vec<Seen> {
    let descriptors = fdinfo::descriptors(path);
    // One moment for all: those of one change are late for as long as each other.
    let now = clock::boottime();
    descriptors
        .into_iter()
        .filter(|descriptor| descriptor.pid != std::process::id())
        .map(|descriptor| {
            let fdinfo::Info {
                acknowledged,
                tracked,
                outdated,
                outdated_since,
                ..
            } = descriptor.info;
            let since = outdated_since.filter(|since| outdated && *since != 0);
            Seen {
                pid: Some(descriptor.pid),
                command: process::command(descriptor.pid).unwrap_or_default(),
                command_line: process::command_line(descriptor.pid),
                owner: process::owner(descriptor.pid),
                node: descriptor.node,
                fds: vec![descriptor.fd],
                fds_are_shared: false,
                tracked,
                outdated,
                acknowledged,
                outdated_seconds: since.map(|since| clock::age(since, now).as_secs_f64()),
            }
        })
        .collect()
}

/// The watchers, and whether the daemon numbers processes as they are numbered here.
fn of_daemon(folder: &Path) -> Result<(Vec<Seen>, bool), daemon::Error> {
    let rows = daemon::rows(folder)?;
    // This process watches, too. Where the list does not have its number, the daemon's numbers mean nothing here.
    let own = Some(std::process::id());
    let are_of_here = rows.iter().any(|row| row.pid == own);
    let mut pids: Vec<_> = rows.iter().filter_map(|row| row.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|_| are_of_here);
    let descriptors = daemon::descriptors(folder, pids);
    let watchers_of = |pid, node| {
        let same = |row: &&daemon::Row| row.pid == Some(pid) && row.node == node;
        rows.iter().filter(same).count()
    };
    let seen = rows
        .iter()
        .filter(|row| !are_of_here || row.pid != own)
        .map(|row| {
            let fds = row
                .pid
                .and_then(|pid| descriptors.get(&(pid, row.node)))
                .cloned()
                .unwrap_or_default();
            let command = row
                .pid
                .filter(|_| are_of_here)
                .and_then(process::command)
                // The number may be another process's by now, when the one that opened the node has ended.
                .filter(|command| !fds.is_empty() || *command == row.command);
            let known = row.pid.filter(|_| command.is_some());
            Seen {
                pid: row.pid,
                command: command.unwrap_or_else(|| row.command.clone()),
                command_line: known.and_then(process::command_line),
                owner: known.map(process::owner).unwrap_or_default(),
                node: row.node,
                fds_are_shared: fds.len() > 1
                    && row.pid.is_some_and(|pid| watchers_of(pid, row.node) > 1),
                fds,
                tracked: row.tracked,
                outdated: row.outdated.is_some(),
                acknowledged: row.acknowledged,
                outdated_seconds: row.outdated.map(|age| age.as_secs_f64()),
            }
        })
        .collect();
    Ok((seen, are_of_here))
}
