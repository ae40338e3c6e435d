// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that puts the nodes under load, or sleeps in a call on one.

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use rustix::io::Errno;
use rustix::thread::Pid;
use serde::Serialize;
use sysgenid_interop::conversation;
use sysgenid_interop::load::Load;
use sysgenid_interop::node::Watcher;

#[derive(Parser)]
#[command(about = "A program that puts the nodes under load, or sleeps in a call on one")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Do all that programs do with the nodes, and report whenever asked
    Load,
    /// Sleep in a call. Say `null`, once asleep, and then the number of the error that ended it, or `null`
    Sleep {
        /// The node
        node: PathBuf,
        /// The call
        #[arg(long)]
        r#in: Call,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Call {
    /// As long as nobody serves the node
    Open,
    /// Until the generation changes
    Read,
}

impl Call {
    /// The kernel's number for it: of open(2), where there is one, else of openat(2).
    const fn number(self) -> &'static str {
        match (self, cfg!(target_arch = "x86_64")) {
            (Self::Open, true) => "2",
            (Self::Open, false) => "56",
            (Self::Read, true) => "0",
            (Self::Read, false) => "63",
        }
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Load => {
            let load = Load::start()?;
            conversation::serve(|_| Ok(load.report()))
        }
        Command::Sleep { node, r#in } => sleep(&node, r#in),
    }
}

fn sleep(node: &Path, call: Call) -> Result<()> {
    let open = || Watcher::open(node);
    let watcher = match call {
        Call::Open => None,
        Call::Read => Some(open().with_context(|| format!("cannot open {}", node.display()))?),
    };
    let (tell_thread, thread) = mpsc::channel();
    let ended = std::thread::scope(|scope| {
        let sleeper = scope.spawn(move || {
            let _ = tell_thread.send(rustix::thread::gettid());
            match &watcher {
                None => open().map(drop),
                Some(watcher) => watcher.read().map(drop),
            }
        });
        wait_until_asleep(thread.recv()?, call)?;
        say(None::<i32>)?;
        anyhow::Ok(sleeper.join().expect("the thread does not panic"))
    })?;
    say(ended.err().map(Errno::raw_os_error))
}

/// Nothing tells that somebody sleeps, but what is looked at here.
fn wait_until_asleep(thread: Pid, call: Call) -> Result<()> {
    let path = format!("/proc/self/task/{thread}/syscall");
    loop {
        // Begins with the number of the call that it sleeps in, and is another word where it does not.
        let now = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        if now.split(' ').next() == Some(call.number()) {
            return Ok(());
        }
        std::thread::yield_now();
    }
}

fn say(what: impl Serialize) -> Result<()> {
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, &what)?;
    output.write_all(b"\n")?;
    Ok(output.flush()?)
}
