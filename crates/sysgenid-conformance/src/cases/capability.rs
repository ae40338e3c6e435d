// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who may do what.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{Case, case};
use crate::abi::{self, Kind};
use crate::call::Call;
use crate::node::{Node, Watcher};
use crate::outcome::{Outcome, fail, fails, gives, name_of, same, skip};
use crate::process::{Event, Process};
use crate::sys::{self, Mapping};

pub(super) const CASES: &[Case] = &[
    case(
        "a-caller-without-the-capability-gets-EACCES-and-nothing-changes",
        &["bump-capability"],
        without_the_capability,
    ),
    case(
        "either-capability-alone-is-enough-and-no-other-is",
        &["bump-capability"],
        either_capability_is_enough,
    ),
    case(
        "the-capability-is-that-of-the-calling-thread",
        &["bump-capability"],
        the_capability_is_of_the_thread,
    ),
    case(
        "root-in-a-user-namespace-of-its-own-gets-EACCES",
        &["bump-namespace"],
        root_in_its_own_namespace,
    ),
    case(
        "an-unprivileged-user-gets-EACCES",
        &["bump-capability"],
        an_unprivileged_user_gets_eacces,
    ),
    case(
        "an-unprivileged-user-can-watch-sysgenid",
        &["node-mode", "unprivileged"],
        an_unprivileged_user_can_watch,
    ),
    case(
        "an-unprivileged-user-cannot-open-vmgenid",
        &["node-mode"],
        an_unprivileged_user_cannot_open_vmgenid,
    ),
];

/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// Both that change the generation.
const BUMPS: [(&str, u32); 2] = [
    ("FORCE_GEN_UPDATE", abi::VMGENID_FORCE_GEN_UPDATE),
    ("TRIGGER_GEN_UPDATE", abi::SYSGENID_TRIGGER_GEN_UPDATE),
];

fn enough() -> CapabilitySet {
    CapabilitySet::CHECKPOINT_RESTORE | CapabilitySet::SYS_ADMIN
}

/// Makes these the effective capabilities of the calling thread.
fn make_effective(effective: CapabilitySet) -> Outcome {
    let mut sets = capabilities(None)?;
    if !sets.permitted.contains(effective) {
        return skip("the caller does not have all of the capabilities that this needs");
    }
    sets.effective = effective;
    set_capabilities(None, sets)?;
    Ok(())
}

fn refuses(watcher: &Watcher) -> Outcome {
    for (name, request) in BUMPS {
        fails(name, watcher.ioctl(request, 0), Errno::ACCESS)?;
    }
    Ok(())
}

fn allows(watcher: &Watcher) -> Outcome {
    for (name, request) in BUMPS {
        gives(name, watcher.ioctl(request, 0), 0)?;
    }
    Ok(())
}

fn without_the_capability(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    let generation = control.generation()?;
    make_effective(CapabilitySet::empty())?;
    refuses(&watcher)?;
    // Being the one who opened it with the capability does not help.
    refuses(control.watcher())?;
    same("the generation", control.generation()?, generation)?;
    same("anybody is outdated", watcher.is_readable()?, false)?;
    control.counts(0, "after all of them")
}

fn either_capability_is_enough(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = control.watcher();
    make_effective(CapabilitySet::CHECKPOINT_RESTORE)?;
    allows(watcher)?;
    make_effective(CapabilitySet::SYS_ADMIN)?;
    allows(watcher)?;
    make_effective(capabilities(None)?.permitted - enough())?;
    refuses(watcher)
}

