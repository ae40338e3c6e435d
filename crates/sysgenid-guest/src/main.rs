// SPDX-License-Identifier: MIT OR Apache-2.0

//! The programs that run in a guest.

mod agent;
mod clock;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;

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
}

fn main() -> Result<()> {
    match Arguments::parse().program {
        Program::Agent => agent::run(),
    }
}
