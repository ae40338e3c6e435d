// SPDX-License-Identifier: MIT OR Apache-2.0

//! The nodes of a system generation counter, served from user space.
//!
//! It exists as a library so that its parts can be tested and fuzzed; the program is `sysgenidd`.

mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod failure;
mod fault;
pub mod judging;
pub mod keeping;
pub mod noticing;
pub mod placing;
pub mod protocol;
pub mod service;
pub mod serving;
mod sys;
