// SPDX-License-Identifier: MIT OR Apache-2.0

//! The library on a real node, whoever serves it: the one that `SYSGENID_PATH` names, or the machine's.
//!
//! `cargo xtask test` runs this on the daemon of the machine and on the module in a guest. It needs root, and
//! bumps the generation. What ends a server needs the daemon, which `SYSGENIDD` names, and a mount namespace of its
//! own.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

#[cfg(feature = "tokio")]
mod asynchronous;
#[path = "../in_child/mod.rs"]
mod in_child;
mod orchestrator;
mod permission;
mod probe;
mod processes;
mod vanishing;
mod watcher;
