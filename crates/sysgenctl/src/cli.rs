// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be asked on the command line. The build makes the man pages and completions of it, so it needs nothing
//! but clap.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  an error
  2  the command line is wrong
  3  the time is over: of wait, and of trigger --wait
  4  nothing serves a node, or what served it has gone: of all but doctor";

const EXIT_STATUS_OF_LOOK: &str = "\
Exit status:
  0  done
  1  an error
  2  the command line is wrong
  4  nothing serves a node, or what served it has gone";

const EXIT_STATUS_OF_WAIT: &str = "\
Exit status:
  0  everybody has acknowledged
  1  an error
  2  the command line is wrong
  3  the time is over
  4  nothing serves a node, or what served it has gone";

const EXIT_STATUS_OF_TRIGGER: &str = "\
Exit status:
  0  the generation has changed; with --wait: and everybody has acknowledged
  1  an error
  2  the command line is wrong
  3  with --wait: the time is over; the generation has changed
  4  nothing serves a node, or what served it has gone";

const EXIT_STATUS_OF_WATCH: &str = "\
Exit status:
  0  ended by SIGINT or SIGTERM
  1  an error
  2  the command line is wrong
  4  nothing served a node at the start";

const EXIT_STATUS_OF_EXEC: &str = "\
Exit status:
  that of the command when it ends by itself; 128 and the number of the signal if one has ended it
  126  the command cannot be run
  127  there is no such command
  1  an error of sysgenctl, which has ended the command if it ran
  2  the command line is wrong
  4  nothing serves a node at the start";

const EXIT_STATUS_OF_RUN_HOOKS: &str = "\
Exit status:
  0  ended by SIGTERM, SIGINT or SIGHUP; with --once: all hooks have succeeded
  1  an error, such as a folder of --hooks-dir that does not exist; with --once: a hook has failed
  2  the command line is wrong
  4  nothing serves a node at the start

Each hook gets SYSGENID_GENERATION (the generation that the machine is in), SYSGENID_PREVIOUS_GENERATION (the last \
one for which all hooks succeeded, or that of the start), SYSGENID_ATTEMPT (from 1), a PATH of the system's folders, \
and otherwise the environment of this process; no input; and a process group of its own.

Of two files of one name the one in the first folder counts. It turns the hook off if it is empty or a link to \
/dev/null. Files that cannot be executed, hidden ones, and what editors and package managers leave (*~, *.dpkg-*, \
*.rpm*, *.ucf-*) are skipped.";

const EXIT_STATUS_OF_DOCTOR: &str = "\
Exit status:
  0  programs here would be told of a restore
  1  they would not, or an error
  2  the command line is wrong";

