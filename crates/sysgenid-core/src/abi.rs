// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers and names of the contract, and nothing else of it.
//!
//! `include/uapi/linux/{sysgenid,vmgenid}.h` says the same for C programs; a test compiles those
//! headers and compares.

use super::{Error, Generation, Timeout};

/// The size of what `read` returns and `write` takes, in bytes: one native-endian `u32`.
pub const GENERATION_SIZE: usize = 4;

/// Where the live generation is in the mapped page, in bytes from its start: a native-endian `u32`.
pub const PAGE_GENERATION_OFFSET: usize = 0;

/// Where the flags of the page are, in bytes from its start: a native-endian `u32`. What follows them is
/// zero.
pub const PAGE_FLAGS_OFFSET: usize = 4;

/// The size of what is stored at once: generation and flags, in bytes.
pub const PAGE_WORD_SIZE: usize = 8;

/// Set in the flags while the page will show the next change.
pub const PAGE_LIVE: u32 = 1 << 0;

/// Set in the flags while something on this machine notices restores without being told.
pub const PAGE_NOTICED: u32 = 1 << 1;

/// The ioctl type of the family from the 2020 proposal.
pub const VMGENID_IOCTL_TYPE: u8 = 0x2d;

/// The ioctl type of the family from its last revisions.
pub const SYSGENID_IOCTL_TYPE: u8 = 0xe4;

/// Returns the number of tracked, outdated watchers. The argument is ignored.
pub const VMGENID_GET_OUTDATED_WATCHERS: u32 = io(VMGENID_IOCTL_TYPE, 1);

/// Waits until no tracked watcher is outdated. The argument is a time-out in milliseconds, 0 is for
/// ever.
pub const VMGENID_WAIT_WATCHERS: u32 = io(VMGENID_IOCTL_TYPE, 2);

/// Bumps the generation by one. The argument is ignored.
pub const VMGENID_FORCE_GEN_UPDATE: u32 = io(VMGENID_IOCTL_TYPE, 3);

/// Makes the caller's watcher tracked (argument not 0) or not (0).
pub const SYSGENID_SET_WATCHER_TRACKING: u32 = io(SYSGENID_IOCTL_TYPE, 1);

/// The same as [`VMGENID_WAIT_WATCHERS`].
pub const SYSGENID_WAIT_WATCHERS: u32 = io(SYSGENID_IOCTL_TYPE, 2);

/// Bumps the generation to at least the argument.
pub const SYSGENID_TRIGGER_GEN_UPDATE: u32 = io(SYSGENID_IOCTL_TYPE, 3);

/// What `poll` reports of every watcher: `EPOLLOUT | EPOLLWRNORM`, because a write never blocks.
pub const POLL_WRITABLE: u32 = 0x104;

/// What `poll` reports besides of an outdated watcher: `EPOLLIN | EPOLLRDNORM`.
pub const POLL_READABLE: u32 = 0x41;

/// What `poll` reports of a watcher that is outdated, or not.
pub const fn poll_events(outdated: bool) -> u32 {
    if outdated {
        POLL_WRITABLE | POLL_READABLE
    } else {
        POLL_WRITABLE
    }
}

/// The field names of `/proc/PID/fdinfo/FD`, in their order: the current generation, the one that
/// the watcher acknowledged, whether it is tracked, and whether it is outdated (0 or 1).
pub const FDINFO_FIELDS: [&str; 4] = ["generation", "acknowledged", "tracked", "outdated"];

/// The field names that follow them: when the generation last changed (0: never), and when the watcher
/// became outdated (0: it is current), in nanoseconds of `CLOCK_BOOTTIME`.
pub const FDINFO_TIMES: [&str; 2] = ["changed", "outdated_since"];

/// For how many changes, the latest, it is known when they happened.
pub const FDINFO_TIMES_KEPT: usize = 64;

/// The variable of the `change` uevent that carries the new generation, in decimal.
pub const UEVENT_VARIABLE: &str = "SYSGENID_GENERATION";

