// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is no signal to a program that waits, and does not end its wait: a stop, a debugger, a freeze.

use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{Case, case};
use crate::abi::WAITS;
use crate::call::{look_again_soon, wait_until_process_blocks};
use crate::cgroup::Cgroup;
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, fail, fails, gives, holds, same, skip};
use crate::process::{Event, PATIENCE, Process};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    case(
        "a-stop-and-a-continue-do-not-end-a-wait",
        &["wait-undisturbed"],
        |node| goes_on(node, Disturbance::Stop),
    ),
    case(
        "a-debugger-that-attaches-does-not-end-a-wait",
        &["wait-undisturbed"],
        |node| goes_on(node, Disturbance::Debugger),
    ),
    case(
        "a-frozen-cgroup-does-not-end-a-wait",
        &["wait-undisturbed"],
        |node| goes_on(node, Disturbance::Freeze),
    ),
    case(
        "the-deadline-of-a-wait-goes-on-while-its-caller-is-stopped",
        &["wait-deadline"],
        |node| keeps_its_deadline(node, Disturbance::Stop),
    ),
    case(
        "the-deadline-of-a-wait-goes-on-while-its-caller-is-traced",
        &["wait-deadline"],
        |node| keeps_its_deadline(node, Disturbance::Debugger),
    ),
    case(
        "the-deadline-of-a-wait-goes-on-while-its-caller-is-frozen",
        &["wait-deadline"],
        |node| keeps_its_deadline(node, Disturbance::Freeze),
    ),
    case(
        "a-deadline-that-passes-while-its-caller-is-stopped-is-ETIME",
        &["wait-deadline"],
        a_deadline_passes_during_a_stop,
    ),
    case(
        "a-handler-that-runs-after-a-stop-ends-a-wait-with-EINTR",
        &["wait-interrupted"],
        a_handler_runs_after_a_stop,
    ),
    case(
        "a-wait-after-another-call-has-all-of-its-time-also-after-a-stop",
        &["wait-time-out"],
        a_wait_after_another_call,
    ),
    case(
        "a-wait-after-one-that-succeeded-has-all-of-its-time-also-after-a-stop",
        &["wait-time-out"],
        a_wait_after_a_settled_one,
    ),
    case(
        "a-wait-after-one-that-a-handler-ended-has-all-of-its-time",
        &["wait-time-out"],
        a_wait_after_an_interrupted_one,
    ),
];

/// What has a process not run for a while, and is no signal to it.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Stop,
    Debugger,
    Freeze,
}

/// A process that can be disturbed.
struct Disturbed {
    by: Disturbance,
    process: Pid,
    group: Option<Cgroup>,
}

impl Disturbance {
    /// Makes it ready.
    ///
    /// # Errors
    ///
    /// A skip where it is not to be had.
    fn of(self, process: &Process) -> Outcome<Disturbed> {
        let process = process.pid();
        let group = match self {
            Self::Freeze => Some(Cgroup::of(process)?),
            Self::Stop | Self::Debugger => None,
        };
        Ok(Disturbed {
            by: self,
            process,
            group,
        })
    }
}

impl Disturbed {
    /// Returns once the process does not run any more.
    fn begin(&self) -> Outcome {
        match self.by {
            Disturbance::Stop => kill_process(self.process, Signal::STOP)?,
            Disturbance::Debugger => match sys::attach_and_stop(self.process) {
                Err(Errno::PERM | Errno::NOSYS) => return skip("nobody may debug here"),
                result => result?,
            },
            Disturbance::Freeze => return self.group()?.freeze(),
        }
        wait_until_stopped(self.process)
    }

    /// Lets the process go on.
    fn end(&self) -> Outcome {
        match self.by {
            Disturbance::Stop => kill_process(self.process, Signal::CONT)?,
            Disturbance::Debugger => sys::detach(self.process)?,
            Disturbance::Freeze => self.group()?.thaw()?,
        }
        Ok(())
    }

    fn group(&self) -> Outcome<&Cgroup> {
        match &self.group {
            Some(group) => Ok(group),
            None => fail("there is no group to freeze"),
        }
    }
}

