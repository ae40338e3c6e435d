// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serving an instance: its requests, its watchers, its folder and its page.

mod calls;
pub(crate) mod files;
mod folder;
pub mod instance;
mod recovery;
pub mod renewal;
pub mod report;
