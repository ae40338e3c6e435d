// SPDX-License-Identifier: MIT OR Apache-2.0

//! Randomness for new secrets.

use crate::sys::random;

/// Fills a buffer from the kernel's generator, which is reseeded before the generation changes: with what new secrets
/// are to be made of.
///
/// It makes the system call [`getrandom(2)`](https://man7.org/linux/man-pages/man2/getrandom.2.html) each time, and keeps
/// nothing. The C library's function of that name does otherwise from glibc 2.41 and Linux 6.11 on: it has a generator in
/// the process (`vgetrandom` of the [vDSO](https://man7.org/linux/man-pages/man7/vdso.7.html)), which is part of every
/// snapshot. It is thrown away when the kernel's generator is reseeded, which happens when a virtual machine is restored; where
/// CRIU or a sandbox restores a process alone, only if whoever triggers the change may do it, and else
/// within a minute.
///
/// | what is called | a virtual machine was restored | a process was, and the kernel was not reseeded |
/// | --- | --- | --- |
/// | this function; `getentropy` of C; [`rustix::rand::getrandom`](https://docs.rs/rustix) | differs | differs |
/// | crate `getrandom`, `rand::rngs::SysRng` and `OsRng`; `getrandom` and `arc4random` of C; `os.urandom` of Python, `crypto/rand` of Go 1.24 | differs | **repeats** for up to a minute |
/// | `rand::rng()`, `uuid`'s v4 by it, every generator that was seeded before | **repeats** | **repeats** |
///
/// # Errors
///
/// What the kernel says, on one that has no such call or does not allow it.
pub fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    random::fill(bytes).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_filled_to_its_end() {
        // More than the kernel gives at once while a signal is pending, and more than it checks between signals.
        let mut bytes = vec![0; 1 << 20];
        fill_random(&mut bytes).unwrap();
        for part in bytes.chunks(4096) {
            assert!(part.iter().any(|&byte| byte != 0));
        }
        fill_random(&mut []).unwrap();
    }
}
