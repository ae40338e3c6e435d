// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenidd`: serves `/dev/sysgenid` and `/dev/vmgenid` where no module can be loaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser as _;
use sysgenidd::command::{Command, InstanceTask, Place, Serve, Task};
use sysgenidd::config::{Attributes, InstanceName, Publish};
use sysgenidd::control::{self, InstanceReport, Request, Response, Token};
use sysgenidd::daemon::{self, End};
use sysgenidd::keeping::supervisor;
use sysgenidd::placing::{cdi, container};
use sysgenidd::service;
use sysgenidd::serving::copies;
use tracing::Level;

fn main() -> ExitCode {
    let command = Command::parse();
    let result = match command.task {
        None => serve(command.serve),
        Some(task) => carry_out(task).map(|()| End::Stop),
    };
    match result {
        Ok(End::HandOver) => ExitCode::from(daemon::HANDED_OVER),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sysgenidd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Which daemon is meant.
fn options(place: Place) -> daemon::Options {
    daemon::Options {
        config: place.config,
        directory: place.directory,
        publish: Publish::Never,
    }
}

fn serve(serve: Serve) -> anyhow::Result<End> {
    service::init_tracing(serve.foreground, serve.log_level);
    end_with_any_thread();
    let options = daemon::Options {
        config: serve.config,
        directory: serve.directory,
        publish: serve.publish,
    };
    if !serve.supervise {
        return daemon::run(options);
    }
    let config = options.load()?;
    supervisor::run(&supervisor::Options {
        program: supervisor::program()?,
        arguments: std::env::args_os()
            .skip(1)
            .filter(|argument| argument != "--supervise")
            .scan(false, without_those_of_the_supervisor)
            .flatten()
            .collect(),
        directory: daemon::prepare_directory(&config.directory)?,
        devices: PathBuf::from("/dev"),
        restart_limit: serve.restart_limit,
        watchdog: watchdog(serve.watchdog),
    })?;
    Ok(End::Stop)
}

/// Lets the process end when one of its threads fails: a successor loses nothing, but whom a thread serves that is
/// no more waits for ever.
fn end_with_any_thread() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        std::process::abort();
    }));
}

/// Takes out an option that only the supervisor understands, and its value.
#[allow(clippy::unnecessary_wraps)] // `scan` wants it.
fn without_those_of_the_supervisor(
    is_value: &mut bool,
    argument: OsString,
) -> Option<Option<OsString>> {
    let bytes = argument.as_encoded_bytes();
    let of_it = ["--restart-limit", "--watchdog"];
    let name = of_it.iter().any(|name| argument == *name);
    let whole = of_it.iter().any(|name| {
        bytes
            .strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"="))
    });
    let keep = !(std::mem::replace(is_value, name) || name || whole);
    Some(keep.then_some(argument))
}

/// How long the daemon may say nothing; `None` is for ever.
fn watchdog(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

fn carry_out(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Instance(task) => carry_out_instance(task),
        Task::Cdi { place } => {
            let directory = options(place).directory();
            let names: Vec<_> = list(&directory)?
                .into_iter()
                .map(|instance| instance.name)
                .collect();
            let file = cdi::file(&directory, &names);
            println!("{}", serde_json::to_string_pretty(&file)?);
            Ok(())
        }
        Task::Reload { place } => ask(&options(place).directory(), &Request::Reload),
        Task::Renew => copies::run(),
        Task::Clean { place } => {
            service::init_tracing(false, Level::INFO);
            daemon::clean(&options(place))
        }
        Task::Stop {
            place,
            unless_restarting: None,
        } => ask(&options(place).directory(), &Request::Stop),
        Task::Stop {
            place,
            unless_restarting: Some(unit),
        } => {
            if service::jobs::restart_is_queued(&unit)? {
                return Ok(());
            }
            match ask(&options(place).directory(), &Request::Stop) {
                // It has ended already: by itself, or it has handed over and the unit goes on.
                Err(error)
                    if matches!(error.downcast_ref(), Some(control::Error::NotRunning(_))) =>
                {
                    Ok(())
                }
                result => result,
            }
        }
    }
}

