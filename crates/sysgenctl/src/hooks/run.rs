// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs one hook within its time, and hears meanwhile of changes and of the wish to stop.

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sysgenid::{Change, Generation};

use super::log::{self, Level};
use crate::child::{Reach, Running, describe};
use crate::events::{Event, Events};

/// How long a hook has to end once it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// What ends the program.
pub(super) const SIGNALS: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::CHILD];

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    /// It did not do its work, and why.
    Failed(String),
    /// It ended by itself, and not well.
    Exited(ExitStatus),
    /// It was ended because all of this ends.
    Stopped,
}

impl Outcome {
    /// Why the work was not done, if it was not.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Failed(reason) => Some(reason.clone()),
            Self::Exited(status) => Some(describe(*status)),
            Self::Succeeded | Self::Stopped => None,
        }
    }
}

/// Whoever hears of everything while hooks run and while they do not.
#[derive(Debug)]
pub(super) struct Lookout {
    events: Events,
    /// A change that nobody deals with yet.
    newer: Option<Change>,
    is_stopping: bool,
}

/// How far the end of a hook has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Runs,
    /// Its time is over, and it was asked to end.
    Late,
    /// All of this ends, and it was asked to.
    Stopping,
}

impl Lookout {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            newer: None,
            is_stopping: false,
        }
    }

    /// Whether the hook that runs should be the last one: there is another change, or the wish to stop.
    pub(super) fn is_interrupted(&self) -> bool {
        self.newer.is_some() || self.is_stopping
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// The change that came meanwhile.
    pub(super) fn take_newer(&mut self) -> Option<Change> {
        self.newer.take()
    }

    /// Leaves a change for later.
    pub(super) fn put_newer(&mut self, change: Change) {
        self.newer = Some(change);
    }

    /// Sleeps until something interrupts, or until a moment. `current` is the generation that is dealt with already.
    pub(super) fn pause(
        &mut self,
        until: Option<Instant>,
        current: Option<Generation>,
    ) -> anyhow::Result<()> {
        while !self.is_interrupted() {
            if self.hear(until, current)? {
                break;
            }
        }
        Ok(())
    }

    /// Runs a command to its end, or to that of its time.
    pub(super) fn supervise(
        &mut self,
        command: &mut Command,
        limit: Duration,
        current: Option<Generation>,
    ) -> anyhow::Result<Outcome> {
        let running = match Running::start(command, Reach::Group) {
            Ok(running) => running,
            Err(error) => return Ok(Outcome::Failed(format!("cannot be run: {error}"))),
        };
        let phase = self.see_to_its_end(&running, limit, current);
        if !matches!(phase, Ok(Phase::Runs)) {
            // What it has started ends with it.
            running.signal(Signal::KILL)?;
        }
        let phase = phase?;
        let status = running.reap()?;
        Ok(match phase {
            Phase::Stopping => Outcome::Stopped,
            Phase::Late => Outcome::Failed(format!(
                "took longer than {} s and was ended",
                limit.as_secs_f64()
            )),
            Phase::Runs if status.success() => Outcome::Succeeded,
            Phase::Runs => Outcome::Exited(status),
        })
    }

    fn see_to_its_end(
        &mut self,
        running: &Running,
        limit: Duration,
        current: Option<Generation>,
    ) -> anyhow::Result<Phase> {
        let mut phase = Phase::Runs;
        // A limit that no clock can show is as good as none.
        let mut deadline = Instant::now().checked_add(limit);
        while !running.has_ended()? {
            let is_over = self.hear(deadline, current)?;
            let asked_to_end = match phase {
                Phase::Runs if self.is_stopping => Some(Phase::Stopping),
                Phase::Runs if is_over => Some(Phase::Late),
                _ => None,
            };
            if let Some(next) = asked_to_end {
                running.signal(Signal::TERM)?;
                phase = next;
                deadline = Some(Instant::now() + GRACE);
            } else if is_over {
                running.signal(Signal::KILL)?;
                deadline = None;
            }
        }
        Ok(phase)
    }

    /// Takes in the next event. True if the time is over.
    fn hear(
        &mut self,
        deadline: Option<Instant>,
        current: Option<Generation>,
    ) -> anyhow::Result<bool> {
        match self.events.next(deadline)? {
            // The one that is dealt with is told again now and then.
            Event::Changed(change) if Some(change.generation()) == current => {}
            Event::Changed(change) => self.newer = Some(change),
            Event::Gone => {
                let path = self.events.watcher().path().display();
                let text = format!("the server of {path} has gone; waiting until it is back");
                log::say(Level::Warning, &text);
            }
            Event::Hindered(text) => log::say(Level::Warning, &text),
            Event::Back(change) => {
                let path = self.events.watcher().path().display();
                let text = format!("{path} is back; what happened meanwhile is not known");
                log::say(Level::Warning, &text);
                self.newer = Some(change);
            }
            Event::Signal(Signal::CHILD) => {}
            Event::Signal(_) => self.is_stopping = true,
            Event::TimeOut => return Ok(true),
        }
        Ok(false)
    }
}
