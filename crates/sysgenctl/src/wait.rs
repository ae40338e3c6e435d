// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl wait`: until everybody has acknowledged, showing who has not.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sysgenid::{Orchestrator, Settlement};

use crate::TIMED_OUT;
use crate::clock;
use crate::output::{self, DOUBTFUL, FAINT, GOOD, count};
use crate::place::Place;
use crate::watchers::{List, Seen};

/// How often what is shown is looked at anew. The end of the wait itself comes at once.
const REFRESH: Duration = Duration::from_millis(500);

/// How many are named while it lasts.
const MOST_NAMED: usize = 10;

/// The answer, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    settled: bool,
    generation: u32,
    outdated: u32,
    /// Nothing where they cannot be seen.
    late: Option<Vec<Seen>>,
}

pub(crate) fn run(
    place: &Place,
    timeout: Option<Duration>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    settle(place.orchestrator()?, timeout, json)
}

/// Waits until everybody has acknowledged.
pub(crate) fn settle(
    orchestrator: Orchestrator,
    timeout: Option<Duration>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let watched = Orchestrator::open_at(orchestrator.path())?;
    let (sender, settled) = mpsc::channel();
    // It sleeps in the kernel, which tells at once. The end of this process ends it.
    thread::spawn(move || sender.send(orchestrator.settle(timeout)));
    let mut view = View::new();
    let settlement = loop {
        match settled.recv_timeout(view.pause()) {
            Ok(settlement) => break settlement?,
            Err(RecvTimeoutError::Timeout) => view.show(&watched),
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the wait ended early")),
        }
    };
    view.end();
    match settlement {
        Settlement::Settled(generation) => {
            if json {
                output::json(&Answer {
                    settled: true,
                    generation: generation.get(),
                    outdated: 0,
                    late: Some(Vec::new()),
                })?;
            } else {
                let text = format!("everybody is in generation {generation}");
                output::line(&output::styled(GOOD, &text))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Settlement::TimedOut { outdated } => {
            report_late(&watched, outdated, json)?;
            Ok(ExitCode::from(TIMED_OUT))
        }
    }
}

fn report_late(orchestrator: &Orchestrator, outdated: u32, json: bool) -> anyhow::Result<()> {
    let list = List::make(orchestrator).map(|mut list| {
        list.watchers.retain(Seen::is_late);
        list
    });
    if json {
        return output::json(&Answer {
            settled: false,
            generation: orchestrator.generation()?.get(),
            outdated,
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

/// So many are outdated, among them these. Several watchers of one process can look the same.
type Named = (u32, Vec<(Option<u32>, Vec<u32>)>);

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

    fn show(&mut self, orchestrator: &Orchestrator) {
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
        let named = (outdated, named);
        let is_new = self.named.as_ref() != Some(&named);
        self.named = Some(named);
        let waiting = format!("waiting for {}", count(outdated as usize, "watcher"));
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
