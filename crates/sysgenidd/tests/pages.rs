// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that has mapped the page and closed everything else learns of every end and of every change after
//! it, whoever serves the instance then.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use common::daemon::{Daemon, Setup, Supervision};
use common::watcher::{Page, Watcher};
use common::{eventually, process};
use rustix::fs::FlockOperation;
use rustix::process::Signal;
use sysgenid_core::PageWord;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sysgenidd");

/// A folder in which one process after another serves.
struct Place {
    // It brought the test into a mount namespace of its own.
    _other: Daemon,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let other = Daemon::start(&Setup {
            supervision: Supervision::None,
            passthrough: true,
            published: false,
            environment: Vec::new(),
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config"), "[backends]\nuse = []\n").unwrap();
        Self {
            _other: other,
            folder,
        }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn node(&self, instance: &str) -> PathBuf {
        self.directory().join(instance).join("sysgenid")
    }

    fn start(&self, arguments: &[&str]) -> Server {
        let child = Command::new(PROGRAM)
            .arg("--config")
            .arg(self.folder.path().join("config"))
            .arg("--directory")
            .arg(self.directory())
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server(child);
        eventually("it serves", || {
            Watcher::open(&self.node("host")).map_err(|error| error.to_string())
        });
        server
    }

    fn ask(&self, arguments: &[&str]) {
        let asked = Command::new(PROGRAM)
            .args(arguments)
            .arg("--directory")
            .arg(self.directory())
            .output()
            .unwrap();
        assert!(asked.status.success(), "{asked:?}");
    }

    fn trigger(&self, instance: &str) {
        let watcher = Watcher::open(&self.node(instance)).unwrap();
        watcher.trigger(0).unwrap();
    }

    /// The mapping alone.
    fn map(&self, instance: &str) -> Page {
        Watcher::open(&self.node(instance)).unwrap().map().unwrap()
    }
}

/// It ends with the test, also with one that fails.
struct Server(Child);

impl Server {
    fn end(mut self, signal: Signal) {
        process::signal(&self.0, signal);
        process::wait(&mut self.0, "the server");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn assert_shows(page: &Page, generation: u32, live: bool) {
    let shown = page.word();
    assert_eq!((shown.generation.get(), shown.live), (generation, live));
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_shows_the_end_of_the_service_and_what_the_next_one_notices() {
    let place = Place::new();
    let server = place.start(&[]);
    let page = place.map("host");
    assert_shows(&page, 0, true);
    place.trigger("host");
    assert_shows(&page, 1, true);
    server.end(Signal::INT);
    assert_shows(&page, 2, false);
    let server = place.start(&[]);
    assert_shows(&page, 3, true);
    let new = place.map("host");
    place.trigger("host");
    assert_shows(&page, 4, true);
    assert_shows(&new, 4, true);
    server.end(Signal::INT);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_shows_that_its_instance_was_removed_and_what_happens_to_the_next_of_its_name() {
    let place = Place::new();
    let server = place.start(&[]);
    place.ask(&["instance", "add", "web"]);
    let page = place.map("web");
    assert_shows(&page, 0, true);
    place.ask(&["instance", "remove", "web"]);
    assert_shows(&page, 1, false);
    place.ask(&["instance", "add", "web"]);
    assert_shows(&page, 2, true);
    place.trigger("host");
    assert_shows(&page, 3, true);
    server.end(Signal::INT);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn whoever_cleans_up_after_a_death_shows_it_to_those_who_map_a_page() {
    let place = Place::new();
    let server = place.start(&[]);
    let page = place.map("host");
    server.end(Signal::KILL);
    assert_shows(&page, 0, true);
    place.ask(&["clean"]);
    assert_shows(&page, 1, false);
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_mapping_outlives_a_state_that_the_next_version_does_not_understand() {
    let place = Place::new();
    let server = place.start(&["--supervise"]);
    place.ask(&["instance", "add", "web"]);
    place.trigger("host");
    let pages = ["host", "web"].map(|name| place.map(name));
    for instance in ["host", "web"] {
        change_version(&place.directory().join(".keep").join(instance).join("state"));
    }
    process::signal(&server.0, Signal::USR1);
    eventually("the next process serves", || {
        let shown = pages[0].word();
        match shown {
            PageWord { live: true, .. } if shown.generation.get() > 2 => Ok(()),
            _ => Err(format!("{shown:?}")),
        }
    });
    eventually("and answers", || {
        Watcher::open(&place.node("host")).map_err(|error| error.to_string())
    });
    let before = pages[0].generation();
    place.trigger("host");
    assert_shows(&pages[0], before + 1, true);
    // It was added by hand, and may have ended.
    assert_ne!(pages[1].generation(), 1);
    server.end(Signal::INT);
    assert!(pages.iter().all(|page| !page.word().live));
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn of_very_many_pages_that_nobody_serves_the_oldest_are_deleted_unless_they_are_mapped() {
    let place = Place::new();
    let server = place.start(&[]);
    let page = |name: &str| place.directory().join(".keep").join(name).join("page");
    let mut mapped = Vec::new();
    for name in ["mapped", "unmapped"] {
        place.ask(&["instance", "add", name]);
        if name == "mapped" {
            mapped.push(place.map(name));
        }
        place.ask(&["instance", "remove", name]);
        let file = File::options().write(true).open(page(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    for n in 0..1000 {
        let path = page(&format!("i{n}"));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(path, [1; 4096]).unwrap();
    }
    // Now and then it looks.
    let go_on_until_it_looks = |gone: &str| {
        for _ in 0..300 {
            place.ask(&["instance", "add", "x"]);
            place.ask(&["instance", "remove", "x"]);
            if !page(gone).exists() {
                return;
            }
        }
        panic!("the page of {gone} is still there");
    };
    go_on_until_it_looks("unmapped");
    assert!(page("mapped").exists());
    drop(mapped);
    // For there to be too many again.
    for n in 1000..1010 {
        let path = page(&format!("i{n}"));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(path, [1; 4096]).unwrap();
    }
    go_on_until_it_looks("mapped");
    server.end(Signal::INT);
}

/// As if another version had made it.
fn change_version(state: &Path) {
    let state = File::options().read(true).write(true).open(state).unwrap();
    let mut byte = [0];
    state.read_exact_at(&mut byte, 0).unwrap();
    state.write_all_at(&[byte[0] ^ 0x55], 0).unwrap();
}

/// What renews the copies of a page may outlive the daemon that has started it, with an old page in its hand.
#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_copy_is_renewed_by_one_process_at_a_time_whoever_has_started_it() {
    let daemon = Daemon::start(&Setup {
        supervision: Supervision::None,
        passthrough: false,
        published: false,
        environment: Vec::new(),
    });
    let watcher = Watcher::open(&daemon.node("host")).unwrap();
    let copy = watcher.map().unwrap();
    // From now on the kernel has a copy, which it does not ask for again.
    assert_eq!(copy.generation(), 0);
    let page = File::open(daemon.directory().join(".keep/host/page")).unwrap();
    rustix::fs::flock(&page, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let trigger = scope.spawn(|| watcher.trigger(0));
        // That it does not return is no event, so this takes its time.
        std::thread::sleep(Duration::from_millis(300));
        let meanwhile = (trigger.is_finished(), copy.generation());
        rustix::fs::flock(&page, FlockOperation::Unlock).unwrap();
        trigger.join().unwrap().unwrap();
        assert_eq!(meanwhile, (false, 0));
    });
    assert_eq!(copy.generation(), 1);
    daemon.stop();
}
