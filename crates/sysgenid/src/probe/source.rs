// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a probe looks, and how it finds the node again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::time::{ClockId, clock_gettime};
use sysgenid_core::PageWord;

use crate::error::{Access, Error};
use crate::node::{Node, path_of_environment};
use crate::sys::epoch::Epoch;
use crate::sys::words::Words;
use crate::vmclock;

/// How often the node is looked for where there is none, in milliseconds.
const LOOK_INTERVAL: u64 = 100;

/// How long a thread that is told to look waits for another that does, before it asks again.
const TURN: Duration = Duration::from_millis(1);

/// Where a probe looks.
#[derive(Debug)]
pub(super) enum Source {
    /// At the page of a node.
    Node(Box<NodeSource>),
    /// At a machine in this process.
    Simulation,
    /// Nowhere.
    Never,
}

/// A node that comes and goes.
#[derive(Debug)]
pub(super) struct NodeSource {
    place: Place,
    /// When it was last looked for, in milliseconds of the coarse clock.
    last_look: AtomicU64,
    /// Which process has a thread that looks; 0 for none. What a child finds of its parent's is nobody's.
    looking: AtomicU64,
    /// What the page is of.
    shown: ArcSwapOption<Shown>,
}

/// Where the node of a probe is.
#[derive(Debug)]
enum Place {
    /// At a path.
    Path(PathBuf),
    /// At the path that the environment names.
    Environment(PathBuf),
    /// Wherever the node of a machine may be.
    Anywhere,
}

impl Place {
    /// Where the environment says, once and for all: others may change it later.
    fn of_machine() -> Self {
        path_of_environment().map_or(Self::Anywhere, Self::Environment)
    }

    fn open(&self) -> Result<Node, Error> {
        match self {
            Self::Path(path) => Node::open(path, Access::Read),
            Self::Environment(path) => {
                Node::open(path, Access::Read).map_err(Error::of_environment)
            }
            Self::Anywhere => Node::find_anywhere(Access::Read),
        }
    }
}

/// A turn of one thread to look for the node.
struct Looking<'a>(&'a AtomicU64);

impl<'a> Looking<'a> {
    /// Begins it, if no other thread of this process has one.
    fn begin(looking: &'a AtomicU64) -> Option<Self> {
        let process = Epoch::process();
        let before = looking.load(Ordering::Relaxed);
        let is_mine = before != process
            && looking
                .compare_exchange(before, process, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        // Not `then_some`, which would end the turn of another.
        is_mine.then(|| Self(looking))
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

/// What is shown in the place that a probe looks at.
#[derive(Debug)]
struct Shown {
    path: PathBuf,
    identity: Identity,
    vmclock: Option<PathBuf>,
}

impl Source {
    /// The node of this machine.
    pub(super) fn anywhere() -> Self {
        Self::node(Place::of_machine())
    }

    /// The node at a path.
    pub(super) fn at(path: &Path) -> Self {
        Self::node(Place::Path(path.to_owned()))
    }

    fn node(place: Place) -> Self {
        Self::Node(Box::new(NodeSource {
            place,
            last_look: AtomicU64::new(now()),
            looking: AtomicU64::new(0),
            shown: ArcSwapOption::empty(),
        }))
    }

    /// The numbers of a node that has not been found yet.
    pub(super) fn into_words(self) -> Result<Words<Self>, Error> {
        Words::mapped(sysgenid_vmclock::COUNTER_OFFSET, self)
            .map_err(|errno| Error::call("have memory to map", Path::new("a node"), errno))
    }

    /// Looks for the node where the page says that it will show no more changes, if nobody has just done so.
    pub(super) fn look_now_and_then(words: &Words<Self>) {
        words.settle();
        let Self::Node(node) = words.data() else {
            return;
        };
        if PageWord::from_word(words.page()).live {
            return;
        }
        let (last, now) = (node.last_look.load(Ordering::Relaxed), now());
        // The clock goes back if the process is restored on another machine.
        if now.wrapping_sub(last) < LOOK_INTERVAL {
            return;
        }
        let is_first = node
            .last_look
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if !is_first {
            return;
        }
        if let Some(_looking) = Looking::begin(&node.looking) {
            // What cannot be opened is as good as nothing: `is_live` says so, and the next look tries again.
            let _ = Self::show_what_is_there(words, node);
        }
    }

    /// Has the node that is there now be shown, if it is not. Returns whether it was another one.
    pub(super) fn attach(words: &Words<Self>) -> Result<bool, Error> {
        words.settle();
        let Self::Node(source) = words.data() else {
            return Ok(false);
        };
        let _looking = loop {
            match Looking::begin(&source.looking) {
                Some(looking) => break looking,
                None => std::thread::sleep(TURN),
            }
        };
        Self::show_what_is_there(words, source)
    }

    /// The work of [`attach`](Self::attach), for one thread at a time: what is remembered must be what is shown.
    fn show_what_is_there(words: &Words<Self>, source: &NodeSource) -> Result<bool, Error> {
        let node = source.place.open()?;
        let identity = Identity::of(&node)?;
        let is_live = |word| PageWord::from_word(word).live;
        let shown = source.shown.load();
        let is_shown = shown
            .as_ref()
            .is_some_and(|shown| shown.identity == identity);
        if is_shown && is_live(words.page()) {
            return Ok(false);
        }
        let page = node.map()?;
        if shown.is_some() && !is_live(page.load(0)) {
            // It ends, or is about to be served again.
            return Ok(false);
        }
        let (counter, vmclock) = vmclock::map_counter().unzip();
        words
            .show(page, counter)
            .map_err(|errno| node.failed("map", errno))?;
        source.shown.store(Some(Arc::new(Shown {
            path: node.path().to_owned(),
            identity,
            vmclock,
        })));
        Ok(true)
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        Some(self.shown()?.path.clone())
    }

    pub(super) fn vmclock(&self) -> Option<PathBuf> {
        self.shown()?.vmclock.clone()
    }

    fn shown(&self) -> Option<Arc<Shown>> {
        match self {
            Self::Node(node) => node.shown.load_full(),
            Self::Simulation | Self::Never => None,
        }
    }
}

/// Milliseconds of a clock that costs no system call.
fn now() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    (time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unsigned_abs()
}

/// What tells one node from another that has come to its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    /// The mount, by a number that is not used again (since Linux 6.8; else by one that may be).
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl Identity {
    fn of(node: &Node) -> Result<Self, Error> {
        use rustix::fs::{AtFlags, StatxFlags, statx};

        /// `STATX_MNT_ID_UNIQUE` of `<linux/stat.h>`.
        const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

        let file = statx(
            node,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::INO | UNIQUE_MOUNT,
        )
        .map_err(|errno| node.failed("identify", errno))?;
        Ok(Self {
            mount: file.stx_mnt_id,
            device: (file.stx_rdev_major, file.stx_rdev_minor),
            inode: file.stx_ino,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_looks_and_a_child_waits_for_none_of_its_parent() {
        let looking = AtomicU64::new(0);
        let turn = Looking::begin(&looking).expect("nobody looks");
        for _ in 0..2 {
            assert!(Looking::begin(&looking).is_none());
        }
        drop(turn);
        // What a child finds where a thread of its parent was looking.
        looking.store(Epoch::process() + 1000, Ordering::Relaxed);
        let turn = Looking::begin(&looking);
        assert!(turn.is_some() && Looking::begin(&looking).is_none());
    }
}
