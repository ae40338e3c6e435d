// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl run-hooks`: runs the operator's programs at each change.
//!
//! A round is one generation: all hooks, and those that failed again and again until all have succeeded, which is
//! when it is acknowledged. Another change ends a round, and begins the next.

mod backoff;
mod find;
mod log;
mod progress;
mod run;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use serde::Serialize;
use sysgenid::{Acknowledged, Change, Generation, Tracking};

use self::backoff::Backoff;
use self::find::{Folders, Hook, State};
use self::log::Level;
use self::progress::Note;
pub(crate) use self::progress::{Pending, Progress};
use self::run::{Lookout, Outcome};
use crate::FAILURE;
use crate::cli::RunHooks;
use crate::events::{Events, is_away};
use crate::output::{self, BAD, FAINT, PLAIN};
use crate::place::Place;

/// Where a hook finds programs, whatever this one was started with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is between this process and its service manager, and no business of a hook.
const NOT_FOR_HOOKS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// What systemd starts when all is settled: it is stopped first of all.
const SETTLED: [&str; 2] = ["sysgenid-settled.service", "sysgenid-settled.target"];

/// How long that may take: it only asks for it.
const PATIENCE_WITH_SYSTEMD: Duration = Duration::from_secs(5);

/// What `systemctl` returns where there are no such units.
const NO_SUCH_UNIT: i32 = 5;

pub(crate) fn run(place: &Place, options: &RunHooks) -> anyhow::Result<ExitCode> {
    let folders = Folders::new(&options.hooks_dir);
    if options.list {
        return list(&folders, options.json);
    }
    // Whoever watches with the wrong folder, or with none, would acknowledge what nobody has dealt with.
    let hooks = find::find(&folders)?;
    if !hooks.iter().any(Hook::is_on) {
        let text = format!("there are no hooks to run in {folders}");
        log::say(Level::Warning, &text);
    }
    let tracking = if options.once {
        Tracking::Untracked
    } else {
        Tracking::Tracked
    };
    let watcher = place.watcher(tracking)?;
    let generation = watcher.generation()?;
    let mut runner = Runner {
        lookout: Lookout::new(Events::new(watcher, &run::SIGNALS)?),
        folders,
        limit: options.timeout,
        previous: generation,
        progress: Progress::new(
            options.state_dir.as_deref(),
            std::env::var_os("RUNTIME_DIRECTORY").as_deref(),
        ),
        said: HashSet::new(),
    };
    if options.once {
        return runner.run_once(generation);
    }
    // What does not run is said before there is anything to run.
    runner.say_what_does_not_run(&hooks);
    runner.serve(generation)?;
    Ok(ExitCode::SUCCESS)
}

struct Runner {
    lookout: Lookout,
    folders: Folders,
    limit: Duration,
    /// The last generation for which all hooks succeeded, or that of the start.
    previous: Generation,
    /// Where it is noted what has been dealt with.
    progress: Progress,
    /// The files of which it was said that they do not run.
    said: HashSet<(PathBuf, String)>,
}

impl Runner {
    /// Serves until somebody wants it to end.
    fn serve(&mut self, generation: Generation) -> anyhow::Result<()> {
        let unfinished = self.unfinished(generation);
        // Before systemd goes on: what waits for everybody to be done is to see it.
        self.note(unfinished.is_some().then_some(generation));
        let status = unfinished
            .clone()
            .unwrap_or_else(|| format!("waiting for a change of generation {generation}"));
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
        log::say(Level::Info, &format!("ready, in generation {generation}"));
        if let Some(text) = unfinished {
            log::say(Level::Warning, &text);
            self.round(generation, None)?;
        }
        while !self.lookout.is_stopping() {
            match self.lookout.take_newer() {
                Some(change) => self.round(change.generation(), Some(change))?,
                None => self.lookout.pause(None, None)?,
            }
        }
        tell(&[NotifyState::Stopping]);
        Ok(())
    }

