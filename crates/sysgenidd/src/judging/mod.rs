// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who the caller is, and what he may do.

mod capability;
mod namespace;
#[cfg(test)]
mod people;
pub mod proc;
pub mod process;

pub use self::namespace::{Error, Owner, Root};
