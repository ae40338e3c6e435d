// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the world does to a daemon while it runs, and what its successor finds: processes that are gone,
//! links that lead elsewhere, a changed configuration. None of it may cost anybody a watcher.

#![allow(clippy::unwrap_used)] // A test ends by a panic.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::daemon::{Daemon, Setup, Supervision, replace_devices};
use common::process;
use common::watcher::Watcher;
use rustix::io::Errno;
use rustix::process::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sysgenidd");

fn start(supervision: Supervision<'_>, published: bool) -> Daemon {
    Daemon::start(&Setup {
        supervision,
        passthrough: true,
        published,
        environment: Vec::new(),
    })
}

fn kill_and_wait_for_the_next(daemon: &Daemon, nth: usize) {
    let child = process::child_of(daemon.id()).unwrap();
    rustix::process::kill_process(child, Signal::KILL).unwrap();
    daemon.log().wait(" ready ", nth);
}

fn generation(node: &Path) -> u32 {
    Watcher::open(node).unwrap().map().unwrap().generation()
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_outlives_the_process_that_its_namespace_was_named_by() {
    let daemon = start(Supervision::Supervised { limit: 5 }, false);
    let (mut container, pid) = process::unshared(&["--user", "--map-root-user"]);
    let arguments = ["instance", "add", "web", "--pid", &pid, "--outlive"];
    let added = daemon.ask(&arguments);
    assert!(added.status.success(), "{added:?}");
    let node = daemon.directory().join("web/sysgenid");
    let watcher = Watcher::open(&node).unwrap();
    process::kill(&mut container, "the container");

    kill_and_wait_for_the_next(&daemon, 2);
    let host = Watcher::open(&daemon.file("sysgenid")).unwrap();
    host.trigger(0).unwrap();
    assert_eq!(watcher.read().unwrap(), 1);
    assert_eq!(generation(&node), 1);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_link_that_somebody_replaced_does_not_keep_a_successor_from_serving() {
    let daemon = start(Supervision::Supervised { limit: 5 }, true);
    let watcher = Watcher::open(Path::new("/dev/sysgenid")).unwrap();
    std::fs::remove_file("/dev/sysgenid").unwrap();
    std::fs::write("/dev/sysgenid", "somebody's").unwrap();
    kill_and_wait_for_the_next(&daemon, 2);
    watcher.trigger(7).unwrap();
    assert_eq!(watcher.read().unwrap(), 7);
    assert_eq!(std::fs::read("/dev/sysgenid").unwrap(), b"somebody's");
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn nothing_is_published_where_nothing_notices_unless_always() {
    let daemon = start(Supervision::None, false);
    // The daemon shares this thread's mounts.
    replace_devices(&daemon.directory().with_file_name("devices"));
    let config = daemon.directory().with_file_name("sysgenidd.toml");
    let links = || ["/dev/sysgenid", "/dev/vmgenid"].map(|link| std::fs::read_link(link).is_ok());
    let reload = |publish: &str, nth: usize| {
        let text = format!("publish = {publish}\n[backends]\nuse = []\n");
        std::fs::write(&config, text).unwrap();
        daemon.signal(Signal::HUP);
        daemon.log().wait("has been read again", nth);
    };
    reload("true", 1);
    assert_eq!(links(), [false; 2]);
    assert_eq!(daemon.log().count("nothing is published"), 1);
    reload("\"always\"", 2);
    assert_eq!(links(), [true; 2]);
    reload("true", 3);
    assert_eq!(links(), [false; 2]);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_that_begins_to_follow_the_host_does_not_make_up_for_the_past() {
    let daemon = start(Supervision::None, false);
    let host = Watcher::open(&daemon.file("sysgenid")).unwrap();
    for _ in 0..3 {
        host.trigger(0).unwrap();
    }
    let stranger = daemon.directory().join("stranger/sysgenid");
    let config = daemon.directory().with_file_name("sysgenidd.toml");
    std::fs::write(
        &config,
        "[backends]\nuse = []\n[instances.stranger]\nparent = \"host\"\n",
    )
    .unwrap();
    daemon.signal(Signal::HUP);
    daemon.log().wait("has been read again", 1);
    assert_eq!(generation(&stranger), 0);
    host.trigger(0).unwrap();
    assert_eq!(generation(&stranger), 1);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn the_daemon_never_opens_what_it_would_have_to_answer_itself() {
    let daemon = start(Supervision::None, false);
    let folder = daemon.directory().parent().unwrap().to_owned();
    let link = folder.join("link");
    std::os::unix::fs::symlink(daemon.directory(), &link).unwrap();
    for path in [daemon.file("status"), link.join("host/status")] {
        let path = path.to_str().unwrap();
        let added = daemon.ask(&["instance", "add", "web", "--user-namespace", path]);
        assert!(!added.status.success(), "{added:?}");
    }
    let parent = link.join("host/sysgenid");
    let text = format!(
        "[backends]\nuse = [\"parent\"]\nparent = \"{}\"\n",
        parent.display()
    );
    std::fs::write(folder.join("sysgenidd.toml"), text).unwrap();
    daemon.signal(Signal::HUP);
    daemon.log().wait("has been read again", 1);
    // Another thread looks for it.
    common::eventually("the node is known for the daemon's own", || {
        let status = std::fs::read_to_string(daemon.file("status")).unwrap();
        if status.contains("this daemon's own node") {
            Ok(())
        } else {
            Err(status)
        }
    });
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_directory_behind_a_link_and_a_strict_umask_change_nothing() {
    // Only for its mount namespace.
    let other = start(Supervision::None, false);
    let folder = other.directory().parent().unwrap().to_owned();
    let place = folder.join("place");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::symlink(&place, folder.join("way")).unwrap();
    let directory = folder.join("way/run");
    let config = folder.join("quiet.toml");
    std::fs::write(&config, "[backends]\nuse = []\n").unwrap();
    let script = "umask 077; exec \"$0\" \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", script, PROGRAM, "--config"])
        .arg(&config)
        .arg("--directory")
        .arg(&directory)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    common::eventually("it serves", || {
        Watcher::open(&directory.join("host/sysgenid")).map_err(|error| error.to_string())
    });
    let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // It finds its own mount, also after a death that left it there.
    child.kill().unwrap();
    child.wait().unwrap();
    let cleaned = Command::new(PROGRAM)
        .args(["clean", "--directory"])
        .arg(&directory)
        .output()
        .unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    // What tells programs that map a page that it has ended.
    let left = std::fs::read_dir(&directory).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".keep"]);
    other.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn what_is_no_mapping_gets_no_page_that_nobody_renews() {
    let daemon = start(Supervision::None, false);
    let node = std::fs::File::open(daemon.file("sysgenid")).unwrap();
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let sent = rustix::fs::sendfile(&writer, &node, None, 4);
    assert_eq!(sent, Err(Errno::INVAL));
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn only_the_owner_reads_the_names_of_everybodys_programs() {
    let daemon = start(Supervision::None, false);
    for (file, expected) in [("watchers", 0o440), ("status", 0o444), ("metrics", 0o444)] {
        let mode = std::fs::metadata(daemon.file(file)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, expected, "{file}");
    }
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_second_supervisor_leaves_the_nodes_of_the_first_alone() {
    let daemon = start(Supervision::Supervised { limit: 5 }, true);
    let watcher = Watcher::open(&daemon.file("sysgenid")).unwrap();
    let second = Command::new(PROGRAM)
        .args(["--supervise", "--publish", "--directory"])
        .arg(daemon.directory())
        .output()
        .unwrap();
    assert!(!second.status.success(), "{second:?}");
    watcher.trigger(0).unwrap();
    assert_eq!(generation(Path::new("/dev/sysgenid")), 1);
    assert!(daemon.ask(&["instance", "list"]).status.success());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_faulty_configuration_does_not_end_what_a_successor_takes_over() {
    let daemon = start(Supervision::Supervised { limit: 5 }, true);
    let follower = daemon.directory().join("follower/sysgenid");
    let watcher = Watcher::open(&follower).unwrap();
    let config = daemon.directory().with_file_name("sysgenidd.toml");
    std::fs::write(&config, "this is no configuration\n").unwrap();
    kill_and_wait_for_the_next(&daemon, 2);
    let host = Watcher::open(Path::new("/dev/sysgenid")).unwrap();
    host.trigger(0).unwrap();
    assert_eq!(watcher.read().unwrap(), 1);
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn a_configuration_that_cannot_be_published_changes_nothing() {
    let daemon = start(Supervision::None, true);
    std::fs::remove_file("/dev/sysgenid").unwrap();
    std::fs::write("/dev/sysgenid", "somebody's").unwrap();
    let config = daemon.directory().with_file_name("sysgenidd.toml");
    std::fs::write(
        &config,
        "publish = true\n[backends]\nuse = []\n[instances.late]\n",
    )
    .unwrap();
    let reloaded = daemon.ask(&["reload"]);
    assert!(!reloaded.status.success(), "{reloaded:?}");
    assert!(!daemon.directory().join("late").exists());
    assert!(daemon.directory().join("follower").exists());
    daemon.stop();
}

#[test]
#[ignore = "needs root and /dev/fuse; cargo xtask test runs it"]
fn an_instance_is_not_published_where_the_machines_own_devices_are() {
    let daemon = start(Supervision::None, true);
    // It shares the devices, and has mounts of its own all the same.
    let (mut sharer, pid) = process::unshared(&["--mount"]);
    let asked = daemon.ask(&["instance", "publish", "host", "--into", &pid]);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(said.contains("this machine's own /dev"), "{said}");
    assert!(std::fs::read_link("/dev/sysgenid").is_ok());
    process::kill(&mut sharer, "the sharer");
    daemon.stop();
}
