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
            bail!("{error}; with --untracked it takes permission to read only");
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
        is_ending: false,
    };
    supervisor.run()
}

struct Supervisor<'a> {
    events: Events,
    options: &'a Exec,
    reach: Reach,
    /// Somebody wants all of this to end: there is no other start.
    is_ending: bool,
}

impl Supervisor<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        let mut running = match self.start() {
            Ok(running) => running,
            Err(code) => return Ok(code),
        };
        loop {
            if running.has_ended()? {
                return Ok(ExitCode::from(child::code_of(running.reap()?)));
            }
            match self.events.next(None)? {
                Event::Signal(Signal::CHILD) | Event::TimeOut => {}
                Event::Signal(signal) => {
                    self.is_ending |= signal == Signal::TERM;
                    self.pass_on(signal, &running)?;
                }
                Event::Gone => self.say_gone(),
                Event::Changed(_) | Event::Back(_) if self.is_ending => {}
                Event::Changed(change) | Event::Back(change) => {
                    let mut next = Some(change);
                    while let Some(change) = next {
                        let (status, latest) = self.stop(running, change)?;
                        if self.is_ending {
                            return Ok(ExitCode::from(child::code_of(status)));
                        }
                        running = match self.start() {
                            Ok(running) => running,
                            Err(code) => return Ok(code),
                        };
                        next = acknowledge(latest)?;
                    }
                }
            }
        }
    }

    /// Starts the command, or says why not and which exit code that is.
    fn start(&self) -> Result<Running, ExitCode> {
        let program = &self.options.command[0];
        let mut command = Command::new(program);
        command.args(&self.options.command[1..]);
        Running::start(&mut command, self.reach).map_err(|error| {
            output::complain(&format!("cannot run {}: {error}", program.display()));
            ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_RUN,
            })
        })
    }

    /// Has the command end. Returns how it did, and the latest change.
    fn stop(
        &mut self,
        running: Running,
        change: Change,
    ) -> anyhow::Result<(std::process::ExitStatus, Change)> {
        let mut change = change;
        output::note(
            FAINT,
            &format!("generation {}: starting anew", change.generation()),
        );
        running.signal(signal_of(self.options.signal))?;
        // A grace that no clock can show is as good as for ever.
        let mut deadline = Instant::now().checked_add(self.options.grace);
        while !running.has_ended()? {
            match self.events.next(deadline)? {
                Event::Signal(Signal::CHILD) => {}
                Event::Signal(signal) => {
                    self.is_ending |= matches!(signal, Signal::TERM | Signal::INT);
                    self.pass_on(signal, &running)?;
                }
                Event::Changed(newer) | Event::Back(newer) => change = newer,
                Event::Gone => self.say_gone(),
                Event::TimeOut => {
                    output::note(DOUBTFUL, "the command does not end: killing it");
                    running.signal(Signal::KILL)?;
                    deadline = None;
                }
            }
        }
        if self.reach == Reach::Group {
            // What it has left behind belongs to the generation that is over.
            running.signal(Signal::KILL)?;
        }
        Ok((running.reap()?, change))
    }

    fn pass_on(&self, signal: Signal, running: &Running) -> io::Result<()> {
        // What is typed at the terminal has reached the command already.
        let from_terminal = signal == Signal::INT
            && self.reach == Reach::Process
            && tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
        if from_terminal {
            return Ok(());
        }
        running.signal(signal)
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
