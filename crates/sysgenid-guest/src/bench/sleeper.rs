// SPDX-License-Identifier: MIT OR Apache-2.0

//! Threads that sleep until they are woken.

use std::sync::mpsc;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use rustix::thread::Pid;
use rustix::thread::gettid;

use crate::clock::monotonic_ns;

/// A thread that does something blocking again and again.
pub(super) struct Reader {
    sleeping: mpsc::Receiver<Pid>,
    woken: mpsc::Receiver<Result<u64>>,
    again: mpsc::Sender<()>,
}

impl Reader {
    pub(super) fn spawn<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        block: impl Fn() -> Result<()> + Send + 'scope,
    ) -> Self {
        let (announce, sleeping) = mpsc::channel();
        let (report, woken) = mpsc::channel();
        let (again, permission) = mpsc::channel::<()>();
        scope.spawn(move || {
            while permission.recv().is_ok() {
                if announce.send(gettid()).is_err() {
                    return;
                }
                if report.send(block().map(|()| monotonic_ns())).is_err() {
                    return;
                }
            }
        });
        Self {
            sleeping,
            woken,
            again,
        }
    }

    /// Lets it fall asleep, wakes it, and returns how long it took until it ran.
    pub(super) fn wake(&mut self, signal: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.again.send(())?;
        let thread = self.sleeping.recv()?;
        wait_until_asleep(thread)?;
        let start = monotonic_ns();
        signal()?;
        let woken = self.woken.recv()?.context("the reader failed")?;
        ensure!(woken >= start, "woken before it was signalled");
        Ok(woken - start)
    }
}

/// Waits until a thread of this process sleeps.
pub(super) fn wait_until_asleep(thread: Pid) -> Result<()> {
    let path = format!("/proc/self/task/{thread}/stat");
    while !std::fs::read_to_string(&path)?.contains(") S ") {
        std::thread::yield_now();
    }
    Ok(())
}