/// `_IO(kind, number)` of `<asm/ioctl.h>`: the argument is passed by value.
const fn io(kind: u8, number: u8) -> u32 {
    // A few architectures encode "no direction" as 1 instead of 0.
    const NO_DIRECTION: u32 = if cfg!(any(
        target_arch = "mips",
        target_arch = "mips64",
        target_arch = "powerpc",
        target_arch = "powerpc64",
        target_arch = "sparc",
        target_arch = "sparc64",
    )) {
        1 << 29
    } else {
        0
    };
    NO_DIRECTION | (kind as u32) << 8 | number as u32
}

/// The two nodes. They share one generation and accept the same calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// `/dev/vmgenid`, faithful to the 2020 proposal: whoever opens it for writing counts.
    Vmgenid,
    /// `/dev/sysgenid`, faithful to its last revisions: whoever opens it counts once it asks to.
    Sysgenid,
}

impl Node {
    /// The file name under `/dev`.
    pub const fn name(self) -> &'static str {
        match self {
            Node::Vmgenid => "vmgenid",
            Node::Sysgenid => "sysgenid",
        }
    }

    /// The permission bits that the node has unless the system's configuration says otherwise.
    pub const fn default_mode(self) -> u16 {
        match self {
            Node::Vmgenid => 0o600,
            Node::Sysgenid => 0o644,
        }
    }

    /// Whether a new watcher is tracked that was opened for `access`. One that cannot write could never
    /// acknowledge, and everybody would wait for it.
    pub const fn tracks_new_watchers(self, access: Access) -> bool {
        matches!((self, access), (Node::Vmgenid, Access::ReadWrite))
    }
}

/// What a description was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It cannot write, hence never acknowledge.
    ReadOnly,
    /// It can write, and may or may not read.
    ReadWrite,
}

/// What the first 8 bytes of a mapped page say. They are stored at once, so whoever loads them at once
/// sees a generation and the flags that were true with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageWord {
    /// The generation.
    pub generation: Generation,
    /// [`PAGE_LIVE`]: this page will show the next change.
    pub live: bool,
    /// [`PAGE_NOTICED`]: something on this machine notices restores without being told.
    pub noticed: bool,
}

impl PageWord {
    /// The word to store, in the machine's own order of bytes: generation first, flags second.
    pub const fn to_word(self) -> u64 {
        let live = if self.live { PAGE_LIVE } else { 0 };
        let noticed = if self.noticed { PAGE_NOTICED } else { 0 };
        let [a, b, c, d] = self.generation.to_ne_bytes();
        let [e, f, g, h] = (live | noticed).to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Reads what [`to_word`](Self::to_word) made. Flags that are not known are passed over.
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        let flags = u32::from_ne_bytes([e, f, g, h]);
        Self {
            generation: Generation::from_ne_bytes([a, b, c, d]),
            live: flags & PAGE_LIVE != 0,
            noticed: flags & PAGE_NOTICED != 0,
        }
    }
}

/// A decoded ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ioctl {
    /// Return [`Registry::outdated_watchers`](super::Registry::outdated_watchers).
    CountOutdatedWatchers,
    /// Block as [`Registry::wait`](super::Registry::wait) says, at most for this long.
    WaitWatchers(Timeout),
    /// [`Registry::set_tracking`](super::Registry::set_tracking).
    SetTracking(bool),
    /// [`Registry::trigger`](super::Registry::trigger) with this raw minimum.
    Trigger {
        /// The argument of the ioctl, unchecked: whether the caller may trigger at all comes first.
        minimum: u64,
    },
}