    /// What is to be said of a change that was not dealt with before a restart, or that came while nothing ran, if there
    /// is one.
    fn unfinished(&mut self, generation: Generation) -> Option<String> {
        let note = match self.progress.read() {
            Ok(note) => note?,
            Err(error) => {
                let text = format!(
                    "cannot read what has been dealt with from {}: {error}",
                    self.progress.path()
                );
                log::say(Level::Warning, &text);
                return Some(format!(
                    "a change may not have been dealt with before a restart: running all hooks for generation \
                     {generation}"
                ));
            }
        };
        if note.process.is_another() {
            let text = format!(
                "process {} notes in {}, too: this one notes nothing, and a restart of it forgets",
                note.process.pid,
                self.progress.path()
            );
            log::say(Level::Warning, &text);
            self.progress = Progress::nowhere();
            return None;
        }
        self.previous = Generation::new(note.dealt_with);
        let what = match note.pending {
            Some(pending) => format!("generation {pending} was not dealt with before a restart"),
            None if self.previous == generation => return None,
            None => format!(
                "the generation has changed from {} while this did not run",
                self.previous
            ),
        };
        Some(format!(
            "{what}: running all hooks for generation {generation}"
        ))
    }

    /// Notes for the next start, and for whoever waits, what has been dealt with and what is being dealt with.
    fn note(&self, pending: Option<Generation>) {
        if let Err(error) = self.progress.write(&Note::new(self.previous, pending)) {
            let text = format!(
                "cannot note in {} what has been dealt with, so neither a restart nor sysgenctl wait knows: {error}",
                self.progress.path()
            );
            log::say(Level::Warning, &text);
        }
    }

    /// Runs everything once.
    fn run_once(&mut self, generation: Generation) -> anyhow::Result<ExitCode> {
        let mut generation = generation;
        loop {
            let failures = self.attempt(generation, Some(generation), 1, &mut HashSet::new())?;
            if self.lookout.is_stopping() {
                return Ok(FAILURE);
            }
            if let Some(newer) = self.lookout.take_newer() {
                generation = newer.generation();
                let text = format!("generation {generation} has come: beginning anew");
                log::say(Level::Info, &text);
                continue;
            }
            return Ok(if failures.is_empty() {
                ExitCode::SUCCESS
            } else {
                FAILURE
            });
        }
    }

    /// Deals with a change until all hooks have succeeded, there is another change, or all of this ends. Where a
    /// restart has left one unfinished there is nothing to acknowledge: the new watcher is current.
    fn round(&mut self, generation: Generation, change: Option<Change>) -> anyhow::Result<()> {
        // Without a change in hand one of this very generation is another one, which must be acknowledged.
        let current = change.as_ref().map(|_| generation);
        let mut backoff = Backoff::new();
        let mut succeeded = HashSet::new();
        log::say(
            Level::Info,
            &format!("generation {generation}, after {}", self.previous),
        );
        self.note(Some(generation));
        self.unsettle(current)?;
        for attempt in 1_u64.. {
            if self.lookout.is_interrupted() {
                break;
            }
            let failures = self.attempt(generation, current, attempt, &mut succeeded)?;
            if self.lookout.is_interrupted() {
                break;
            }
            if failures.is_empty() {
                self.previous = generation;
                self.note(None);
                return match change {
                    Some(change) => self.acknowledge(change, succeeded.len()),
                    None => {
                        self.say_finished(generation, succeeded.len(), "");
                        Ok(())
                    }
                };
            }
            let pause = backoff.pause();
            let names: Vec<_> = failures.iter().map(|name| name.to_string_lossy()).collect();
            let text = format!(
                "generation {generation}: failed: {}; attempt {} in {} s",
                names.join(", "),
                attempt + 1,
                pause.as_secs()
            );
            tell(&[NotifyState::Status(&text)]);
            log::say(Level::Warning, &text);
            self.lookout.pause(Some(Instant::now() + pause), current)?;
        }
        Ok(())
    }

