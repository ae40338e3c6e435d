// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the example services in `src/bin` share: a secret. Copy what you need; `examples/README.md` says which example shows what.

#![forbid(unsafe_code)]

mod secret;

pub use secret::Secret;
