// SPDX-License-Identifier: MIT OR Apache-2.0

//! The nodes of a system generation counter, served from user space.
//!
//! It exists as a library so that its parts can be tested and fuzzed; the program is `sysgenidd`.

pub mod backends;
pub mod capability;
mod clock;
pub mod config;
pub mod control;
pub mod daemon;
mod fault;
pub mod fuse;
pub mod instance;
mod keeper;
mod mounts;
mod node;
mod process;
pub mod publish;
pub mod renewal;
pub mod report;
pub mod service;
pub mod state;
pub mod storage;
pub mod store;
pub mod supervise;
mod sys;
mod watch;
