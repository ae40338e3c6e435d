// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel modules, in guests.

pub(crate) mod arm64;
pub(crate) mod checkpoint;
pub(crate) mod conformance;
pub(crate) mod debug_kernel;
pub(crate) mod firmware;
pub(crate) mod fuzz;
pub(crate) mod hibernation;
pub(crate) mod in_tree;
pub(crate) mod lifetime;
pub(crate) mod refused;
pub(crate) mod restore;
pub(crate) mod user_space;
