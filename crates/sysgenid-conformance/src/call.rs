// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that block: made in a thread of their own, and seen to block.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::gettid;

use crate::outcome::{Outcome, fail};
use crate::process::PATIENCE;
use crate::sys;

/// A call in a thread of its own.
#[derive(Debug)]
pub(crate) struct Call<T> {
    what: String,
    thread: Arc<OnceLock<Pid>>,
    answer: Receiver<T>,
}

impl<T: Send + 'static> Call<T> {
    /// Makes the call.
    pub(crate) fn start(
        what: impl Into<String>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Outcome<Self> {
        let (sender, answer) = channel();
        let thread = Arc::new(OnceLock::new());
        let id = Arc::clone(&thread);
        thread::Builder::new().spawn(move || {
            // From here to its answer the thread sleeps nowhere but in the call.
            let _ = id.set(gettid());
            // Nobody may be listening any more.
            let _ = sender.send(call());
        })?;
        Ok(Self {
            what: what.into(),
            thread,
            answer,
        })
    }

    /// As [`start`](Self::start), and returns once the thread sleeps in the call.
    pub(crate) fn blocked(
        what: impl Into<String>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Outcome<Self> {
        let call = Self::start(what, call)?;
        call.wait_until_blocked()?;
        Ok(call)
    }

    /// Returns once the thread sleeps in the call.
    pub(crate) fn wait_until_blocked(&self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(thread) = self.thread.get()
                && sleeps_in_a_call(rustix::process::getpid(), *thread)
            {
                return Ok(());
            }
            if self.has_returned() {
                return fail(format!("{} returned, but it must block", self.what));
            }
            look_again_soon();
        }
        fail(format!("{} did not block within {PATIENCE:?}", self.what))
    }

    /// It is blocked, and stays so for this long. This is one of the few places where time passes
    /// for nothing: that something does not happen is no event.
    pub(crate) fn stays_blocked(&self, duration: Duration) -> Outcome {
        thread::sleep(duration);
        self.wait_until_blocked()
    }

    /// Sends the suite's signal to the thread.
    pub(crate) fn signal(&self) -> Outcome {
        let Some(thread) = self.thread.get() else {
            return fail("the thread has not started");
        };
        sys::signal_thread(*thread)?;
        Ok(())
    }

    /// What the call returned.
    pub(crate) fn answer(self) -> Outcome<T> {
        match self.answer.recv_timeout(PATIENCE) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                fail(format!("{} still blocks after {PATIENCE:?}", self.what))
            }
            Err(RecvTimeoutError::Disconnected) => fail(format!("{} panicked", self.what)),
        }
    }

    fn has_returned(&self) -> bool {
        // The thread drops its end when the call has returned.
        self.thread.get().is_some() && Arc::strong_count(&self.thread) == 1
    }
}

/// Returns once a process, whose first thread is about to make a call, sleeps in it.
pub(crate) fn wait_until_process_blocks(process: Pid, what: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if sleeps_in_a_call(process, process) {
            return Ok(());
        }
        if has_ended(process) {
            return fail(format!("{what} returned, but it must block"));
        }
        look_again_soon();
    }
    fail(format!("{what} did not block within {PATIENCE:?}"))
}

/// Whether a process has ended, and nobody has taken note of it yet.
fn has_ended(process: Pid) -> bool {
    let stat = format!("/proc/{}/stat", process.as_raw_nonzero());
    std::fs::read_to_string(stat).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, state)| state.starts_with('Z'))
    })
}

/// Looks at a thread from outside: does it sleep in a system call, other than one of the thread
/// library's own?
fn sleeps_in_a_call(process: Pid, thread: Pid) -> bool {
    let directory = format!(
        "/proc/{}/task/{}",
        process.as_raw_nonzero(),
        thread.as_raw_nonzero()
    );
    // Uninterruptible sleep, too: whether it can be ended is for the case to find out.
    let state = |stat: String| Some(stat.rsplit_once(") ")?.1.starts_with(['S', 'D']));
    let sleeps = std::fs::read_to_string(format!("{directory}/stat"))
        .ok()
        .and_then(state);
    if sleeps != Some(true) {
        return false;
    }
    // Not every kernel lets us see which call it is.
    match std::fs::read_to_string(format!("{directory}/syscall")) {
        Ok(call) => call
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .is_some_and(|number: i64| number >= 0 && number != libc::SYS_futex),
        Err(_) => true,
    }
}

/// Lets others run before the next look. Nothing depends on how long this is.
pub(crate) fn look_again_soon() {
    thread::sleep(Duration::from_millis(1));
}