/// Returns once a child has stopped, by a signal or for its debugger.
fn wait_until_stopped(child: Pid) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        if waitid(WaitId::Pid(child), options)?.is_some() {
            return Ok(());
        }
        look_again_soon();
    }
    fail(format!(
        "the caller of a wait did not stop within {PATIENCE:?}"
    ))
}

/// As [`wait_until_process_blocks`], but says what has come of the call if it has ended.
fn wait_until_blocked_again(process: &Process, what: &str) -> Outcome {
    wait_until_process_blocks(process.pid(), what).or_else(|failure| {
        match process.outcome(Duration::ZERO) {
            Some(Ok(())) | None => Err(failure),
            Some(outcome) => outcome,
        }
    })
}

fn goes_on(node: &Node, disturbance: Disturbance) -> Outcome {
    for (name, request) in WAITS {
        for timeout in [0, 60_000] {
            let control = node.control()?;
            let laggard = node.tracked()?;
            let generation = control.bump()?;
            let waiter = node.untracked()?;
            let what = format!("{name} with {timeout}");
            let process = Process::spawn(|| gives(&what, waiter.ioctl(request, timeout), 0))?;
            wait_until_process_blocks(process.pid(), &what)?;
            let disturbed = disturbance.of(&process)?;
            for _ in 0..2 {
                disturbed.begin()?;
                disturbed.end()?;
                wait_until_blocked_again(&process, &what)?;
            }
            laggard.acknowledge(generation)?;
            process.join(&what)?;
        }
    }
    Ok(())
}

fn keeps_its_deadline(node: &Node, disturbance: Disturbance) -> Outcome {
    const TIMEOUT: Duration = Duration::from_millis(2000);
    // A wait that began anew would take all of this longer.
    const DISTURBED: Duration = Duration::from_millis(1200);
    let late = TIMEOUT + DISTURBED / 2;
    let control = node.control()?;
    let _laggard = node.tracked()?;
    control.bump()?;
    let (name, request) = WAITS[1];
    let waiter = node.untracked()?;
    let process = Process::spawn(|| {
        let started = Instant::now();
        let result = waiter.ioctl(request, 2000);
        let took = started.elapsed();
        fails(name, result, Errno::TIME)?;
        let what = format!("it takes {TIMEOUT:?} to {late:?}: {took:?}");
        holds(&what, (TIMEOUT..late).contains(&took))
    })?;
    wait_until_process_blocks(process.pid(), name)?;
    let disturbed = disturbance.of(&process)?;
    disturbed.begin()?;
    // Nothing happens meanwhile but that time passes.
    std::thread::sleep(DISTURBED);
    disturbed.end()?;
    process.join(name)
}

fn a_deadline_passes_during_a_stop(node: &Node) -> Outcome {
    const TIMEOUT: Duration = Duration::from_millis(1000);
    const STOPPED: Duration = Duration::from_millis(1200);
    // One that began anew when the program went on would end at the sum of the two.
    let late = STOPPED + TIMEOUT / 2;
    let control = node.control()?;
    let laggard = node.tracked()?;
    let generation = control.bump()?;
    for (name, request) in WAITS {
        let waiter = node.untracked()?;
        let process = Process::spawn(|| {
            let started = Instant::now();
            fails(name, waiter.ioctl(request, 1000), Errno::TIME)?;
            let took = started.elapsed();
            let what = format!("it ends as soon as the program goes on, before {late:?}: {took:?}");
            holds(&what, took < late)
        })?;
        wait_until_process_blocks(process.pid(), name)?;
        let disturbed = Disturbance::Stop.of(&process)?;
        disturbed.begin()?;
        std::thread::sleep(STOPPED);
        disturbed.end()?;
        process.join(name)?;
    }
    laggard.acknowledge(generation)?;
    Ok(())
}

