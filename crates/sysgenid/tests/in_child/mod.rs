// SPDX-License-Identifier: MIT OR Apache-2.0

//! A forked child of a test.

use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;

use rustix::process::{Pid, WaitOptions, waitpid};

/// A child that has the thread of the test only.
pub(crate) struct Child {
    process: Pid,
    /// What it says can be read here.
    pub(crate) says: UnixStream,
}

impl Child {
    /// Does something in a child, which succeeds or not, and may say something meanwhile.
    pub(crate) fn fork(work: impl FnOnce(&mut UnixStream) -> bool) -> Self {
        let (says, mut to_parent) = UnixStream::pair().expect("no sockets");
        // SAFETY: The child uses only what is written here: memory that the C library keeps usable over a fork, and
        // system calls. It ends without running what belongs to its parent.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let work = AssertUnwindSafe(|| work(&mut to_parent));
            let succeeded = std::panic::catch_unwind(work).unwrap_or(false);
            // SAFETY: As above.
            unsafe { libc::_exit(i32::from(!succeeded)) };
        }
        let process = Pid::from_raw(child).expect("fork failed");
        Self { process, says }
    }

    /// Its exit status, once it has ended.
    pub(crate) fn status(&self) -> i32 {
        let (_, status) = waitpid(Some(self.process), WaitOptions::empty())
            .expect("it is a child")
            .expect("it has ended");
        status.exit_status().unwrap_or(-1)
    }
}