fn carry_out_instance(task: InstanceTask) -> anyhow::Result<()> {
    match task {
        InstanceTask::Add {
            name,
            definition,
            json,
            place,
        } => {
            let directory = options(place).directory();
            let user_namespace = match definition.pid {
                Some(pid) => Some(PathBuf::from(format!("/proc/{pid}/ns/user"))),
                None => definition.user_namespace.map(absolute).transpose()?,
            };
            let attributes = Attributes {
                parent: Some(definition.parent),
                user_namespace,
                user: definition.user,
                group: definition.group,
                sysgenid_mode: definition.sysgenid_mode,
                vmgenid_mode: definition.vmgenid_mode,
            };
            let request = Request::Add {
                name,
                attributes,
                generation: definition.generation,
                pid: definition.pid.filter(|_| !definition.outlive),
            };
            let added = match control::call(&directory, &request)? {
                Response::Added(added) => added,
                answer => bail!(reason(answer)),
            };
            if json {
                println!("{}", serde_json::to_string_pretty(&added)?);
            } else {
                println!("{}", added.path.display());
            }
            Ok(())
        }
        InstanceTask::List { json, place } => {
            let instances = list(&options(place).directory())?;
            if json {
                println!("{}", serde_json::to_string_pretty(&instances)?);
            } else {
                print!("{}", table(&instances));
            }
            Ok(())
        }
        InstanceTask::Remove { name, token, place } => {
            let token = token.map(Token::from);
            ask(
                &options(place).directory(),
                &Request::Remove { name, token },
            )
        }
        InstanceTask::Publish {
            name,
            into,
            root,
            place,
        } => Ok(container::into_container(
            &options(place).directory(),
            &name,
            into,
            root.as_deref().unwrap_or(Path::new("/")),
        )?),
    }
}

fn ask(directory: &Path, request: &Request) -> anyhow::Result<()> {
    match control::call(directory, request)? {
        Response::Done => Ok(()),
        answer => bail!(reason(answer)),
    }
}

fn list(directory: &Path) -> anyhow::Result<Vec<InstanceReport>> {
    match control::call(directory, &Request::List)? {
        Response::Instances(instances) => Ok(instances),
        answer => bail!(reason(answer)),
    }
}

/// Why an answer is not the one that was hoped for.
fn reason(answer: Response) -> String {
    match answer {
        Response::Refused { reason } => reason,
        _ => "the daemon answered something else: is it of another version?".to_owned(),
    }
}

fn table(instances: &[InstanceReport]) -> String {
    let longest = instances.iter().map(|each| each.name.as_str().len()).max();
    let width = longest.unwrap_or(0).max("NAME".len());
    let mut text = format!(
        "{:<width$}  {:<6}  {:>10}  {:>8}  {:>8}  {:>8}  {:>7}  {}\n",
        "NAME", "PARENT", "GENERATION", "WATCHERS", "TRACKED", "OUTDATED", "PID", "FOLDER"
    );
    for each in instances {
        let parent = each.parent.as_ref().map_or("-", InstanceName::as_str);
        let pid = each.pid.map_or("-".to_owned(), |pid| pid.to_string());
        text.push_str(&format!(
            "{:<width$}  {parent:<6}  {:>10}  {:>8}  {:>8}  {:>8}  {pid:>7}  {}\n",
            each.name.as_str(),
            each.generation,
            each.watchers,
            each.tracked,
            each.outdated,
            each.path.display()
        ));
    }
    text
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("{} has no absolute path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_gets_all_but_the_options_of_its_supervisor() {
        let given = [
            "--publish",
            "--restart-limit",
            "7",
            "--log-level",
            "debug",
            "--watchdog",
            "3",
            "--restart-limit=8",
            "--watchdog=5",
        ];
        let left: Vec<_> = given
            .into_iter()
            .map(OsString::from)
            .scan(false, without_those_of_the_supervisor)
            .flatten()
            .collect();
        assert_eq!(left, ["--publish", "--log-level", "debug"]);
    }
}
