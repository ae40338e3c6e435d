// SPDX-License-Identifier: MIT OR Apache-2.0

//! What it costs to ask whether the machine was restored, beside what programs do anyway.
//!
//! On the node of this machine if there is one, else on a page of this process: the loads are the same.

use std::hint::black_box;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use divan::Bencher;
use rand::Rng;
use sysgenid::testing::SimulatedMachine;
use sysgenid::{Guarded, Probe};

fn main() {
    match PROBE.path() {
        Some(path) => println!("on {}, vmclock: {:?}", path.display(), PROBE.vmclock()),
        None => println!("on a page of this process"),
    }
    divan::main();
}

static MACHINE: LazyLock<SimulatedMachine> = LazyLock::new(SimulatedMachine::new);

static PROBE: LazyLock<Probe> = LazyLock::new(|| Probe::open().unwrap_or_else(|_| MACHINE.probe()));

static GUARDED: LazyLock<Guarded<[u8; 32]>> =
    LazyLock::new(|| Guarded::new(PROBE.clone(), |_| [4; 32]));

/// How many threads measure at once.
const THREADS: [usize; 2] = [1, 2];

/// So many of each, one after the other, so that the clock does not count.
const TIMES: u32 = 1000;

/// The least that can be done: one load of a number that others may change, and a look whether it is the known one.
#[divan::bench(threads = THREADS)]
fn plain_load(bencher: Bencher<'_, '_>) {
    let page = (Box::new(AtomicU32::new(4)), 4);
    bencher.bench(|| {
        for _ in 0..TIMES {
            let (word, known) = black_box(&page);
            black_box(word.load(Ordering::Relaxed) != *known);
        }
    });
}

#[divan::bench(threads = THREADS)]
fn probe_has_changed(bencher: Bencher<'_, '_>) {
    let probe = &*PROBE;
    let stamp = probe.stamp();
    bencher.bench(|| {
        for _ in 0..TIMES {
            black_box(black_box(probe).has_changed(black_box(&stamp)));
        }
    });
}

#[divan::bench(threads = THREADS)]
fn guarded_get(bencher: Bencher<'_, '_>) {
    let guarded = &*GUARDED;
    bencher.bench(|| {
        for _ in 0..TIMES {
            black_box(black_box(guarded).get()[0]);
        }
    });
}

#[divan::bench(threads = THREADS)]
fn rand_rng_u64(bencher: Bencher<'_, '_>) {
    bencher.bench(|| {
        let mut rng = rand::rng();
        for _ in 0..TIMES {
            black_box(rng.next_u64());
        }
    });
}

#[divan::bench(threads = THREADS)]
fn getpid_system_call(bencher: Bencher<'_, '_>) {
    bencher.bench(|| {
        for _ in 0..TIMES {
            black_box(rustix::process::getpid());
        }
    });
}
