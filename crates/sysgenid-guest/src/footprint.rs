// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measures what the process that serves a node takes of the machine: memory, and wake-ups while nobody
//! wants anything of it.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use sysgenid_guest::measurement::Footprint;
use sysgenid_guest::measurement::Memory;

use crate::limits::allow_many_files;
use crate::node::Node;

/// With how many watchers the memory is measured.
const WATCHERS: [u64; 4] = [0, 100, 1000, 10_000];

/// How long the process is left alone.
const IDLE: Duration = Duration::from_secs(5);

/// How long before that the daemon has been left alone: what it looks for and does not find it looks for again
/// for a moment.
const SETTLE: Duration = Duration::from_secs(3);

/// Measures and prints JSON.
pub(crate) fn run(node: &str, process: u32) -> Result<()> {
    allow_many_files()?;
    let mut open = Vec::new();
    let mut memory = Vec::new();
    for watchers in WATCHERS {
        while open.len() < usize::try_from(watchers)? {
            open.push(Node::open_nonblocking(node)?);
        }
        let resident_bytes = status_field(&status(process), "VmRSS:")? * 1024;
        memory.push(Memory {
            watchers,
            resident_bytes,
        });
    }
    std::thread::sleep(SETTLE);
    let before = wake_ups(process)?;
    std::thread::sleep(IDLE);
    let footprint = Footprint {
        memory,
        idle_wake_ups: wake_ups(process)? - before,
        idle_seconds: IDLE.as_secs(),
    };
    println!("{}", serde_json::to_string(&footprint)?);
    Ok(())
}

/// How often the process's threads went to sleep, and so were woken.
fn wake_ups(process: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        sum += status_field(&thread?.path().join("status"), "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

fn status(process: u32) -> PathBuf {
    format!("/proc/{process}/status").into()
}

fn status_field(path: &Path, field: &str) -> Result<u64> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("{} has no {field}", path.display()))?;
    Ok(value.parse()?)
}
