// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the example services in `src/bin` share: a secret, a TLS ticketer and a stream that each belong to one
//! generation. Copy what you need; `examples/README.md` says which example shows what.

#![forbid(unsafe_code)]

mod secret;
mod stream;
mod ticketer;

pub use secret::Secret;
pub use stream::OneGeneration;
pub use ticketer::GuardedTicketer;
