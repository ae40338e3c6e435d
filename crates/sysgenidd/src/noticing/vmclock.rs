// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's page (`/dev/vmclock0`), which counts restores.
//!
//! The hypervisor changes the counter before the machine runs on, so a look after a restore always sees
//! it. From Linux 7.0 on, and where the hypervisor sends notifications, the device also says when to
//! look; elsewhere it has to be asked.
//!
//! The page is copied by `read`, not mapped: the driver then follows the sequence lock of the page itself
//! and returns a whole one or `ETIMEDOUT`, and `read` is what makes its `poll` wait again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sysgenid_vmclock::{Malformed, Page, SIZE, parse};

use super::backend::tells_when_readable;
use super::{Backend, Error, Kind, Seen, Settings, foreign};

/// How many devices are searched. A machine has one; the number of a device that was removed is used
/// again.
const MOST_DEVICES: u32 = 8;

/// How often a page is read again that is being updated. A driver that follows the sequence lock never
/// returns such a page, so this serves those that do not.
const MOST_ATTEMPTS: u32 = 16;

/// The backend.
#[derive(Debug)]
pub struct Vmclock {
    device: OwnedFd,
    path: PathBuf,
    /// The counter that was dealt with.
    counter: u64,
    /// Whether the device says when to look.
    tells: bool,
}

