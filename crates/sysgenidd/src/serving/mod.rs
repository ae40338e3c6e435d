// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serving an instance: its requests, its watchers, its folder and its page.
//!
//! One request goes [`server`] (received), `requests` (what it is about), `calls` or `folder` (what is done),
//! [`accounts`] (decided and stored), and back to be answered. One change goes [`family`] (all that it
//! concerns), [`accounts`] (stored, shown in the page), and then to each instance's [`server`], which wakes.

pub mod accounts;
mod calls;
pub mod copies;
pub mod family;
pub(crate) mod files;
mod folder;
pub mod handshake;
pub mod instance;
pub mod recovery;
pub mod report;
mod reports;
mod requests;
pub mod server;
mod sharing;
mod sleepers;
