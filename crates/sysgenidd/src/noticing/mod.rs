// SPDX-License-Identifier: MIT OR Apache-2.0

//! Noticing that the machine was restored: from the first sign to the change that is ordered.
//!
//! [`thread`] asks the backends, each behind one small trait ([`backend`]); [`authority`] decides what their
//! reports mean; [`reseed`] makes the kernel's generator fresh; and then whoever owns the generation changes
//! it.

pub mod authority;
pub mod backend;
pub mod evidence;
pub(crate) mod foreign;
pub mod kmsg;
pub mod kprobe;
pub mod parent;
mod presence;
pub mod reseed;
pub mod thread;
pub mod vmclock;

pub use self::authority::Cause;
pub use self::backend::{Backend, Error, Kind, Seen, Settings, open};
pub use self::reseed::Fresh;
pub use self::thread::{Machine, Noticing, Plan, Positions};