impl Vmclock {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Error::NotPresent`], [`Error::NoPermission`], [`Error::OwnNode`], [`Error::Unsuitable`],
    /// [`Error::Malformed`], [`Error::Busy`], [`Error::Io`]. Of several devices of which none can be used,
    /// it is the first one's error.
    pub fn open(settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        if let Some(path) = &settings.vmclock {
            return Self::open_device(path, settings, resume_at);
        }
        let mut first_error = None;
        for number in 0..MOST_DEVICES {
            let path = PathBuf::from(format!("/dev/vmclock{number}"));
            match Self::open_device(&path, settings, resume_at) {
                Ok(opened) => return Ok(opened),
                Err(Error::NotPresent { .. }) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::NotPresent {
            path: PathBuf::from("/dev/vmclock0"),
        }))
    }

    fn open_device(
        path: &Path,
        settings: &Settings,
        resume_at: Option<u64>,
    ) -> Result<Self, Error> {
        let device = foreign::open(path, &settings.own_devices)?;
        let page = read(&device, path)?;
        // After the read, which leaves a driver that can wait with nothing to tell.
        let tells = page.notifies
            && tells_when_readable(&device).map_err(|errno| Error::reading(path, errno))?;
        Ok(Self {
            device,
            path: path.to_owned(),
            counter: resume_at.unwrap_or(page.generation_counter),
            tells,
        })
    }
}

impl Backend for Vmclock {
    fn kind(&self) -> Kind {
        Kind::Vmclock
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.tells.then(|| self.device.as_fd())
    }

    /// A counter that differs is one report, because nobody can say what happened in between, and it is
    /// repeated until it is dealt with.
    fn look(&mut self) -> Result<Seen, Error> {
        let counter = read(&self.device, &self.path)?.generation_counter;
        Ok(Seen {
            reports: u64::from(counter != self.counter),
            ..Seen::default()
        })
    }

    fn deal(&mut self) -> Result<(), Error> {
        self.counter = read(&self.device, &self.path)?.generation_counter;
        Ok(())
    }

    fn position(&self) -> Option<u64> {
        Some(self.counter)
    }

    fn description(&self) -> String {
        let window = if self.tells {
            "the hypervisor notifies; no window but the time to wake the daemon"
        } else {
            "no notification (it takes Linux 7.0 and a hypervisor that sends it); looked at when \
             another backend speaks, and at the daemon's timer where none of them is the kernel's, and \
             until then a restore goes unnoticed"
        };
        format!("{}: {window}", self.path.display())
    }
}

/// Reads the device, again while it is being updated.
fn read(device: &OwnedFd, path: &Path) -> Result<Page, Error> {
    for _ in 0..MOST_ATTEMPTS {
        let mut page = [0; SIZE];
        let length = match rustix::io::retry_on_intr(|| rustix::io::pread(device, &mut page, 0)) {
            Ok(length) => length,
            // The driver has tried for 100 ms.
            Err(Errno::TIMEDOUT) => break,
            Err(errno) => return Err(Error::reading(path, errno)),
        };
        match parse(&page[..length]) {
            Ok(page) => return Ok(page),
            Err(Malformed::Torn) => {}
            Err(reason) => {
                return Err(Error::Malformed {
                    path: path.to_owned(),
                    reason,
                });
            }
        }
    }
    Err(Error::Busy {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sysgenid_vmclock::sample;
    use tempfile::TempDir;

    use super::*;

    /// A file that stands for the device.
    struct Device {
        _folder: TempDir,
        settings: Settings,
        path: PathBuf,
    }

    impl Device {
        fn new(content: &[u8]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("vmclock0");
            fs::write(&path, content).unwrap();
            Self {
                _folder: folder,
                settings: Settings {
                    vmclock: Some(path.clone()),
                    ..Settings::default()
                },
                path,
            }
        }

        fn set(&self, content: &[u8]) {
            fs::write(&self.path, content).unwrap();
        }

        fn open(&self, resume_at: Option<u64>) -> Vmclock {
            Vmclock::open(&self.settings, resume_at).unwrap()
        }
    }

    #[test]
    fn a_counter_that_differs_is_one_change_also_when_it_shrinks() {
        let device = Device::new(&sample(7));
        let mut backend = device.open(None);
        assert_eq!(backend.look().unwrap().reports, 0);
        device.set(&sample(9));
        assert_eq!(backend.look().unwrap().reports, 1);
        backend.deal().unwrap();
        assert_eq!(backend.look().unwrap().reports, 0);
        device.set(&sample(3));
        assert_eq!(backend.look().unwrap().reports, 1);
        backend.deal().unwrap();
        assert_eq!(backend.position(), Some(3));
    }

    #[test]
    fn a_report_is_repeated_until_it_is_dealt_with() {
        let device = Device::new(&sample(7));
        let mut backend = device.open(None);
        device.set(&sample(8));
        for _ in 0..2 {
            assert_eq!(backend.look().unwrap().reports, 1);
            assert_eq!(backend.position(), Some(7));
        }
    }

    #[test]
    fn what_changed_while_nobody_looked_is_noticed_by_the_successor() {
        let device = Device::new(&sample(7));
        let position = device.open(None).position();
        assert_eq!(device.open(position).look().unwrap().reports, 0);
        device.set(&sample(8));
        let mut successor = device.open(position);
        assert_eq!(successor.look().unwrap().reports, 1);
    }

    #[test]
    fn an_update_that_lasts_is_reported_and_loses_nothing() {
        let device = Device::new(&sample(7));
        let mut backend = device.open(None);
        let mut torn = sample(8);
        torn[0xc] = 7;
        device.set(&torn);
        assert!(matches!(backend.look(), Err(Error::Busy { .. })));
        assert!(matches!(backend.deal(), Err(Error::Busy { .. })));
        assert_eq!(backend.position(), Some(7));
        device.set(&sample(8));
        assert_eq!(backend.look().unwrap().reports, 1);
    }

    #[test]
    fn a_device_that_cannot_be_used_is_refused_with_the_reason() {
        let mut second = sample(7);
        second[8] = 2;
        let device = Device::new(&second);
        let error = Vmclock::open(&device.settings, None).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Malformed {
                    reason: Malformed::Version(2),
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_device_that_cannot_wait_is_not_waited_for() {
        let mut promising = sample(7);
        promising[0x19] = 3;
        // The page promises, but a regular file cannot poll, as the driver before Linux 7.0.
        let backend = Device::new(&promising).open(None);
        assert!(backend.fd().is_none());
        assert!(backend.description().contains("until then"));
    }
}
