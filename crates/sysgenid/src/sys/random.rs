// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's generator, by its system call and by no other way.

use rustix::io;

/// Fills the buffer. It sleeps until the generator has been seeded for the first time after the boot.
pub(crate) fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: The kernel writes at most so many bytes to the buffer.
        let filled =
            unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
        match usize::try_from(filled) {
            // It cannot be, and must not go on for ever.
            Ok(0) => return Err(io::Errno::IO),
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(_) => match last_error() {
                io::Errno::INTR => {}
                errno => return Err(errno),
            },
        }
    }
    Ok(())
}

fn last_error() -> io::Errno {
    let error = std::io::Error::last_os_error();
    io::Errno::from_io_error(&error).unwrap_or(io::Errno::IO)
}
