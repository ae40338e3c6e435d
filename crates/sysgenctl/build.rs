// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes the man pages and the completions, for whoever packages the program.
//!
//! They are in `OUT_DIR/assets`, and in the folder that the environment variable `SYSGENCTL_ASSETS` names, if it
//! does: `man/sysgenctl.1` and a page a subcommand; `completions/` for bash, zsh and fish, each under the name that
//! its shell looks for.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

// Not all of it is used here.
#[allow(dead_code)]
#[path = "src/cli.rs"]
mod cli;

const VARIABLE: &str = "SYSGENCTL_ASSETS";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/cli.rs");
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
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    let mut command = cli::Cli::command();
    command.build();
    for task in command.get_subcommands() {
        write_page(task, &man)?;
    }
    write_page(&command, &man)?;

    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = cli::Cli::command();
        clap_complete::generate_to(shell, &mut command, "sysgenctl", &completions)?;
    }
    Ok(())
}

/// Writes the page of a command. What its help ends with gets a heading of its own.
fn write_page(command: &Command, folder: &Path) -> io::Result<()> {
    let man = Man::new(command.clone())
        .source(format!("sysgenctl {}", env!("CARGO_PKG_VERSION")))
        .manual("System generation");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(end) = command.get_after_help() {
        write_end(&end.to_string(), &mut page)?;
    }
    fs::write(folder.join(man.get_filename()), page)
}

/// Writes paragraphs: the exit codes, a line each, after their heading; then what else there is to know.
fn write_end(text: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let mut heading = Some(".SH NOTES");
    for paragraph in text.split("\n\n") {
        if let Some(codes) = paragraph.strip_prefix("Exit status:\n") {
            writeln!(page, ".SH \"EXIT STATUS\"")?;
            for line in codes.lines() {
                match line.trim().split_once("  ") {
                    Some((code, meaning)) => {
                        writeln!(page, ".TP\n{}\n{}", escape(code), escape(meaning))?;
                    }
                    None => writeln!(page, ".PP\n{}", escape(line.trim()))?,
                }
            }
            continue;
        }
        if let Some(heading) = heading.take() {
            writeln!(page, "{heading}")?;
        }
        writeln!(page, ".PP\n{}", escape(paragraph))?;
    }
    Ok(())
}

/// Text that troff takes as it is. No line of ours begins with a dot.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