    /// Runs all hooks that have not succeeded yet, each once. Returns those that failed. If something interrupts, the
    /// rest is left out.
    fn attempt(
        &mut self,
        generation: Generation,
        current: Option<Generation>,
        attempt: u64,
        succeeded: &mut HashSet<OsString>,
    ) -> anyhow::Result<Vec<OsString>> {
        let hooks = match self.find() {
            Ok(hooks) => hooks,
            Err(error) => {
                log::say(Level::Warning, &format!("{:#}", anyhow::Error::from(error)));
                return Ok(vec!["the folder of hooks".into()]);
            }
        };
        let mut failures = Vec::new();
        for hook in hooks {
            if succeeded.contains(&hook.name) {
                continue;
            }
            let name = hook.name.to_string_lossy().into_owned();
            match hook.state {
                State::Runs => {}
                State::Masked | State::Skipped(_) => continue,
                State::Broken(reason) => {
                    let text = format!("generation {generation}: {name} has failed: {reason}");
                    log::say(Level::Warning, &text);
                    failures.push(hook.name);
                    continue;
                }
            }
            tell(&[NotifyState::Status(&format!(
                "generation {generation}: running {name}, attempt {attempt}"
            ))]);
            let mut command = self.command(&hook.path, generation, attempt);
            let outcome = self.lookout.supervise(&mut command, self.limit, current)?;
            match outcome {
                Outcome::Succeeded => {
                    log::say(
                        Level::Info,
                        &format!("generation {generation}: {name} has succeeded"),
                    );
                    succeeded.insert(hook.name);
                }
                Outcome::Failed(_) | Outcome::Exited(_) => {
                    let reason = outcome.failure().unwrap_or_default();
                    log::say(
                        Level::Warning,
                        &format!("generation {generation}: {name} has failed: {reason}"),
                    );
                    failures.push(hook.name);
                }
                Outcome::Stopped => {
                    log::say(
                        Level::Warning,
                        &format!("generation {generation}: {name} was ended"),
                    );
                }
            }
            if self.lookout.is_interrupted() {
                break;
            }
        }
        Ok(failures)
    }

    fn command(&self, path: &Path, generation: Generation, attempt: u64) -> Command {
        let mut command = Command::new(path);
        for name in NOT_FOR_HOOKS {
            command.env_remove(name);
        }
        command
            .env("PATH", PATH)
            .env("SYSGENID_GENERATION", generation.to_string())
            .env("SYSGENID_PREVIOUS_GENERATION", self.previous.to_string())
            .env("SYSGENID_ATTEMPT", attempt.to_string())
            .stdin(Stdio::null());
        command
    }

