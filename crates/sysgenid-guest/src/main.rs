// SPDX-License-Identifier: MIT OR Apache-2.0

//! The programs that run in a guest.

mod agent;
mod bench;
mod cast;
mod clock;
mod compat;
mod footprint;
mod fuzz;
mod limits;
mod node;
mod probes;
mod strangers;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;

use crate::cast::Role;

#[derive(Parser)]
#[command(about = "Programs that run inside a guest of cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Take orders from the host over a virtio serial port
    Agent,
    /// Play a role of the demo
    Play { role: Role },
    /// Bump the generation
    Bump {
        node: String,
        #[arg(default_value_t = 1)]
        times: u32,
    },
    /// Print the current generation
    Generation { node: String },
    /// Keep a node open until killed
    Hold {
        node: String,
        /// Keep it mapped instead, and closed
        #[arg(long)]
        mapped: bool,
    },
    /// Make each call of the contract once
    Exercise { node: String },
    /// Open and close, then bump and acknowledge, so many times
    Churn { node: String, rounds: u32 },
    /// Make random calls from several threads, and check the accounts in the end
    Fuzz {
        nodes: Vec<String>,
        #[arg(long, default_value_t = 1_000_000)]
        calls: u64,
        #[arg(long)]
        seed: u64,
        #[arg(long, default_value_t = 4)]
        threads: u64,
    },
    /// Draw random bytes as soon as the generation changes
    DrawOnChange { node: String },
    /// Look by a probe until the machine was restored, and draw random bytes when it is time to
    Look,
    /// Look until the machine has resumed from hibernation, and draw random bytes at once
    LookForResume,
    /// Print the kernel's uevents of the nodes
    Uevents,
    /// Make the ioctls as a 32-bit program does
    Compat { node: String },
    /// Measure a node beside eventfd and timerfd, and print JSON
    Bench {
        /// What to call the node's front end in the results
        name: String,
        #[arg(long, default_value = node::UNTRACKED_NODE)]
        node: String,
        #[arg(long, default_value_t = 10_000)]
        most_watchers: usize,
        /// How many samples of short operations to take
        #[arg(long, default_value_t = 500)]
        samples: usize,
    },
    /// Measure the module beside a plain C driver, and print JSON
    BenchDrivers {
        #[arg(long, default_value_t = 10_000)]
        most_watchers: usize,
        /// How many samples of short operations to take
        #[arg(long, default_value_t = 500)]
        samples: usize,
        /// With how many descriptors to see for how long interrupts are held off
        #[arg(long, default_value_t = 100_000)]
        descriptors: usize,
        /// With how many threads that sleep in `read` to see the same
        #[arg(long, default_value_t = 2000)]
        sleepers: usize,
    },
    /// Measure what the process that serves a node takes of the machine, and print JSON
    Footprint { node: String, process: u32 },
    /// Measure what strangers cost others, and print JSON
    Strangers {
        /// What to call the daemon in the results
        name: String,
        /// The daemon's program
        #[arg(long)]
        daemon: PathBuf,
        /// Where it has its instances: the host's, and one that is called container
        #[arg(long)]
        directory: PathBuf,
        /// How many strangers poll the host's node
        #[arg(long, default_value_t = 100_000)]
        pollers: usize,
    },
    /// Be so many strangers who poll a node
    Poll { node: String, count: usize },
    /// Be a tenant who triggers as fast as it can
    Tenant,
    /// Wait until a file has a line with a text
    Await {
        file: String,
        text: String,
        /// In seconds
        #[arg(long, default_value_t = 30)]
        timeout: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().program {
        Program::Agent => agent::run(),
        Program::Play { role } => cast::play(role),
        Program::Bump { node, times } => probes::bump(&node, times),
        Program::Generation { node } => probes::generation(&node),
        Program::Hold { node, mapped } => probes::hold(&node, mapped),
        Program::Exercise { node } => probes::exercise(&node),
        Program::Churn { node, rounds } => probes::churn(&node, rounds),
        Program::Fuzz {
            nodes,
            calls,
            seed,
            threads,
        } => fuzz::run(&nodes, calls, seed, threads),
        Program::DrawOnChange { node } => probes::draw_on_change(&node),
        Program::Look => probes::look(),
        Program::LookForResume => probes::look_for_resume(),
        Program::Uevents => probes::uevents(),
        Program::Compat { node } => probes::compat(&node),
        Program::Bench {
            name,
            node,
            most_watchers,
            samples,
        } => bench::run(&name, &node, most_watchers, samples),
        Program::BenchDrivers {
            most_watchers,
            samples,
            descriptors,
            sleepers,
        } => bench::run_drivers(most_watchers, samples, descriptors, sleepers),
        Program::Footprint { node, process } => footprint::run(&node, process),
        Program::Strangers {
            name,
            daemon,
            directory,
            pollers,
        } => strangers::run(&name, &daemon, &directory, pollers),
        Program::Poll { node, count } => strangers::poll(&node, count),
        Program::Tenant => strangers::tenant(),
        Program::Await {
            file,
            text,
            timeout,
        } => probes::await_line(&file, &text, Duration::from_secs(timeout)),
    }
}
