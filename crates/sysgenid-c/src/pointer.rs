// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a C program passes, as Rust has it: null is told apart here, and nowhere else.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::Failure;

/// What an argument points to.
///
/// # Safety
///
/// Unless it is null, it points to a `T` that nobody changes or frees during `'a`.
pub(crate) unsafe fn target<'a, T>(argument: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: it is null, or valid for so long by the condition of this function.
    unsafe { argument.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// Where the caller wants to have something, whatever is there now.
///
/// # Safety
///
/// Unless it is null, it points to memory for a `T` that nobody else uses during `'a`.
pub(crate) unsafe fn place<'a, T>(
    argument: *mut T,
    name: &str,
) -> Result<&'a mut MaybeUninit<T>, Failure> {
    // SAFETY: it is null, or for us alone by the condition of this function; `MaybeUninit` asks for no content.
    unsafe { argument.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| Failure::null(name))
}

/// The path of a node; nothing stands for the machine's.
///
/// # Safety
///
/// Unless it is null, it points to a string that ends with a zero byte and that nobody changes or frees during `'a`.
pub(crate) unsafe fn path<'a>(argument: *const c_char) -> Option<&'a Path> {
    if argument.is_null() {
        return None;
    }
    // SAFETY: it is such a string by the condition of this function.
    let text = unsafe { CStr::from_ptr(argument) };
    Some(Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// Gives a value into the caller's hands.
pub(crate) fn hand_out<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Takes back what was handed out, if it is not null, and drops it.
///
/// # Safety
///
/// Unless it is null, it comes from [`hand_out`], and nobody uses it any more.
pub(crate) unsafe fn take_back<T>(argument: *mut T) {
    if let Some(argument) = NonNull::new(argument) {
        // SAFETY: it comes from a box, which is ours again by the condition of this function.
        drop(unsafe { Box::from_raw(argument.as_ptr()) });
    }
}

/// A time-out in milliseconds as `poll` has it: negative is for ever.
pub(crate) fn timeout(milliseconds: c_int) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}
