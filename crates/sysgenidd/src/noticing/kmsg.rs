// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own notice in its log (`/dev/kmsg`).
//!
//! From Linux 5.18 on, a kernel whose vmgenid driver finds the device writes
//! `random: crng reseeded due to virtual machine fork` once it has fed its RNG after a restore. The record
//! is taken only from the facility of the kernel: whoever writes to `/dev/kmsg` gets another one, so the
//! notice cannot be forged. The format is that of `Documentation/ABI/testing/dev-kmsg`.
//!
//! The window between a restore and the notice is the time until the kernel has handled the interrupt and
//! this daemon was woken. Each record of the log wakes the daemon, and anybody may write so many that the
//! notice is overwritten before it is read; [`evidence`](super::evidence) says where there was none. So this is
//! for where [`kprobe`](super::kprobe) cannot be had.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;

use super::authority::{Doubt, Presence};
use super::backend::{kernel_notices, presence_of_the_kernel};
use super::evidence::Evidence;
use super::{Backend, Error, Kind, Seen, Settings, foreign};
use crate::clock;

/// What the kernel writes, whole.
const NOTICE: &[u8] = b"random: crng reseeded due to virtual machine fork";

/// The facility of the kernel's own records (`LOG_KERN`). What programs write has another one.
const KERNEL: u32 = 0;

/// The kernel's own buffer for a record was never longer. A record that is longer than the reader's would be
/// an error.
const LONGEST_RECORD: usize = 8192;

/// A record of the kernel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Who wrote it: 0 is the kernel.
    pub facility: u32,
    /// How grave it is, from 0 (most) to 7.
    pub level: u32,
    /// Its number. The next record has the next one.
    pub sequence: u64,
    /// Its text, without the properties that may follow it.
    pub message: &'a [u8],
}

impl Record<'_> {
    /// Whether this is the kernel's notice of a restore.
    pub fn is_notice(&self) -> bool {
        self.facility == KERNEL && self.message == NOTICE
    }
}

/// Reads a record as `/dev/kmsg` returns it: `priority,sequence,time,flags[,…];message\n[ KEY=value\n…]`.
/// `None` for what is not of this form.
pub fn parse_record(bytes: &[u8]) -> Option<Record<'_>> {
    let semicolon = bytes.iter().position(|&byte| byte == b';')?;
    let (header, rest) = (&bytes[..semicolon], &bytes[semicolon + 1..]);
    let end = rest.iter().position(|&byte| byte == b'\n')?;

    let mut fields = str::from_utf8(header).ok()?.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let _time: u64 = fields.next()?.parse().ok()?;
    let _flags = fields.next()?;
    Some(Record {
        facility: priority >> 3,
        level: priority & 7,
        sequence,
        message: &rest[..end],
    })
}

/// The backend.
#[derive(Debug)]
pub struct Kmsg {
    log: OwnedFd,
    path: PathBuf,
    drivers: Vec<PathBuf>,
    evidence: Evidence,
    /// The number of the last record that was seen.
    last: u64,
    /// That no look was made yet, so that the next one goes through the whole log.
    first_look: bool,
}

impl Kmsg {
    /// Opens the log.
    ///
    /// Without `resume_at` the whole log is read over once, because this is the only way to learn the
    /// number of its last record (half a microsecond a record).
    ///
    /// # Errors
    ///
    /// [`Error::NoGenerationId`]: the log can be read also where nobody will ever write the notice into it.
    /// [`Error::NotPresent`], [`Error::NoPermission`], [`Error::OwnNode`], [`Error::Unsuitable`],
    /// [`Error::Io`].
    pub fn open(settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        if !kernel_notices(&settings.drivers) {
            return Err(Error::NoGenerationId);
        }
        let log = foreign::open(&settings.kmsg, &settings.own_devices)?;
        Self::resume(log, settings, resume_at)
    }

    /// `log` is at its oldest record.
    fn resume(log: OwnedFd, settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        let mut opened = Self {
            log,
            path: settings.kmsg.clone(),
            drivers: settings.drivers.clone(),
            evidence: Evidence::new(settings.evidence.clone()),
            last: resume_at.unwrap_or(0),
            first_look: true,
        };
        if resume_at.is_none() {
            opened.look()?;
        }
        Ok(opened)
    }

