// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the benchmark reports.

use serde::Deserialize;
use serde::Serialize;

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
