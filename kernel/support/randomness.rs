// SPDX-License-Identifier: GPL-2.0-only

//! Feeding the kernel's random number generator.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use kernel::{
    bindings,
    error::{
        from_err_ptr,
        Result, //
    },
    ioctl::_IO,
    prelude::*, //
};

/// `RNDRESEEDCRNG` of `<linux/random.h>`.
const RESEED: u32 = _IO(b'R' as u32, 0x07);

/// What it returns while the generator has never been seeded.
const NOT_SEEDED: i32 = -(bindings::ENODATA as i32);

/// Mixes bytes into the entropy pool, without crediting any entropy. They come into effect at the
/// next reseed.
pub(crate) fn mix(bytes: &[u8]) {
    // SAFETY: The pointer and the length are those of a slice.
    unsafe { bindings::add_device_randomness(bytes.as_ptr().cast(), bytes.len()) };
}

/// Reseeds the generator from the pool, so that what was mixed in comes into effect. May sleep.
///
/// A generator that was never seeded is left alone: what was mixed in is part of its seed to come.
///
/// The kernel does both in `add_vmfork_randomness()`, which is there for its own driver alone. The
/// one other way to the reseed is the ioctl of `/dev/urandom`.
///
/// # Errors
///
/// The error of opening `/dev/urandom`, such as `ENOENT`.
pub(crate) fn reseed() -> Result {
    // SAFETY: The path is a string that is only read.
    let file = from_err_ptr(unsafe {
        bindings::filp_open(c"/dev/urandom".as_char_ptr(), bindings::O_RDONLY as i32, 0)
    })?;
    // SAFETY: An open file has operations.
    let ioctl = unsafe { (*(*file).f_op).unlocked_ioctl };
    let result = match ioctl {
        // SAFETY: The file is open, and this ioctl takes no argument.
        Some(ioctl) => unsafe { ioctl(file, RESEED, 0) },
        None => ENOTTY.to_errno() as isize,
    };
    // SAFETY: The file was opened above and is not used after this.
    unsafe { bindings::filp_close(file, core::ptr::null_mut()) };
    match result as i32 {
        0 | NOT_SEEDED => Ok(()),
        errno => Err(Error::from_errno(errno)),
    }
}
