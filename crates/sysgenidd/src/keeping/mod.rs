// SPDX-License-Identifier: MIT OR Apache-2.0

//! What outlives the process, and who keeps it.

pub(crate) mod clean_up;
pub(crate) mod definition;
pub mod folder;
mod handover;
pub(crate) mod keeper;
pub mod lock;
pub mod page;
pub mod state;
pub mod storage;
pub mod store;
pub mod supervisor;
