// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a system generation counter means, as plain data and pure functions.
//!
//! A machine or container that is snapshotted and resumed changes its *generation*. Programs open a
//! *node* and thereby become *watchers*; they learn of each change, rebuild what they must, and
//! acknowledge. Whoever needs to can wait until every *tracked* watcher has acknowledged.
//!
//! This crate decides all of that and does none of it: it knows no file, thread, clock, lock or
//! allocation. A front end translates system calls into calls of [`Registry`] and its answers into
//! results, and owns blocking, waking, locking and memory. The kernel module is one, and compiles these
//! very files; whatever else serves a node uses this crate, so that they cannot drift apart. The
//! contract in prose is `docs/sysgenid.rst`.
//!
//! # Example
//!
//! ```
//! use sysgenid_core::{Access, Node, Patience, Read, Registry, Wait};
//!
//! let mut registry = Registry::new();
//! let mut watcher = registry.open(Node::Vmgenid, Access::ReadWrite);
//! assert_eq!(registry.read(&mut watcher, 4, Patience::Sleep), Ok(Read::Sleep));
//!
//! // A backend notices that the machine was restored.
//! let change = registry.bump();
//! assert_eq!(registry.outdated_watchers(), 1);
//! assert_eq!(registry.read(&mut watcher, 4, Patience::Sleep), Ok(Read::Generation(change.generation)));
//!
//! // The program has rebuilt its secrets and says so.
//! registry.write(&mut watcher, &change.generation.to_ne_bytes()).unwrap();
//! assert_eq!(registry.wait(&watcher, Patience::Sleep), Ok(Wait::Settled));
//! ```
//!
//! # Locking
//!
//! A front end keeps one [`Registry`] and all of its [`Watcher`]s behind one lock. Every call here
//! takes constant time, so the lock is never held for longer than that. A call that returns a
//! [`Wake`] says whom to wake once the lock is released.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
mod error;
mod generation;
mod history;
mod registry;
mod timeout;

pub use abi::{Access, Ioctl, Mapping, Node, PageWord};
pub use error::Error;
pub use generation::{Epoch, Generation};
pub use history::History;
pub use registry::{
    Change, LastRead, Patience, Read, Registry, Wait, Wake, Watcher, WatcherRecord,
};
pub use timeout::Timeout;