/// See and steer who knows that this machine was cloned or rolled back.
///
/// Programs watch a node, /dev/sysgenid or /dev/vmgenid, whose generation changes at each restore. This tells what
/// the generation is and who has not dealt with it yet, waits for them, changes it, and runs programs at each change.
#[derive(Debug, Parser)]
#[command(
    name = "sysgenctl",
    version,
    after_help = EXIT_STATUS,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    /// The node [default: $SYSGENID_PATH, or else /dev/sysgenid, or else /dev/vmgenid]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) node: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Show the generation, since when, who serves it, what notices restores, and how many watchers lag behind
    #[command(after_help = EXIT_STATUS_OF_LOOK)]
    Status {
        #[command(flatten)]
        format: Format,
    },

    /// Print a line at each change, until interrupted
    ///
    /// If the server of the node goes away, this waits until it is back, and says so. With --json a line tells at the
    /// start, too, which generation it is.
    #[command(after_help = EXIT_STATUS_OF_WATCH)]
    Watch {
        #[command(flatten)]
        format: Format,
    },

    /// Wait until every tracked watcher has acknowledged the generation
    ///
    /// Who is still outdated is shown while it lasts. If the generation changes meanwhile, this waits for the latest. Hooks
    /// of run-hooks are waited for even if that was restarted meanwhile; if it does not come back, for five seconds.
    #[command(after_help = EXIT_STATUS_OF_WAIT)]
    Wait {
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        format: Format,
    },

    /// Change the generation, as whoever restores a machine or container does
    ///
    /// It takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace that owns the node.
    #[command(after_help = EXIT_STATUS_OF_TRIGGER)]
    Trigger {
        /// Make it at least this: the generation of the snapshot plus one
        ///
        /// Where it is that or more already, it goes up by one all the same. After 4294967295 comes 1, or N.
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        min: Option<u32>,

        /// Wait until every tracked watcher has acknowledged the new one
        #[arg(long)]
        wait: bool,

        /// With --wait, for at most so long: seconds, or a number with ms, s, m or h
        #[arg(long, value_name = "TIME", value_parser = duration, allow_negative_numbers = true, requires = "wait")]
        timeout: Option<Duration>,

        /// With --wait, as of sysgenctl wait
        #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, requires = "wait")]
        hooks_state: Option<PathBuf>,

        #[command(flatten)]
        format: Format,
    },

    /// Show who watches: process, command, unit or container, descriptor, acknowledged generation, and who is late
    ///
    /// Those that others wait for and that are outdated come first, marked.
    #[command(after_help = EXIT_STATUS_OF_LOOK)]
    Watchers {
        /// Only those that others wait for and that are outdated
        #[arg(long)]
        outdated: bool,

        #[command(flatten)]
        format: Format,
    },

    /// Run a command, and start it again at each change
    ///
    /// At a change the command gets a signal, and SIGKILL if it does not end in time. When it was started again, the
    /// change is acknowledged. Started without a terminal the command has a process group of its own, and all of
    /// that gets the signals. SIGTERM, SIGINT and SIGHUP are passed on.
    #[command(after_help = EXIT_STATUS_OF_EXEC)]
    Exec(Exec),

    /// Run the executables of a folder at each change, and acknowledge when all have succeeded
    ///
    /// They run in the order of their names, one at a time. If some fail the others run nevertheless, and those that
    /// failed are tried again, after one second first and at last every minute, until they have succeeded or there
    /// is another change, which begins anew with all of them. Until then others that wait for all watchers wait, and
    /// sysgenctl watchers shows this process.
    ///
    /// It tells systemd that it is ready, and what it does (Type=notify).
    #[command(after_help = EXIT_STATUS_OF_RUN_HOOKS)]
    RunHooks(RunHooks),

    /// Examine what this machine lacks to tell programs of restores, and say what to do, in order
    #[command(after_help = EXIT_STATUS_OF_DOCTOR)]
    Doctor {
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Format {
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Patience {
    /// For at most so long: seconds, or a number with ms, s, m or h [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration, allow_negative_numbers = true)]
    pub(crate) timeout: Option<Duration>,

    /// Where run-hooks notes its progress (its --state-dir): hooks are waited for, too, of which a restart of it has made
    /// others forget [default: /run/sysgenid-hooks for the machine's own node]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) hooks_state: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Do not let others wait for the restart: it takes permission to read the node only
    #[arg(long)]
    pub(crate) untracked: bool,

    /// What the command is asked to end with
    #[arg(long, value_name = "NAME", default_value = "TERM", ignore_case = true)]
    pub(crate) signal: StopSignal,

    /// How long it may take to end: seconds, or a number with ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = duration, allow_negative_numbers = true)]
    pub(crate) grace: Duration,

    /// The command and its arguments
    #[arg(
        required = true,
        last = true,
        value_name = "CMD",
        value_hint = ValueHint::CommandWithArguments
    )]
    pub(crate) command: Vec<OsString>,
}

/// The signals that programs take for a request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum StopSignal {
    #[value(alias = "SIGTERM")]
    Term,
    #[value(alias = "SIGINT")]
    Int,
    #[value(alias = "SIGHUP")]
    Hup,
    #[value(alias = "SIGQUIT")]
    Quit,
    #[value(alias = "SIGUSR1")]
    Usr1,
    #[value(alias = "SIGUSR2")]
    Usr2,
    #[value(alias = "SIGKILL")]
    Kill,
}

#[derive(Debug, Args)]
pub(crate) struct RunHooks {
    /// A folder of hooks, which must exist; of several, one overrides those after it [default:
    /// /etc/sysgenid/hooks.d, then /usr/lib/sysgenid/hooks.d, as far as they exist]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) hooks_dir: Vec<PathBuf>,

