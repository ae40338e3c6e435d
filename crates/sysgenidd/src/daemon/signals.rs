// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signals, as flags and a descriptor that becomes readable.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};

/// Signals, as flags and a descriptor that becomes readable with each.
pub(super) struct Signals {
    pub(super) wake: OwnedFd,
    pub(super) reload: Arc<AtomicBool>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) terminate: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn register() -> anyhow::Result<Self> {
        let (wake, from_handler) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )?;
        let flag = |signals: &[i32]| -> anyhow::Result<Arc<AtomicBool>> {
            let flag = Arc::new(AtomicBool::new(false));
            for signal in signals {
                signal_hook::flag::register(*signal, Arc::clone(&flag))?;
                signal_hook::low_level::pipe::register(*signal, from_handler.try_clone()?)?;
            }
            Ok(flag)
        };
        // It is for the supervisor. Who sends it here by mistake shall not kill the daemon.
        flag(&[SIGUSR1])?;
        Ok(Self {
            reload: flag(&[SIGHUP])?,
            stop: flag(&[SIGINT, SIGQUIT])?,
            terminate: flag(&[SIGTERM])?,
            wake,
        })
    }
}
