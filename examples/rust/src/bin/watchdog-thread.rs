// SPDX-License-Identifier: MIT OR Apache-2.0

//! The first workflow: a thread that does nothing but wait for changes.
//!
//! Take it for a program that has threads anyway and keeps something that takes time to rebuild. Until the thread has
//! rebuilt, the others still use the old secret; where that must not be, see `cached-secret`.
//!
//! It signs each line of its standard input:
//!
//! ```console
//! $ watchdog-thread
//! ready
//! hello
//! signed 5cb1…
//! generation 1: rebuilt
//! hello
//! signed 93f0…
//! ```

#![forbid(unsafe_code)]

use std::io;
use std::process;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use anyhow::{Context as _, Result};
use sysgenid::{Error, Tracking, Watcher};
use sysgenid_examples::Secret;

fn main() -> Result<()> {
    // First the watcher, then the secret: what is drawn now is drawn for the generation that the watcher found, or for
    // a later one, of which it will be told.
    let watcher = Watcher::open(Tracking::Tracked)?;
    let secret = Arc::new(RwLock::new(Secret::draw()?));
    let watched = Arc::clone(&secret);
    thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            let Err(error) = watch(watcher, &watched);
            // Without the thread nobody would notice the next restore. Who supervises this program starts it again.
            eprintln!("{error:#}");
            process::exit(1);
        })?;

    println!("ready");
    for line in io::stdin().lines() {
        let secret = secret.read().unwrap_or_else(PoisonError::into_inner);
        println!("signed {}", secret.sign(&line?));
    }
    Ok(())
}

fn watch(mut watcher: Watcher, secret: &RwLock<Secret>) -> Result<std::convert::Infallible> {
    let mut change = watcher.wait();
    loop {
        let result = change.map_err(anyhow::Error::from).and_then(|change| {
            change.rebuild(|generation| {
                let new = Secret::draw()?;
                *secret.write().unwrap_or_else(PoisonError::into_inner) = new;
                println!("generation {generation}: rebuilt");
                Ok(())
            })
        });
        change = match result {
            // The change was acknowledged.
            Ok(_generation) => watcher.wait(),
            // The daemon that served the node has ended. What happens until it is back cannot be known, so that it is
            // back counts as a change.
            Err(error) if matches!(error.downcast_ref(), Some(Error::Gone { .. })) => {
                println!("the node has gone");
                watcher.reconnect(None)
            }
            Err(error) => return Err(error).context("cannot watch the generation any more"),
        };
    }
}