impl Ioctl {
    /// Decodes a request number and its argument, which is passed by value.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownIoctl`] if neither family has such a request.
    pub const fn decode(request: u32, argument: u64) -> Result<Self, Error> {
        match request {
            VMGENID_GET_OUTDATED_WATCHERS => Ok(Ioctl::CountOutdatedWatchers),
            VMGENID_WAIT_WATCHERS | SYSGENID_WAIT_WATCHERS => {
                Ok(Ioctl::WaitWatchers(Timeout::from_argument(argument)))
            }
            VMGENID_FORCE_GEN_UPDATE => Ok(Ioctl::Trigger { minimum: 0 }),
            SYSGENID_SET_WATCHER_TRACKING => Ok(Ioctl::SetTracking(argument != 0)),
            SYSGENID_TRIGGER_GEN_UPDATE => Ok(Ioctl::Trigger { minimum: argument }),
            _ => Err(Error::UnknownIoctl),
        }
    }
}

/// A request to map the page of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Pages from the start of the node to the start of the mapping.
    pub first_page: u64,
    /// The length in pages, rounded up.
    pub pages: u64,
    /// Whether it asks for `PROT_WRITE`.
    pub writable: bool,
    /// Whether it asks for `PROT_EXEC`.
    pub executable: bool,
}

impl Mapping {
    /// Whether the page may be mapped so. A front end that agrees must also see to it that the
    /// mapping can never become writable or executable, grow, or be dumped.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for anything but the first page, [`Error::NotPermitted`] for a mapping that
    /// wants more than to read.
    pub const fn check(&self) -> Result<(), Error> {
        if self.first_page != 0 || self.pages != 1 {
            return Err(Error::Invalid);
        }
        if self.writable || self.executable {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }
}

/// The minimum of a trigger, from the ioctl's argument.
pub(super) fn minimum_from_argument(argument: u64) -> Result<Generation, Error> {
    match u32::try_from(argument) {
        Ok(minimum) => Ok(Generation::new(minimum)),
        Err(_) => Err(Error::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

    #[test]
    fn a_page_word_comes_back_as_it_went() {
        for number in [0, 1, 0x0102_0304, u32::MAX] {
            for (live, noticed) in FLAGS {
                let said = PageWord {
                    generation: Generation::new(number),
                    live,
                    noticed,
                };
                assert_eq!(PageWord::from_word(said.to_word()), said);
            }
        }
    }

    #[test]
    fn generation_and_flags_are_where_the_contract_has_them() {
        for (live, noticed) in FLAGS {
            let word = PageWord {
                generation: Generation::new(0x0102_0304),
                live,
                noticed,
            };
            let bytes = word.to_word().to_ne_bytes();
            assert_eq!(bytes.len(), PAGE_WORD_SIZE);
            let number = &bytes[PAGE_GENERATION_OFFSET..][..GENERATION_SIZE];
            assert_eq!(number, 0x0102_0304_u32.to_ne_bytes());
            let flags = u32::from(live) | u32::from(noticed) << 1;
            assert_eq!(&bytes[PAGE_FLAGS_OFFSET..], flags.to_ne_bytes());
        }
    }

    #[test]
    fn flags_that_are_not_known_are_passed_over() {
        let word = u64::from_ne_bytes([7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let said = PageWord::from_word(word);
        assert!(said.live && said.noticed);
        let none = u64::from_ne_bytes([0; 8]);
        assert_eq!(PageWord::from_word(none), PageWord::default());
    }

    #[test]
    fn only_who_can_write_is_tracked_and_only_on_vmgenid() {
        assert!(Node::Vmgenid.tracks_new_watchers(Access::ReadWrite));
        assert!(!Node::Vmgenid.tracks_new_watchers(Access::ReadOnly));
        assert!(!Node::Sysgenid.tracks_new_watchers(Access::ReadWrite));
        assert!(!Node::Sysgenid.tracks_new_watchers(Access::ReadOnly));
    }

    #[test]
    fn the_events_of_poll_are_those_of_the_kernel() {
        // EPOLLIN | EPOLLRDNORM and EPOLLOUT | EPOLLWRNORM of <linux/eventpoll.h>.
        assert_eq!(POLL_READABLE, 0x001 | 0x040);
        assert_eq!(POLL_WRITABLE, 0x004 | 0x100);
    }
}
