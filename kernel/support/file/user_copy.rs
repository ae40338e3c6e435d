// SPDX-License-Identifier: GPL-2.0-only

//! Where what is read goes to, and what is written comes from: one buffer or many.
//!
//! `read` and `write` have one buffer in user space. What else there is (`readv`, `io_uring`)
//! has an [I/O vector](kernel::iov), which can be that too, but is slower to make than to use.
//!
//! C headers: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h),
//! [`include/linux/uio.h`](srctree/include/linux/uio.h)

use core::mem::MaybeUninit;
use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    }, //
};

/// Where what is read goes.
pub(crate) trait Destination {
    /// For how many bytes there is room.
    fn room(&self) -> usize;

    /// Copies a value.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the caller has no memory there, or no room.
    fn put<T: AsBytes>(&mut self, value: &T) -> Result;
}

/// Where what is written comes from.
pub(crate) trait Source {
    /// How many bytes there are.
    fn left(&self) -> usize;

    /// Copies a value.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the caller has no memory there, or not so much is left.
    fn take<T: AsBytes + FromBytes>(&mut self) -> Result<T>;
}

impl Destination for UserSliceWriter {
    #[inline]
    fn room(&self) -> usize {
        self.len()
    }

    #[inline]
    fn put<T: AsBytes>(&mut self, value: &T) -> Result {
        self.write(value)
    }
}

impl Destination for IovIterDest<'_> {
    fn room(&self) -> usize {
        self.len()
    }

    fn put<T: AsBytes>(&mut self, value: &T) -> Result {
        let bytes = value.as_bytes();
        if self.copy_to_iter(bytes) != bytes.len() {
            return Err(EFAULT);
        }
        Ok(())
    }
}

impl Source for UserSliceReader {
    #[inline]
    fn left(&self) -> usize {
        self.len()
    }

    #[inline]
    fn take<T: AsBytes + FromBytes>(&mut self) -> Result<T> {
        self.read()
    }
}

impl Source for IovIterSource<'_> {
    fn left(&self) -> usize {
        self.len()
    }

    fn take<T: AsBytes + FromBytes>(&mut self) -> Result<T> {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: Zeroes are a value of `T`, as all bytes are.
        let bytes = unsafe { value.assume_init_mut() }.as_bytes_mut();
        if self.copy_from_iter(bytes) != bytes.len() {
            return Err(EFAULT);
        }
        // SAFETY: As above.
        Ok(unsafe { value.assume_init() })
    }
}
