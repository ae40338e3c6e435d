// SPDX-License-Identifier: GPL-2.0-only

//! The state machine, from the very files of the crate `sysgenid-core`.

// Its other users and its tests, outside of the kernel, use more of it than this module does.
#![allow(dead_code, unreachable_pub)]

#[path = "../core/abi.rs"]
pub(crate) mod abi;
#[path = "../core/error.rs"]
mod error;
#[path = "../core/generation.rs"]
mod generation;
#[path = "../core/history.rs"]
mod history;
#[path = "../core/registry.rs"]
mod registry;
#[path = "../core/timeout.rs"]
mod timeout;

pub(crate) use abi::{
    Access,
    Ioctl,
    Mapping,
    Node,
    PageWord, //
};
pub(crate) use error::Error;
pub(crate) use generation::{
    Epoch,
    Generation, //
};
pub(crate) use history::History;
pub(crate) use registry::{
    Change,
    Patience,
    Read,
    Registry,
    Wait,
    Wake,
    Watcher, //
};
pub(crate) use timeout::Timeout;
