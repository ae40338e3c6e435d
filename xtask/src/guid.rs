// SPDX-License-Identifier: MIT OR Apache-2.0

//! Generation IDs for machines.

use anyhow::Context;
use anyhow::Result;

/// A GUID that no machine had before.
pub(crate) fn random() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim_end().to_owned())
}
