// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the benchmarks report.

use serde::Deserialize;
use serde::Serialize;

/// How much later than the host's page a container's changes, while strangers poll the host's node.
pub const PAGE_BEHIND_HOST: &str =
    "a container's page behind the host's, beside pollers of strangers";

/// How long an open of the host's node takes.
pub const OPEN_BESIDE_TENANT: &str = "open of the host's node, beside a tenant that triggers";

/// The module, beside a plain C driver of the same contract.
pub const MODULE: &str = "module";

/// That driver. What it is asked to do for a change is what the module does.
pub const C_DRIVER: &str = "C driver";

/// The same, where it does not reseed the kernel's random number generator before a change that software
/// asks for, as the contract wants it.
pub const C_DRIVER_WITHOUT_RESEED: &str = "C driver, no reseed";

/// One candidate at one piece of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The work, the same for all its candidates.
    pub work: String,
    /// Who did it; the first one of a work is what the others are compared with.
    pub candidate: String,
    /// How many samples were taken, in turns with the other candidates.
    pub samples: usize,
    /// How many operations one sample is the average of.
    pub batch: u32,
    /// The median, in nanoseconds for one operation.
    pub median_ns: u64,
    /// The 99th percentile, likewise.
    pub p99_ns: u64,
}

/// What the process that serves a node takes of the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Footprint {
    /// Its resident memory with different numbers of watchers.
    pub memory: Vec<Memory>,
    /// How often it was woken in [`idle_seconds`](Self::idle_seconds) in which nobody wanted anything of it.
    pub idle_wake_ups: u64,
    /// For how long that was counted.
    pub idle_seconds: u64,
}

/// Resident memory with so many watchers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// How many watchers were open.
    pub watchers: u64,
    /// The resident memory, in bytes.
    pub resident_bytes: u64,
}
