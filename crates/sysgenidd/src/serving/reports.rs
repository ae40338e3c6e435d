// SPDX-License-Identifier: MIT OR Apache-2.0

//! The reports that somebody has open, as they were when they were opened.
//!
//! Everybody may open some of them, so there is a limit to what that can take of the daemon's memory.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::files::File;

/// What the texts of all open reports of an instance may take together, in bytes. One report is always
/// possible.
const MOST_BYTES: usize = 16 << 20;

/// Why a report cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many reports are open: close some, or raise reports in the configuration")]
pub(super) struct TooMany;

/// For how long a text is kept for an open after its length was told. Between the two is the kernel's way
/// from the one to the other.
const KEPT: Duration = Duration::from_millis(100);

/// A text whose length was told to somebody who may open it now.
#[derive(Debug)]
struct Told {
    file: File,
    when: Instant,
    text: String,
}

#[derive(Debug)]
struct Report {
    user: u32,
    text: Box<[u8]>,
}

/// All that are open.
#[derive(Debug)]
pub(super) struct Reports {
    /// How many a user may have open.
    most: u32,
    open: HashMap<u64, Report>,
    of_users: HashMap<u32, u32>,
    bytes: usize,
    /// The latest, of one file: each open of another is told its length first.
    told: Option<Told>,
}

impl Reports {
    pub(super) fn new(most: u32) -> Self {
        Self {
            most,
            open: HashMap::new(),
            of_users: HashMap::new(),
            bytes: 0,
            told: None,
        }
    }

    /// Keeps a report whose length somebody is told, for the open that follows. A report that were written
    /// anew there could be longer, and programs that read no more than a file's size would get it cut.
    pub(super) fn tell(&mut self, file: File, text: String) {
        let when = Instant::now();
        self.told = Some(Told { file, when, text });
    }

    /// The text whose length was told just before, if it is one of this file.
    pub(super) fn take_told(&mut self, file: File) -> Option<String> {
        let told = self.told.take()?;
        (told.file == file && told.when.elapsed() < KEPT).then_some(told.text)
    }

    /// Whether this user may open another. To be asked before it is written, which is work.
    pub(super) fn check(&self, user: u32) -> Result<(), TooMany> {
        let of_user = self.of_users.get(&user).copied().unwrap_or(0);
        if of_user >= self.most || self.bytes >= most_bytes(user) {
            return Err(TooMany);
        }
        Ok(())
    }

    /// Keeps a report for as long as it is open.
    pub(super) fn open(&mut self, handle: u64, user: u32, text: String) -> Result<(), TooMany> {
        self.check(user)?;
        if !self.open.is_empty() && self.bytes + text.len() > most_bytes(user) {
            return Err(TooMany);
        }
        self.bytes += text.len();
        *self.of_users.entry(user).or_default() += 1;
        let text = text.into_bytes().into_boxed_slice();
        self.open.insert(handle, Report { user, text });
        Ok(())
    }

    /// The text of an open report.
    pub(super) fn text(&self, handle: u64) -> Option<&[u8]> {
        Some(&self.open.get(&handle)?.text)
    }

    /// It is open no longer.
    pub(super) fn close(&mut self, handle: u64) {
        let Some(report) = self.open.remove(&handle) else {
            return;
        };
        self.bytes -= report.text.len();
        if let Some(count) = self.of_users.get_mut(&report.user) {
            *count -= 1;
            if *count == 0 {
                self.of_users.remove(&report.user);
            }
        }
        if self.open.is_empty() {
            // Tables do not shrink by themselves.
            self.open = HashMap::new();
        }
    }
}

/// How much there may be when this user opens one: the last eighth is for root.
fn most_bytes(user: u32) -> usize {
    if user == 0 {
        MOST_BYTES
    } else {
        MOST_BYTES - MOST_BYTES / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_has_too_many_keeps_nobody_else_from_his_and_gets_room_by_closing() {
        let mut reports = Reports::new(2);
        for handle in [1, 2] {
            reports.open(handle, 7, "text".to_owned()).unwrap();
        }
        assert_eq!(reports.check(7), Err(TooMany));
        assert_eq!(reports.open(3, 7, String::new()), Err(TooMany));
        reports.open(4, 8, "other".to_owned()).unwrap();
        assert_eq!(reports.text(2), Some(&b"text"[..]));
        reports.close(2);
        reports.close(2);
        assert_eq!(reports.text(2), None);
        reports.open(5, 7, String::new()).unwrap();
    }

    #[test]
    fn a_report_is_as_long_as_was_told_and_is_not_handed_out_twice_or_for_another() {
        let mut reports = Reports::new(1);
        assert_eq!(reports.take_told(File::Status), None);
        reports.tell(File::Status, "status".to_owned());
        assert_eq!(reports.take_told(File::Status).as_deref(), Some("status"));
        assert_eq!(reports.take_told(File::Status), None);
        reports.tell(File::Status, "status".to_owned());
        assert_eq!(reports.take_told(File::Metrics), None);
        reports.tell(File::Status, "status".to_owned());
        std::thread::sleep(KEPT);
        assert_eq!(reports.take_told(File::Status), None);
    }

    #[test]
    fn all_texts_together_have_a_limit_and_one_is_always_possible() {
        let mut reports = Reports::new(u32::MAX);
        let half = "x".repeat(MOST_BYTES / 2 + 1);
        reports.open(1, 7, half.clone()).unwrap();
        assert_eq!(reports.open(2, 8, half.clone()), Err(TooMany));
        reports.open(3, 8, "small".to_owned()).unwrap();
        reports.close(1);
        reports.close(3);
        assert_eq!(reports.bytes, 0);
        reports.open(4, 7, half.repeat(3)).unwrap();
        assert_eq!(reports.check(8), Err(TooMany));
    }
}
