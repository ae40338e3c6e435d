// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measures what strangers cost everybody else: those who poll the machine's node in great numbers, and a tenant that
//! changes its own generation as fast as it can.
//!
//! The strangers are processes of their own, of a user without rights, and end with this one.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::Barrier;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use rustix::event::epoll;
use rustix::process::Resource;
use rustix::process::Signal;
use rustix::process::getrlimit;
use rustix::process::set_parent_process_death_signal;
use rustix::thread::UnshareFlags;
use sysgenid_guest::measurement::Measurement;
use sysgenid_guest::measurement::OPEN_BESIDE_TENANT;
use sysgenid_guest::measurement::PAGE_BEHIND_HOST;

use crate::clock::monotonic_ns;
use crate::limits::allow_many_files;
use crate::node::Node;
use crate::node::Page;

/// The user that may do nothing.
const NOBODY: u32 = 65_534;

/// How many files a process has beside those of the benchmark.
const OTHERS: usize = 100;

/// How many changes are measured with so many pollers, each of which they hear of.
const CHANGES: usize = 20;

/// How long opens are measured, in nanoseconds: a tenant may be allowed some changes a second.
const OPENING_NS: u64 = 5_000_000_000;

/// With how many threads the tenant triggers, and how many watchers of its own it wakes each time.
const TENANT_THREADS: usize = 4;
const TENANT_POLLERS: usize = 10_000;

/// What a tenant is called.
const TENANT: &str = "tenant";

/// What the strangers say.
const HEARD: &str = "heard ";
const IN_NAMESPACE: &str = "in its namespace";
const TRIGGERING: &str = "triggering";

/// Measures and prints JSON. `name` is what the daemon is called in the results, `daemon` its program, and `folder`
/// where it has its instances: the host's and one that is called `container`.
pub(crate) fn run(name: &str, daemon: &Path, folder: &Path, pollers: usize) -> Result<()> {
    allow_many_files()?;
    let measured = |work: &str, mut taken: Vec<u64>| {
        taken.sort_unstable();
        Measurement {
            work: work.to_owned(),
            candidate: name.to_owned(),
            samples: taken.len(),
            batch: 1,
            median_ns: taken[taken.len() / 2],
            p99_ns: taken[taken.len() * 99 / 100],
        }
    };
    let results = [
        measured(PAGE_BEHIND_HOST, page_behind_host(folder, pollers)?),
        measured(OPEN_BESIDE_TENANT, open_beside_tenant(daemon, folder)?),
    ];
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}

fn node(folder: &Path, instance: &str) -> Result<String> {
    let path = folder.join(instance).join("sysgenid");
    Ok(path.to_str().context("a path is no text")?.to_owned())
}

/// How much later than the host's page a container's changes.
fn page_behind_host(folder: &Path, pollers: usize) -> Result<Vec<u64>> {
    let host = node(folder, "host")?;
    let trigger = Node::open(&host)?;
    let pages = [Page::map(&host)?, Page::map(&node(folder, "container")?)?];
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let each = usize::try_from(limit)?.saturating_sub(OTHERS).max(1);
    let mut strangers = Vec::new();
    let mut left = pollers;
    while left > 0 {
        let some = left.min(each);
        strangers.push(Stranger::start(&["poll", &host, &some.to_string()])?);
        left -= some;
    }
    let mut taken = Vec::new();
    for changes in 0..=CHANGES {
        for stranger in &mut strangers {
            stranger.wait_for(&format!("{HEARD}{changes}"))?;
        }
        if changes < CHANGES {
            taken.push(lag(&pages, &trigger)?);
            eprintln!("{PAGE_BEHIND_HOST}: {} of {CHANGES}", changes + 1);
        }
    }
    Ok(taken)
}

