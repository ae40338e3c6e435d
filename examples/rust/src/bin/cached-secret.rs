// SPDX-License-Identifier: MIT OR Apache-2.0

//! The third workflow: a look before each use, and one after it.
//!
//! Take it for a library, and for whatever is cheap to rebuild: it needs no thread, no loop and no permission, nobody
//! waits for it, and no old secret is used once the generation has changed. It signs each line of its standard input
//! in two ways:
//!
//! - by `Guarded`, which is the way to take: it serves all threads, and cannot be used in the wrong order;
//! - by `Probe` and a stamp, which is what `Guarded` does inside, for a secret that is part of something else.
//!
//! ```console
//! $ cached-secret
//! ready
//! hello
//! generation 0: guarded 5cb1…
//! generation 0: by hand 1e42…
//! ```
//!
//! A signature that was printed cannot be taken back, so each is checked after it was made and before it is given
//! away. If the machine was restored in between, both clones may have made it with one key.
//!
//! A node may go and come, which is a change each time. While there is none, nothing is noticed; `Probe::is_live` says so.

#![forbid(unsafe_code)]

use std::io;

use anyhow::Result;
use sysgenid::{Generation, Guarded, Probe, Stamp};
use sysgenid_examples::Secret;

fn main() -> Result<()> {
    // A library goes on where nothing serves a node. A node that it may not open is an error all the same.
    let probe = Probe::open_or_never()?;
    if !probe.is_live() {
        eprintln!("nothing serves a node yet: no restore is noticed until something does");
    }
    let guarded = Guarded::fallible(probe.clone(), |_generation| Secret::draw());
    let mut by_hand = ByHand::new(probe)?;

    println!("ready");
    for line in io::stdin().lines() {
        let line = line?;
        let (generation, signature) = sign(&guarded, &line)?;
        println!("generation {generation}: guarded {signature}");
        let (generation, signature) = by_hand.sign(&line)?;
        println!("generation {generation}: by hand {signature}");
    }
    Ok(())
}

fn sign(secret: &Guarded<Secret, io::Error>, message: &str) -> io::Result<(Generation, String)> {
    loop {
        let secret = secret.try_get()?;
        let signature = secret.sign(message);
        if secret.is_current() {
            return Ok((secret.generation(), signature));
        }
    }
}

/// A secret, and what the probe saw before it was drawn.
struct ByHand {
    probe: Probe,
    stamp: Stamp,
    secret: Secret,
}

impl ByHand {
    fn new(probe: Probe) -> io::Result<Self> {
        // In this order: a restore that comes between the two is found at the first use.
        let stamp = probe.stamp();
        let secret = Secret::draw()?;
        Ok(Self {
            probe,
            stamp,
            secret,
        })
    }

    fn sign(&mut self, message: &str) -> io::Result<(Generation, String)> {
        loop {
            if self.probe.has_changed(&self.stamp) {
                // This waits for the kernel's generator to be reseeded, where a vmclock device told of the restore
                // before the kernel did. The stamp is kept only with the secret that was drawn under it.
                let stamp = self.probe.stamp_for_rebuild(&self.stamp);
                self.secret = Secret::draw()?;
                self.stamp = stamp;
            }
            let signature = self.secret.sign(message);
            if !self.probe.has_changed(&self.stamp) {
                return Ok((self.stamp.generation(), signature));
            }
        }
    }
}
