// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether this program has more rights than whoever started it.

/// Whether the environment is that of somebody who must not decide what this program does: `AT_SECURE` of
/// `getauxval(3)`, as for set-user-ID programs and those with file capabilities.
pub(crate) fn is_secure_execution() -> bool {
    // SAFETY: The function takes a number and only looks at memory that the C library keeps.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
