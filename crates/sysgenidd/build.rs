// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes the manual page sysgenidd(8), for whoever packages the program.
//!
//! It is in `OUT_DIR/assets/man`, and in `man` of the folder that the environment variable `SYSGENCTL_ASSETS` names, if
//! it does: the one for the pages of sysgenctl too.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;

// Not all of these is used here.
#[allow(dead_code, unreachable_pub)]
#[path = "src/command.rs"]
mod command;
#[allow(dead_code, unreachable_pub)]
#[path = "src/config/definition.rs"]
mod definition;
#[allow(dead_code, unreachable_pub)]
#[path = "src/config/publish.rs"]
mod publish;

/// As the command line knows it.
mod config {
    pub(crate) use crate::definition::{Account, InstanceName, Mode, Parent, check_directory};
    pub(crate) use crate::publish::Publish;
}

const VARIABLE: &str = "SYSGENCTL_ASSETS";

/// What is said of all commands at once.
const COMMON: [&str; 3] = ["config", "directory", "help"];

/// What the command line does not say: a heading, and what there is to each of its items.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "EXIT STATUS",
        &[
            ("0", "It is done. A daemon has ended cleanly."),
            (
                "1",
                "It is not done; standard error says why. A daemon could not start or go on; a supervisor has given it up.",
            ),
            ("2", "The command line cannot be understood."),
            (
                "75",
                "A daemon has left everything to the next process, which is to be started now. It has not failed. \
                 Only one that a service manager or a supervisor keeps ends so.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            (
                "/etc/sysgenid/sysgenidd.toml",
                "The configuration. It may be absent; the example that is installed shows every line.",
            ),
            (
                "/run/sysgenid/INSTANCE/",
                "The nodes of an instance, sysgenid and vmgenid, and beside them the reports watchers, status and metrics. \
                 The machine's own instance is host. The nodes are found by name; a listing shows the reports only.",
            ),
            (
                "/dev/sysgenid, /dev/vmgenid",
                "Where programs look: with --publish, links to the nodes of host. What is there already is left alone.",
            ),
            (
                "/run/sysgenid/.control",
                "Where the commands reach the daemon.",
            ),
            (
                "/run/sysgenid/.keep/",
                "What outlives the daemon: the pages that programs map, and what is known of the watchers. It is for root \
                 alone, and not to be changed by hand.",
            ),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "HUP",
                "Reads the configuration again. One that cannot be read changes nothing.",
            ),
            (
                "INT, QUIT",
                "Ends cleanly: whoever sleeps on a node gets an error, and nothing is left behind but the pages, which \
                 say that they are not live.",
            ),
            (
                "TERM",
                "Leaves everything to the next process where a service manager keeps it, with exit status 75, else ends \
                 cleanly.",
            ),
            (
                "USR1",
                "To the supervisor (--supervise): restarts the daemon without a loss. TERM and INT end both.",
            ),
        ],
    ),
    (
        "SEE ALSO",
        &[(
            "",
            "sysgenctl(1), systemd.service(5), fuse(4), user_namespaces(7)",
        )],
    ),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/command.rs");
    println!("cargo::rerun-if-changed=src/config/definition.rs");
    println!("cargo::rerun-if-changed=src/config/publish.rs");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");

    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    write_to(&Path::new(&out).join("assets"))?;
    match env::var_os(VARIABLE) {
        Some(folder) if !folder.is_empty() => write_to(&PathBuf::from(folder)),
        _ => Ok(()),
    }
}

fn write_to(folder: &Path) -> io::Result<()> {
    let folder = folder.join("man");
    fs::create_dir_all(&folder)?;
    let mut command = command::Command::command();
    command.build();
    let man = Man::new(command.clone())
        .section("8")
        .source(format!("sysgenidd {}", env!("CARGO_PKG_VERSION")))
        .manual("System generation");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    let common = "Each takes --config and --directory too, which say what daemon is meant.";
    writeln!(page, "{}", escape(common))?;
    write_commands("sysgenidd", &command, &mut page)?;
    for (heading, items) in SECTIONS {
        writeln!(page, ".SH \"{heading}\"")?;
        for (item, meaning) in items {
            write_item(&bold(item), meaning, &mut page)?;
        }
    }
    fs::write(folder.join("sysgenidd.8"), page)
}

/// Writes what each command below this one does, and what it takes.
fn write_commands(name: &str, command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    for task in command.get_subcommands().filter(|task| !task.is_hide_set()) {
        let name = format!("{name} {}", task.get_name());
        // The help of a help is none.
        if task.get_name() == "help" {
            continue;
        }
        if task.has_subcommands() {
            write_commands(&name, task, page)?;
            continue;
        }
        let arguments = || task.get_arguments().filter(|one| !one.is_hide_set());
        let places: String = arguments()
            .filter(|one| one.is_positional())
            .map(|one| format!(" {}", value(one)))
            .collect();
        writeln!(page, ".SS \"{}{}\"", escape(&name), escape(&places))?;
        if let Some(about) = task.get_about() {
            writeln!(page, "{}.", escape(&about.to_string()))?;
        }
        for argument in arguments().filter(|one| !COMMON.contains(&one.get_id().as_str())) {
            let takes_value = argument.get_action().takes_values();
            let item = match argument.get_long() {
                Some(long) if takes_value => {
                    format!("{} \\fI{}\\fR", bold(&format!("--{long}")), value(argument))
                }
                Some(long) => bold(&format!("--{long}")),
                None => format!("\\fI{}\\fR", value(argument)),
            };
            let help = argument.get_help().map(ToString::to_string);
            let default = argument.get_default_values().first();
            let default = default.filter(|_| takes_value && !argument.is_hide_default_value_set());
            let default = default.map(|value| format!(" [default: {}]", value.display()));
            let meaning = help.unwrap_or_default() + &default.unwrap_or_default();
            write_item(&item, &meaning, page)?;
        }
    }
    Ok(())
}

fn value(argument: &Arg) -> String {
    match argument.get_value_names() {
        Some([name, ..]) => name.to_string(),
        _ => argument.get_id().as_str().to_uppercase(),
    }
}

/// An item with what it means; without an item, a paragraph.
fn write_item(item: &str, meaning: &str, page: &mut Vec<u8>) -> io::Result<()> {
    if item.is_empty() {
        writeln!(page, ".PP\n{}", escape(meaning))
    } else {
        writeln!(page, ".TP\n{item}\n{}", escape(meaning))
    }
}

fn bold(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("\\fB{}\\fR", escape(text))
    }
}

/// Text that troff takes as it is, on a line that is no request.
fn escape(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\n', " ");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
