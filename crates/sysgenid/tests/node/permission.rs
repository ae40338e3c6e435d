// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who may do what.

use std::sync::mpsc;

use rustix::thread::{Gid, Uid};
use sysgenid::{Access, Error, Generation, Orchestrator, Probe, Settlement, Tracking, Watcher};
use sysgenid_fixture::{Machine, PATIENCE, untracked};

/// Runs something without any privilege, in a thread that ends with it.
fn without_privilege<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let (nobody, nogroup) = (Uid::from_raw(65534), Gid::from_raw(65534));
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(nogroup, nogroup, nogroup).unwrap();
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

#[test]
#[ignore = "needs a node"]
fn somebody_without_privilege_may_look_but_neither_acknowledge_nor_bump() {
    let machine = Machine::new();
    if machine.orchestrator().path().ends_with("vmgenid") {
        without_privilege(|| {
            for result in [
                Probe::open().err(),
                Watcher::open(Tracking::Untracked).err(),
            ] {
                let denied = matches!(
                    result,
                    Some(Error::NoPermission {
                        access: Access::Read,
                        ..
                    })
                );
                assert!(denied, "{result:?}");
            }
        });
        return;
    }
    let (ask, asked) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let orchestrator = machine.orchestrator();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for () in asked {
                tell.send(orchestrator.bump().unwrap()).unwrap();
            }
        });
        look_without_privilege(move || {
            ask.send(()).unwrap();
            told.recv().unwrap()
        });
    });
}

fn look_without_privilege(bump: impl FnOnce() -> Generation + Send) {
    without_privilege(|| {
        let probe = Probe::open().unwrap();
        let stamp = probe.stamp();
        let watcher = untracked();
        let generation = bump();
        assert!(probe.has_changed(&stamp));
        assert_eq!(watcher.wait().unwrap().generation(), generation);
        let refused = Watcher::open(Tracking::Tracked).unwrap_err();
        assert!(
            matches!(
                refused,
                Error::NoPermission {
                    access: Access::ReadWrite,
                    ..
                }
            ),
            "{refused}"
        );
        let orchestrator = Orchestrator::open().unwrap();
        assert_eq!(
            orchestrator.settle(Some(PATIENCE)).unwrap(),
            Settlement::Settled(generation)
        );
        let refused = orchestrator.bump().unwrap_err();
        assert!(matches!(refused, Error::NotCapable { .. }), "{refused}");
        assert_eq!(probe.generation(), generation);
    });
}
