// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs in guests report, one JSON object a line.

use serde::Deserialize;
use serde::Serialize;

/// Something that a program did, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// The program's name.
    pub program: String,
    /// What it did.
    pub what: What,
    /// When, on the guest's `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// The generation that the program knew then.
    pub generation: u32,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It is ready: it watches the generation if there is a node to watch.
    Started {
        /// Whether there is.
        watches: bool,
    },
    /// It was woken, or saw the change when it looked.
    Noticed,
    /// It replaced what must not be used twice.
    Reseeded,
    /// It acknowledged the generation.
    Acknowledged,
    /// It saw everybody's acknowledgement.
    EverybodyDone,
    /// It handed out a token.
    Token {
        /// The how-manieth, from 0.
        number: u64,
        /// In hexadecimal.
        value: String,
    },
    /// It cannot go on.
    Failed {
        /// Why not.
        reason: String,
    },
}

/// How a program that looks before each use learned of a restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sighting {
    /// When it saw that something had changed, on the guest's `CLOCK_MONOTONIC`, in nanoseconds.
    pub seen_ns: u64,
    /// The generation at that moment: the old one, if the hypervisor's page was faster.
    pub seen_in_generation: u32,
    /// When it drew its new secret.
    pub drawn_ns: u64,
    /// The generation for which it did.
    pub drawn_in_generation: u32,
    /// The secret, in hexadecimal.
    pub drawn: String,
}
