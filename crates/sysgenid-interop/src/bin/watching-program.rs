// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program with a secret that must never be the same in two clones.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use sysgenid_interop::conversation;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::State;
use sysgenid_interop::conversation::hexadecimal;
use sysgenid_interop::node;
use sysgenid_interop::node::Mapping;
use sysgenid_interop::node::Watcher;

#[derive(Parser)]
#[command(about = "A program with a secret that must never be the same in two clones")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep a secret, and answer who asks for it
    Watch {
        /// The node to watch
        node: PathBuf,
        /// How to learn of a change
        #[arg(long)]
        by: Means,
    },
    /// Move a node to a new generation
    Bump {
        /// The node
        node: PathBuf,
        /// What the new generation must at least be
        #[arg(long, default_value_t = 0)]
        minimum: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Means {
    /// Look at the mapped page before each use
    Mapping,
    /// Sleep in poll
    Poll,
    /// Sleep in read
    Read,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Watch { node, by } => match by {
            Means::Mapping => look_before_each_use(&node),
            Means::Poll => rebuild_when_woken(&node, |watcher| {
                watcher.poll()?;
                watcher.read()
            }),
            Means::Read => rebuild_when_woken(&node, Watcher::read),
        },
        Command::Bump { node, minimum } => {
            node::bump(&node, minimum).with_context(|| format!("cannot bump {}", node.display()))
        }
    }
}

/// What a library does that has no thread of its own: one load before each use.
fn look_before_each_use(node: &Path) -> Result<()> {
    let mapping = Mapping::open(node).with_context(|| format!("cannot map {}", node.display()))?;
    let mut state = rebuild(mapping.generation())?;
    conversation::serve(move |request| {
        if matches!(request, Request::After(_)) {
            bail!("a program that only looks cannot wait");
        }
        let generation = mapping.generation();
        if generation != state.generation {
            state = rebuild(generation)?;
        }
        Ok(state.clone())
    })
}

/// What a server does: a thread sleeps until it is told, rebuilds, and acknowledges.
fn rebuild_when_woken(
    node: &Path,
    sleep: impl Fn(&Watcher) -> rustix::io::Result<u32> + Send + 'static,
) -> Result<()> {
    let watcher = Watcher::open(node).with_context(|| format!("cannot open {}", node.display()))?;
    // The generation that a new watcher has acknowledged is only to be had from the page.
    let state = rebuild(Mapping::open(node)?.generation())?;
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        changed: Condvar::new(),
    });
    let keeper = Arc::clone(&shared);
    std::thread::spawn(move || {
        // A program that cannot be told any more must not go on with its secret.
        if let Err(error) = keep_fresh(&watcher, sleep, &keeper) {
            eprintln!("watching failed: {error:#}");
            std::process::exit(1);
        }
    });
    conversation::serve(move |request| {
        let mut state = shared.lock();
        if let Request::After(generation) = request {
            state = shared
                .changed
                .wait_while(state, |state| state.generation == generation)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.clone())
    })
}

fn keep_fresh(
    watcher: &Watcher,
    sleep: impl Fn(&Watcher) -> rustix::io::Result<u32>,
    shared: &Shared,
) -> Result<()> {
    loop {
        let generation = sleep(watcher).context("cannot wait for a change")?;
        *shared.lock() = rebuild(generation)?;
        match watcher.acknowledge(generation) {
            // It changed again: the next sleep ends at once.
            Ok(()) | Err(Errno::INVAL) => shared.changed.notify_all(),
            Err(error) => return Err(error).context("cannot acknowledge"),
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rebuild(generation: u32) -> Result<State> {
    let mut secret = [0; 16];
    rustix::rand::getrandom(&mut secret, GetRandomFlags::empty())?;
    Ok(State {
        generation,
        secret: hexadecimal(&secret),
    })
}
