// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line on a real node, whoever serves it: the one that `SYSGENID_PATH` names, or the machine's.
//!
//! It runs the program that `SYSGENCTL` names, or the one that was built with it. It needs root, and bumps the
//! generation. In a guest there are a shell and the tools of busybox, and no systemd.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod doctor;
mod exec;
mod hooks;
mod permission;
mod process;
mod program;
mod status;
mod trigger;
mod usage;
mod vanishing;
mod wait;
mod watch;
mod watchers;
