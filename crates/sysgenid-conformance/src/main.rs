// SPDX-License-Identifier: MIT OR Apache-2.0

//! Black-box conformance suite for a system generation node.
//!
//! It examines any node, whoever serves it, against the contract in `docs/sysgenid.rst`, and uses
//! nothing but system calls. Each case runs in a process of its own, so that one that hangs or dies
//! takes nothing with it; see [`suite`]. [`cases`] says what is examined.
//!
//! What it cannot see: a 32-bit caller on a 64-bit kernel (one binary has one word size), and whatever
//! takes a real restore of a virtual machine.

#![deny(unsafe_code)]

mod abi;
mod call;
mod cases;
mod cgroup;
mod node;
mod outcome;
mod process;
mod suite;
#[allow(unsafe_code)]
mod sys;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use crate::abi::Kind;
use crate::cases::{Case, HOLD};
use crate::node::Node;

/// Examine whether a system generation node keeps its contract.
///
/// The generation changes many times while the suite runs, and wraps at its end: every program that
/// watches the node will think that the machine was cloned. Nobody else may watch it with tracking
/// meanwhile.
///
/// The exit code is 0 if nothing failed, 1 if something did, and 2 if the node could not be examined.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The node.
    #[arg(long, value_name = "PATH", default_value = "/dev/sysgenid")]
    node: PathBuf,

    /// Which of the two nodes it is, if its file name does not say so.
    #[arg(long = "as", value_name = "KIND")]
    kind: Option<Kind>,

    /// List the cases, and for each the clauses of the contract that it proves.
    #[arg(long)]
    list: bool,

    /// The node has just been created: its generation must be 0.
    #[arg(long)]
    fresh: bool,

    /// The module was loaded with `uevents=0`.
    #[arg(long)]
    no_uevents: bool,

    /// A case that is known to fail on this node; can be given more than once. Its failure is
    /// reported, but is none.
    #[arg(long = "known-failure", value_name = "NAME")]
    known_failures: Vec<String>,

    /// How long one case may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    time_limit: u64,

    /// Only the cases that have this in their name, or prove the clause of this name.
    filter: Option<String>,
}

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == HOLD) {
        return hold();
    }
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // A closed standard error is no reason for another exit code.
            let _ = writeln!(std::io::stderr(), "sysgenid-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> anyhow::Result<bool> {
    for name in &options.known_failures {
        if !cases::all().any(|case| case.name == name) {
            bail!("--known-failure {name}: there is no such case (--list names them)");
        }
    }
    let filter = options.filter.as_deref().unwrap_or_default();
    let selected: Vec<&Case> = cases::all()
        .filter(|case| case.name.contains(filter) || case.proves.contains(&filter))
        .collect();
    if selected.is_empty() {
        bail!("no case has {filter:?} in its name, nor proves a clause of that name");
    }
    if options.list {
        return list(&selected).context("standard output").map(|()| true);
    }
    let kind = match options.kind {
        Some(kind) => kind,
        None => Kind::of(&options.node)?,
    };
    let node = Node {
        path: options.node.clone(),
        kind,
        fresh: options.fresh,
        sends_uevents: !options.no_uevents,
    };
    suite::run(
        &node,
        &selected,
        &options.known_failures,
        Duration::from_secs(options.time_limit),
    )
}

fn list(selected: &[&Case]) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    for case in selected {
        writeln!(output, "{}: {}", case.name, case.proves.join(" "))?;
    }
    output.flush()
}

/// What this program is when a case executes it: it says that it runs, and holds the descriptors
/// that it was given until its standard input ends.
fn hold() -> ExitCode {
    let mut output = std::io::stdout();
    let said = output.write_all(b"here").and_then(|()| output.flush());
    let held = std::io::stdin().read_to_end(&mut Vec::new());
    match said.and(held) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