    fn acknowledge(&mut self, change: Change, hooks: usize) -> anyhow::Result<()> {
        let generation = change.generation();
        match change.acknowledge() {
            Ok(Acknowledged::Current) => self.say_finished(generation, hooks, "; acknowledged"),
            Ok(Acknowledged::ChangedAgain(newer)) => self.lookout.put_newer(newer),
            // That is found out where events come from, too, and the node's return begins anew.
            Err(error) if is_away(&error) => self.note(Some(generation)),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Says that a generation is dealt with.
    fn say_finished(&self, generation: Generation, hooks: usize, more: &str) {
        let text = format!(
            "generation {generation}: {} succeeded{more}",
            output::count(hooks, "hook")
        );
        tell(&[NotifyState::Status(&text)]);
        log::say(Level::Info, &text);
    }

    /// Has systemd stop what may run only while all is settled.
    fn unsettle(&mut self, current: Option<Generation>) -> anyhow::Result<()> {
        let is_service = std::env::var_os("NOTIFY_SOCKET").is_some();
        if !is_service || !sd_notify::booted().unwrap_or(false) {
            return Ok(());
        }
        let mut command = Command::new("systemctl");
        command
            .args(["--no-block", "--quiet", "try-restart"])
            .args(SETTLED)
            .env("PATH", PATH)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let asked = self
            .lookout
            .supervise(&mut command, PATIENCE_WITH_SYSTEMD, current)?;
        if let Some(reason) = asked.failure()
            && !has_no_such_unit(&asked)
        {
            let text = format!("systemctl try-restart {}: {reason}", SETTLED.join(" "));
            log::say(Level::Warning, &text);
        }
        Ok(())
    }

    /// All hooks.
    fn find(&mut self) -> Result<Vec<Hook>, find::Error> {
        let hooks = find::find(&self.folders)?;
        self.say_what_does_not_run(&hooks);
        Ok(hooks)
    }

    /// Each is said once.
    fn say_what_does_not_run(&mut self, hooks: &[Hook]) {
        for hook in hooks {
            let (level, text) = match &hook.state {
                State::Runs => continue,
                State::Masked => (Level::Info, "turned off".to_owned()),
                State::Skipped(reason) => (Level::Info, format!("skipped: {reason}")),
                State::Broken(reason) => (Level::Warning, format!("broken: {reason}")),
            };
            if self.said.insert((hook.path.clone(), text.clone())) {
                log::say(level, &format!("{}: {text}", hook.path.display()));
            }
        }
    }
}

/// Whether `systemctl` says that there is nothing to stop.
fn has_no_such_unit(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Exited(status) if status.code() == Some(NO_SUCH_UNIT))
}

fn tell(states: &[NotifyState<'_>]) {
    // A manager that does not listen must not keep the hooks from running.
    let _ = sd_notify::notify(states);
}

/// A hook, for programs.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    path: PathBuf,
    state: &'static str,
    reason: Option<String>,
    overrides: Option<PathBuf>,
}

fn list(folders: &Folders, json: bool) -> anyhow::Result<ExitCode> {
    let hooks: Vec<_> = find::find(folders)?
        .into_iter()
        .map(|hook| Listed {
            name: hook.name.to_string_lossy().into_owned(),
            path: hook.path,
            reason: match &hook.state {
                State::Skipped(reason) => Some((*reason).to_owned()),
                State::Broken(reason) => Some(reason.clone()),
                State::Runs | State::Masked => None,
            },
            state: match hook.state {
                State::Runs => "runs",
                State::Masked => "masked",
                State::Skipped(_) => "skipped",
                State::Broken(_) => "broken",
            },
            overrides: hook.overrides,
        })
        .collect();
    if json {
        output::json(&hooks)?;
    } else if hooks.is_empty() {
        output::line(&format!("there are no hooks in {folders}"))?;
    } else {
        let rows: Vec<_> = hooks.iter().map(Listed::row).collect();
        output::line(&output::table(
            &["NAME", "STATE", "FILE", "OVERRIDES"],
            &rows,
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Listed {
    fn row(&self) -> (anstyle::Style, Vec<String>) {
        let style = match self.state {
            "runs" => PLAIN,
            "broken" => BAD,
            _ => FAINT,
        };
        let state = match &self.reason {
            Some(reason) => format!("{}: {reason}", self.state),
            None => self.state.to_owned(),
        };
        let overrides = self.overrides.as_ref();
        let cells = vec![
            self.name.clone(),
            state,
            self.path.display().to_string(),
            overrides.map_or_else(String::new, |path| path.display().to_string()),
        ];
        (style, cells)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn that_there_is_no_unit_is_known_by_the_number_and_not_by_the_text() {
        let exited = |code| Outcome::Exited(ExitStatus::from_raw(code << 8));
        assert!(has_no_such_unit(&exited(5)));
        assert!(!has_no_such_unit(&exited(4)));
        assert!(!has_no_such_unit(&Outcome::Failed(
            "exit status 5".to_owned()
        )));
    }
}
