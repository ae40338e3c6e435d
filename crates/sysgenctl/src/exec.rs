// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl exec`: a command that is started again at each change.

use std::io::{self, IsTerminal};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::bail;
use rustix::process::{Signal, getpgrp};
use rustix::termios::tcgetpgrp;
use sysgenid::{Acknowledged, Change, Error, Tracking};

use crate::child::{self, Reach, Running};
use crate::cli::{Exec, StopSignal};
use crate::events::{Event, Events, is_away};
use crate::output::{self, DOUBTFUL, FAINT};
use crate::permission::explain;
use crate::place::Place;

/// What a shell returns for a command that cannot be run, and for one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

pub(crate) fn run(place: &Place, options: &Exec) -> anyhow::Result<ExitCode> {
    let tracking = if options.untracked {
        Tracking::Untracked
    } else {
        Tracking::Tracked
    };
    let watcher = match place.watcher(tracking) {
        Err(error @ Error::NoPermission { .. }) if !options.untracked => {
            bail!(
                "{}; with --untracked it takes permission to read only",
                explain(&error)
            );
        }
        opened => opened?,
    };
    let signals = [Signal::TERM, Signal::INT, Signal::HUP, Signal::CHILD];
    let events = Events::new(watcher, &signals)?;
    let mut supervisor = Supervisor {
        events,
        options,
        reach: if io::stdin().is_terminal() {
            Reach::Process
        } else {
            Reach::Group
        },
        running: None,
        is_ending: false,
    };
    supervisor.run()
}

struct Supervisor<'a> {
    events: Events,
    options: &'a Exec,
    reach: Reach,
    /// The command. However all of this ends, it does not run on.
    running: Option<Running>,
    /// Somebody wants all of this to end: there is no other start.
    is_ending: bool,
}

impl Supervisor<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        let ended = self.supervise();
        if ended.is_err() && self.running.is_some() {
            output::note(DOUBTFUL, "cannot go on: ending the command");
            // What has failed is said by the caller. From here on only signals and the time count.
            self.events.leave_node();
            if self.stop(None).is_err()
                && let Some(running) = self.running.take()
            {
                let _ = running.signal(Signal::KILL);
                let _ = running.reap();
            }
        }
        ended
    }

    fn supervise(&mut self) -> anyhow::Result<ExitCode> {
        if let Err(code) = self.start() {
            return Ok(code);
        }
        loop {
            if self.has_ended()? {
                return Ok(ExitCode::from(child::code_of(self.reap()?)));
            }
            match self.events.next(None)? {
                Event::Signal(Signal::CHILD) | Event::TimeOut => {}
                Event::Signal(signal) => {
                    self.is_ending |= signal == Signal::TERM;
                    self.pass_on(signal)?;
                }
                Event::Gone => self.say_gone(),
                Event::Hindered(text) => output::note(DOUBTFUL, &text),
                Event::Changed(_) | Event::Back(_) if self.is_ending => {}
                Event::Changed(change) | Event::Back(change) => {
                    let mut next = Some(change);
                    while let Some(change) = next {
                        let (status, latest) = self.stop(Some(change))?;
                        if self.is_ending {
                            return Ok(ExitCode::from(child::code_of(status)));
                        }
                        if let Err(code) = self.start() {
                            return Ok(code);
                        }
                        next = latest.map(acknowledge).transpose()?.flatten();
                    }
                }
            }
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        self.running
            .as_ref()
            .map_or(Ok(()), |running| running.signal(signal))
    }

    fn has_ended(&self) -> io::Result<bool> {
        self.running.as_ref().map_or(Ok(true), Running::has_ended)
    }

    fn reap(&mut self) -> io::Result<std::process::ExitStatus> {
        let running = self.running.take();
        running.ok_or(io::ErrorKind::NotFound)?.reap()
    }

    /// Starts the command, or says why not and which exit code that is.
    fn start(&mut self) -> Result<(), ExitCode> {
        let program = &self.options.command[0];
        let mut command = Command::new(program);
        command.args(&self.options.command[1..]);
        let started = Running::start(&mut command, self.reach).map_err(|error| {
            output::complain(&format!("cannot run {}: {error}", program.display()));
            ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_RUN,
            })
        })?;
        self.running = Some(started);
        Ok(())
    }

    /// Has the command end. Returns how it did, and the latest change.
    fn stop(
        &mut self,
        change: Option<Change>,
    ) -> anyhow::Result<(std::process::ExitStatus, Option<Change>)> {
        let mut change = change;
        if let Some(change) = &change {
            let text = format!("generation {}: starting anew", change.generation());
            output::note(FAINT, &text);
        }
        self.signal(signal_of(self.options.signal))?;
        // A grace that no clock can show is as good as for ever.
        let mut deadline = Instant::now().checked_add(self.options.grace);
        while !self.has_ended()? {
            match self.events.next(deadline)? {
                Event::Signal(Signal::CHILD) => {}
                Event::Signal(signal) => {
                    self.is_ending |= matches!(signal, Signal::TERM | Signal::INT);
                    self.pass_on(signal)?;
                }
                Event::Changed(newer) | Event::Back(newer) => change = Some(newer),
                Event::Gone => self.say_gone(),
                Event::Hindered(text) => output::note(DOUBTFUL, &text),
                Event::TimeOut => {
                    output::note(DOUBTFUL, "the command does not end: killing it");
                    self.signal(Signal::KILL)?;
                    deadline = None;
                }
            }
        }
        if self.reach == Reach::Group {
            // What it has left behind belongs to the generation that is over.
            self.signal(Signal::KILL)?;
        }
        Ok((self.reap()?, change))
    }

    fn pass_on(&self, signal: Signal) -> io::Result<()> {
        // What is typed at the terminal has reached the command already.
        let from_terminal = signal == Signal::INT
            && self.reach == Reach::Process
            && tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
        if from_terminal {
            return Ok(());
        }
        self.signal(signal)
    }

    fn say_gone(&self) {
        let path = self.events.watcher().path().display();
        output::note(
            DOUBTFUL,
            &format!("the server of {path} has gone; the command is started anew when it is back"),
        );
    }
}

/// Acknowledges a change. Returns a newer one if there is one.
fn acknowledge(change: Change) -> anyhow::Result<Option<Change>> {
    match change.acknowledge() {
        Ok(Acknowledged::Current) => Ok(None),
        Ok(Acknowledged::ChangedAgain(newer)) => Ok(Some(newer)),
        // That is found out where events come from, too.
        Err(error) if is_away(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn signal_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Kill => Signal::KILL,
    }
}
