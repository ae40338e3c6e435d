// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a caller may bump an instance: `ns_capable()` of the kernel, asked from outside.
//!
//! An instance is owned by a user namespace, and the right to bump it is `CAP_CHECKPOINT_RESTORE` or
//! `CAP_SYS_ADMIN` *there*. A process's capabilities hold in its own user namespace and in those below it;
//! besides, the user who made a namespace has all capabilities in it as long as he is in its parent. So
//! root in a namespace of one's own is nobody to the instance of the machine.
//!
//! The caller waits for the answer to its request meanwhile, so that its thread id stays its own, and
//! what is read of it in `/proc` is true. This needs the right to look at foreign processes
//! (`CAP_SYS_PTRACE`). What cannot be read is refused.

use rustix::io::Errno;

use crate::sys;

use super::namespace::{Identity, Owner, identity};
use super::proc::{Proc, Status, open_at, read_at};

/// `CAP_SYS_ADMIN` and `CAP_CHECKPOINT_RESTORE`, as bits of a set.
const CAPABILITIES: u64 = 1 << 21 | 1 << 40;

/// What an id that is not mapped looks like, unless an administrator changed it.
const OVERFLOW_USER: u32 = 65534;

impl Owner {
    /// Whether the thread `tid`, as this process numbers threads, may bump what this namespace owns.
    ///
    /// `tid` 0 stands for a caller that cannot be seen from here, and is refused. So are those who are in
    /// a namespace above this process's own, which cannot be seen either, and an owner without a number of
    /// his own here, because all of these look alike. Where [`Proc::own`] is of no use, everybody is.
    pub fn judges_capable(&self, tid: u32) -> bool {
        tid != 0 && self.is_capable(tid).unwrap_or(false)
    }

    fn is_capable(&self, tid: u32) -> Result<bool, Errno> {
        let Ok(proc) = Proc::own() else {
            return Ok(false);
        };
        let caller = Caller::of(proc, tid)?;
        let mut namespace = rustix::io::fcntl_dupfd_cloexec(self, 0)?;
        // The kernel allows 32 levels, so this ends.
        loop {
            if identity(&namespace)? == caller.namespace {
                return Ok(caller.capabilities & CAPABILITIES != 0);
            }
            let parent = match sys::parent_of_user_namespace(&namespace) {
                Ok(parent) => parent,
                // The caller is neither in this namespace nor in one above it.
                Err(Errno::PERM) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            if identity(&parent)? == caller.namespace
                && caller.user != overflow_user(proc)
                && sys::owner_of_user_namespace(&namespace)? == caller.user
            {
                return Ok(true);
            }
            namespace = parent;
        }
    }
}

/// What decides about a thread.
struct Caller {
    namespace: Identity,
    /// Its effective user, as this process sees users.
    user: u32,
    /// Its effective capabilities, in its own namespace.
    capabilities: u64,
}

impl Caller {
    fn of(proc: &Proc, tid: u32) -> Result<Self, Errno> {
        let folder = proc.folder(tid)?;
        let namespace = identity(&open_at(&folder, "ns/user")?)?;
        let status = Status::in_folder(&folder)?;
        let (user, capabilities) = effective(&status).ok_or(Errno::INVAL)?;
        Ok(Self {
            namespace,
            user,
            capabilities,
        })
    }
}

/// The effective user and the effective capabilities.
fn effective(status: &Status) -> Option<(u32, u64)> {
    let mut users = status.text("Uid")?.split_whitespace();
    let user = users.nth(1)?.parse().ok()?;
    Some((user, status.set("CapEff")?))
}

/// The user id that stands for all that are not mapped here.
fn overflow_user(proc: &Proc) -> u32 {
    read_at(proc, "sys/kernel/overflowuid")
        .ok()
        .and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok())
        .unwrap_or(OVERFLOW_USER)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::judging::people::{OWN_NAMESPACE, Process, as_user, here, start};

    use super::*;

    fn capabilities(process: &Process) -> u64 {
        let caller = Caller::of(Proc::own().unwrap(), process.tid()).unwrap();
        caller.capabilities
    }

    #[test]
    fn root_of_the_machine_is_accepted_for_the_machine() {
        let Some(root) = Process::start(&["setpriv", "--no-new-privs"]) else {
            return;
        };
        let capable = capabilities(&root) & CAPABILITIES != 0;
        if !capable {
            eprintln!("skipped: not run as root");
            return;
        }
        assert!(here().judges_capable(root.tid()));
    }

