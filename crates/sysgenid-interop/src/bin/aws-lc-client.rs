// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that only uses AWS-LC. It knows of no node: AWS-LC finds it by itself, or does not.

use anyhow::Result;
use anyhow::bail;
use sysgenid_interop::conversation;
use sysgenid_interop::conversation::Draw;
use sysgenid_interop::conversation::hexadecimal;

/// How much is drawn at a time.
const DRAW: usize = 16;

/// What AWS-LC exports, but its bindings for Rust do not declare.
mod uniqueness {
    include!(concat!(env!("OUT_DIR"), "/aws_lc.rs"));
}

fn main() -> Result<()> {
    conversation::serve(|_| draw())
}

fn draw() -> Result<Draw> {
    let mut bytes = [0; DRAW];
    // SAFETY: The buffer is as long as is said.
    let drawn = unsafe { aws_lc_sys::RAND_bytes(bytes.as_mut_ptr(), bytes.len()) };
    if drawn != 1 {
        bail!("RAND_bytes failed");
    }
    let mut generation = 0;
    // SAFETY: The pointer is to a u32 that outlives the call.
    let known = unsafe { uniqueness::CRYPTO_get_vm_ube_generation(&raw mut generation) } == 1;
    Ok(Draw {
        user: rustix::process::geteuid().as_raw(),
        // SAFETY: Takes nothing, and initializes what it needs by itself.
        supported: unsafe { uniqueness::CRYPTO_get_vm_ube_supported() } == 1,
        // SAFETY: As above.
        active: unsafe { uniqueness::CRYPTO_get_vm_ube_active() } == 1,
        generation: known.then_some(generation),
        // SAFETY: As above.
        reseeds: unsafe { uniqueness::get_private_thread_reseed_calls_since_initialization() },
        bytes: hexadecimal(&bytes),
    })
}
