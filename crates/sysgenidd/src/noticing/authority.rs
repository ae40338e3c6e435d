// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which report is a change of the generation, and when.
//!
//! Reports of different backends are never counted against each other: a report that was no restore would
//! hide one that was. Instead one backend at a time is the *authority*, and each report of it is a change:
//!
//! 1. a parent node that is live and says that it notices restores, because it has changed already when this
//!    daemon hears of it;
//! 2. else the kernel's own notice ([`Kind::Kprobe`], or [`Kind::Kmsg`]), because the kernel has fed its random
//!    number generator by then;
//! 3. else the hypervisor's counter.
//!
//! What another than the authority reports is not lost: it makes a change *due*. If the authority has not
//! reported within [`BOUND`], the change is made without it, and its late report is one more. A parent that
//! notices nothing by itself is followed for each of its changes, and settles nothing else. A *doubt*, that is
//! whatever may have hidden a report, is a change at once, and settles nothing either.
//!
//! No report needs to be remembered for what comes later, but one: when a parent is the authority, the
//! kernel's notice of the same restore may follow its report, so a notice within [`BOUND`] after a report of
//! the parent makes nothing due. The parent reports each restore itself, whatever came before.
//!
//! Here is no clock and no file: whoever uses this says what time it is, makes the change that
//! [`decide`](Authority::decide) returns, and on the way there first *samples* the hypervisor's counter
//! (what is sampled is dealt with by this change), then reseeds, and then stores the change.

use std::fmt;

use super::Kind;

/// How long the authority may take, in nanoseconds, after another backend spoke of a restore: one second.
///
/// The kernel's notice follows the hypervisor's word within milliseconds where the machine runs at all. The
/// bound is as long as a machine may stand still whose memory is paged in while it runs, and as short as a
/// program can be left with secrets that its clones have, too.
pub const BOUND: u64 = 1_000_000_000;

/// For how long nothing must have been there that notices, in nanoseconds, before this is said: five
/// seconds. A module that is loaded again, or a daemon that is restarted, is back by then.
pub const LOST_AFTER: u64 = 5_000_000_000;

/// How a backend stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It is not there.
    #[default]
    Absent,
    /// It is there and would notice no restore by itself: a parent node that only software triggers.
    Follows,
    /// It notices restores.
    Notices,
}

/// Why the generation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The authority reported a restore.
    Restore(Kind),
    /// A parent changed that notices nothing by itself.
    Followed,
    /// Another backend spoke of a restore, and the authority did not within [`BOUND`].
    Overdue,
    /// A report may have been lost.
    Doubt(Doubt),
}

impl Cause {
    /// Whether the change deals with all that is due, and so with what the hypervisor's counter says by then.
    pub fn settles(self) -> bool {
        matches!(self, Self::Restore(_) | Self::Overdue)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore(kind) => write!(f, "{kind} noticed a restore"),
            Self::Followed => f.write_str("the parent changed"),
            Self::Overdue => f.write_str(
                "a restore was announced, and whoever was to confirm it has not done so in time",
            ),
            Self::Doubt(doubt) => write!(f, "a restore may have gone unnoticed: {doubt}"),
        }
    }
}

/// What may have hidden a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Records of the kernel's log were overwritten before they were read, and nothing says that no restore
    /// was among them.
    LostRecords,
    /// What is read is that of another kernel than before.
    AnotherKernel,
    /// The kernel's count went back, or the probe that counts had to be made anew.
    CountAnew,
    /// What was gone is back, and says nothing about the time between.
    CameBack(Kind),
    /// The authority, or a parent that was followed, cannot be asked any more.
    Lost(Kind),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostRecords => f.write_str("records of the kernel's log were lost"),
            Self::AnotherKernel => f.write_str("the log is that of another kernel"),
            Self::CountAnew => f.write_str("the kernel's count of restores began anew"),
            Self::CameBack(kind) => write!(f, "{kind} was gone and is back"),
            Self::Lost(kind) => write!(f, "{kind} went away, with whatever it had to say"),
        }
    }
}

/// The state of it. It is plain data: a snapshot of the machine may be taken at any moment, and what was
/// waited for then is waited for in each clone.
#[derive(Clone, Debug)]
pub struct Authority {
    presence: [Presence; Kind::ALL.len()],
    /// The change that the next decision makes.
    pending: Option<Cause>,
    /// When a change is to be made that the authority did not report.
    due: Option<u64>,
    /// When a parent that is the authority reported last.
    parent_reported: Option<u64>,
    /// Since when nothing notices.
    unnoticed_since: u64,
}

