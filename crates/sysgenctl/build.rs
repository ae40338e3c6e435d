// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes the man pages and the completions, for whoever packages the program.
//!
//! They are in `OUT_DIR/assets`, and in the folder that the environment variable `SYSGENCTL_ASSETS` names, if it
//! does: `man/sysgenctl.1` and a page a subcommand; `completions/` for bash, zsh and fish, each under the name that
//! its shell looks for.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

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
    clap_mangen::generate_to(cli::Cli::command(), &man)?;

    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = cli::Cli::command();
        clap_complete::generate_to(shell, &mut command, "sysgenctl", &completions)?;
    }
    Ok(())
}