/// How long after the first page the second changes.
fn lag([first, second]: &[Page; 2], trigger: &Node) -> Result<u64> {
    let looks = Barrier::new(2);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let before = [first.generation(), second.generation()];
            looks.wait();
            while first.generation() == before[0] {
                std::hint::spin_loop();
            }
            let start = monotonic_ns();
            while second.generation() == before[1] {
                std::hint::spin_loop();
            }
            monotonic_ns() - start
        });
        looks.wait();
        trigger.bump()?;
        looking.join().ok().context("the look at the pages failed")
    })
}

/// How long an open of the host's node takes.
fn open_beside_tenant(daemon: &Path, folder: &Path) -> Result<Vec<u64>> {
    let mut tenant = Stranger::start(&["tenant"])?;
    tenant.wait_for(IN_NAMESPACE)?;
    let added = Command::new(daemon)
        .args(["instance", "add", TENANT, "--pid"])
        .arg(tenant.child.id().to_string())
        .arg("--directory")
        .arg(folder)
        .stdout(Stdio::null())
        .status()?;
    ensure!(
        added.success(),
        "cannot add an instance for the tenant: {added}"
    );
    let its_node = node(folder, TENANT)?;
    writeln!(
        tenant.child.stdin.as_mut().context("it has an input")?,
        "{its_node}"
    )?;
    tenant.wait_for(TRIGGERING)?;
    let page = Page::map(&its_node)?;
    let before = page.generation();
    let host = node(folder, "host")?;
    let begun = monotonic_ns();
    let mut taken = Vec::new();
    while monotonic_ns() - begun < OPENING_NS {
        let start = monotonic_ns();
        Node::open(&host)?;
        taken.push(monotonic_ns() - start);
    }
    ensure!(page.generation() != before, "the tenant changes nothing");
    Ok(taken)
}

/// Another process of this program.
struct Stranger {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Stranger {
    fn start(arguments: &[&str]) -> Result<Self> {
        // By this path also where the program is in a folder to which others cannot come.
        let mut child = Command::new("/proc/self/exe")
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a stranger")?;
        let lines = BufReader::new(child.stdout.take().context("it has an output")?);
        Ok(Self { child, lines })
    }

    fn wait_for(&mut self, what: &str) -> Result<()> {
        let mut line = String::new();
        while line.trim_end() != what {
            line.clear();
            let read = self.lines.read_line(&mut line)?;
            ensure!(read > 0, "a stranger ended before it said {what:?}");
        }
        Ok(())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls a node by so many descriptions, and says how many changes all have heard of. It never acknowledges.
pub(crate) fn poll(node: &str, count: usize) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    hear(node, count, |changes| println!("{HEARD}{changes}"))
}

/// Runs for ever unless something fails.
fn hear(node: &str, count: usize, mut heard: impl FnMut(usize)) -> Result<()> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
    let watchers = (0..count)
        .map(|_| Node::open_to_look(node))
        .collect::<rustix::io::Result<Vec<_>>>()?;
    for watcher in &watchers {
        epoll::add(&events, watcher, epoll::EventData::new_u64(0), edges)?;
    }
    let mut ready = Vec::with_capacity(1024);
    let (mut all, mut changes) = (0, 0);
    loop {
        while changes <= all / count {
            heard(changes);
            changes += 1;
        }
        ready.clear();
        epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None)?;
        all += ready.len();
    }
}

/// Is root in a namespace of its own, and changes the generation of the node that it is told as fast as it can.
pub(crate) fn tenant() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: the flag does not unshare descriptors, the only thing that is unsafe here.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .context("a user cannot make a user namespace here")?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {NOBODY} 1"))?;
    println!("{IN_NAMESPACE}");
    let mut node = String::new();
    std::io::stdin().read_line(&mut node)?;
    let node = node.trim_end();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            hear(node, TENANT_POLLERS, |changes| {
                if changes == 0 {
                    println!("{TRIGGERING}");
                }
            })
        });
        for _ in 0..TENANT_THREADS {
            scope.spawn(|| -> Result<()> {
                let node = Node::open(node)?;
                loop {
                    // What is too much is refused, and tried again all the same.
                    let _ = node.bump();
                }
            });
        }
    });
    Ok(())
}
