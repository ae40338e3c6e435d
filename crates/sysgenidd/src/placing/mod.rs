// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where the nodes are found: mounts, links, and other people's file systems.

pub mod cdi;
pub mod container;
pub(crate) mod mounts;
pub mod publish;

/// The names of the nodes, in an instance's folder and in `/dev`.
pub const NODES: [&str; 2] = ["sysgenid", "vmgenid"];
