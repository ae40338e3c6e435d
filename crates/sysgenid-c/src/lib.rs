// SPDX-License-Identifier: MIT OR Apache-2.0

//! `libsysgenid`, the client library for C programs: [`sysgenid::Probe`] and [`sysgenid::Watcher`] behind opaque
//! pointers. `include/sysgenid.h` is made of this crate, documentation included, so it speaks to C programmers.
//!
//! Everything that is unsafe about a caller's pointers is in `pointer`, everything about a failure in `error`. No
//! panic reaches the caller.

pub mod error;
pub mod orchestrator;
mod pointer;
pub mod probe;
pub mod watcher;
