// SPDX-License-Identifier: MIT OR Apache-2.0

//! The watcher: being told, and acknowledging.

use std::ffi::{c_char, c_int};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use sysgenid::{Acknowledged, Tracking};

use crate::error::{Error, Failure, attempt, report};
use crate::pointer;

/// The pauses between attempts to find a node again that has gone, growing from one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A watcher of the generation: it is told of each change, and acknowledges it. Threads may share it and make any
/// calls at once, but sysgenid_watcher_close(); none waits for another. An acknowledgement of one is one of all, so it
/// comes after all have rebuilt. After fork() the child has the same watcher, and an acknowledgement of either is one
/// of both, so a child that keeps secrets of its own opens its own. The descriptor is closed by exec.
pub struct Watcher(
    // Whoever uses it has a share of it, and the lock only while taking that: it is replaced while others sleep.
    RwLock<Arc<sysgenid::Watcher>>,
);

impl Watcher {
    fn current(&self) -> Arc<sysgenid::Watcher> {
        // It is replaced at once or not at all, whoever panicked.
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Puts another in the place of one, unless somebody else has.
    fn replace(&self, gone: &Arc<sysgenid::Watcher>, new: sysgenid::Watcher) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, gone) {
            *current = Arc::new(new);
        }
    }

    /// The generation of the current watcher if its node is there, or else that of a new one in its place.
    fn reconnect(&self, timeout: Option<Duration>) -> Result<u32, sysgenid::Error> {
        // What the clock cannot count is as good as for ever.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut pause = FIRST_PAUSE;
        loop {
            let known = self.current();
            // It may be what another thread has put there after both were told.
            if let Ok(generation) = known.generation() {
                return Ok(generation.get());
            }
            let opened = sysgenid::Watcher::open_at(known.path(), known.tracking());
            let error = match opened.map(|new| self.replace(&known, new)) {
                // Whoever has put it there. It may have gone already.
                Ok(()) => match self.current().generation() {
                    Ok(generation) => return Ok(generation.get()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if !(error.is_absent() || error.is_gone()) {
                return Err(error);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(error);
            }
            thread::sleep(left.map_or(pause, |left| pause.min(left)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The watcher that an argument points to.
///
/// # Safety
///
/// It is null, or an open watcher that stays open during `'a`.
unsafe fn opened<'a>(watcher: *const Watcher) -> Result<&'a Watcher, Failure> {
    // SAFETY: the condition is the same.
    unsafe { pointer::target(watcher, "watcher") }
}

/// Opens the node at a path, or that of this machine if it is NULL. Others wait for a watcher that is tracked, until
/// it has acknowledged; that takes permission to write to the node. One that is not tracked only wants to know.
/// Changes before this call are over. If it fails, *watcher is NULL.
///
/// # Safety
///
/// path is NULL or a string, watcher points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_open(
    path: *const c_char,
    tracked: bool,
    watcher: *mut *mut Watcher,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it points to a pointer.
        let place = unsafe { pointer::place(watcher, "watcher") }?;
        place.write(ptr::null_mut());
        let tracking = if tracked {
            Tracking::Tracked
        } else {
            Tracking::Untracked
        };
        // SAFETY: the caller says that it is a string.
        let opened = match unsafe { pointer::path(path) } {
            None => sysgenid::Watcher::open(tracking),
            Some(path) => sysgenid::Watcher::open_at(path, tracking),
        }?;
        place.write(pointer::hand_out(Watcher(RwLock::new(Arc::new(opened)))));
        Ok(())
    })
}

/// Ends a watcher: nobody waits for it any more. NULL does nothing.
///
/// # Safety
///
/// watcher is NULL or comes from sysgenid_watcher_open(), and no thread uses it now or again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_close(watcher: *mut Watcher) {
    let _ = attempt(|| {
        // SAFETY: the caller says that it was handed out and is not used again.
        unsafe { pointer::take_back(watcher) };
        Ok(())
    });
}

/// A descriptor for poll() and epoll, which is readable while there is a change that was not acknowledged. When it is,
/// call sysgenid_watcher_try_changed(). It belongs to the watcher: do not close or read it. -1 if watcher is NULL.
///
/// # Safety
///
/// watcher is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_fd(watcher: *const Watcher) -> c_int {
    // SAFETY: the caller says that it is open.
    attempt(|| Ok(unsafe { opened(watcher) }?.current().as_raw_fd())).unwrap_or(-1)
}

/// The current generation.
///
/// # Safety
///
/// watcher is open, generation points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_generation(
    watcher: *const Watcher,
    generation: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is open.
        let watcher = unsafe { opened(watcher) }?;
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(generation, "generation") }?;
        place.write(watcher.current().generation()?.get());
        Ok(())
    })
}

