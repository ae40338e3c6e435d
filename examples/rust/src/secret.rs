// SPDX-License-Identifier: MIT OR Apache-2.0

//! A secret as services keep it.

use std::io;

use aws_lc_rs::hmac;

/// A key that signs tokens: two clones that have the same accept each other's, and whoever knows one knows both.
pub struct Secret(hmac::Key);

impl Secret {
    /// Draws a new one from the kernel's generator, which was reseeded before anybody was told of a new generation. A
    /// generator in user space would have to know of the restore itself.
    ///
    /// # Errors
    ///
    /// If the kernel gives no randomness.
    pub fn draw() -> io::Result<Self> {
        let mut key = [0; 32];
        sysgenid::fill_random(&mut key)?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The signature of a message, in hexadecimal digits.
    pub fn sign(&self, message: &str) -> String {
        let signature = hmac::sign(&self.0, message.as_bytes());
        signature
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}
