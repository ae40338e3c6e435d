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
    /// Opened when this is made, or later if there was no `/dev/urandom` yet.
    urandom: SetOnce<Urandom>,
}

impl Generator {
    /// Finds the way. Says so in the log if there is none yet.
    pub(crate) fn new() -> Self {
        let urandom = SetOnce::new();
        match Urandom::open() {
            Ok(file) => {
                urandom.populate(file);
            }
            Err(error) => {
                pr_warn!("cannot open /dev/urandom ({error:?}): trying again at the next change\n");
            }
        }
        Self { urandom }
    }

    fn try_reseed(&self) -> Result {
        if let Some(urandom) = self.urandom.as_ref() {
            return urandom.reseed();
        }
        let urandom = Urandom::open()?;
        urandom.reseed()?;
        // Where two come at once, the file of the second is closed again.
        self.urandom.populate(urandom);
        Ok(())
    }

    /// Reseeds the generator, so that what was mixed in comes into effect, and the time with it. May
    /// sleep, but waits for nothing in user space once `/dev/urandom` is open.
    ///
    /// Says so in the log if it fails, which keeps nobody from changing the generation.
    pub(crate) fn reseed(&self) {
        entropy::mix(&RealTime::ktime_get().to_ne_bytes());
        entropy::mix(&BootTime::ktime_get().to_ne_bytes());
        if let Err(error) = self.try_reseed() {
            pr_err!(
                "cannot reseed the random number generator ({error:?}): until it reseeds itself, \
                 within a minute, clones of this machine may draw the same random bytes\n"
            );
        }
    }
}
