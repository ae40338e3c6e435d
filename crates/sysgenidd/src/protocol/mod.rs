// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of the FUSE protocol that a node needs, directly on `/dev/fuse`.
//!
//! No published crate carries all of what the contract asks for: requests that are interrupted, ioctl
//! arguments by value, notices for poll, mappings that go to a backing file, and another process that
//! takes over. What is here knows the protocol and nothing of nodes.

mod backing;
mod connection;
mod request;
pub mod wire;

pub use backing::BackingId;
pub use connection::{Buffer, Connection, FILE_SYSTEM_TYPE, MountError, Received};
pub use request::{Malformed, Operation, Request, Unique};
