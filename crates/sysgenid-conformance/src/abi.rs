// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers of the contract, typed out by hand from `docs/sysgenid.rst`.
//!
//! They are deliberately not taken from the implementation: a wrong number there must be seen here.

use std::path::Path;

use anyhow::{Context, bail};

/// Returns the number of tracked, outdated watchers.
pub(crate) const VMGENID_GET_OUTDATED_WATCHERS: u32 = 0x2d01;
/// Waits until no tracked watcher is outdated.
pub(crate) const VMGENID_WAIT_WATCHERS: u32 = 0x2d02;
/// Bumps the generation by one.
pub(crate) const VMGENID_FORCE_GEN_UPDATE: u32 = 0x2d03;
/// Starts or stops counting the caller.
pub(crate) const SYSGENID_SET_WATCHER_TRACKING: u32 = 0xe401;
/// The same as [`VMGENID_WAIT_WATCHERS`].
pub(crate) const SYSGENID_WAIT_WATCHERS: u32 = 0xe402;
/// Bumps the generation to at least the argument.
pub(crate) const SYSGENID_TRIGGER_GEN_UPDATE: u32 = 0xe403;

/// Both numbers of the one wait.
pub(crate) const WAITS: [(&str, u32); 2] = [
    ("VMGENID_WAIT_WATCHERS", VMGENID_WAIT_WATCHERS),
    ("SYSGENID_WAIT_WATCHERS", SYSGENID_WAIT_WATCHERS),
];

/// In the second 4 bytes of the page: it will show the next change.
pub(crate) const PAGE_LIVE: u32 = 1;

/// In the second 4 bytes of the page: something notices restores without being told.
pub(crate) const PAGE_NOTICED: u32 = 2;

/// The fields of `/proc/PID/fdinfo/FD`, in their order.
pub(crate) const FDINFO_FIELDS: [&str; 4] = ["generation", "acknowledged", "tracked", "outdated"];

/// The fields that follow them.
pub(crate) const FDINFO_TIMES: [&str; 2] = ["changed", "outdated_since"];

/// For how many changes, the latest, a node must know when they happened.
pub(crate) const FDINFO_TIMES_KEPT: usize = 64;

/// The variable of a `change` uevent that carries the new generation.
pub(crate) const UEVENT_VARIABLE: &str = "SYSGENID_GENERATION";

/// Which of the two nodes a node is. They differ in what a new watcher is, and in who may open them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A new watcher is tracked, if it is open for writing.
    Vmgenid,
    /// A new watcher is not tracked until it asks.
    Sysgenid,
}

impl Kind {
    /// Infers the kind from the file name.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let name = path
            .file_name()
            .with_context(|| format!("{} names no file", path.display()))?;
        match name.to_str() {
            Some("vmgenid") => Ok(Kind::Vmgenid),
            Some("sysgenid") => Ok(Kind::Sysgenid),
            _ => bail!(
                "cannot tell from the name of {} which node it is: say `--as vmgenid` or `--as sysgenid`",
                path.display()
            ),
        }
    }

    /// The file name under `/dev`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Vmgenid => "vmgenid",
            Kind::Sysgenid => "sysgenid",
        }
    }

    /// The node that shares its generation.
    pub(crate) fn sibling(self) -> Self {
        match self {
            Kind::Vmgenid => Kind::Sysgenid,
            Kind::Sysgenid => Kind::Vmgenid,
        }
    }

    /// Whether a new watcher that is open for writing is tracked. No other is.
    pub(crate) fn tracks_new_watchers(self) -> bool {
        self == Kind::Vmgenid
    }

    /// The permission bits of the node where no rule of the system says otherwise.
    pub(crate) fn default_mode(self) -> u32 {
        match self {
            Kind::Vmgenid => 0o600,
            Kind::Sysgenid => 0o644,
        }
    }
}

/// The generation after `generation` when a trigger asks for at least `minimum`.
pub(crate) fn successor(generation: u32, minimum: u32) -> u32 {
    match generation.checked_add(1) {
        Some(next) => next.max(minimum),
        None if minimum == u32::MAX => 1,
        None => minimum.max(1),
    }
}

#[cfg(test)]
mod tests {
    use sysgenid_core::Access;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_implementation() {
        use sysgenid_core::abi;

        assert_eq!(
            VMGENID_GET_OUTDATED_WATCHERS,
            abi::VMGENID_GET_OUTDATED_WATCHERS
        );
        assert_eq!(VMGENID_WAIT_WATCHERS, abi::VMGENID_WAIT_WATCHERS);
        assert_eq!(VMGENID_FORCE_GEN_UPDATE, abi::VMGENID_FORCE_GEN_UPDATE);
        assert_eq!(
            SYSGENID_SET_WATCHER_TRACKING,
            abi::SYSGENID_SET_WATCHER_TRACKING
        );
        assert_eq!(SYSGENID_WAIT_WATCHERS, abi::SYSGENID_WAIT_WATCHERS);
        assert_eq!(
            SYSGENID_TRIGGER_GEN_UPDATE,
            abi::SYSGENID_TRIGGER_GEN_UPDATE
        );
        assert_eq!(PAGE_LIVE, abi::PAGE_LIVE);
        assert_eq!(PAGE_NOTICED, abi::PAGE_NOTICED);
        assert_eq!(FDINFO_FIELDS, abi::FDINFO_FIELDS);
        assert_eq!(FDINFO_TIMES, abi::FDINFO_TIMES);
        assert_eq!(FDINFO_TIMES_KEPT, abi::FDINFO_TIMES_KEPT);
        assert_eq!(UEVENT_VARIABLE, abi::UEVENT_VARIABLE);
    }

    #[test]
    fn the_nodes_are_those_of_the_implementation() {
        for (kind, node) in [
            (Kind::Vmgenid, sysgenid_core::Node::Vmgenid),
            (Kind::Sysgenid, sysgenid_core::Node::Sysgenid),
        ] {
            assert_eq!(kind.name(), node.name());
            let tracks = node.tracks_new_watchers(Access::ReadWrite);
            assert_eq!(kind.tracks_new_watchers(), tracks);
            assert!(!node.tracks_new_watchers(Access::ReadOnly));
            assert_eq!(kind.default_mode(), u32::from(node.default_mode()));
        }
    }

    #[test]
    fn the_successor_is_that_of_the_implementation() {
        for generation in [0, 1, 7, u32::MAX - 1, u32::MAX] {
            for minimum in [0, 1, 6, 7, 8, u32::MAX - 1, u32::MAX] {
                let theirs = sysgenid_core::Generation::new(generation)
                    .next_at_least(sysgenid_core::Generation::new(minimum));
                assert_eq!(successor(generation, minimum), theirs.get());
            }
        }
    }

    #[test]
    fn a_node_of_another_name_must_be_explained() {
        assert_eq!(Kind::of(Path::new("/dev/vmgenid")).unwrap(), Kind::Vmgenid);
        assert_eq!(Kind::of(Path::new("x/sysgenid")).unwrap(), Kind::Sysgenid);
        assert!(Kind::of(Path::new("/dev/null")).is_err());
        assert!(Kind::of(Path::new("/")).is_err());
    }
}
