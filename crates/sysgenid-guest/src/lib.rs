// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the programs in a guest and the host that drives them say to each other.
//!
//! The programs are in the binary of the same name: an agent that takes orders, the demo's cast, a
//! benchmark, and a few probes that only make sense inside a guest.

pub mod event;
pub mod measurement;
pub mod protocol;
