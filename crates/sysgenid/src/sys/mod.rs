// SPDX-License-Identifier: MIT OR Apache-2.0

//! What needs `unsafe`, each behind a safe function: system calls, and memory that others write. Nothing else here has any.

#![allow(unsafe_code)]

pub(crate) mod epoch;
pub(crate) mod ioctl;
pub(crate) mod mapping;
pub(crate) mod random;
#[cfg(feature = "tokio")]
pub(crate) mod reactor;
pub(crate) mod secure;
pub(crate) mod words;
