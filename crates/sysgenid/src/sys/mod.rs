// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls of a node that need `unsafe`, each behind a safe function. Nothing else here has any.

#![allow(unsafe_code)]

pub(crate) mod ioctl;
#[cfg(feature = "tokio")]
pub(crate) mod reactor;
pub(crate) mod secure;
pub(crate) mod word;
