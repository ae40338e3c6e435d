// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agent's protocol: one JSON object a line, over a virtio serial port.
//!
//! The host sends a [`Request`]; the agent answers with any number of [`Reply::Output`] and then
//! exactly one other [`Reply`]. One request is under way at a time. Replies carry the request's
//! number, so that a host which gave up on one can skip what still comes of it.

use serde::Deserialize;
use serde::Serialize;

/// The name of the virtio serial port.
pub const PORT_NAME: &str = "org.sysgenid.agent";

/// What the host asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in each reply.
    pub number: u64,
    /// What to do.
    pub order: Order,
}

/// The orders that an agent understands.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Answer with the guest's clock.
    Ping,
    /// Run a command with `/bin/sh -c`, without input.
    Run {
        /// The command.
        command: String,
        /// When to kill it, in milliseconds.
        timeout_ms: u64,
    },
}

/// What the agent answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The number of the request.
    pub number: u64,
    /// The answer.
    pub answer: Answer,
}

/// The answers that an agent gives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Order::Ping`].
    Pong {
        /// The guest's `CLOCK_MONOTONIC` when it answered, in nanoseconds.
        monotonic_ns: u64,
    },
    /// A piece of what the command printed, standard output and error in one.
    Output {
        /// The piece; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// The command ended.
    Exited {
        /// Its exit status; 128 and the signal's number if a signal ended it.
        status: i32,
    },
    /// The command was killed because its time was over.
    TimedOut,
    /// The agent could not carry out the order.
    Failed {
        /// Why not.
        reason: String,
    },
}