    /// How long a hook may take: seconds, or a number with ms, s, m or h. Then its process group gets SIGTERM, and
    /// SIGKILL five seconds later
    #[arg(long, value_name = "TIME", default_value = "30", value_parser = duration, allow_negative_numbers = true)]
    pub(crate) timeout: Duration,

    /// Where it is noted what has been dealt with, for the next start and for sysgenctl wait [default: the first folder
    /// of the service's RUNTIME_DIRECTORY; without one nothing is noted]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, conflicts_with_all = ["once", "list"])]
    pub(crate) state_dir: Option<PathBuf>,

    /// Run all hooks now, once, for the generation that there is; acknowledge nothing
    #[arg(long, conflicts_with = "list")]
    pub(crate) once: bool,

    /// Show what would run, and what is turned off or skipped
    #[arg(long)]
    pub(crate) list: bool,

    /// With --list, print JSON, for programs
    // What conflicts with --list lifts the requirement.
    #[arg(long, requires = "list", conflicts_with_all = ["once", "state_dir"])]
    pub(crate) json: bool,
}

/// A time: a number, which may have a fraction, of seconds or of the unit that follows it.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let (number, unit) = text.split_at(digits.len());
    let number: f64 = number
        .trim_end()
        .parse()
        .map_err(|_| "it is a number of seconds, or one with ms, s, m or h".to_owned())?;
    if number < 0.0 {
        return Err("a time is not negative".to_owned());
    }
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit} is not a unit: ms, s, m or h is")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_is_seconds_unless_it_has_a_unit() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2 min"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "s", "-1", "5d", "1e400", "nan"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_or_a_number_that_is_negative_is_said_to_be_wrong() {
        for (arguments, reason) in [
            (&["wait", "--timeout", "-1"][..], "a time is not negative"),
            (
                &["trigger", "--wait", "--timeout", "-0.5"],
                "a time is not negative",
            ),
            (
                &["exec", "--grace", "-1", "--", "true"],
                "a time is not negative",
            ),
            (&["run-hooks", "--timeout", "-1"], "a time is not negative"),
            (&["trigger", "--min", "-1"], "-1 is not in 0..=4294967295"),
        ] {
            let arguments = [&["sysgenctl"], arguments].concat();
            let text = Cli::try_parse_from(&arguments).unwrap_err().to_string();
            assert!(text.contains(reason), "{arguments:?}: {text}");
        }
    }

    #[test]
    fn each_command_lists_the_exit_codes_that_it_has() {
        for (task, codes) in [
            ("status", "0124"),
            ("watch", "0124"),
            ("wait", "01234"),
            ("trigger", "01234"),
            ("watchers", "0124"),
            ("run-hooks", "0124"),
            ("doctor", "012"),
        ] {
            let command = Cli::command();
            let task = command.find_subcommand(task).unwrap();
            let help = task.get_after_help().unwrap().to_string();
            let listed: String = help
                .lines()
                .filter_map(|line| line.strip_prefix("  ")?.split_once("  "))
                .map(|(code, _)| code)
                .collect();
            assert_eq!(listed, codes, "{help}");
        }
    }

    #[test]
    fn json_of_hooks_is_for_their_list() {
        let with = |more: &[&str]| {
            Cli::try_parse_from([&["sysgenctl", "run-hooks", "--json"], more].concat())
        };
        assert!(with(&["--list"]).is_ok());
        for other in [&[][..], &["--once"], &["--state-dir", "/run"]] {
            let refusal = with(other).map(drop).unwrap_err();
            assert_eq!(refusal.exit_code(), 2, "{other:?}: {refusal}");
        }
    }

    #[test]
    fn a_signal_is_known_with_and_without_its_prefix() {
        for name in ["TERM", "SIGTERM", "term", "sigterm"] {
            let arguments = ["sysgenctl", "exec", "--signal", name, "--", "true"];
            let cli = Cli::try_parse_from(arguments).unwrap();
            let Task::Exec(exec) = cli.task else {
                panic!("{cli:?}")
            };
            assert_eq!(exec.signal, StopSignal::Term);
        }
    }
}
