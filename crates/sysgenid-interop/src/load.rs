// SPDX-License-Identifier: MIT OR Apache-2.0

//! Everything that programs do with the nodes, at once and for as long as it is wanted, with an account of it.
//!
//! One thread changes the generation, and waits until all others have acknowledged that before it
//! does so again. So each of them has to see every generation, in order: whatever is lost, or carried out
//! twice, is found at once, or stops everything.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::ioctl::IntegerSetter;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use serde::Deserialize;
use serde::Serialize;
use sysgenid_core::abi;

use crate::node;
use crate::node::Mapping;
use crate::node::Watcher;

/// The node that this program's watchers have to ask for being tracked.
const SYSGENID: &str = "/dev/sysgenid";

/// The node whose watchers are tracked from the start.
const VMGENID: &str = "/dev/vmgenid";

/// What the load has done. No change is under way meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// How often the generation was changed.
    pub triggers: u32,
    /// The generation that is mapped.
    pub generation: u32,
    /// The last generation that each watcher saw, before it acknowledged that.
    pub seen: Vec<(String, u32)>,
    /// How often a node was opened, mapped, unmapped and closed.
    pub glances: u32,
    /// What went wrong.
    pub faults: Vec<String>,
}

/// Threads that use the nodes until the program ends.
pub struct Load {
    shared: Arc<Shared>,
    watchers: Vec<(&'static str, Arc<AtomicU32>)>,
    mapping: Mapping,
}

/// How a watcher learns of a change.
type Sleep = Box<dyn Fn(&Watcher) -> Result<()> + Send>;

impl Load {
    /// Starts the threads. All watchers are there, and tracked, before the first change.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut watchers = Vec::new();
        for (name, path, sleep) in [
            ("read", VMGENID, Box::new(|_: &Watcher| Ok(())) as Sleep),
            (
                "poll",
                SYSGENID,
                Box::new(|watcher: &Watcher| Ok(watcher.poll()?)),
            ),
            ("epoll", SYSGENID, Box::new(wait_for_edge()?)),
        ] {
            let watcher = Watcher::open(Path::new(path))?;
            if path == SYSGENID {
                call::<{ abi::SYSGENID_SET_WATCHER_TRACKING }>(&watcher, 1)?;
            }
            let mapping = Mapping::open(Path::new(path))?;
            let seen = Arc::new(AtomicU32::new(mapping.generation()));
            watchers.push((name, Arc::clone(&seen)));
            shared.run(name, move |_| follow(&watcher, &mapping, &sleep, &seen));
        }
        shared.run("glance", glance_again_and_again);
        shared.run("trigger", trigger_again_and_again);
        Ok(Self {
            shared,
            watchers,
            mapping: Mapping::open(Path::new(SYSGENID))?,
        })
    }

    /// Waits until all have acknowledged the last change, and says how things stand.
    pub fn report(&self) -> Report {
        let _turn = self.shared.take_turn();
        let seen = |seen: &AtomicU32| seen.load(Ordering::Acquire);
        Report {
            triggers: self.shared.triggers.load(Ordering::Acquire),
            generation: self.mapping.generation(),
            seen: self
                .watchers
                .iter()
                .map(|(name, last)| ((*name).to_owned(), seen(last)))
                .collect(),
            glances: self.shared.glances.load(Ordering::Acquire),
            faults: lock(&self.shared.faults).clone(),
        }
    }
}

#[derive(Default)]
struct Shared {
    /// Held from a change until all have acknowledged it.
    turn: Mutex<()>,
    /// Held while waiting for the turn, so that nobody takes one after the other.
    queue: Mutex<()>,
    triggers: AtomicU32,
    glances: AtomicU32,
    faults: Mutex<Vec<String>>,
}

impl Shared {
    fn run(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) {
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            if let Err(error) = work(&shared) {
                lock(&shared.faults).push(format!("{name}: {error:#}"));
            }
        });
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        let _first = lock(&self.queue);
        lock(&self.turn)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the generation, and waits until everybody has dealt with that.
