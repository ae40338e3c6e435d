// SPDX-License-Identifier: MIT OR Apache-2.0

//! The node itself, and what a new watcher is.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Case, case, fdinfo};
use crate::node::Node;
use crate::outcome::{Outcome, fails, same, skip};

pub(super) const CASES: &[Case] = &[
    case(
        "the-generation-of-a-fresh-node-is-0",
        &["generation-starts-at-0"],
        the_generation_of_a_fresh_node_is_0,
    ),
    case(
        "fdinfo-of-a-fresh-node-says-that-it-never-changed",
        &["fdinfo-times"],
        fdinfo::a_fresh_node_never_changed,
    ),
    case(
        "a-node-has-its-default-mode-and-belongs-to-root",
        &["node-mode"],
        a_node_has_its_default_mode,
    ),
    case(
        "a-new-watcher-is-current",
        &["open-current"],
        a_new_watcher_is_current,
    ),
    case(
        "a-new-watcher-is-tracked-on-vmgenid-if-it-can-write-and-not-on-sysgenid",
        &["open-tracking"],
        a_new_watcher_is_tracked_as_the_node_says,
    ),
];

fn the_generation_of_a_fresh_node_is_0(node: &Node) -> Outcome {
    must_be_fresh(node)?;
    same("the generation", node.map()?.generation(), 0)
}

/// Skips the case where somebody may have changed the generation.
pub(super) fn must_be_fresh(node: &Node) -> Outcome {
    if node.fresh {
        Ok(())
    } else {
        skip("the node may not be fresh (--fresh says that it is)")
    }
}

fn a_node_has_its_default_mode(node: &Node) -> Outcome {
    if !node.is_char_device() {
        return skip("the node is not a character device: its server has given it its mode");
    }
    let metadata = std::fs::metadata(&node.path)?;
    if metadata.gid() != 0 {
        return skip("a rule of this system has given the node to a group");
    }
    same("its owner", metadata.uid(), 0)?;
    same(
        "its permission bits",
        format!("{:o}", metadata.permissions().mode() & 0o7777),
        format!("{:o}", node.kind.default_mode()),
    )
}

fn a_new_watcher_is_current(node: &Node) -> Outcome {
    let control = node.control()?;
    for _ in 0..3 {
        control.bump()?;
        let watcher = node.open(OFlags::RDONLY | OFlags::NONBLOCK)?;
        fails(
            "a read by a new watcher",
            watcher.generation(),
            Errno::AGAIN,
        )?;
        same("what poll says", watcher.is_readable()?, false)?;
    }
    Ok(())
}

fn a_new_watcher_is_tracked_as_the_node_says(node: &Node) -> Outcome {
    for (access, flags, can_write) in [
        ("O_RDONLY", OFlags::RDONLY, false),
        ("O_WRONLY", OFlags::WRONLY, true),
        ("O_RDWR", OFlags::RDWR, true),
    ] {
        let expected = i32::from(node.kind.tracks_new_watchers() && can_write);
        let control = node.control()?;
        let _watcher = node.open(flags)?;
        control.counts(0, &format!("after open with {access}"))?;
        control.bump()?;
        control.counts(expected, &format!("after open with {access} and a change"))?;
    }
    Ok(())
}
