// SPDX-License-Identifier: MIT OR Apache-2.0

//! The probe: asking at the cost of a load.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;

use crate::error::{Error, Failure, attempt, report};
use crate::pointer;

/// The live generation of a machine, mapped into this process. It takes permission to read the node, which everybody
/// has by default on /dev/sysgenid. Nobody ever waits for it. Threads may share it, and a child has it after fork().
pub struct Probe(sysgenid::Probe);

/// What a probe saw at some moment. It is made by this library only, may be copied, and is to be handed back to the
/// functions below: what is in it has no meaning, also not to memcmp().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stamp {
    // More than is needed now, so that the library's stamp may grow.
    opaque: [MaybeUninit<u64>; 4],
}

impl Stamp {
    fn new(stamp: sysgenid::Stamp) -> Self {
        const {
            assert!(size_of::<sysgenid::Stamp>() <= size_of::<Stamp>());
            assert!(align_of::<sysgenid::Stamp>() <= align_of::<Stamp>());
        }
        let mut this = Self {
            opaque: [MaybeUninit::new(0); 4],
        };
        // SAFETY: there is room for it, and it is aligned, by the assertions; any bytes are a `Self`.
        unsafe { (&raw mut this).cast::<sysgenid::Stamp>().write(stamp) };
        this
    }

    /// The library's own.
    ///
    /// # Safety
    ///
    /// It was made by [`new`](Self::new).
    unsafe fn get(&self) -> sysgenid::Stamp {
        // SAFETY: that is what is at its start, by the condition of this function.
        unsafe { ptr::from_ref(self).cast::<sysgenid::Stamp>().read() }
    }
}

/// The probe that an argument points to.
///
/// # Safety
///
/// It is null, or an open probe that stays open during `'a`.
unsafe fn opened<'a>(probe: *const Probe) -> Result<&'a sysgenid::Probe, Failure> {
    // SAFETY: the condition is the same.
    Ok(&unsafe { pointer::target(probe, "probe") }?.0)
}

/// Opens the node at a path, or that of this machine if it is NULL, maps it and closes it again. If that fails,
/// *probe is NULL.
///
/// # Safety
///
/// path is NULL or a string, probe points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_open(path: *const c_char, probe: *mut *mut Probe) -> Error {
    // SAFETY: the caller's conditions are those of `open`.
    unsafe {
        open(path, probe, |path| match path {
            None => sysgenid::Probe::open(),
            Some(path) => sysgenid::Probe::open_at(path),
        })
    }
}

/// Opens the node at a path, or that of this machine if it is NULL, or a probe that looks for it if nothing serves it yet.
/// That it has come is a change. A node that is there and cannot be opened is still an error: it would be worse to
/// overlook it.
///
/// # Safety
///
/// As for sysgenid_probe_open().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_open_or_never(
    path: *const c_char,
    probe: *mut *mut Probe,
) -> Error {
    // SAFETY: the caller's conditions are those of `open`.
    unsafe {
        open(path, probe, |path| match path {
            None => sysgenid::Probe::open_or_never(),
            Some(path) => sysgenid::Probe::open_at_or_never(path),
        })
    }
}

/// Opens a probe in some way.
///
/// # Safety
///
/// `path` is null or a string, `probe` is null or points to a pointer.
unsafe fn open(
    path: *const c_char,
    probe: *mut *mut Probe,
    way: impl FnOnce(Option<&Path>) -> Result<sysgenid::Probe, sysgenid::Error>,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it points to a pointer.
        let place = unsafe { pointer::place(probe, "probe") }?;
        place.write(ptr::null_mut());
        // SAFETY: the caller says that it is a string.
        let opened = way(unsafe { pointer::path(path) })?;
        place.write(pointer::hand_out(Probe(opened)));
        Ok(())
    })
}

/// Ends a probe. NULL does nothing.
///
/// # Safety
///
/// probe is NULL or comes from one of the functions above, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_close(probe: *mut Probe) {
    let _ = attempt(|| {
        // SAFETY: the caller says that it was handed out and is not used again.
        unsafe { pointer::take_back(probe) };
        Ok(())
    });
}