fn trigger_again_and_again(shared: &Shared) -> Result<()> {
    let node = Path::new(SYSGENID);
    let watcher = Watcher::open(node)?;
    let mapping = Mapping::open(node)?;
    loop {
        let _turn = shared.take_turn();
        let generation = shared.triggers.fetch_add(1, Ordering::AcqRel) + 1;
        node::bump(node, 0)?;
        let mapped = mapping.generation();
        if mapped != generation {
            bail!("after {generation} triggers the generation is {mapped}");
        }
        // Who is outdated itself may not wait.
        watcher
            .acknowledge(generation)
            .context("cannot acknowledge")?;
        call::<{ abi::SYSGENID_WAIT_WATCHERS }>(&watcher, 0)
            .context("cannot wait for the others")?;
    }
}

/// Sleeps until there is a change, and acknowledges it.
fn follow(watcher: &Watcher, mapping: &Mapping, sleep: &Sleep, seen: &AtomicU32) -> Result<()> {
    loop {
        sleep(watcher).context("cannot sleep")?;
        // Not `Watcher::read`, which overlooks an interruption: nobody sends signals here.
        let mut bytes = [0; abi::GENERATION_SIZE];
        rustix::io::read(watcher, &mut bytes).context("cannot read")?;
        let generation = u32::from_ne_bytes(bytes);
        let next = seen.load(Ordering::Acquire) + 1;
        let mapped = mapping.generation();
        if generation != next || mapped != next {
            bail!("expected generation {next}, but read {generation}, and {mapped} is mapped");
        }
        seen.store(generation, Ordering::Release);
        watcher
            .acknowledge(generation)
            .context("cannot acknowledge")?;
    }
}

/// Sleeps for a new edge in `epoll`, in which the watcher is entered by the first call.
fn wait_for_edge() -> Result<impl Fn(&Watcher) -> Result<()>> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let is_entered = std::cell::Cell::new(false);
    Ok(move |watcher: &Watcher| {
        if !is_entered.replace(true) {
            let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&set, watcher, epoll::EventData::new_u64(0), edges)?;
        }
        let mut events = Vec::with_capacity(1);
        epoll::wait(&set, spare_capacity(&mut events), None)?;
        Ok(())
    })
}

/// What a crypto library does, but without end: opens, maps and closes.
fn glance_again_and_again(shared: &Shared) -> Result<()> {
    loop {
        // The last trigger may be under way, but those before it have returned.
        let at_least = shared.triggers.load(Ordering::Acquire).saturating_sub(1);
        let generation = glance(Path::new(SYSGENID))?;
        if generation < at_least {
            bail!("{at_least} was acknowledged by everybody, but {generation} is mapped");
        }
        shared.glances.fetch_add(1, Ordering::AcqRel);
    }
}

/// The generation as it is mapped by somebody new.
fn glance(path: &Path) -> Result<u32> {
    let node = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open")?;
    // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
    let page = unsafe {
        rustix::mm::mmap(
            core::ptr::null_mut(),
            abi::GENERATION_SIZE,
            ProtFlags::READ,
            MapFlags::SHARED,
            &node,
            0,
        )
    }
    .context("cannot map")?;
    drop(node);
    // SAFETY: The mapping is aligned to a page, at least four bytes long, and unmapped below.
    let generation = unsafe { AtomicU32::from_ptr(page.cast()) }.load(Ordering::Acquire);
    // SAFETY: It was mapped above, and nobody has a reference to it any more.
    unsafe { rustix::mm::munmap(page, abi::GENERATION_SIZE) }?;
    Ok(generation)
}

fn call<const OPCODE: u32>(watcher: &Watcher, argument: usize) -> rustix::io::Result<()> {
    // SAFETY: This call takes an integer and touches no memory of ours.
    let call = unsafe { IntegerSetter::<OPCODE>::new_usize(argument) };
    // SAFETY: As above.
    unsafe { rustix::ioctl::ioctl(watcher, call) }
}
