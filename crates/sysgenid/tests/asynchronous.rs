// SPDX-License-Identifier: MIT OR Apache-2.0

//! The watcher for tasks of tokio.