    /// Reads to the end. Returns the number of notices and whether records are missing before the last.
    fn drain(&mut self, newest: &mut u64) -> Result<(u64, bool), Error> {
        let mut last = self.last;
        let mut notices = 0;
        let mut lost = false;
        let mut buffer = [0; LONGEST_RECORD];
        loop {
            let length = match rustix::io::read(&self.log, &mut buffer) {
                Ok(length) => length,
                Err(Errno::AGAIN) => break,
                // Overwritten while it was to be read: the next one shows the gap.
                Err(Errno::PIPE | Errno::INTR) => continue,
                Err(errno) => return Err(Error::reading(&self.path, errno)),
            };
            if length == 0 {
                return Err(Error::Unsuitable {
                    path: self.path.clone(),
                    needed: "the kernel's log",
                });
            }
            let Some(record) = parse_record(&buffer[..length]) else {
                continue;
            };
            *newest = record.sequence;
            if record.sequence <= last {
                continue;
            }
            lost |= record.sequence - last > 1;
            notices += u64::from(record.is_notice());
            last = record.sequence;
        }
        self.last = last;
        Ok((notices, lost))
    }
}

impl Backend for Kmsg {
    fn kind(&self) -> Kind {
        Kind::Kmsg
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.log.as_fd())
    }

    /// Each notice is a report. Records that were overwritten before they were read show as a gap in their
    /// numbers; they may have held the notice, so that is a doubt unless there is evidence that they did not.
    /// So is a log that ends before `resume_at`: numbers never shrink, so it is the log of another kernel,
    /// and this process was moved.
    fn look(&mut self) -> Result<Seen, Error> {
        let began = clock::now();
        self.evidence.about_to_look(began);
        let mut newest = 0;
        let (reports, lost) = self.drain(&mut newest)?;
        let doubt = if std::mem::take(&mut self.first_look) && newest < self.last {
            self.last = newest;
            Some(Doubt::AnotherKernel)
        } else if lost && !self.evidence.nothing_happened(clock::now()) {
            Some(Doubt::LostRecords)
        } else {
            None
        };
        if lost && doubt.is_none() {
            tracing::debug!("records of the kernel's log were lost; no interrupt came meanwhile");
        }
        if !lost {
            self.evidence.looked(began);
        }
        Ok(Seen {
            reports,
            doubt,
            ended: None,
        })
    }

    fn position(&self) -> Option<u64> {
        Some(self.last)
    }

    fn presence(&self) -> Presence {
        presence_of_the_kernel(&self.drivers)
    }

    fn description(&self) -> String {
        format!(
            "{}: the kernel writes a notice once it has handled the hypervisor's; no window but that and \
             the time to wake the daemon. Records that are overwritten unread are a change where nothing \
             shows that no notice was among them",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::noticing::evidence::Counters;

    /// The reports and the doubt of a look.
    fn look(backend: &mut Kmsg) -> (u64, Option<Doubt>) {
        let seen = backend.look().unwrap();
        assert!(seen.ended.is_none());
        (seen.reports, seen.doubt)
    }

    const REAL: &[u8] = b"5,336,1280814,-;random: crng reseeded due to virtual machine fork\n";

    #[test]
    fn the_notice_is_recognised() {
        let record = parse_record(REAL).unwrap();
        assert_eq!(
            (record.facility, record.level, record.sequence),
            (0, 5, 336)
        );
        assert!(record.is_notice());
    }

    #[test]
    fn further_fields_and_properties_are_passed_over() {
        let text = b"6,7,8,-,caller=T1;usb 1-1: new device\n SUBSYSTEM=usb\n DEVICE=c189:2\n";
        let record = parse_record(text).unwrap();
        assert_eq!(record.message, b"usb 1-1: new device");
        assert!(!record.is_notice());
    }

    #[test]
    fn a_notice_that_the_kernel_did_not_write_is_none() {
        let notice = |text: &str| parse_record(text.as_bytes()).is_some_and(|r| r.is_notice());
        let message = "random: crng reseeded due to virtual machine fork";
        assert!(notice(&format!("5,1,1,-;{message}\n")));
        // Facility 1, user: what a program gets.
        assert!(!notice(&format!("13,1,1,-;{message}\n")));
        assert!(!notice(&format!("5,1,1,-;x{message}\n")));
        assert!(!notice(&format!("5,1,1,-;{message} \n")));
        assert!(!notice(&format!("5,1,1,-;x\n {message}\n")));
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            "",
            ";\n",
            "5,1,1,-;no end of line",
            "5,1,1;too few fields\n",
            "-5,1,1,-;negative\n",
            "5,18446744073709551616,1,-;too large\n",
            "5,1,1,-no semicolon\n",
        ] {
            assert_eq!(parse_record(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_confuse_the_reader(bytes: Vec<u8>) {
            let _ = parse_record(&bytes);
        }
    }

    /// A log that the test writes: each read returns one record, as from the device.
    struct Log {
        writer: OwnedFd,
    }

    impl Log {
        fn open(first: &[(u64, bool)], resume_at: Option<u64>) -> (Self, Kmsg) {
            let (writer, reader) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::DGRAM,
                SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let log = Self { writer };
            log.write(first);
            let settings = Settings {
                evidence: Counters::none(),
                ..Settings::default()
            };
            let backend = Kmsg::resume(reader, &settings, resume_at).unwrap();
            (log, backend)
        }

        fn write(&self, records: &[(u64, bool)]) {
            for &(sequence, notice) in records {
                let message = if notice {
                    "random: crng reseeded due to virtual machine fork"
                } else {
                    "random: crng init done"
                };
                let record = format!("5,{sequence},1,-;{message}\n");
                rustix::io::write(&self.writer, record.as_bytes()).unwrap();
            }
        }
    }

    #[test]
    fn what_was_logged_before_the_start_does_not_count() {
        let (log, mut backend) = Log::open(&[(40, false), (41, true)], None);
        assert_eq!(backend.position(), Some(41));
        assert_eq!(look(&mut backend), (0, None));
        log.write(&[(42, true)]);
        assert_eq!(look(&mut backend), (1, None));
        assert_eq!(backend.position(), Some(42));
    }

    #[test]
    fn each_notice_is_a_change() {
        let (log, mut backend) = Log::open(&[], None);
        log.write(&[(1, true), (2, false), (3, true)]);
        assert_eq!(look(&mut backend), (2, None));
        assert_eq!(look(&mut backend), (0, None));
    }

    #[test]
    fn a_successor_takes_only_what_its_predecessor_did_not_see() {
        let records = [(40, true), (41, true), (42, false), (43, true)];
        let (_log, mut backend) = Log::open(&records, Some(41));
        assert_eq!(backend.position(), Some(41));
        assert_eq!(look(&mut backend), (1, None));
        assert_eq!(backend.position(), Some(43));
    }

    #[test]
    fn records_that_were_overwritten_may_have_held_a_notice() {
        let (log, mut backend) = Log::open(&[(7, false)], None);
        log.write(&[(9, false), (12, false)]);
        assert_eq!(look(&mut backend), (0, Some(Doubt::LostRecords)));
        log.write(&[(13, false)]);
        assert_eq!(look(&mut backend), (0, None));

        let (_log, mut successor) = Log::open(&[(20, true)], Some(13));
        assert_eq!(look(&mut successor), (1, Some(Doubt::LostRecords)));
    }

    #[test]
    fn the_log_of_another_kernel_is_a_change() {
        let (log, mut backend) = Log::open(&[(7, false), (8, true)], Some(5000));
        assert_eq!(look(&mut backend), (0, Some(Doubt::AnotherKernel)));
        assert_eq!(backend.position(), Some(8));
        assert_eq!(look(&mut backend), (0, None));
        log.write(&[(9, true)]);
        assert_eq!(look(&mut backend), (1, None));
    }

    /// A driver's folder with a device.
    fn device() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent", folder.path().join("QEMUVGID:00")).unwrap();
        folder
    }

    #[test]
    fn a_program_cannot_forge_the_notice() {
        let folder = device();
        let settings = Settings {
            drivers: vec![folder.path().to_owned()],
            ..Settings::default()
        };
        let mut backend = match Kmsg::open(&settings, None) {
            Ok(backend) => backend,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        };
        let mut log = match OpenOptions::new().write(true).open("/dev/kmsg") {
            Ok(log) => log,
            Err(error) => {
                eprintln!("skipped: /dev/kmsg cannot be written here: {error}");
                return;
            }
        };
        let before = backend.position();
        // The prefix asks for the level and facility of the kernel's own notice.
        log.write_all(b"<5>random: crng reseeded due to virtual machine fork\n")
            .unwrap();
        assert_eq!(look(&mut backend), (0, None));
        assert!(backend.position() > before);
    }

    #[test]
    fn a_file_that_is_no_log_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kmsg");
        fs::write(&path, "").unwrap();
        let device = device();
        let settings = Settings {
            kmsg: path,
            drivers: vec![device.path().to_owned()],
            ..Settings::default()
        };
        let error = Kmsg::open(&settings, None).unwrap_err();
        assert!(matches!(error, Error::Unsuitable { .. }), "{error}");
    }
}
