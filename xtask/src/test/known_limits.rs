// SPDX-License-Identifier: MIT OR Apache-2.0

//! What FUSE does not let the daemon do as the contract says, by the names of the suite's cases; people read
//! the same in `docs/sysgenidd.md`.

/// A case that fails on the daemon's nodes.
struct KnownLimit {
    case: &'static str,
    reason: Reason,
}

/// Why it fails. That also says where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// FUSE has no answer that restarts a call.
    NoRestart,
    /// The kernel answers some calls on a regular file itself.
    AnsweredByKernel,
    /// The daemon is not asked about mappings: neither their place nor their protection.
    MappingNotAsked,
    /// With passthrough a mapping is of the page itself, and does not keep the description open.
    PageMappedItself,
}

impl Reason {
    fn applies(self, passthrough: bool) -> bool {
        match self {
            Self::NoRestart | Self::AnsweredByKernel | Self::MappingNotAsked => true,
            Self::PageMappedItself => passthrough,
        }
    }
}

const fn limit(case: &'static str, reason: Reason) -> KnownLimit {
    KnownLimit { case, reason }
}

const KNOWN_LIMITS: &[KnownLimit] = &[
    limit(
        "a-blocked-read-goes-on-after-a-handler-with-SA_RESTART",
        Reason::NoRestart,
    ),
    limit(
        "write-of-0-bytes-is-EINVAL-and-changes-nothing",
        Reason::AnsweredByKernel,
    ),
    limit(
        "an-ioctl-for-others-to-answer-is-ENOTTY",
        Reason::AnsweredByKernel,
    ),
    limit(
        "a-mapping-at-another-offset-is-EINVAL",
        Reason::MappingNotAsked,
    ),
    limit(
        "a-mapping-of-more-than-a-page-is-EINVAL",
        Reason::MappingNotAsked,
    ),
    // Only through a descriptor that is open for writing.
    limit("a-writable-mapping-is-EPERM", Reason::MappingNotAsked),
    limit(
        "a-private-writable-mapping-is-EPERM",
        Reason::MappingNotAsked,
    ),
    limit("a-mapping-cannot-become-writable", Reason::MappingNotAsked),
    limit("a-mapping-is-never-dumped", Reason::MappingNotAsked),
    limit("a-mapping-never-grows", Reason::MappingNotAsked),
    limit(
        "a-forked-child-inherits-the-live-mapping",
        Reason::PageMappedItself,
    ),
    limit("a-mapping-keeps-its-watcher", Reason::PageMappedItself),
];

/// What tells the suite of them.
pub(crate) fn options(passthrough: bool) -> Vec<String> {
    KNOWN_LIMITS
        .iter()
        .filter(|limit| limit.reason.applies(passthrough))
        .map(|limit| format!("--known-failure={}", limit.case))
        .collect()
}

/// Why cases are skipped on the daemon's nodes: what there is only in the kernel.
pub(crate) fn is_expected_skip(node: &str, reason: &str) -> bool {
    const EVERYWHERE: [&str; 3] = [
        "the node is not a character device, and its server cannot add to fdinfo",
        "the node is not a character device: its server has given it its mode",
        "the node is not a character device",
    ];
    // These two are each other's opposite, and each is about one node.
    let about_the_other_node = match node {
        "vmgenid" => "vmgenid is for root only",
        _ => "sysgenid is for everybody",
    };
    EVERYWHERE.contains(&reason) || reason == about_the_other_node
}
