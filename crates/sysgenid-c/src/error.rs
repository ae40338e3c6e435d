// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a C program is told when something fails.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended. sysgenid_error_message() says more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// As it should: 0.
    None = 0,
    /// Nothing serves a node on this machine: load the kernel module sysgenid, start the daemon sysgenidd, or go on
    /// without.
    NoNode = 1,
    /// Nothing serves a node, and on this kernel nothing could: the daemon needs Linux 6.9.
    KernelTooOld = 2,
    /// There is a node, which this process may not open in this way. To be tracked takes permission to write.
    NoPermission = 3,
    /// There is something else at the path of the node.
    NotANode = 4,
    /// Whoever served the node has gone. What changed since is not known, so everything must be rebuilt once a node
    /// is there again: sysgenid_watcher_reconnect().
    Gone = 5,
    /// Changing the generation needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace that owns the
    /// node.
    NotCapable = 6,
    /// The time is over.
    TimedOut = 7,
    /// The system refused something for a reason of its own: sysgenid_error_errno().
    Io = 8,
    /// An argument cannot be meant, as a null pointer where something has to be.
    InvalidArgument = 9,
    /// A defect of this library.
    Internal = 10,
}

/// A failure that the caller is to be told of.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Error,
    errno: c_int,
    message: String,
}

thread_local! {
    static LAST: RefCell<(CString, c_int)> = RefCell::default();
}

/// What the last call that failed in this thread says of it: what happened, to what, and what to do; an empty text if
/// none failed. It is valid until the next call fails in this thread, and is never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn sysgenid_error_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().0.as_ptr())
        // A thread that ends has no memory of its own any more.
        .unwrap_or(c"".as_ptr())
}

/// The number, as in errno.h, that goes with the last call that failed in this thread: the system's own for
/// SYSGENID_ERROR_IO, the one that fits best for the others; 0 if none failed. The variable errno itself may be
/// changed by every function, whether it fails or not.
#[unsafe(no_mangle)]
pub extern "C" fn sysgenid_error_errno() -> c_int {
    LAST.try_with(|last| last.borrow().1).unwrap_or(0)
}

/// Does what a caller asked for, and remembers why it failed if it did. No panic gets out of here.
pub(crate) fn attempt<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Error> {
    // What a panic might leave behind half-done is either dropped with it or behind a lock.
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(failure)) => failure,
        Err(_) => Failure::internal(),
    };
    let code = failure.code;
    // If it fails, the thread ends and nobody can ask any more.
    let _ = LAST.try_with(|last| {
        let message = CString::new(failure.message).unwrap_or_default();
        *last.borrow_mut() = (message, failure.errno);
    });
    Err(code)
}

/// The same for a call that returns nothing else.
pub(crate) fn report(call: impl FnOnce() -> Result<(), Failure>) -> Error {
    match attempt(call) {
        Ok(()) => Error::None,
        Err(code) => code,
    }
}

impl Failure {
    /// The argument of this name must not be null.
    pub(crate) fn null(name: &str) -> Self {
        Self {
            code: Error::InvalidArgument,
            errno: libc::EINVAL,
            message: format!("the argument {name} is NULL"),
        }
    }

    /// The time was over before this had happened.
    pub(crate) fn timed_out(what: impl Into<String>) -> Self {
        Self {
            code: Error::TimedOut,
            errno: libc::ETIMEDOUT,
            message: what.into(),
        }
    }

    fn internal() -> Self {
        Self {
            code: Error::Internal,
            errno: libc::EIO,
            message: "libsysgenid has a defect: standard error says where".to_owned(),
        }
    }
}

impl From<sysgenid::Error> for Failure {
    fn from(error: sysgenid::Error) -> Self {
        let (code, errno) = match &error {
            sysgenid::Error::NoNode { .. } => (Error::NoNode, libc::ENOENT),
            sysgenid::Error::KernelTooOld { .. } => (Error::KernelTooOld, libc::ENOENT),
            sysgenid::Error::NoPermission { .. } => (Error::NoPermission, libc::EACCES),
            sysgenid::Error::NotANode { .. } => (Error::NotANode, libc::ENOTTY),
            sysgenid::Error::Gone { .. } => (Error::Gone, libc::ENODEV),
            sysgenid::Error::NotCapable { .. } => (Error::NotCapable, libc::EACCES),
            sysgenid::Error::Io { reason, .. } => {
                (Error::Io, reason.raw_os_error().unwrap_or(libc::EIO))
            }
            // A cause that the library learned to tell after this was written.
            _ => (Error::Io, libc::EIO),
        };
        Self {
            code,
            errno,
            message: error.to_string(),
        }
    }
}
