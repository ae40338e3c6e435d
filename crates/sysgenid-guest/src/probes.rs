// SPDX-License-Identifier: MIT OR Apache-2.0

//! Small programs for single tests.

use std::ffi::CString;
use std::io::Write;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netlink;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::thread::CpuSet;
use sysgenid::Probe;
use sysgenid_core::abi;
use sysgenid_guest::event::Sighting;

use crate::clock::monotonic_ns;
use crate::clock::slept_ns;
use crate::compat;
use crate::node::Node;
use crate::node::Page;
use crate::node::UNTRACKED_NODE;

/// Bumps the generation `times` times.
pub(crate) fn bump(path: &str, times: u32) -> Result<()> {
    let node = Node::open(path)?;
    for _ in 0..times {
        node.bump()?;
    }
    Ok(())
}

/// Prints the current generation, as a mapping shows it.
pub(crate) fn generation(path: &str) -> Result<()> {
    println!("{}", Page::map(path)?.generation());
    Ok(())
}

/// Keeps a node open, or only mapped, until it is killed. Prints `ready` first.
pub(crate) fn hold(path: &str, mapped: bool) -> Result<()> {
    let _node = if mapped {
        Page::map(path)?;
        None
    } else {
        Some(Node::open(path)?)
    };
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Opens, uses and closes a node: every call once, with a change in between.
pub(crate) fn exercise(path: &str) -> Result<()> {
    let page = Page::map(path)?;
    let node = Node::open_nonblocking(path)?;
    node.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?;
    ensure!(
        node.read() == Err(Errno::AGAIN),
        "read a generation before any change"
    );
    let before = page.generation();
    node.bump()?;
    let generation = node.read()?;
    ensure!(
        generation != before,
        "the bump did not change the generation"
    );
    ensure!(
        page.generation() == generation,
        "the mapping and read disagree"
    );
    ensure!(
        node.outdated_watchers()? >= 1,
        "the caller does not count as outdated"
    );
    node.acknowledge(generation)?;
    ensure!(
        node.read() == Err(Errno::AGAIN),
        "read a generation after acknowledging it"
    );
    Ok(())
}

/// Opens and closes a node so many times, then bumps and acknowledges as often.
pub(crate) fn churn(path: &str, rounds: u32) -> Result<()> {
    for _ in 0..rounds {
        drop(Node::open(path)?);
    }
    let node = Node::open_nonblocking(path)?;
    for _ in 0..rounds {
        node.bump()?;
        // Others may bump as well.
        while !node.acknowledges(node.read()?)? {}
    }
    Ok(())
}

/// Waits for a change and then draws from the kernel's generator at once. Prints what it drew.
pub(crate) fn draw_on_change(path: &str) -> Result<()> {
    rustix::thread::set_name(&CString::new("drawer")?)?;
    let node = Node::open(path)?;
    println!("ready");
    std::io::stdout().flush()?;
    let generation = node.read()?;
    let mut drawn = [0; 32];
    rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())?;
    node.acknowledge(generation)?;
    println!("drew {}", hexadecimal(&drawn));
    Ok(())
}

/// The processor for programs that look without a pause; the other one is for interrupts.
const LOOKING: usize = 1;

/// Looks by a probe until the machine was restored, as a program does before each use of a secret, and draws a new secret.
/// Prints `ready` and the vmclock device that the probe has, then a [`Sighting`].
pub(crate) fn look() -> Result<()> {
    go_first()?;
    let probe = Probe::open()?;
    let before = probe.stamp();
    match probe.vmclock() {
        Some(path) => println!("ready, with {}", path.display()),
        None => println!("ready, without a vmclock"),
    }
    std::io::stdout().flush()?;
    // Without a pause, for the same reason.
    while !probe.has_changed(&before) {
        std::hint::spin_loop();
    }
    let seen_ns = monotonic_ns();
    let seen_in_generation = probe.generation().get();
    let after = probe.stamp_for_rebuild(&before);
    let drawn_ns = monotonic_ns();
    report(&Sighting {
        seen_ns,
        seen_in_generation,
        drawn_ns,
        drawn_in_generation: after.generation().get(),
        drawn: draw()?,
    })
}

/// How long a machine that was hibernated has slept at least: it took longer than this to start.
const HIBERNATED_NS: u64 = 1_000_000_000;

/// Looks until the machine has slept, at the page last, and draws random bytes at once, whatever the page says. Prints
/// `ready`, then a [`Sighting`].
pub(crate) fn look_for_resume() -> Result<()> {
    go_first()?;
    let page = Page::map(UNTRACKED_NODE)?;
    println!("ready");
    std::io::stdout().flush()?;
    while slept_ns() < HIBERNATED_NS {
        std::hint::spin_loop();
    }
    let seen_in_generation = page.generation();
    let seen_ns = monotonic_ns();
    let drawn = draw()?;
    let drawn_ns = monotonic_ns();
    let drawn_in_generation = page.generation();
    report(&Sighting {
        seen_ns,
        seen_in_generation,
        drawn_ns,
        drawn_in_generation,
        drawn,
    })
}

