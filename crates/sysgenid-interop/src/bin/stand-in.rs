// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stands in for a program that is only looked for: does nothing, whatever it is told, until its input ends.

use std::io::Result;

fn main() -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
}
