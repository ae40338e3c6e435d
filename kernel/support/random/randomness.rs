// SPDX-License-Identifier: GPL-2.0-only

//! Reseeding the kernel's random number generator.
//!
//! C header: `kernel/sysgenid/reseed.h`

use crate::entropy;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::c_int,
    pr_err_once,
    prelude::*,
    sync::SetOnce,
    time::{
        BootTime,
        ClockSource,
        RealTime, //
    }, //
};

// Without lockdep some structs of the kernel's locks are empty.
#[allow(improper_ctypes)]
extern "C" {
    fn sysgenid_open_urandom() -> *mut bindings::file;
    fn sysgenid_reseed_by(urandom: *mut bindings::file) -> c_int;
}

/// `/dev/urandom`, open.
///
/// # Invariants
///
/// The pointer came from `sysgenid_open_urandom()` and stands for one reference.
struct Urandom(NonNull<bindings::file>);

// SAFETY: An open file may be used and closed on any thread.
unsafe impl Send for Urandom {}
// SAFETY: As above.
unsafe impl Sync for Urandom {}

impl Urandom {
    fn open() -> Result<Self> {
        // SAFETY: The function may be called in process context at any time.
        let file = from_err_ptr(unsafe { sysgenid_open_urandom() })?;
        // INVARIANT: It was just opened.
        NonNull::new(file).map(Self).ok_or(ENODEV)
    }

    fn reseed(&self) -> Result {
        // SAFETY: By the type invariants the file is what the function wants.
        to_result(unsafe { sysgenid_reseed_by(self.0.as_ptr()) })
    }
}

impl Drop for Urandom {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this gives up a reference.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// The way to the kernel's random number generator.
pub(crate) struct Generator {
    urandom: SetOnce<Urandom>,
}

impl Generator {
    /// Finds the way, if there is one yet.
    pub(crate) fn new() -> Self {
        let generator = Self {
            urandom: SetOnce::new(),
        };
        generator.prepare();
        generator
    }

    /// Finds the way, if that was not possible before: `/dev` may come later than this module.
    ///
    /// May sleep, also until user space lets `/dev/urandom` be opened.
    pub(crate) fn prepare(&self) {
        if self.urandom.as_ref().is_some() {
            return;
        }
        if let Ok(urandom) = Urandom::open() {
            // Where two come at once, the file of the second is closed again.
            self.urandom.populate(urandom);
        }
    }

    /// Reseeds the generator, so that what was mixed in comes into effect, and the time with it. May
    /// sleep, but waits for nothing in user space.
    ///
    /// Says so in the log, once, if it fails, which keeps nobody from changing the generation.
    pub(crate) fn reseed(&self) {
        entropy::mix([RealTime::ktime_get(), BootTime::ktime_get()].as_bytes());
        let reseeded = match self.urandom.as_ref() {
            Some(urandom) => urandom.reseed(),
            None => Err(ENOENT),
        };
        if let Err(error) = reseeded {
            pr_err_once!(
                "cannot reseed the random number generator by /dev/urandom ({error:?}): until it \
                 reseeds itself, within a minute, clones of this machine may draw the same random \
                 bytes\n"
            );
        }
    }
}