/// What there is to see now. Whatever the server of the node did before the change, such as to reseed the kernel's
/// generator, has happened for whoever has seen it here.
///
/// # Safety
///
/// probe is open, stamp points to a stamp, of any content.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_stamp(probe: *const Probe, stamp: *mut Stamp) -> Error {
    report(|| {
        // SAFETY: the caller says that it is an open probe.
        let probe = unsafe { opened(probe) }?;
        // SAFETY: the caller says that there is room for a stamp.
        let place = unsafe { pointer::place(stamp, "stamp") }?;
        place.write(Stamp::new(probe.stamp()));
        Ok(())
    })
}

/// Whether the machine was restored since a stamp was taken: three loads. Take a new stamp by
/// sysgenid_probe_stamp_for_rebuild() before acting on the answer. A value that must not leave a clone that it was
/// not made for is checked after use as well. If an argument is NULL it is true, which is never wrong.
///
/// # Safety
///
/// probe is open, since points to a stamp that was taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_has_changed(
    probe: *const Probe,
    since: *const Stamp,
) -> bool {
    attempt(|| {
        // SAFETY: the caller says that it is an open probe.
        let probe = unsafe { opened(probe) }?;
        // SAFETY: the caller says that it points to a stamp, and that it was taken.
        let since = unsafe { pointer::target(since, "since")?.get() };
        Ok(probe.has_changed(&since))
    })
    .unwrap_or(true)
}

/// *now is the stamp under which to make new secrets, now that since is over. Keep it only together with the new
/// secret: if that cannot be made, stay with the old stamp, or the old secret passes for current. Usually this returns
/// at once; where the hypervisor's own word came first, by vmclock, it sleeps until the kernel has reseeded its
/// generator, for a second at most.
///
/// # Safety
///
/// probe is open, since points to a stamp that was taken, now points to a stamp, of any content.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_stamp_for_rebuild(
    probe: *const Probe,
    since: *const Stamp,
    now: *mut Stamp,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is an open probe.
        let probe = unsafe { opened(probe) }?;
        // SAFETY: the caller says that it points to a stamp, and that it was taken. It is copied, so both may be one.
        let since = unsafe { pointer::target(since, "since")?.get() };
        // SAFETY: the caller says that there is room for a stamp.
        let place = unsafe { pointer::place(now, "now") }?;
        place.write(Stamp::new(probe.stamp_for_rebuild(&since)));
        Ok(())
    })
}

/// The current generation, a load; 0 if probe is NULL.
///
/// # Safety
///
/// probe is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_generation(probe: *const Probe) -> u32 {
    // SAFETY: the caller says that it is an open probe.
    attempt(|| Ok(unsafe { opened(probe) }?.generation().get())).unwrap_or(0)
}

/// Whether the page that the probe looks at will show the next change: false while nothing serves the node, and if probe
/// is NULL. The looks find the node by themselves when it is served again, which is a change.
///
/// # Safety
///
/// probe is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_is_live(probe: *const Probe) -> bool {
    // SAFETY: the caller says that it is an open probe.
    attempt(|| Ok(unsafe { opened(probe) }?.is_live())).unwrap_or(false)
}

/// Whether the probe can change at all: false if probe is NULL. It says nothing of whether there is a node now;
/// sysgenid_probe_is_live() does.
///
/// # Safety
///
/// probe is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_probe_can_change(probe: *const Probe) -> bool {
    // SAFETY: the caller says that it is an open probe.
    attempt(|| Ok(unsafe { opened(probe) }?.can_change())).unwrap_or(false)
}

/// The generation at the moment of a stamp; 0 if it is NULL.
///
/// # Safety
///
/// stamp points to a stamp that was taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_stamp_generation(stamp: *const Stamp) -> u32 {
    attempt(|| {
        // SAFETY: the caller says that it points to a stamp, and that it was taken.
        let stamp = unsafe { pointer::target(stamp, "stamp")?.get() };
        Ok(stamp.generation().get())
    })
    .unwrap_or(0)
}
