// SPDX-License-Identifier: MIT OR Apache-2.0

//! Forks and other programs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use sysgenid::{Acknowledged, Guarded, Probe};
use sysgenid_fixture::{Machine, PATIENCE, tracked};

/// Runs something in a child that has this thread only, and returns its exit status.
fn in_child(work: impl FnOnce() -> bool) -> impl FnOnce() -> i32 {
    // SAFETY: The child uses only what is written here: memory that the C library keeps usable over a fork, and
    // system calls. It ends without running what belongs to its parent.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let succeeded =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(false);
        // SAFETY: As above.
        unsafe { libc::_exit(i32::from(!succeeded)) };
    }
    let child = Pid::from_raw(child).expect("fork failed");
    move || {
        let (_, status) = waitpid(Some(child), WaitOptions::empty())
            .unwrap()
            .expect("it has ended");
        status.exit_status().unwrap_or(-1)
    }
}

#[test]
#[ignore = "needs a node"]
fn a_probe_is_live_in_a_forked_child() {
    let machine = Machine::new();
    let probe = Probe::open().unwrap();
    let (mut reader, mut writer) = UnixStream::pair().unwrap();
    let status = in_child(|| {
        let started = Instant::now();
        // One of its own: the fork itself is a change.
        let stamp = probe.stamp();
        writer.write_all(b"!").unwrap();
        while !probe.has_changed(&stamp) {
            if started.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    });
    reader.read_exact(&mut [0]).unwrap();
    machine.bump();
    assert_eq!(status(), 0);
}

#[test]
#[ignore = "needs a node"]
fn a_guarded_value_is_rebuilt_in_a_forked_child() {
    let machine = Machine::new();
    let guarded = Guarded::new(Probe::open().unwrap(), |generation| generation);
    let before = *guarded.get();
    machine.bump();
    let status = in_child(|| *guarded.get() == before.next());
    assert_eq!(status(), 0);
}

#[test]
#[ignore = "needs a node"]
fn after_a_fork_parent_and_child_have_the_same_watcher() {
    let machine = Machine::new();
    let watcher = tracked();
    let generation = machine.bump();
    let status = in_child(|| {
        let change = watcher.try_changed().unwrap().expect("a change");
        matches!(change.acknowledge(), Ok(Acknowledged::Current))
    });
    assert_eq!(status(), 0);
    assert!(watcher.try_changed().unwrap().is_none());
    assert_eq!(watcher.generation().unwrap(), generation);
    machine.assert_outdated(0);
}

#[test]
#[ignore = "needs a node"]
fn a_program_that_is_executed_does_not_hold_the_watcher() {
    let machine = Machine::new();
    let watcher = tracked();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    machine.bump();
    drop(watcher);
    machine.assert_outdated(0);
    child.kill().unwrap();
    child.wait().unwrap();
}
