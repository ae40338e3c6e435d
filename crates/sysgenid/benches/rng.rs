// SPDX-License-Identifier: MIT OR Apache-2.0

//! Generators, and the same generators made safe.

use std::hint::black_box;
use std::time::Instant;

use rand::rngs::{SmallRng, StdRng};
use rand::{Rng, SeedableRng};
use sysgenid::testing::SimulatedMachine;
use sysgenid::{Probe, SnapSafeRng};

/// How many samples are taken of each, in turn, so that noise hits both alike.
const SAMPLES: usize = 400;

/// How many draws are one sample.
const DRAWS: u32 = 20_000;

fn main() {
    let machine = SimulatedMachine::new();
    let probe = Probe::open().unwrap_or_else(|_| machine.probe());
    println!(
        "generator          draw      plain      safe   ratio  (ns a draw, medians of {SAMPLES}; p99 in brackets)"
    );
    compare::<StdRng>("StdRng", &probe);
    compare::<SmallRng>("SmallRng", &probe);
}

fn compare<R: SeedableRng + Rng>(name: &str, probe: &Probe) {
    let mut plain = R::seed_from_u64(4);
    let Ok(mut safe) = SnapSafeRng::<R>::new(probe.clone()) else {
        panic!("the operating system gives no randomness");
    };
    report(
        name,
        "u32",
        || draw(|| u64::from(black_box(&mut plain).next_u32())),
        || draw(|| u64::from(black_box(&mut safe).next_u32())),
    );
    report(
        name,
        "u64",
        || draw(|| black_box(&mut plain).next_u64()),
        || draw(|| black_box(&mut safe).next_u64()),
    );
    let (mut ours, mut theirs) = ([0; 64], [0; 64]);
    report(
        name,
        "64 bytes",
        || {
            draw(|| {
                plain.fill_bytes(&mut theirs);
                u64::from(theirs[0])
            })
        },
        || {
            draw(|| {
                safe.fill_bytes(&mut ours);
                u64::from(ours[0])
            })
        },
    );
}

/// Nanoseconds for one draw.
fn draw(mut once: impl FnMut() -> u64) -> f64 {
    let started = Instant::now();
    for _ in 0..DRAWS {
        black_box(once());
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(DRAWS)
}

fn report(name: &str, what: &str, mut plain: impl FnMut() -> f64, mut safe: impl FnMut() -> f64) {
    let (mut plains, mut safes, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let (one, other) = (plain(), safe());
        plains.push(one);
        safes.push(other);
        ratios.push(other / one);
    }
    let of = |values: &mut Vec<f64>, share: f64| {
        values.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = (values.len() as f64 * share) as usize;
        values[index]
    };
    let (plain, safe, ratio) = (
        of(&mut plains, 0.5),
        of(&mut safes, 0.5),
        of(&mut ratios, 0.5),
    );
    let (slow, slower) = (of(&mut plains, 0.99), of(&mut safes, 0.99));
    println!(
        "{name:<12} {what:>10} {plain:>7.2} [{slow:.2}] {safe:>7.2} [{slower:.2}] {ratio:>6.3}"
    );
}