fn a_handler_runs_after_a_stop(node: &Node) -> Outcome {
    for (name, request) in WAITS {
        for restart in [false, true] {
            let control = node.control()?;
            let _laggard = node.tracked()?;
            control.bump()?;
            sys::handle_signal(restart)?;
            let waiter = node.untracked()?;
            let process = Process::spawn(|| {
                fails(name, waiter.ioctl(request, 60_000), Errno::INTR)?;
                same("signals handled", sys::signals_handled(), 1)
            })?;
            wait_until_process_blocks(process.pid(), name)?;
            let disturbed = Disturbance::Stop.of(&process)?;
            disturbed.begin()?;
            kill_process(process.pid(), Signal::USR1)?;
            disturbed.end()?;
            process.join(name)?;
        }
    }
    Ok(())
}

/// A wait that comes after another one.
fn takes_all_of_its_time(name: &str, waiter: &Watcher, request: u32, timeout: u64) -> Outcome {
    let started = Instant::now();
    fails(name, waiter.ioctl(request, timeout), Errno::TIME)?;
    let took = started.elapsed();
    let what = format!("the second one takes all of its {timeout} ms: {took:?}");
    holds(&what, took >= Duration::from_millis(timeout))
}

fn a_wait_after_another_call(node: &Node) -> Outcome {
    const TIMEOUT: u64 = 700;
    let control = node.control()?;
    let _laggard = node.tracked()?;
    control.bump()?;
    sys::handle_signal(false)?;
    for (name, request) in WAITS {
        let waiter = node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
        let process = Process::spawn(|| {
            fails(name, waiter.ioctl(request, TIMEOUT), Errno::INTR)?;
            // As whoever waits for others makes sure that it is current itself.
            fails("a read", waiter.generation(), Errno::AGAIN)?;
            takes_all_of_its_time(name, &waiter, request, TIMEOUT)
        })?;
        wait_until_process_blocks(process.pid(), name)?;
        let disturbed = Disturbance::Stop.of(&process)?;
        disturbed.begin()?;
        kill_process(process.pid(), Signal::USR1)?;
        // A deadline that is not forgotten is then nearer than the new one.
        std::thread::sleep(Duration::from_millis(TIMEOUT / 4));
        disturbed.end()?;
        process.join(name)?;
    }
    Ok(())
}

fn a_wait_after_a_settled_one(node: &Node) -> Outcome {
    const TIMEOUT: u64 = 700;
    let control = node.control()?;
    let laggard = node.tracked()?;
    for (name, request) in WAITS {
        let generation = control.bump()?;
        let waiter = node.untracked()?;
        let settled = Event::new()?;
        let again = Event::new()?;
        let process = Process::spawn(|| {
            gives(name, waiter.ioctl(request, TIMEOUT), 0)?;
            settled.set()?;
            again.wait("the next change")?;
            takes_all_of_its_time(name, &waiter, request, TIMEOUT)
        })?;
        wait_until_process_blocks(process.pid(), name)?;
        let disturbed = Disturbance::Stop.of(&process)?;
        disturbed.begin()?;
        laggard.acknowledge(generation)?;
        // The deadline of the first one is nearer then than that of the second.
        std::thread::sleep(Duration::from_millis(TIMEOUT / 4));
        disturbed.end()?;
        settled.wait("the end of the first one")?;
        let generation = control.bump()?;
        // Whoever waits must be current.
        waiter.acknowledge(generation)?;
        again.set()?;
        process.join(name)?;
        laggard.acknowledge(generation)?;
    }
    Ok(())
}

fn a_wait_after_an_interrupted_one(node: &Node) -> Outcome {
    const TIMEOUT: u64 = 700;
    let control = node.control()?;
    let _laggard = node.tracked()?;
    control.bump()?;
    sys::handle_signal(true)?;
    for (name, request) in WAITS {
        let waiter = node.untracked()?;
        let interrupted = Event::new()?;
        let process = Process::spawn(|| {
            fails(name, waiter.ioctl(request, TIMEOUT), Errno::INTR)?;
            interrupted.set()?;
            takes_all_of_its_time(name, &waiter, request, TIMEOUT)
        })?;
        wait_until_process_blocks(process.pid(), name)?;
        // A deadline that is not forgotten is then nearer than the new one.
        std::thread::sleep(Duration::from_millis(TIMEOUT / 4));
        kill_process(process.pid(), Signal::USR1)?;
        interrupted.wait("the end of the first one")?;
        process.join(name)?;
    }
    Ok(())
}
