// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random calls to the nodes, from several threads at once, as a hostile program makes them. The kernel says what it
//! thinks of them in its log; here the accounts are checked in the end.

mod calls;
mod memory;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::event::epoll;
use rustix::fs::MemfdFlags;
use rustix::thread::Pid;

use crate::fuzz::calls::Caller;
use crate::fuzz::calls::Kind;
use crate::fuzz::memory::Memory;
use crate::node::Node;

/// How often those who sleep are woken: by a change, and by a signal.
const TICK: Duration = Duration::from_millis(5);

/// How many descriptors there are at most.
const MOST_DESCRIPTORS: usize = 96;

/// Makes so many calls, of those that a seed chooses, and then compares what the node counts with what its
/// descriptors say. Prints how many calls of each kind succeeded.
///
/// # Errors
///
/// If the accounts are wrong, or a kind of call has never succeeded.
pub(crate) fn run(nodes: &[String], number: u64, seed: u64, threads: u64) -> Result<()> {
    println!("seed {seed}, {number} calls in {threads} threads");
    permit_signals()?;
    let descriptions = Descriptions::default();
    let memories = (0..usize::try_from(threads)?)
        .map(Memory::new)
        .collect::<rustix::io::Result<Vec<_>>>()?;
    let ids = Mutex::new(Vec::new());
    let finished = AtomicBool::new(false);
    let mut totals = BTreeMap::<Kind, u64>::new();
    std::thread::scope(|scope| -> Result<()> {
        let ticker = scope.spawn(|| tick(&nodes[0], &ids, &finished));
        let workers: Vec<_> = (0..threads)
            .zip(&memories)
            .map(|(index, memory)| {
                let (descriptions, ids) = (&descriptions, &ids);
                scope.spawn(move || -> Result<BTreeMap<Kind, u64>> {
                    lock(ids).push(rustix::thread::gettid());
                    let caller = Caller {
                        random: SmallRng::seed_from_u64(seed.wrapping_add(index)),
                        memory,
                        nodes,
                        descriptions,
                        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
                        file: rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)?,
                    };
                    Ok(work(caller, number / threads))
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        finished.store(true, Ordering::Release);
        let ticked = ticker.join();
        for result in results {
            let successes = result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            for (kind, count) in successes {
                *totals.entry(kind).or_default() += count;
            }
        }
        ticked.map_err(|_| anyhow::anyhow!("the ticker panicked"))?
    })?;
    for (kind, _) in Kind::ALL {
        let count = totals.get(kind).copied().unwrap_or_default();
        println!("{kind:?}: {count} succeeded");
    }
    for memory in &memories {
        memory.clear()?;
    }
    check_accounts(nodes, descriptions)?;
    for (kind, _) in Kind::ALL {
        ensure!(
            totals.contains_key(kind),
            "no call of the kind {kind:?} has ever succeeded: it examines nothing"
        );
    }
    Ok(())
}

/// Makes calls, and counts those that succeed.
fn work(mut caller: Caller<'_>, number: u64) -> BTreeMap<Kind, u64> {
    let mut successes = BTreeMap::new();
    for _ in 0..number {
        let kind = Kind::choose(&mut caller.random);
        if caller.make(kind).is_ok() {
            *successes.entry(kind).or_default() += 1;
        }
    }
    successes
}

/// Keeps anybody from sleeping for long, until all have finished.
fn tick(node: &str, threads: &Mutex<Vec<Pid>>, finished: &AtomicBool) -> Result<()> {
    let node = Node::open(node)?;
    let process = rustix::process::getpid().as_raw_nonzero().get();
    while !finished.load(Ordering::Acquire) {
        std::thread::sleep(TICK);
        node.bump()?;
        for thread in lock(threads).iter() {
            let thread = thread.as_raw_nonzero().get();
            // SAFETY: A signal with a handler that does nothing. A thread that has ended gets none.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
        }
    }
    Ok(())
}

/// Gives the ticker's signal a handler, so that it ends a sleep and nothing else.
fn permit_signals() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: All zeros are a valid value, without flags.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: The handler does nothing, so it may interrupt anything.
    let result =
        unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, core::ptr::null_mut()) };
    ensure!(
        result == 0,
        "cannot handle a signal: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Nothing is mapped any more and no other program has a node: so the node must count exactly those of the
/// descriptors whose watchers are tracked and outdated, and nobody once they are closed.
fn check_accounts(nodes: &[String], descriptions: Descriptions) -> Result<()> {
    let observer = Node::open_to_look(&nodes[0])?;
    // So that many are outdated.
    Node::open(&nodes[0])?.bump()?;
    let mut seen = HashSet::new();
    let mut expected = 0;
    for description in lock(&descriptions.open).iter() {
        if !seen.insert(description.number) {
            continue;
        }
        let path = format!("/proc/self/fdinfo/{}", description.fd.as_raw_fd());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let says = |name: &str| text.lines().any(|line| line == format!("{name}:\t1"));
        if says("tracked") && says("outdated") {
            expected += 1;
        }
    }
    let counted = observer.outdated_watchers()?;
    println!(
        "{} descriptions, {counted} tracked and outdated",
        seen.len()
    );
    ensure!(
        counted == expected,
        "the node counts {counted} outdated watchers; its descriptors say {expected}"
    );
    drop(descriptions);
    let counted = observer.outdated_watchers()?;
    ensure!(
        counted == 0,
        "the node counts {counted} outdated watchers, and there is none"
    );
    // One that is outdated itself would not wait.
    Node::open_to_look(&nodes[0])?
        .wait_for_everybody(1000)
        .context("nobody is outdated, and yet a wait does not end")?;
    Ok(())
}

/// A descriptor, and which description it belongs to: copies share one.
pub(super) struct Description {
    fd: OwnedFd,
    number: u64,
}

/// The descriptors that the threads share.
#[derive(Default)]
pub(super) struct Descriptions {
    open: Mutex<Vec<Arc<Description>>>,
    numbers: AtomicU64,
}

impl Descriptions {
    /// Adds a new description.
    fn open(&self, fd: OwnedFd) {
        self.add(fd, self.numbers.fetch_add(1, Ordering::Relaxed));
    }

    /// Adds a descriptor of some description, in place of the oldest if there are enough.
    fn add(&self, fd: OwnedFd, number: u64) {
        let mut open = lock(&self.open);
        open.push(Arc::new(Description { fd, number }));
        let oldest = (open.len() > MOST_DESCRIPTORS).then(|| open.swap_remove(0));
        drop(open);
        drop(oldest);
    }

    /// Any of them. It is not closed while it is in use.
    fn some(&self, random: &mut SmallRng) -> Option<Arc<Description>> {
        let open = lock(&self.open);
        (!open.is_empty()).then(|| Arc::clone(&open[random.random_range(0..open.len())]))
    }

    /// Closes any of them.
    fn close(&self, random: &mut SmallRng) {
        let mut open = lock(&self.open);
        let closed = (!open.is_empty()).then(|| {
            let index = random.random_range(0..open.len());
            open.swap_remove(index)
        });
        drop(open);
        drop(closed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