/// Makes this program the one that goes on when the machine does, so that it does not wait its turn until the notice is
/// there.
fn go_first() -> Result<()> {
    rustix::process::setpriority_process(None, -20)?;
    let mut processor = CpuSet::new();
    processor.set(LOOKING);
    rustix::thread::sched_setaffinity(None, &processor)?;
    Ok(())
}

/// Draws from the kernel's generator.
fn draw() -> Result<String> {
    let mut drawn = [0; 16];
    rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())?;
    Ok(hexadecimal(&drawn))
}

fn report(sighting: &Sighting) -> Result<()> {
    println!("{}", serde_json::to_string(sighting)?);
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints the kernel's uevents of our nodes, one a line, until it is killed. Prints `ready` first.
pub(crate) fn uevents() -> Result<()> {
    /// The multicast group to which the kernel itself sends; udev sends to the next one.
    const KERNEL_GROUP: u32 = 1;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::KOBJECT_UEVENT),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    println!("ready");
    let mut buffer = [0; 8192];
    loop {
        std::io::stdout().flush()?;
        let (length, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
        let line = String::from_utf8_lossy(&buffer[..length]).replace('\0', " ");
        if line.contains("genid") {
            println!("{}", line.trim_end());
        }
    }
}

/// Makes the contract's ioctls as a 32-bit program does.
pub(crate) fn compat(path: &str) -> Result<()> {
    let node = Node::open_nonblocking(path)?;
    // Always of the node that does not track: the mapping itself must not count as a watcher.
    let page = Page::map(UNTRACKED_NODE)?;
    let call = |request, argument| compat::ioctl(&node, request, argument);
    let expect = |what: &str, got: i32, wanted: i32| {
        ensure!(got == wanted, "{what} returned {got} instead of {wanted}");
        Ok(())
    };
    expect(
        "tracking on",
        call(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?,
        0,
    )?;
    let before = page.generation();
    expect("trigger", call(abi::SYSGENID_TRIGGER_GEN_UPDATE, 0)?, 0)?;
    ensure!(
        page.generation() == before + 1,
        "the trigger did not bump by one"
    );
    let minimum = before + 10;
    expect(
        "a minimum",
        call(abi::SYSGENID_TRIGGER_GEN_UPDATE, minimum)?,
        0,
    )?;
    ensure!(
        page.generation() == minimum,
        "the trigger did not reach its minimum"
    );
    expect("force", call(abi::VMGENID_FORCE_GEN_UPDATE, 0)?, 0)?;
    expect("count", call(abi::VMGENID_GET_OUTDATED_WATCHERS, 0)?, 1)?;
    let interrupted = -Errno::INTR.raw_os_error();
    expect(
        "outdated wait",
        call(abi::VMGENID_WAIT_WATCHERS, 1)?,
        interrupted,
    )?;
    node.acknowledge(node.read()?)?;
    expect("count", call(abi::VMGENID_GET_OUTDATED_WATCHERS, 0)?, 0)?;
    expect("wait", call(abi::SYSGENID_WAIT_WATCHERS, 1)?, 0)?;
    let unknown = -Errno::NOTTY.raw_os_error();
    expect(
        "an unknown ioctl",
        call(abi::SYSGENID_TRIGGER_GEN_UPDATE + 1, 0)?,
        unknown,
    )?;
    compat_wait_over_a_stop(&node)
}

/// A wait with a time-out keeps its deadline while the program is stopped and continues.
fn compat_wait_over_a_stop(node: &Node) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(4);
    const STOP: &str = "usleep 300000; kill -STOP $PPID; usleep 1500000; kill -CONT $PPID";
    let laggard = Node::open(UNTRACKED_NODE)?;
    laggard.ioctl(abi::SYSGENID_SET_WATCHER_TRACKING, 1)?;
    laggard.ioctl(abi::SYSGENID_TRIGGER_GEN_UPDATE, 0)?;
    node.acknowledge(node.read()?)?;
    let started = Instant::now();
    let mut shell = Command::new("/bin/sh").args(["-c", STOP]).spawn()?;
    let milliseconds = u32::try_from(TIMEOUT.as_millis())?;
    let result = compat::ioctl(node, abi::SYSGENID_WAIT_WATCHERS, milliseconds)?;
    let took = started.elapsed();
    ensure!(
        result == -Errno::TIME.raw_os_error(),
        "a wait over a stop returned {result}"
    );
    // One that began anew would take the time of the stop longer.
    let late = TIMEOUT + Duration::from_secs(1);
    ensure!(
        (TIMEOUT..late).contains(&took),
        "a wait of {TIMEOUT:?} over a stop took {took:?}"
    );
    ensure!(
        shell.try_wait()?.is_some_and(|status| status.success()),
        "the stop was not over before the wait"
    );
    Ok(())
}

/// Waits until a file has a line with `text`.
pub(crate) fn await_line(file: &str, text: &str, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let content = std::fs::read_to_string(file).unwrap_or_default();
        if content.lines().any(|line| line.contains(text)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let last = content.lines().last().unwrap_or("nothing");
            bail!("{file} has no line with {text} after {timeout:?}; its last line: {last}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