/// Sleeps until there is a change that was not acknowledged; at once while there is one. *generation is the latest:
/// rebuild for it, then call sysgenid_watcher_acknowledge(). After so many milliseconds it is
/// SYSGENID_ERROR_TIMED_OUT; a negative time-out is for ever. A signal does not end it: to be interruptible, wait for
/// a while at a time, or poll the descriptor together with another one.
///
/// # Safety
///
/// watcher is open, generation points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_wait(
    watcher: *const Watcher,
    timeout_ms: c_int,
    generation: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is open.
        let watcher = unsafe { opened(watcher) }?;
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(generation, "generation") }?;
        let change = match pointer::timeout(timeout_ms) {
            None => Some(watcher.current().wait()?),
            Some(timeout) => watcher.current().wait_timeout(timeout)?,
        };
        let change = change.ok_or_else(|| Failure::timed_out("the generation did not change"))?;
        place.write(change.generation().get());
        Ok(())
    })
}

/// The same without sleeping: *generation is 0 if there is no change, for the generation is never 0 after one. It is the
/// same at each call until it is acknowledged.
///
/// # Safety
///
/// watcher is open, generation points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_try_changed(
    watcher: *const Watcher,
    generation: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is open.
        let watcher = unsafe { opened(watcher) }?;
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(generation, "generation") }?;
        let change = watcher.current().try_changed()?;
        place.write(change.map_or(0, |change| change.generation().get()));
        Ok(())
    })
}

/// Says that everything was rebuilt for this generation, which is what the watcher was told last. If the machine was
/// restored once more meanwhile, nothing is acknowledged, and *newer is the generation to rebuild for and to
/// acknowledge next; else it is 0.
///
/// # Safety
///
/// watcher is open, newer points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_acknowledge(
    watcher: *const Watcher,
    generation: u32,
    newer: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is open.
        let watcher = unsafe { opened(watcher) }?;
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(newer, "newer") }?;
        // What was told before is not kept: there is one change to acknowledge, the latest, or none.
        let newer = match watcher.current().try_changed()? {
            None => None,
            Some(change) if change.generation().get() != generation => Some(change),
            Some(change) => match change.acknowledge()? {
                Acknowledged::Current => None,
                Acknowledged::ChangedAgain(newer) => Some(newer),
            },
        };
        place.write(newer.map_or(0, |change| change.generation().get()));
        Ok(())
    })
}

/// Opens the node again after SYSGENID_ERROR_GONE, at the same path, as soon as it is back, for so many milliseconds
/// at most; a negative time-out is for ever. Whatever happened meanwhile, nobody can know it: rebuild for
/// *generation, which may be 0, and acknowledge. The descriptor is another one, so register it anew; the old one is
/// closed, once no other thread sleeps on it. Each thread that was told SYSGENID_ERROR_GONE calls this and rebuilds
/// what it keeps: the first opens the node, and the others find it open and leave it and its descriptor as they are,
/// as does a call whose node has not gone. To register the descriptor is up to one of them. Other calls go on
/// meanwhile. A child after fork() opens a watcher of its own instead.
///
/// # Safety
///
/// watcher is open, generation points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_watcher_reconnect(
    watcher: *const Watcher,
    timeout_ms: c_int,
    generation: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it is open.
        let watcher = unsafe { opened(watcher) }?;
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(generation, "generation") }?;
        place.write(watcher.reconnect(pointer::timeout(timeout_ms))?);
        Ok(())
    })
}
