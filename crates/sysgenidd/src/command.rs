// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line: what can be asked of the program, and how.
//!
//! The build reads this file too, for the manual page. So it does nothing, and uses only what does nothing either.

use std::convert::Infallible;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing::Level;

use crate::config::{Account, InstanceName, Mode, Parent, Publish, check_directory};

/// Serve the nodes of a system generation counter from user space.
///
/// Programs read, poll, map and acknowledge DIRECTORY/host/sysgenid and DIRECTORY/host/vmgenid as they would
/// the nodes of the kernel module. It needs root, /dev/fuse, and Linux 6.9 or newer.
///
/// The usual start is `sysgenidd --publish`; the folder is /run/sysgenid unless it is named.
///
/// Signals: HUP reads the configuration again; INT stops and wakes everybody with an error; TERM does the
/// same, unless a service manager keeps the state for the next process: then it is left to that one, and the exit
/// status is 75. With --supervise, signal the supervisor: TERM and INT stop, USR1 restarts without a loss.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Command {
    #[command(subcommand)]
    /// What to do with a running daemon; nothing is to serve.
    pub task: Option<Task>,
    #[command(flatten)]
    /// How to serve.
    pub serve: Serve,
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration file [default: /etc/sysgenid/sysgenidd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the folders of the instances are mounted [default: /run/sysgenid]
    #[arg(long, value_name = "FOLDER", value_parser = directory)]
    pub directory: Option<PathBuf>,

    /// Let /dev/sysgenid and /dev/vmgenid lead to the nodes of the host, while something notices restores of the
    /// machine; with `=always`, even where nothing does
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub publish: Publish,

    /// Start the daemon again whenever it ends, and keep its state meanwhile, as systemd would
    #[arg(long)]
    pub supervise: bool,

    /// How often the daemon may end within ten seconds before the supervisor gives up
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 5,
        requires = "supervise"
    )]
    pub restart_limit: usize,

    /// After how many seconds without a word the supervisor takes the daemon for one that hangs, and starts
    /// it again without a loss; 0 is never
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        requires = "supervise"
    )]
    pub watchdog: u32,

    /// Write the log for a person, even if the journal takes it
    #[arg(long)]
    pub foreground: bool,

    /// The least important messages that are logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value_t = Level::INFO)]
    pub log_level: Level,
}

/// What to do with a running daemon.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Add, list, remove and hand out the instances of the running daemon
    #[command(subcommand)]
    Instance(InstanceTask),
    /// Print a Container Device Interface file for all instances of the running daemon
    Cdi {
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
    /// Have the running daemon read its configuration again
    Reload {
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
    /// Renew the page of an instance, as the daemon starts it for that
    #[command(name = "renew", hide = true)]
    Renew,
    /// End what a daemon left that is gone and that nobody starts again: pages, mounts and links
    Clean {
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
    /// Stop the running daemon: wake everybody with an error, and unmount
    Stop {
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
        /// Do nothing if systemd stops this unit only to start it again
        #[arg(long, value_name = "UNIT")]
        unless_restarting: Option<String>,
    },
}

/// What to do with its instances.
#[derive(Debug, Subcommand)]
pub enum InstanceTask {
    /// Serve another generation with nodes and watchers of its own
    Add {
        /// Its name: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, with a letter or digit at both ends
        name: InstanceName,
        /// What it shall be.
        #[command(flatten)]
        definition: Definition,
        /// Print its folder, token and generation as JSON, for programs
        #[arg(long)]
        json: bool,
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
    /// Show all instances
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
    /// Serve an instance no longer; its watchers get an error
    Remove {
        /// Its name
        name: InstanceName,
        /// Remove it only if it is the one that was added with this token, and not one of the configuration
        #[arg(long)]
        token: Option<String>,
        /// Which daemon is meant.
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
        /// Which daemon is meant.
        #[command(flatten)]
        place: Place,
    },
}

/// What an instance shall be.
#[derive(Debug, Args)]
pub struct Definition {
    /// Whose changes bump it too: host or none
    #[arg(long, default_value = "host", value_parser = parent)]
    pub parent: Parent,

    /// Give it to the user namespace of this process, whose root owns the nodes and may bump, and end it with the
    /// process
    #[arg(long, value_name = "PID", conflicts_with = "user_namespace")]
    pub pid: Option<u32>,

    /// Let it outlive the process: it stays until it is removed, or the daemon is stopped
    #[arg(long, requires = "pid")]
    pub outlive: bool,

    /// Begin above this generation, which its programs have seen: that of the snapshot they are restored from
    #[arg(long, value_name = "NUMBER")]
    pub generation: Option<u32>,

    /// Give it to the user namespace of a file such as /proc/PID/ns/user
    #[arg(long, value_name = "FILE")]
    pub user_namespace: Option<PathBuf>,

    /// The owner of the nodes, a name or a number [default: root of the user namespace]
    #[arg(long, value_parser = account)]
    pub user: Option<Account>,

    /// The group of the nodes, a name or a number; it may acknowledge
    #[arg(long, value_parser = account)]
    pub group: Option<Account>,

    /// The mode of sysgenid, in octal [default: 0664 with --group, else 0644]
    #[arg(long, value_name = "MODE")]
    pub sysgenid_mode: Option<Mode>,

    /// The mode of vmgenid, in octal [default: 0600]
    #[arg(long, value_name = "MODE")]
    pub vmgenid_mode: Option<Mode>,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub struct Place {
    /// The daemon's configuration file [default: /etc/sysgenid/sysgenidd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The daemon's folder [default: what the configuration says, or /run/sysgenid]
    #[arg(long, value_name = "FOLDER", value_parser = directory)]
    pub directory: Option<PathBuf>,
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
fn account(text: &str) -> Result<Account, Infallible> {
    Ok(text
        .parse()
        .map_or_else(|_| Account::Name(text.to_owned()), Account::Number))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn the_daemon_finds_its_own_command_for_renewals() {
        let command = Command::try_parse_from(["sysgenidd", crate::serving::copies::COMMAND]);
        assert!(matches!(command.unwrap().task, Some(Task::Renew)));
    }

    #[test]
    fn publishing_is_asked_for_with_or_without_a_word() {
        let publish = |arguments: &[&str]| {
            let all = ["sysgenidd"].iter().chain(arguments);
            Command::try_parse_from(all).map(|command| command.serve.publish)
        };
        assert_eq!(publish(&[]).unwrap(), Publish::Never);
        assert_eq!(publish(&["--publish"]).unwrap(), Publish::WhereNoticed);
        assert_eq!(publish(&["--publish=always"]).unwrap(), Publish::Always);
        assert_eq!(
            publish(&["--publish", "--supervise"]).unwrap(),
            Publish::WhereNoticed
        );
        assert!(publish(&["--publish=perhaps"]).is_err());
    }

    #[test]
    fn only_what_ends_with_a_process_can_outlive_it() {
        let add = |arguments: &[&str]| {
            let all = ["sysgenidd", "instance", "add", "web"]
                .iter()
                .chain(arguments);
            Command::try_parse_from(all)
        };
        assert!(add(&["--pid", "1", "--outlive"]).is_ok());
        assert!(add(&["--outlive"]).is_err());
        assert!(add(&["--generation", "4294967296"]).is_err());
    }
}
