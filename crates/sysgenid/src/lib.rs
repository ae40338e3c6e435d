// SPDX-License-Identifier: MIT OR Apache-2.0

#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod change;
mod deadline;
mod error;
mod guarded;
mod node;
mod orchestrator;
mod probe;
mod process;
mod random;
#[cfg(feature = "rand")]
mod rng;
mod sys;
pub mod testing;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(feature = "uuid")]
mod uuid;
mod vmclock;
mod watcher;

pub use change::{Acknowledged, Change, Others, Waiting};
pub use error::{Access, Error};
pub use guarded::{Guarded, Owned, Ref};
pub use node::{PATH_VARIABLE, PATHS};
pub use orchestrator::{Orchestrator, Resumption, Settlement};
pub use probe::{Probe, Stamp};
pub use random::fill_random;
#[cfg(feature = "rand")]
pub use rng::{ReseedError, SnapSafeRng};
pub use sysgenid_core::Generation;
#[cfg(feature = "uuid")]
pub use uuid::UuidGenerator;
pub use watcher::{Tracking, Watcher};

#[cfg(feature = "tokio")]
pub use self::tokio::{AsyncWatcher, Changes};