impl Authority {
    /// Nothing is there yet.
    pub fn new(now: u64) -> Self {
        Self {
            presence: [Presence::Absent; Kind::ALL.len()],
            pending: None,
            due: None,
            parent_reported: None,
            unnoticed_since: now,
        }
    }

    /// Who is the authority, if anybody notices.
    pub fn authority(&self) -> Option<Kind> {
        [Kind::Parent, Kind::Kprobe, Kind::Kmsg, Kind::Vmclock]
            .into_iter()
            .find(|&kind| self.presence[kind as usize] == Presence::Notices)
    }

    /// How a backend stands.
    pub fn presence(&self, kind: Kind) -> Presence {
        self.presence[kind as usize]
    }

    /// A backend appears, disappears, or can notice more or less than before.
    ///
    /// One that appears counts from that moment on. The others, so also the one that was the authority, are to
    /// be asked once more after it was opened: then no report falls between two authorities, and that
    /// another takes over is no doubt. That an authority can be asked no more is one, and
    /// that a parent is gone that was followed.
    pub fn set(&mut self, kind: Kind, presence: Presence, now: u64) {
        let before = self.authority();
        let was = std::mem::replace(&mut self.presence[kind as usize], presence);
        let was_authority = before == Some(kind) && presence != Presence::Notices;
        let was_followed =
            kind == Kind::Parent && was == Presence::Follows && presence == Presence::Absent;
        if was_authority || was_followed {
            self.doubt(Doubt::Lost(kind));
        }
        if was == Presence::Notices && self.authority().is_none() {
            self.unnoticed_since = now;
        }
    }

    /// A backend reports: the kernel's notice came, the hypervisor's counter is another, a parent changed.
    pub fn report(&mut self, kind: Kind, now: u64) {
        let authority = self.authority();
        match (authority, kind) {
            _ if authority == Some(kind) => {
                self.pending = Some(Cause::Restore(kind));
                if kind == Kind::Parent {
                    self.parent_reported = Some(now);
                }
            }
            (_, Kind::Parent) => {
                self.pending.get_or_insert(Cause::Followed);
            }
            (Some(Kind::Parent), Kind::Kprobe | Kind::Kmsg) => {
                let is_echo = self
                    .parent_reported
                    .is_some_and(|at| now.saturating_sub(at) < BOUND);
                if !is_echo {
                    self.due.get_or_insert(now + BOUND);
                }
            }
            (Some(_), Kind::Vmclock) => {
                self.due.get_or_insert(now + BOUND);
            }
            // Nobody expected it to notice. It did.
            (_, Kind::Kprobe | Kind::Kmsg) | (None, Kind::Vmclock) => {
                self.pending = Some(Cause::Restore(kind));
            }
        }
    }

    /// A report may have been lost.
    pub fn doubt(&mut self, doubt: Doubt) {
        self.pending.get_or_insert(Cause::Doubt(doubt));
    }

    /// Whether to change the generation now, once everybody was asked.
    #[must_use = "a change that is not made is a restore that nobody hears of"]
    pub fn decide(&mut self, now: u64) -> Option<Cause> {
        let is_overdue = self.due.is_some_and(|due| due <= now);
        let cause = match self.pending.take() {
            Some(cause) if cause.settles() || !is_overdue => cause,
            _ if is_overdue => Cause::Overdue,
            _ => return None,
        };
        if cause.settles() {
            self.due = None;
        }
        Some(cause)
    }

    /// When to ask for a decision, and whether anything [notices](Self::is_noticed), although nothing happened.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let lost = self.unnoticed_since.saturating_add(LOST_AFTER);
        let lost = (self.authority().is_none() && lost > now).then_some(lost);
        self.due.into_iter().chain(lost).min()
    }

    /// Whether a change is still to come that the present positions of the backends do not tell of: they must
    /// not be stored without it.
    pub fn is_waiting(&self) -> bool {
        self.due.is_some() || self.pending.is_some()
    }

    /// Whether anything notices restores. `None`: nothing does, but something did a moment ago.
    pub fn is_noticed(&self, now: u64) -> Option<bool> {
        if self.authority().is_some() {
            return Some(true);
        }
        let lost = now.saturating_sub(self.unnoticed_since) >= LOST_AFTER;
        lost.then_some(false)
    }
}

#[cfg(test)]
mod tests;
