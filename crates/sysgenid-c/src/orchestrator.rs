// SPDX-License-Identifier: MIT OR Apache-2.0

//! For whoever restores a machine or container.

use std::ffi::{c_char, c_int};

use sysgenid::{Generation, Orchestrator, Settlement};

use crate::error::{Error, Failure, report};
use crate::pointer;

/// The orchestrator of the node at a path, or of that of the machine.
///
/// # Safety
///
/// `path` is null or a string.
unsafe fn opened(path: *const c_char) -> Result<Orchestrator, Failure> {
    // SAFETY: the condition is the same.
    Ok(match unsafe { pointer::path(path) } {
        None => Orchestrator::open(),
        Some(path) => Orchestrator::open_at(path),
    }?)
}

/// Changes the generation by one, or to minimum if that is more: a container whose snapshot was taken at generation g
/// is told apart after its restore by a minimum of g + 1. *generation is the new one, or a later one if somebody else
/// changed it since. It takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
///
/// # Safety
///
/// path is NULL, for the node of this machine, or a string; generation points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_bump(
    path: *const c_char,
    minimum: u32,
    generation: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(generation, "generation") }?;
        // SAFETY: the caller says that it is a string.
        let orchestrator = unsafe { opened(path) }?;
        place.write(orchestrator.bump_at_least(Generation::new(minimum))?.get());
        Ok(())
    })
}

/// Waits until all tracked watchers have acknowledged, for so many milliseconds at most; a negative time-out is for
/// ever. When the time is over it is SYSGENID_ERROR_TIMED_OUT, and *outdated is how many have not; else it is 0.
///
/// # Safety
///
/// path is NULL, for the node of this machine, or a string; outdated points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysgenid_settle(
    path: *const c_char,
    timeout_ms: c_int,
    outdated: *mut u32,
) -> Error {
    report(|| {
        // SAFETY: the caller says that it points to a number.
        let place = unsafe { pointer::place(outdated, "outdated") }?;
        place.write(0);
        // SAFETY: the caller says that it is a string.
        let orchestrator = unsafe { opened(path) }?;
        match orchestrator.settle(pointer::timeout(timeout_ms))? {
            Settlement::Settled(_) => Ok(()),
            Settlement::TimedOut { outdated } => {
                place.write(outdated);
                Err(Failure::timed_out(format!(
                    "tracked watchers of {} that have not acknowledged in time: {outdated}",
                    orchestrator.path().display()
                )))
            }
        }
    })
}
