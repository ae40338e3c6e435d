// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon, on this machine and in guests.

pub(crate) mod guests;
pub(crate) mod host;
pub(crate) mod interop;
pub(crate) mod survival;
