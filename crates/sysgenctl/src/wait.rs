// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl wait`: until everybody has acknowledged, showing who has not.

use std::fs;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sysgenid::{Generation, Orchestrator, Settlement};

use crate::TIMED_OUT;
use crate::cli::Patience;
use crate::clock;
use crate::hooks::{Pending, Progress};
use crate::output::{self, DOUBTFUL, FAINT, GOOD, count};
use crate::place::Place;
use crate::watchers::{List, Seen};

/// How often what is shown is looked at anew. The end of the wait itself comes at once.
const REFRESH: Duration = Duration::from_millis(500);

/// How often it is looked whether interrupted hooks are done, of which nobody tells.
const GLANCE: Duration = Duration::from_millis(100);

/// How long whoever runs hooks may be gone before nobody waits for it any more, as for a watcher that has ended. It is
/// enough for systemd to start it again.
const FOR_A_RESTART: Duration = Duration::from_secs(5);

/// How many are named while it lasts.
const MOST_NAMED: usize = 10;

/// The answer, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    settled: bool,
    generation: u32,
    outdated: u32,
    /// Whether hooks are still to succeed, or that cannot be told. If their service was restarted it is not one of the
    /// outdated.
    hooks_pending: bool,
    /// Nothing where they cannot be seen.
    late: Option<Vec<Seen>>,
}

impl Answer {
    /// Where no watcher is late.
    fn of_hooks(settled: bool, generation: Generation, hooks_pending: bool) -> Self {
        Self {
            settled,
            generation: generation.get(),
            outdated: 0,
            hooks_pending,
            late: Some(Vec::new()),
        }
    }
}

/// How a wait ended.
enum End {
    /// With what is to be said of hooks, if anything is.
    Settled(Generation, Option<String>),
    Late(u32),
    HooksPending(Generation, Pending),
}

pub(crate) fn run(place: &Place, patience: &Patience, json: bool) -> anyhow::Result<ExitCode> {
    settle(place.orchestrator()?, patience, json)
}

/// Waits until everybody has acknowledged.
pub(crate) fn settle(
    orchestrator: Orchestrator,
    patience: &Patience,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let watched = Orchestrator::open_at(orchestrator.path())?;
    let named = patience.hooks_state.as_deref();
    if let Some(folder) = named {
        fs::read_dir(folder).with_context(|| format!("cannot look into {}", folder.display()))?;
    }
    let hooks = Progress::to_wait_for(named, Place::is_machines_own(orchestrator.path()));
    let (sender, settled) = mpsc::channel();
    let (timeout, awaited) = (patience.timeout, hooks.clone());
    // It sleeps in the kernel, which tells at once. The end of this process ends it.
    thread::spawn(move || sender.send(await_all(&orchestrator, &awaited, timeout)));
    let mut view = View::new();
    let end = loop {
        match settled.recv_timeout(view.pause()) {
            Ok(end) => break end?,
            Err(RecvTimeoutError::Timeout) => view.show(&watched, &hooks),
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the wait ended early")),
        }
    };
    view.end();
    let code = match &end {
        End::Settled(..) => ExitCode::SUCCESS,
        End::Late(_) | End::HooksPending(..) => ExitCode::from(TIMED_OUT),
    };
    match end {
        End::Settled(generation, remark) => {
            if json {
                output::json(&Answer::of_hooks(true, generation, remark.is_some()))?;
            } else {
                let text = format!("everybody is in generation {generation}");
                output::line(&output::styled(GOOD, &text))?;
            }
            if let Some(remark) = remark {
                output::note(DOUBTFUL, &remark);
            }
        }
        End::Late(outdated) => report_late(&watched, outdated, &hooks, json)?,
        End::HooksPending(generation, pending) => {
            if json {
                output::json(&Answer::of_hooks(false, generation, true))?;
            } else {
                output::complain(&format!("the time is over, and {pending}"));
            }
        }
    }
    Ok(code)
}

