// SPDX-License-Identifier: MIT OR Apache-2.0

//! Candidates who take turns at the same work.
//!
//! They do so sample by sample, so that whatever else the machine does hits them alike. A sample of a
//! short operation is the average of a batch, for the clock itself costs as much as the operation.

use std::io::Write;

use anyhow::Context;
use anyhow::Result;
use sysgenid_guest::measurement::Measurement;

use crate::clock::monotonic_ns;

/// One that does the work: takes one sample, in nanoseconds for the whole batch.
pub(super) struct Candidate<'a> {
    name: &'a str,
    sample: Box<dyn FnMut() -> Result<u64> + 'a>,
}

impl<'a> Candidate<'a> {
    /// Repeats an operation `batch` times in one sample.
    pub(super) fn new(
        name: &'a str,
        batch: u32,
        mut operation: impl FnMut() -> Result<()> + 'a,
    ) -> Self {
        Self::timed(name, move || {
            let start = monotonic_ns();
            for _ in 0..batch {
                operation()?;
            }
            Ok(monotonic_ns() - start)
        })
    }

    /// Takes the time itself.
    pub(super) fn timed(name: &'a str, sample: impl FnMut() -> Result<u64> + 'a) -> Self {
        Self {
            name,
            sample: Box::new(sample),
        }
    }
}

/// What was measured so far.
pub(super) struct Turns {
    /// How many samples of short operations are taken.
    pub(super) samples: usize,
    pub(super) results: Vec<Measurement>,
}

impl Turns {
    /// Nothing was measured yet.
    pub(super) fn new(samples: usize) -> Self {
        Self {
            samples,
            results: Vec::new(),
        }
    }

    /// Takes samples of all candidates in turns.
    pub(super) fn compare(
        &mut self,
        work: &str,
        samples: usize,
        batch: u32,
        mut candidates: Vec<Candidate<'_>>,
    ) -> Result<()> {
        let mut taken = vec![Vec::with_capacity(samples); candidates.len()];
        // The first rounds warm up the emulator's translations and are not counted.
        let warm_up = samples / 10 + 1;
        for round in 0..warm_up + samples {
            // Each goes first as often as the others.
            for turn in 0..candidates.len() {
                let index = (round + turn) % candidates.len();
                let candidate = &mut candidates[index];
                let sample =
                    (candidate.sample)().with_context(|| format!("{work}, {}", candidate.name))?;
                if round >= warm_up {
                    taken[index].push(sample / u64::from(batch));
                }
            }
        }
        for (candidate, mut taken) in candidates.into_iter().zip(taken) {
            taken.sort_unstable();
            self.results.push(Measurement {
                work: work.to_owned(),
                candidate: candidate.name.to_owned(),
                samples: taken.len(),
                batch,
                median_ns: taken[taken.len() / 2],
                p99_ns: taken[taken.len() * 99 / 100],
            });
        }
        // Whoever watches the output sees that it goes on.
        eprintln!("{work}");
        std::io::stderr().flush()?;
        Ok(())
    }

    /// How many samples are taken with so many watchers: fewer if each takes long.
    pub(super) fn samples_for(&self, watchers: usize) -> usize {
        const FEW: usize = 30;
        (100_000 / watchers.max(1)).clamp(FEW.min(self.samples), self.samples)
    }
}
