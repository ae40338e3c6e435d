// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nothing that notices a restore is taken for the echo of something else, what appears late is found, what was gone
//! is not trusted to have missed nothing, and no node is published where nothing notices.
//!
//! A file stands for the hypervisor's device, and another daemon's node for the machine's.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::fmt::Debug;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Setup, Supervision};
use common::eventually;
use common::watcher::{Page, Watcher};
use rustix::process::Signal;

/// How long it may take to find what has appeared, or that something came back.
const FOUND: Duration = Duration::from_secs(2);

/// How long it may take until a restore is shown that only one of two notices.
const DUE: Duration = Duration::from_secs(10);

/// How long after one report the next comes that has nothing to do with it.
const LATER: Duration = Duration::from_secs(5);

const LINKS: [&str; 2] = ["/dev/sysgenid", "/dev/vmgenid"];

/// The device's page, in a file.
struct Device(PathBuf);

impl Device {
    fn new(path: PathBuf) -> Self {
        let device = Self(path);
        device.appear(1);
        device
    }

    /// Is there at once as a whole, as a device is.
    fn appear(&self, counter: u64) {
        let hidden = self.0.with_extension("new");
        std::fs::write(&hidden, sysgenid_vmclock::sample(counter)).unwrap();
        std::fs::rename(hidden, &self.0).unwrap();
    }

