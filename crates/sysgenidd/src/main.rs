// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenidd`: serves `/dev/sysgenid` and `/dev/vmgenid` where no module can be loaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use sysgenidd::config::{Account, Attributes, InstanceName, Mode, Parent, check_directory};
use sysgenidd::control::{self, InstanceReport, Request, Response};
use sysgenidd::keeping::supervise;
use sysgenidd::placing::publish;
use sysgenidd::serving::renewal;
use sysgenidd::{daemon, service};
use tracing::Level;

/// Serve the nodes of a system generation counter from user space.
///
/// Programs read, poll, map and acknowledge DIRECTORY/host/sysgenid and DIRECTORY/host/vmgenid as they would
/// the nodes of the kernel module. It needs root, /dev/fuse, and Linux 6.9 or newer.
///
/// The usual start is `sysgenidd --publish`; the folder is /run/sysgenid unless it is named.
///
/// Signals: HUP reads the configuration again; INT stops and wakes everybody with an error; TERM does the
/// same, unless a service manager keeps the state for the next process: then it is left to that one. With
/// --supervise, signal the supervisor: TERM and INT stop, USR1 restarts without a loss.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration file [default: /etc/sysgenid/sysgenidd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the folders of the instances are mounted [default: /run/sysgenid]
    #[arg(long, value_name = "FOLDER", value_parser = directory)]
    directory: Option<PathBuf>,

    /// Let /dev/sysgenid and /dev/vmgenid lead to the nodes of the host
    #[arg(long)]
    publish: bool,

    /// Start the daemon again whenever it ends, and keep its state meanwhile, as systemd would
    #[arg(long)]
    supervise: bool,

    /// How often the daemon may end within ten seconds before the supervisor gives up
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 5,
        requires = "supervise"
    )]
    restart_limit: usize,

    /// Write the log for a person, even if the journal takes it
    #[arg(long)]
    foreground: bool,

    /// The least important messages that are logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value_t = Level::INFO)]
    log_level: Level,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Add, list, remove and hand out the instances of the running daemon
    #[command(subcommand)]
    Instance(InstanceTask),
    /// Print a Container Device Interface file for all instances of the running daemon
    Cdi {
        #[command(flatten)]
        place: Place,
    },
    /// Have the running daemon read its configuration again
    Reload {
        #[command(flatten)]
        place: Place,
    },
    #[command(name = renewal::COMMAND, hide = true)]
    Renew,
    /// Remove the mounts and links of a daemon that is gone and that nobody starts again
    Clean {
        #[command(flatten)]
        place: Place,
    },
    /// Stop the running daemon: wake everybody with an error, and unmount
    Stop {
        #[command(flatten)]
        place: Place,
        /// Do nothing if systemd stops this unit only to start it again
        #[arg(long, value_name = "UNIT")]
        unless_restarting: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum InstanceTask {
    /// Serve another generation with nodes and watchers of its own
    Add {
        /// Its name: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, with a letter or digit at both ends
        name: InstanceName,
        #[command(flatten)]
        definition: Definition,
        #[command(flatten)]
        place: Place,
    },
    /// Show all instances
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Serve an instance no longer; its watchers get an error
    Remove {
        /// Its name
        name: InstanceName,
        #[command(flatten)]
        place: Place,
    },
    /// Put the nodes of an instance at /dev in a running container
    Publish {
        /// Its name
        name: InstanceName,
        /// A process of the container
        #[arg(long, value_name = "PID")]
        into: u32,
        /// Where the container's root folder is, if it has not entered it yet
        #[arg(long, value_name = "FOLDER")]
        root: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
struct Definition {
    /// Whose changes bump it too: host or none
    #[arg(long, default_value = "host", value_parser = parent)]
    parent: Parent,

    /// Give it to the user namespace of this process: its root owns the nodes and may bump
    #[arg(long, value_name = "PID", conflicts_with = "user_namespace")]
    pid: Option<u32>,

    /// The same, by a file such as /proc/PID/ns/user
    #[arg(long, value_name = "FILE")]
    user_namespace: Option<PathBuf>,

    /// The owner of the nodes, a name or a number [default: root of the user namespace]
    #[arg(long, value_parser = account)]
    user: Option<Account>,

    /// The group of the nodes, a name or a number; it may acknowledge
    #[arg(long, value_parser = account)]
    group: Option<Account>,

    /// The mode of sysgenid, in octal [default: 0664 with --group, else 0644]
    #[arg(long, value_name = "MODE")]
    sysgenid_mode: Option<Mode>,

    /// The mode of vmgenid, in octal [default: 0600]
    #[arg(long, value_name = "MODE")]
    vmgenid_mode: Option<Mode>,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
struct Place {
    /// The daemon's configuration file [default: /etc/sysgenid/sysgenidd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The daemon's folder [default: what the configuration says, or /run/sysgenid]
    #[arg(long, value_name = "FOLDER", value_parser = directory)]
    directory: Option<PathBuf>,
}

impl Place {
    fn directory(self) -> PathBuf {
        self.options().directory()
    }

    fn options(self) -> daemon::Options {
        daemon::Options {
            config: self.config,
            directory: self.directory,
            publish: false,
        }
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    let result = match command.task {
        None => serve(command.serve),
        Some(task) => carry_out(task),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sysgenidd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(serve: Serve) -> anyhow::Result<()> {
    service::init_tracing(serve.foreground, serve.log_level);
    let options = daemon::Options {
        config: serve.config,
        directory: serve.directory,
        publish: serve.publish,
    };
    if !serve.supervise {
        return daemon::run(options);
    }
    let config = options.load()?;
    supervise::run(&supervise::Options {
        program: supervise::program()?,
        arguments: std::env::args_os()
            .skip(1)
            .filter(|argument| argument != "--supervise")
            .scan(false, without_restart_limit)
            .flatten()
            .collect(),
        directory: daemon::prepare_directory(&config.directory)?,
        devices: PathBuf::from("/dev"),
        restart_limit: serve.restart_limit,
    })?;
    Ok(())
}

/// Takes out an option that only the supervisor understands, and its value.
#[allow(clippy::unnecessary_wraps)] // `scan` wants it.
fn without_restart_limit(is_value: &mut bool, argument: OsString) -> Option<Option<OsString>> {
    let name = argument == "--restart-limit";
    let whole = argument.as_encoded_bytes().starts_with(b"--restart-limit=");
    let keep = !(std::mem::replace(is_value, name) || name || whole);
    Some(keep.then_some(argument))
}

fn carry_out(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Instance(task) => carry_out_instance(task),
        Task::Cdi { place } => {
            let directory = place.directory();
            let names: Vec<_> = list(&directory)?
                .into_iter()
                .map(|instance| instance.name)
                .collect();
            let file = publish::cdi(&directory, &names);
            println!("{}", serde_json::to_string_pretty(&file)?);
            Ok(())
        }
        Task::Reload { place } => ask(&place.directory(), &Request::Reload),
        Task::Renew => renewal::run(),
        Task::Clean { place } => {
            service::init_tracing(false, Level::INFO);
            daemon::clean(&place.options())
        }
        Task::Stop {
            place,
            unless_restarting: None,
        } => ask(&place.directory(), &Request::Stop),
        Task::Stop {
            place,
            unless_restarting: Some(unit),
        } => {
            if service::restart_is_queued(&unit)? {
                return Ok(());
            }
            match ask(&place.directory(), &Request::Stop) {
                // It has ended already, by itself.
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
            place,
        } => {
            let directory = place.directory();
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
            ask(
                &directory,
                &Request::Add {
                    name: name.clone(),
                    attributes,
                },
            )?;
            println!("{}", directory.join(name.as_str()).display());
            Ok(())
        }
        InstanceTask::List { json, place } => {
            let instances = list(&place.directory())?;
            if json {
                println!("{}", serde_json::to_string_pretty(&instances)?);
            } else {
                print!("{}", table(&instances));
            }
            Ok(())
        }
        InstanceTask::Remove { name, place } => ask(&place.directory(), &Request::Remove { name }),
        InstanceTask::Publish {
            name,
            into,
            root,
            place,
        } => Ok(publish::into_container(
            &place.directory(),
            &name,
            into,
            root.as_deref().unwrap_or(Path::new("/")),
        )?),
    }
}

fn ask(directory: &Path, request: &Request) -> anyhow::Result<()> {
    match control::call(directory, request)? {
        Response::Refused { reason } => bail!("{reason}"),
        Response::Done | Response::Instances(_) => Ok(()),
    }
}

fn list(directory: &Path) -> anyhow::Result<Vec<InstanceReport>> {
    match control::call(directory, &Request::List)? {
        Response::Instances(instances) => Ok(instances),
        Response::Refused { reason } => bail!("{reason}"),
        Response::Done => bail!("the daemon answered something else: is it of another version?"),
    }
}

fn table(instances: &[InstanceReport]) -> String {
    let longest = instances.iter().map(|each| each.name.as_str().len()).max();
    let width = longest.unwrap_or(0).max("NAME".len());
    let mut text = format!(
        "{:<width$}  {:<6}  {:>10}  {:>8}  {:>8}  {:>8}  {}\n",
        "NAME", "PARENT", "GENERATION", "WATCHERS", "TRACKED", "OUTDATED", "FOLDER"
    );
    for each in instances {
        let parent = each.parent.as_ref().map_or("-", InstanceName::as_str);
        text.push_str(&format!(
            "{:<width$}  {parent:<6}  {:>10}  {:>8}  {:>8}  {:>8}  {}\n",
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

fn directory(text: &str) -> Result<PathBuf, String> {
    let directory = std::path::absolute(text).map_err(|error| error.to_string())?;
    check_directory(&directory)?;
    Ok(directory)
}

fn parent(text: &str) -> Result<Parent, String> {
    match text {
        "host" => Ok(Parent::Host),
        "none" => Ok(Parent::None),
        _ => Err("it is host or none".to_owned()),
    }
}

#[allow(clippy::unnecessary_wraps)] // A parser of clap's returns a result.
fn account(text: &str) -> Result<Account, std::convert::Infallible> {
    Ok(text
        .parse()
        .map_or_else(|_| Account::Name(text.to_owned()), Account::Number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn the_daemon_gets_all_but_the_options_of_its_supervisor() {
        let given = [
            "--publish",
            "--restart-limit",
            "7",
            "--log-level",
            "debug",
            "--restart-limit=8",
        ];
        let left: Vec<_> = given
            .into_iter()
            .map(OsString::from)
            .scan(false, without_restart_limit)
            .flatten()
            .collect();
        assert_eq!(left, ["--publish", "--log-level", "debug"]);
    }
}
