// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who the caller is, and what he may do.

pub mod capability;
pub(crate) mod process;
