// SPDX-License-Identifier: MIT OR Apache-2.0

//! A fork is a change for the child: what its parent keeps, it has as well.

mod in_child;

use std::io::{Read as _, Write as _};
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use sysgenid::testing::SimulatedMachine;
use sysgenid::{Guarded, Probe};

use crate::in_child::Child;

/// What a forked child says that succeeds.
fn in_child(work: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let mut child = Child::fork(|to_parent| to_parent.write_all(&work()).is_ok());
    let mut said = Vec::new();
    child
        .says
        .read_to_end(&mut said)
        .expect("the child cannot be heard");
    assert_eq!(child.status(), 0);
    said
}

#[test]
fn a_fork_is_a_change_for_the_child_alone_and_so_is_the_next() {
    for probe in [Probe::never(), SimulatedMachine::new().probe()] {
        let stamp = probe.stamp();
        let said = in_child(|| {
            let changed = probe.has_changed(&stamp);
            let own = probe.stamp();
            let grandchild = in_child(|| {
                let both = [probe.has_changed(&stamp), probe.has_changed(&own)];
                both.map(u8::from).into()
            });
            let still = probe.has_changed(&own);
            [vec![u8::from(changed), u8::from(still)], grandchild].concat()
        });
        assert_eq!(said, [1, 0, 1, 1]);
        assert!(!probe.has_changed(&stamp));
    }
}

#[test]
fn a_guarded_value_is_not_shared_with_a_child() {
    let made = AtomicU32::new(0);
    let made: &'static AtomicU32 = Box::leak(Box::new(made));
    let guarded = Guarded::new(Probe::never(), |_| made.fetch_add(1, Ordering::Relaxed));
    assert_eq!(*guarded.get(), 0);
    let (before, owned) = (guarded.get(), guarded.get_owned());
    let said = in_child(|| {
        let old = u8::from(before.is_current()) + u8::from(owned.is_current());
        vec![old, u8::try_from(*guarded.get()).unwrap()]
    });
    assert_eq!(said, [0, 1]);
    assert!(before.is_current() && *guarded.get() == 0);
}

#[test]
fn a_child_waits_for_the_notice_as_well() {
    let machine = SimulatedMachine::new();
    let probe = machine.probe();
    // A counter that counts.
    machine.restore();
    let stamp = probe.stamp();
    let said = in_child(|| {
        // The hypervisor's word, of a restore that the kernel has not noticed yet.
        machine.count_restore();
        let started = Instant::now();
        probe.stamp_for_rebuild(&stamp);
        vec![u8::from(started.elapsed() >= Duration::from_millis(900))]
    });
    assert_eq!(
        said,
        [1],
        "it would draw from a generator that is not reseeded"
    );
}

#[test]
fn a_child_waits_for_no_thread_that_it_does_not_have() {
    let (tell_begun, begun) = channel();
    let (tell_end, end) = channel();
    let (tell_begun, end) = (Mutex::new(tell_begun), Mutex::new(end));
    let calls = AtomicU32::new(0);
    let guarded = Guarded::new(Probe::never(), move |_| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        if call == 0 {
            tell_begun.lock().unwrap().send(()).unwrap();
            end.lock().unwrap().recv().unwrap();
        }
        call
    });
    std::thread::scope(|scope| {
        let rebuilding = scope.spawn(|| *guarded.get());
        begun.recv().unwrap();
        let said = std::panic::catch_unwind(AssertUnwindSafe(|| {
            in_child(|| {
                // Whoever waits for ever is ended by this.
                // SAFETY: It takes a number.
                unsafe { libc::alarm(10) };
                vec![u8::try_from(*guarded.get()).unwrap()]
            })
        }));
        tell_end.send(()).unwrap();
        assert_eq!(rebuilding.join().unwrap(), 0);
        assert_eq!(said.unwrap(), [1]);
    });
    assert_eq!(*guarded.get(), 0);
}

#[cfg(feature = "rand")]
#[test]
fn a_child_draws_something_else() {
    use rand::Rng as _;
    use rand::rngs::StdRng;
    use sysgenid::SnapSafeRng;

    let mut rng = SnapSafeRng::<StdRng>::new(Probe::never()).unwrap();
    // In the middle of a block, the rest of which both have.
    rng.next_u32();
    let mut fill = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        bytes.to_vec()
    };
    let child = in_child(&mut fill);
    let parent = fill();
    assert_eq!(child.len(), parent.len());
    assert_ne!(child, parent);
}

#[cfg(feature = "uuid")]
#[test]
fn a_child_makes_other_identifiers() {
    use sysgenid::UuidGenerator;

    let ids = UuidGenerator::new(Probe::never()).unwrap();
    for make in [UuidGenerator::v4, UuidGenerator::v7] {
        let _ = make(&ids);
        let child = in_child(|| make(&ids).as_bytes().to_vec());
        assert_ne!(child, make(&ids).as_bytes());
    }
}
