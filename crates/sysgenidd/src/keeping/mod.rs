// SPDX-License-Identifier: MIT OR Apache-2.0

//! What outlives the process, and who keeps it.

pub(crate) mod keeper;
pub mod state;
pub mod storage;
pub mod store;
pub mod supervise;
