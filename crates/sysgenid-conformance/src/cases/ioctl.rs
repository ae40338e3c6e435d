// SPDX-License-Identifier: MIT OR Apache-2.0

//! What all ioctls have in common. Each of them has a file of its own beside this one.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case};
use crate::abi;
use crate::node::Node;
use crate::outcome::{Outcome, fails, gives};

pub(super) const CASES: &[Case] = &[
    case(
        "an-unknown-ioctl-is-ENOTTY",
        &["ioctl-unknown"],
        an_unknown_ioctl_is_enotty,
    ),
    case(
        "an-ioctl-for-others-to-answer-is-ENOTTY",
        &["ioctl-unknown"],
        an_ioctl_for_others_is_enotty,
    ),
    case(
        "a-node-accepts-both-families-of-ioctl",
        &["ioctl-families"],
        a_node_accepts_both_families,
    ),
];

fn an_unknown_ioctl_is_enotty(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
    // The numbers beside those that exist, of both families, and a far one.
    let beside = [0x2d00, 0x2d04, 0x2dff, 0xe400, 0xe404, 0xe4ff];
    // No family of ours. The last is the terminal's, which gives the errno its name.
    let elsewhere = [0x2e01, 0xe301, 0x5401];
    for request in beside.into_iter().chain(elsewhere) {
        let what = format!("ioctl {request:#x}");
        fails(&what, watcher.ioctl(request, 0), Errno::NOTTY)?;
    }
    Ok(())
}

/// Of a node that is a file to the kernel, and not a device, the kernel answers some itself before it asks
/// whoever serves it.
fn an_ioctl_for_others_is_enotty(node: &Node) -> Outcome {
    let watcher = node.open(OFlags::RDWR | OFlags::NONBLOCK)?;
    let requests = [
        // FIBMAP, which any regular file has.
        0x0001,
        // The right type and number, but with a direction and a size: an argument that is copied.
        abi::VMGENID_GET_OUTDATED_WATCHERS | 0x8004_0000,
        abi::VMGENID_WAIT_WATCHERS | 0x4004_0000,
        abi::SYSGENID_TRIGGER_GEN_UPDATE | 0x4008_0000,
    ];
    for request in requests {
        let what = format!("ioctl {request:#x}");
        fails(&what, watcher.ioctl(request, 0), Errno::NOTTY)?;
    }
    Ok(())
}

fn a_node_accepts_both_families(node: &Node) -> Outcome {
    let control = node.control()?;
    let watcher = node.tracked()?;
    for (what, request) in [
        ("SET_WATCHER_TRACKING", abi::SYSGENID_SET_WATCHER_TRACKING),
        ("GET_OUTDATED_WATCHERS", abi::VMGENID_GET_OUTDATED_WATCHERS),
        ("VMGENID_WAIT_WATCHERS", abi::VMGENID_WAIT_WATCHERS),
        ("SYSGENID_WAIT_WATCHERS", abi::SYSGENID_WAIT_WATCHERS),
        ("FORCE_GEN_UPDATE", abi::VMGENID_FORCE_GEN_UPDATE),
        ("TRIGGER_GEN_UPDATE", abi::SYSGENID_TRIGGER_GEN_UPDATE),
    ] {
        gives(what, watcher.ioctl(request, 0), 0)?;
    }
    control.generation()?;
    Ok(())
}