    /// What the hypervisor does at a restore.
    fn restore(&self, counter: u64) {
        let file = std::fs::File::options().write(true).open(&self.0).unwrap();
        let offset = u64::try_from(sysgenid_vmclock::COUNTER_OFFSET).unwrap();
        file.write_all_at(&counter.to_le_bytes(), offset).unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_restore_that_only_the_device_notices_is_not_the_echo_of_a_trigger_on_the_parent() {
    // The parent does not notice restores itself.
    let outer = start("[backends]\nuse = []\n", &[]);
    let device = Device::new(outer.folder().join("vmclock"));
    let inner = start(&both(&outer, &device), &[]);
    // What both begin with is known.
    inner.log().wait("watching", 2);
    let page = Page::open(&inner.node("host")).unwrap();
    let parent = Watcher::open(&outer.node("host")).unwrap();
    for counter in 2..4 {
        let before = page.generation();
        parent.trigger(0).unwrap();
        changes(&page, before, FOUND);
        // Nothing tells that nothing more comes of it.
        thread::sleep(LATER);
        let before = page.generation();
        device.restore(counter);
        changes(&page, before, DUE);
    }
    inner.stop();
    outer.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_parent_that_was_gone_and_is_back_is_a_change_whatever_its_number() {
    let mut outer = start("[backends]\nuse = []\n", &[]);
    let node = outer.node("host");
    let inner = start(&follows(&node), &[]);
    let page = Page::open(&inner.node("host")).unwrap();
    for _ in 0..2 {
        outer.signal(Signal::INT);
        assert!(outer.end().success());
        // What its end is worth has been told by then.
        thread::sleep(FOUND);
        let before = page.generation();
        outer.start_again();
        changes(&page, before, FOUND);
    }
    // And is followed again.
    let before = page.generation();
    Watcher::open(&node).unwrap().trigger(0).unwrap();
    changes(&page, before, FOUND);
    inner.stop();
    outer.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_parent_that_was_gone_for_long_is_found_at_once() {
    let mut outer = start("[backends]\nuse = []\n", &[]);
    let node = outer.node("host");
    let inner = start(&follows(&node), &[]);
    let page = Page::open(&inner.node("host")).unwrap();
    outer.signal(Signal::INT);
    assert!(outer.end().success());
    // Long enough for whoever asks ever more rarely.
    thread::sleep(Duration::from_secs(16));
    outer.start_again();
    thread::sleep(FOUND);
    let before = page.generation();
    Watcher::open(&node).unwrap().trigger(100).unwrap();
    changes(&page, before, FOUND);
    inner.stop();
    outer.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_device_that_appears_after_the_start_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device(folder.path().join("vmclock"));
    let daemon = start(&alone(&device), &[]);
    let page = Page::open(&daemon.node("host")).unwrap();
    assert!(!page.word().noticed, "{:?}", page.word());
    thread::sleep(Duration::from_secs(1));
    device.appear(1);
    thread::sleep(FOUND);
    let before = page.generation();
    device.restore(2);
    changes(&page, before, FOUND);
    assert!(page.word().noticed, "{:?}", page.word());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn no_node_is_published_where_nothing_notices_unless_it_is_asked_for() {
    let config = "[backends]\nuse = []\n";
    let daemon = start(config, &["--publish"]);
    for link in LINKS {
        assert!(
            !is_there(link),
            "{link} leads to a node that knows of no restore"
        );
    }
    // It serves all the same, for whoever asks for it by its path.
    let page = Page::open(&daemon.node("host")).unwrap();
    assert!(!page.word().noticed, "{:?}", page.word());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_node_is_published_where_nothing_notices_if_it_is_asked_for_by_name() {
    let daemon = start("[backends]\nuse = []\n", &["--publish=always"]);
    for link in LINKS {
        assert!(is_there(link), "{link}");
    }
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_node_is_published_as_soon_as_something_notices() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device(folder.path().join("vmclock"));
    let daemon = start(&alone(&device), &["--publish"]);
    for link in LINKS {
        assert!(
            !is_there(link),
            "{link} leads to a node that knows of no restore"
        );
    }
    device.appear(1);
    await_links();
    assert!(Page::open(Path::new(LINKS[0])).unwrap().word().noticed);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn the_nodes_are_published_before_the_daemon_says_that_it_is_ready() {
    // Whoever is started then looks for them once.
    let folder = tempfile::tempdir().unwrap();
    let device = Device::new(folder.path().join("vmclock"));
    let outer = start(&alone(&device), &[]);
    for config in [alone(&device), follows(&outer.node("host"))] {
        let inner = start(&config, &["--publish"]);
        for link in LINKS {
            assert!(is_there(link), "{link} is late: {config}");
        }
        inner.stop();
    }
    outer.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn the_nodes_are_taken_back_with_a_last_change_when_nothing_notices_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::new(folder.path().join("vmclock"));
    let outer = start(&alone(&device), &[]);
    let inner = start(&follows(&outer.node("host")), &["--publish"]);
    await_links();
    let page = Page::open(Path::new(LINKS[0])).unwrap();
    let before = page.generation();
    outer.stop();
    eventually("the links go", || {
        let left: Vec<_> = LINKS.into_iter().filter(|link| is_there(link)).collect();
        none(&left)
    });
    assert!(page.generation() > before, "{:?}", page.word());
    assert!(!page.word().noticed, "{:?}", page.word());
    assert!(
        page.word().live,
        "it is served all the same: {:?}",
        page.word()
    );
    inner.stop();
}

fn await_links() {
    eventually("the nodes are published", || {
        let missing: Vec<_> = LINKS.into_iter().filter(|link| !is_there(link)).collect();
        none(&missing)
    });
}

fn none<T: Debug>(list: &[T]) -> Result<(), String> {
    if list.is_empty() {
        Ok(())
    } else {
        Err(format!("{list:?}"))
    }
}

fn is_there(link: &str) -> bool {
    std::fs::symlink_metadata(link).is_ok()
}

/// Waits until a page shows another generation, but no longer than that.
fn changes(page: &Page, before: u32, within: Duration) {
    let start = Instant::now();
    while page.generation() == before {
        assert!(
            start.elapsed() < within,
            "still at {before} after {within:?}"
        );
        thread::sleep(Duration::from_millis(1));
    }
    assert!(page.generation() > before);
}

/// The configuration of one that has a device.
fn alone(device: &Device) -> String {
    format!(
        "[backends]\nuse = [\"vmclock\"]\nvmclock = \"{}\"\n",
        device.0.display()
    )
}

/// The configuration of one that has a parent.
fn follows(parent: &Path) -> String {
    format!(
        "[backends]\nuse = [\"parent\"]\nparent = \"{}\"\n",
        parent.display()
    )
}

/// The configuration of one that has both.
fn both(outer: &Daemon, device: &Device) -> String {
    format!(
        "[backends]\nuse = [\"vmclock\", \"parent\"]\nvmclock = \"{}\"\nparent = \"{}\"\n",
        device.0.display(),
        outer.node("host").display()
    )
}

fn start(config: &str, options: &[&str]) -> Daemon {
    let setup = Setup {
        supervision: Supervision::None,
        passthrough: true,
        published: false,
        environment: Vec::new(),
    };
    Daemon::start_configured(&setup, config, options)
}
