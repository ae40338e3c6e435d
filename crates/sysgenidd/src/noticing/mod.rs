// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who notices that the machine was restored, each behind one small trait.

pub mod backend;
pub(crate) mod foreign;
pub mod kmsg;
pub mod parent;
mod restores;
pub mod vmclock;

pub use self::backend::{Backend, Error, Kind, Settings, open};
pub use self::restores::Restores;
