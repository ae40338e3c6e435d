// SPDX-License-Identifier: MIT OR Apache-2.0

//! The second workflow: the watcher is one more descriptor of an event loop.
//!
//! Take it for a program that has a loop of its own; with tokio, see `web-service`. It signs each line of its standard
//! input, which must be a pipe, a socket or a terminal, as epoll takes no files.

#![forbid(unsafe_code)]

use std::io;

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use sysgenid::{Tracking, Watcher};
use sysgenid_examples::Secret;

const INPUT: u64 = 0;
const NODE: u64 = 1;

fn main() -> Result<()> {
    let watcher = Watcher::open(Tracking::Tracked)?;
    let mut secret = Secret::draw()?;
    let stdin = io::stdin();
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &stdin, EventData::new_u64(INPUT), EventFlags::IN)
        .context("cannot poll the standard input")?;
    epoll::add(&epoll, &watcher, EventData::new_u64(NODE), EventFlags::IN)?;

    println!("ready");
    let mut events = Vec::with_capacity(2);
    let mut input = Vec::new();
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno).context("cannot wait for events"),
        }
        // Asked in each round and before all else, whoever was reported: what came in after a restore is answered with
        // the new secret. Where a system call a round is too much, only when the node is reported.
        if let Some(change) = watcher.try_changed()? {
            let generation = change.rebuild(|_generation| -> Result<()> {
                secret = Secret::draw()?;
                Ok(())
            })?;
            println!("generation {generation}: rebuilt");
        }
        if events.iter().any(|event| event.data.u64() == INPUT) {
            let mut chunk = [0; 4096];
            // Not through the buffer of the standard library, of which epoll does not know.
            let length = rustix::io::read(&stdin, &mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            input.extend_from_slice(&chunk[..length]);
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]);
                println!("signed {}", secret.sign(&line));
            }
        }
    }
}
