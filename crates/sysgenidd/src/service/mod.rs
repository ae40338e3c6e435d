// SPDX-License-Identifier: MIT OR Apache-2.0

//! The service manager: what it is told and asked, and how the log is written for it.

pub mod jobs;
mod log;
mod manager;

pub use self::log::init_tracing;
pub use self::manager::Error;
pub(crate) use self::manager::MANAGER_VARIABLES;
pub use self::manager::Manager;
pub(crate) use self::manager::assignments;