fn the_capability_is_of_the_thread(node: &Node) -> Outcome {
    let control = node.control()?;
    let dropped = Arc::new(Event::new()?);
    let may_end = Arc::new(Event::new()?);
    let watcher = control.watcher().duplicate()?;
    let thread = {
        let (dropped, may_end) = (Arc::clone(&dropped), Arc::clone(&may_end));
        Call::start("a thread without the capability", move || -> Outcome {
            let first = make_effective(CapabilitySet::empty()).and_then(|()| refuses(&watcher));
            dropped.set()?;
            first?;
            may_end.wait("the other thread's bump")?;
            refuses(&watcher)
        })?
    };
    dropped.wait("the loss of the capability")?;
    allows(control.watcher())?;
    may_end.set()?;
    thread.answer()??;

    // And the other way round: a process that has lost it, but for one thread.
    let lost = Arc::new(Event::new()?);
    let tried = Arc::new(Event::new()?);
    let watcher = control.watcher().duplicate()?;
    let thread = {
        let (lost, tried) = (Arc::clone(&lost), Arc::clone(&tried));
        Call::start("a thread with the capability", move || -> Outcome {
            lost.wait("the loss of the capability")?;
            let allowed = allows(&watcher);
            tried.set()?;
            allowed
        })?
    };
    make_effective(CapabilitySet::empty())?;
    lost.set()?;
    tried.wait("the bump by the thread that may")?;
    refuses(control.watcher())?;
    thread.answer()?
}

fn root_in_its_own_namespace(node: &Node) -> Outcome {
    let control = node.control()?;
    let generation = control.generation()?;
    let child = Process::spawn(|| {
        match sys::enter_own_user_namespace() {
            Ok(()) => {}
            Err(errno) => return skip(format!("no user namespace here ({})", name_of(errno))),
        }
        let effective = capabilities(None)?.effective;
        if !effective.contains(enough()) {
            return fail("the namespace did not give its maker all capabilities");
        }
        // It may hold a description that was opened outside, or open one itself.
        refuses(control.watcher())?;
        match node.open(OFlags::RDONLY) {
            Ok(watcher) => refuses(&watcher),
            Err(Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    })?;
    child.join("the process in the namespace")?;
    same("the generation", control.generation()?, generation)
}

/// Runs `body` as an unprivileged user.
fn as_nobody(body: impl FnOnce() -> Outcome) -> Outcome {
    if !geteuid().is_root() {
        return skip("only root can become another user");
    }
    Process::spawn(|| {
        sys::become_user(NOBODY)?;
        body()
    })?
    .join("the unprivileged process")
}

fn an_unprivileged_user_gets_eacces(node: &Node) -> Outcome {
    let control = node.control()?;
    let generation = control.generation()?;
    as_nobody(|| refuses(control.watcher()))?;
    same("the generation", control.generation()?, generation)
}

fn an_unprivileged_user_can_watch(node: &Node) -> Outcome {
    if node.kind == Kind::Vmgenid {
        return skip("vmgenid is for root only");
    }
    let control = node.control()?;
    let (ready, changed) = (Event::new()?, Event::new()?);
    let generation = control.leave_room(1)? + 1;
    let user = || {
        let watched = || -> Outcome<(Watcher, Mapping)> {
            let watcher = node.open(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let mapping = watcher.map_with(4, ProtFlags::READ, MapFlags::SHARED, 0)?;
            fails("read before the change", watcher.generation(), Errno::AGAIN)?;
            same("poll before the change", watcher.is_readable()?, false)?;
            Ok((watcher, mapping))
        };
        let result = watched();
        ready.set()?;
        let (watcher, mapping) = result?;
        changed.wait("the change")?;
        same("the mapping", mapping.generation(), generation)?;
        same("poll", watcher.is_readable()?, true)?;
        gives("read", watcher.generation(), generation)?;
        gives("the count", watcher.outdated(), 0)?;
        // As a library does it: nobody may have to wait for it.
        let libraries_own = node.map()?;
        same(
            "a library's mapping",
            libraries_own.generation(),
            generation,
        )?;
        refuses(&watcher)
    };
    if !geteuid().is_root() {
        return skip("only root can become another user");
    }
    let child = Process::spawn(|| {
        sys::become_user(NOBODY)?;
        user()
    })?;
    ready.wait("the start of the unprivileged process")?;
    same("the generation", control.bump()?, generation)?;
    changed.set()?;
    child.join("the unprivileged process")
}

fn an_unprivileged_user_cannot_open_vmgenid(node: &Node) -> Outcome {
    if node.kind != Kind::Vmgenid {
        return skip("sysgenid is for everybody");
    }
    as_nobody(|| {
        let opened = node.open(OFlags::RDONLY).map(drop);
        fails("open", opened, Errno::ACCESS)
    })
}