    #[test]
    fn root_in_an_own_namespace_is_refused_for_the_machine_and_accepted_there() {
        let Some(root) = Process::start(&OWN_NAMESPACE) else {
            return;
        };
        assert_ne!(capabilities(&root) & CAPABILITIES, 0);
        assert!(!here().judges_capable(root.tid()));
        assert!(root.namespace().judges_capable(root.tid()));
    }

    #[test]
    fn capabilities_reach_down_but_neither_up_nor_aside() {
        let Some(above) = Process::start(&OWN_NAMESPACE) else {
            return;
        };
        let aside = Process::start(&OWN_NAMESPACE).unwrap();
        // Below `above`: made by its root, in its namespace.
        let target = above.tid().to_string();
        let below = Process::start(&[
            "nsenter",
            "-U",
            "--preserve-credentials",
            "-t",
            &target,
            "unshare",
            "-Ur",
        ])
        .unwrap();
        let deepest = Process::start(&[
            "nsenter",
            "-U",
            "--preserve-credentials",
            "-t",
            &target,
            "unshare",
            "-Ur",
            "unshare",
            "-Ur",
        ])
        .unwrap();
        let judge =
            |owner: &Process, caller: &Process| owner.namespace().judges_capable(caller.tid());
        assert!(judge(&below, &above));
        assert!(judge(&deepest, &above));
        assert!(judge(&deepest, &deepest));
        assert!(!judge(&above, &below));
        assert!(!judge(&above, &deepest));
        assert!(!judge(&aside, &above));
        assert!(!judge(&aside, &below));
        assert!(!judge(&below, &deepest));
    }

    #[test]
    fn the_user_who_made_a_namespace_is_accepted_from_its_parent() {
        let mut made = as_user("1234");
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let maker = start(&as_user("1234")).unwrap();
        let stranger = start(&as_user("1235")).unwrap();
        assert_eq!(capabilities(&maker), 0);
        assert!(inside.namespace().judges_capable(maker.tid()));
        assert!(!inside.namespace().judges_capable(stranger.tid()));
        assert!(!here().judges_capable(maker.tid()));

        // He has the namespaces below, too, of which his own is not the parent.
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let below = start(&made).unwrap();
        assert!(below.namespace().judges_capable(maker.tid()));
        assert!(!below.namespace().judges_capable(stranger.tid()));
    }

    #[test]
    fn nobody_is_not_taken_for_an_owner_who_is_not_mapped() {
        let overflow = overflow_user(Proc::own().unwrap()).to_string();
        let mut made = as_user(&overflow);
        made.extend(OWN_NAMESPACE.map(str::to_owned));
        let Some(inside) = start(&made) else {
            return;
        };
        let nobody = start(&as_user(&overflow)).unwrap();
        assert!(!inside.namespace().judges_capable(nobody.tid()));
        assert!(inside.namespace().judges_capable(inside.tid()));
    }

    #[test]
    fn either_capability_is_enough_and_no_other_is() {
        let judged = |kept: &str| {
            let set = format!("-all,{kept}");
            let caller =
                Process::start(&["setpriv", "--inh-caps", "-all", "--bounding-set", &set])?;
            let capable = here().judges_capable(caller.tid());
            Some(capable)
        };
        let Some(capable) = judged("+checkpoint_restore") else {
            return;
        };
        assert!(capable);
        assert_eq!(judged("+sys_admin"), Some(true));
        assert_eq!(judged("+sys_ptrace,+dac_override,+setuid"), Some(false));
    }

    #[test]
    fn who_cannot_be_seen_is_refused() {
        assert!(!here().judges_capable(0));
        assert!(!here().judges_capable(u32::MAX));
        let mut gone = Command::new("true").spawn().unwrap();
        let tid = gone.id();
        gone.wait().unwrap();
        assert!(!here().judges_capable(tid));
    }

    #[test]
    fn a_status_is_read_for_what_is_effective() {
        let read = |text: &str| effective(&Status::from_text(text));
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nCapPrm:\tff\nCapEff:\t0000010000200000\n";
        assert_eq!(read(status), Some((2, CAPABILITIES)));
        assert_eq!(read("Uid:\t1\t2\t3\t4\n"), None);
        assert_eq!(read("CapEff:\t0\n"), None);
    }
}
