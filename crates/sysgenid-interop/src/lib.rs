// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stages for the tests that show the nodes to programs of others.
//!
//! Each test plays on a [`Stage`]: a mount namespace with a `/run` and a `/dev` of its own, where the
//! daemon may publish its nodes, containers may leave what they like, and everything is gone at the end.
//! The programs on it are told what to do, and say what they see, by lines of JSON on their standard
//! input and output: see [`conversation`].

mod built;
pub mod checkpoint;
pub mod container;
pub mod conversation;
pub mod cue;
pub mod daemon;
pub mod hook;
pub mod load;
pub mod network;
pub mod node;
pub mod patience;
pub mod podman;
pub mod stage;
pub mod systemd;
pub mod tool;
pub mod user_namespace;

pub use stage::Stage;
