// SPDX-License-Identifier: MIT OR Apache-2.0

//! Builds the kernel modules and proves them in virtual machines.
//!
//! Each command prepares what is missing: a Debian tree with the kernel's toolchain and QEMU, the stock
//! kernel, a build folder for modules. All of it stays in the user's cache folder, and a second run
//! takes seconds.

mod agent;
mod arch;
mod bench;
mod cache;
mod cast;
mod crates;
mod debugger;
mod demo;
mod device_tree;
mod environment;
mod front_end;
mod guid;
mod host_daemon;
mod host_packages;
mod initramfs;
mod kernel;
mod modules;
mod programs;
mod progress;
mod qemu;
mod qmp;
mod series;
mod table;
mod test;
mod trace;
mod tree;
mod vm;
mod vmclock;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;

use crate::cache::Cache;
use crate::kernel::BuildFolder;
use crate::kernel::Choice;
use crate::tree::Tree;

/// What a person should know before the first command.
const NEEDS: &str = "\
All but `test --no-vm` need root on a Debian system, and the network the first time.

What is slow to make is kept in $XDG_CACHE_HOME/sysgenid, or else ~/.cache/sysgenid: about 2 GB, and 2 \
GB more for each kernel; `test --all` needs 6 GB more, for arm64. It may be deleted at any time when no guest \
runs.";

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Builds the kernel modules and proves them in virtual machines",
    after_help = NEEDS
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the Debian tree and the kernel's build folder, if they are not there
    Prepare(Choice),
    /// Build the three modules for Debian's stock kernel
    Build(Choice),
    /// Show two clones of one snapshot, without the driver and with it
    Demo(demo::Options),
    /// Check everything that CI checks
    Test(test::Options),
    /// Measure the module and the daemon beside eventfd and timerfd, and the module beside a driver in C
    Bench(bench::Options),
    /// Make the patch series for the kernel, and check it
    Series(series::Options),
    /// Boot, snapshot and restore a guest by hand
    #[command(subcommand)]
    Vm(vm::Action),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let cache = Cache::open()?;
    match command {
        Command::Prepare(choice) => prepare(&cache, &choice),
        Command::Build(choice) => build(&cache, &choice),
        Command::Demo(options) => demo::run(&cache, &options),
        Command::Test(options) => test::run(&cache, &options),
        Command::Bench(options) => bench::run(&cache, &options),
        Command::Series(options) => series::run(&cache, &options),
        Command::Vm(action) => vm::run(&cache, action),
    }
}

fn prepare(cache: &Cache, choice: &Choice) -> Result<()> {
    let _lock = cache.lock("prepare")?;
    let tree = Tree::prepare(cache)?;
    let folder = BuildFolder::prepare(cache, &tree, choice)?;
    println!("tree\t{}", tree.root().display());
    println!("release\t{}", folder.kernel.version.release);
    println!("build\t{}", folder.build().display());
    println!("image\t{}", folder.kernel.image().display());
    Ok(())
}

fn build(cache: &Cache, choice: &Choice) -> Result<()> {
    let _lock = cache.lock("prepare")?;
    let tree = Tree::prepare(cache)?;
    let modules = modules::build(cache, &tree, choice)?;
    for name in modules::NAMES {
        println!("{}", modules.file(name).display());
    }
    Ok(())
}
