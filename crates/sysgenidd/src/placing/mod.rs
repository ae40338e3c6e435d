// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where nodes are: mounts, and the places in which programs look for them.

pub(crate) mod mounts;
pub mod publish;