/// Waits until everybody has acknowledged, and no hooks are left that nobody acknowledges for.
fn await_all(
    orchestrator: &Orchestrator,
    hooks: &Progress,
    timeout: Option<Duration>,
) -> Result<End, sysgenid::Error> {
    // More than the clock can tell is for ever.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let mut unattended_since = None;
    loop {
        let generation = match orchestrator.settle(left())? {
            Settlement::Settled(generation) => generation,
            Settlement::TimedOut { outdated } => return Ok(End::Late(outdated)),
        };
        let pending = match hooks.pending(generation) {
            Ok(None) => return Ok(End::Settled(generation, None)),
            Ok(Some(pending)) => pending,
            Err(error) => {
                let text = format!("cannot tell from {} of hooks: {error}", hooks.path());
                return Ok(End::Settled(generation, Some(text)));
            }
        };
        if pending.is_attended {
            unattended_since = None;
        } else if unattended_since.get_or_insert_with(Instant::now).elapsed() >= FOR_A_RESTART {
            return Ok(End::Settled(generation, Some(pending.to_string())));
        }
        match left() {
            Some(Duration::ZERO) => return Ok(End::HooksPending(generation, pending)),
            left => thread::sleep(left.map_or(GLANCE, |left| left.min(GLANCE))),
        }
    }
}

fn report_late(
    orchestrator: &Orchestrator,
    outdated: u32,
    hooks: &Progress,
    json: bool,
) -> anyhow::Result<()> {
    let list = List::make(orchestrator).map(|mut list| {
        list.watchers.retain(Seen::is_late);
        list
    });
    if json {
        let generation = orchestrator.generation()?;
        return output::json(&Answer {
            settled: false,
            generation: generation.get(),
            outdated,
            hooks_pending: matches!(hooks.pending(generation), Ok(Some(_))),
            late: list.ok().map(|list| list.watchers),
        });
    }
    let late = count(outdated as usize, "watcher");
    output::complain(&format!("the time is over, and {late} did not acknowledge"));
    match list {
        Ok(list) => {
            if !list.watchers.is_empty() {
                output::line(&list.table())?;
            }
            for remark in list.remarks() {
                output::note(FAINT, &remark);
            }
        }
        Err(error) => output::note(DOUBTFUL, &format!("cannot tell who: {error:#}")),
    }
    Ok(())
}

/// So many are outdated, among them these, and these hooks are to run. Several watchers of one process can look the
/// same.
type Named = (u32, Vec<(Option<u32>, Vec<u32>)>, Option<Pending>);

/// What the person or the log sees meanwhile.
struct View {
    start: Instant,
    /// On a terminal.
    live: Option<ProgressBar>,
    /// Who was named last.
    named: Option<Named>,
}

impl View {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            live: None,
            named: None,
        }
    }

    /// How long it is until there is something to show: whoever waits for a moment sees nothing.
    fn pause(&self) -> Duration {
        if self.named.is_none() {
            Duration::from_millis(100)
        } else {
            REFRESH
        }
    }

    fn show(&mut self, orchestrator: &Orchestrator, hooks: &Progress) {
        let Ok(outdated) = orchestrator.outdated_watchers() else {
            // The wait itself will say why.
            return;
        };
        let list = List::make(orchestrator).ok();
        let late: Vec<_> = list.iter().flat_map(List::late).collect();
        let mut named: Vec<_> = late
            .iter()
            .map(|seen| (seen.pid, seen.fds.clone()))
            .collect();
        named.sort();
        // Those whose service is itself a watcher that is late are waited for as that.
        let generation = orchestrator.generation().ok();
        let pending = generation
            .filter(|_| outdated == 0)
            .and_then(|generation| hooks.pending(generation).ok()?);
        let waiting = match &pending {
            Some(pending) => format!("waiting: {pending}"),
            None => format!("waiting for {}", count(outdated as usize, "watcher")),
        };
        let named = (outdated, named, pending);
        let is_new = self.named.as_ref() != Some(&named);
        self.named = Some(named);
        if io::stderr().is_terminal() {
            let mut text = format!("{waiting} ({})", clock::length(self.start.elapsed()));
            for seen in late.iter().take(MOST_NAMED) {
                text.push_str(&format!("\n  {seen}"));
            }
            if late.len() > MOST_NAMED {
                text.push_str(&format!("\n  and {} more", late.len() - MOST_NAMED));
            }
            self.live.get_or_insert_with(spinner).set_message(text);
        } else if is_new {
            let names: Vec<_> = late
                .iter()
                .take(MOST_NAMED)
                .map(ToString::to_string)
                .collect();
            let more = match late.len().saturating_sub(MOST_NAMED) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let names = match names.is_empty() {
                true => String::new(),
                false => format!(": {}{more}", names.join("; ")),
            };
            output::note(FAINT, &format!("{waiting}{names}"));
        }
    }

    fn end(&self) {
        if let Some(live) = &self.live {
            live.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
