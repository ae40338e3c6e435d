// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting for what tells nobody that it has come.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;

/// How long anything may take. Only ever waited for in full where something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long it is until something is looked at again.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until something is as it should be, by looking again and again. If it does not come to it, `what` says what
/// was waited for, and what is known of it.
pub fn wait_until(
    what: impl Fn() -> String,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > until {
            bail!("after {} s not yet: {}", PATIENCE.as_secs(), what());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
