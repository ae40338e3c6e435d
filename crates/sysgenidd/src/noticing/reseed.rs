// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reseeding the kernel's random number generator, which comes before every change.
//!
//! Whoever is told of a change draws new secrets at once. In two clones the generator's state is the same
//! until something that differs between them has got into it *and* it was made over: mixing alone changes
//! nothing that programs draw. Programs that draw by `getrandom(3)` from the vDSO have a state of their own,
//! which is stale only once the kernel's generator was made over; where a container was restored, nobody but
//! the daemon does that.
//!
//! What differs is mixed in by a `write` to `/dev/random`. That is what `RNDADDENTROPY` does when no entropy is
//! credited, and none is: nobody can say how much of it an onlooker knows. Then `RNDRESEEDCRNG`.
//!
//! Nothing is taken from a tenant: whoever may trigger an instance of a container makes the generator be made
//! over, from what the machine itself has, and so often a second as [`CommonReseed`] allows.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::sys;

const RANDOM: &str = "/dev/random";

/// A generator of the machine's own, where it has one.
const HARDWARE: &str = "/dev/hwrng";

/// How much is taken from it. More than a driver has fetched ahead, which clones have in common.
const HARDWARE_BYTES: usize = 256;

/// How long it may take. Its driver may hold a lock while it waits for the hypervisor, and a change waits for
/// nobody.
const HARDWARE_PATIENCE: Duration = Duration::from_millis(20);

/// How many common reseeds there are a second at most.
pub const COMMON_PER_SECOND: u64 = 20;

/// That the kernel's generator was reseeded, or that this was tried. Without one no change can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    failure: Option<Errno>,
}

impl Fresh {
    /// Whether the generator is fresh.
    pub fn succeeded(self) -> bool {
        self.failure.is_none()
    }

    /// Why it is not.
    pub fn failure(self) -> Option<Errno> {
        self.failure
    }

    /// For tests of what needs one.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self { failure: None }
    }
}

/// What is known to differ between clones of one snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The hypervisor's counter of restores.
    pub counter: Option<u64>,
    /// How often the kernel was told of a restore.
    pub notices: Option<u64>,
}

impl Differences {
    /// With what else differs: the clocks, which are made from the CPU's counter of time stamps.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        for number in [self.counter, self.notices] {
            bytes.push(u8::from(number.is_some()));
            bytes.extend(number.unwrap_or(0).to_ne_bytes());
        }
        for clock in [
            ClockId::Realtime,
            ClockId::MonotonicRaw,
            ClockId::Boottime,
            ClockId::ThreadCPUTime,
        ] {
            let time = clock_gettime(clock);
            bytes.extend(time.tv_sec.to_ne_bytes());
            bytes.extend(time.tv_nsec.to_ne_bytes());
        }
        bytes
    }
}

/// After a restore of the machine, or what may have been one. It never fails: a change with a stale generator is
/// better than none. A failure is logged, once.
pub fn reseed_after_restore(differs: &Differences) -> Fresh {
    let mut bytes = differs.bytes();
    bytes.extend(from_hardware(Path::new(HARDWARE)));
    let result = open_random().and_then(|mut random| {
        // Whoever may not reseed may still mix.
        random.write_all(&bytes).map_err(|error| errno(&error))?;
        sys::reseed(random.as_fd())
    });
    report(result)
}

/// After a trigger by whoever has the right on the machine itself.
pub fn reseed_for_trigger() -> Fresh {
    reseed_after_restore(&Differences::default())
}

/// Before the last change of a page that nobody serves any more: whoever sees it draws anew, and nothing
/// happened that would differ between clones but what the kernel has gathered.
pub fn reseed_at_end() -> Fresh {
    common_reseed()
}

fn common_reseed() -> Fresh {
    report(open_random().and_then(|random| sys::reseed(random.as_fd())))
}

fn open_random() -> Result<File, Errno> {
    File::options()
        .write(true)
        .open(RANDOM)
        .map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The token for what happened. Each new kind of failure is logged.
fn report(result: Result<(), Errno>) -> Fresh {
    static LAST: AtomicI32 = AtomicI32::new(0);
    let failure = result.err();
    let number = failure.map_or(0, Errno::raw_os_error);
    if LAST.swap(number, Ordering::Relaxed) != number {
        match failure {
            None => tracing::info!("the kernel's random number generator can be reseeded again"),
            Some(Errno::PERM | Errno::ACCESS) => tracing::warn!(
                "the kernel's random number generator may not be reseeded from here (it takes \
                 CAP_SYS_ADMIN on the machine): after a restore that the kernel does not notice by itself, \
                 clones may draw the same from it"
            ),
            Some(Errno::NODATA) => tracing::warn!(
                "the kernel's random number generator was never ready yet, so it is not reseeded"
            ),
            Some(errno) => tracing::warn!(
                "the kernel's random number generator cannot be reseeded ({errno}): after a restore that \
                 the kernel does not notice by itself, clones may draw the same from it"
            ),
        }
    }
    Fresh { failure }
}

/// What a hardware generator gives at once.
fn from_hardware(path: &Path) -> Vec<u8> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    // Whether a thread still waits for a driver that hangs: one is enough.
    static WAITING: AtomicBool = AtomicBool::new(false);
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let Ok(hardware) = opened else {
        return Vec::new();
    };
    if WAITING.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let (tell, told) = mpsc::channel();
    // If its driver waits, this thread does, and what it gets too late is dropped.
    let spawned = thread::Builder::new()
        .name("hwrng".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            let bytes = read_at_once(hardware);
            WAITING.store(false, Ordering::Relaxed);
            let _ = tell.send(bytes);
        });
    match spawned {
        Ok(_) => told.recv_timeout(HARDWARE_PATIENCE).unwrap_or_default(),
        Err(_) => {
            WAITING.store(false, Ordering::Relaxed);
            Vec::new()
        }
    }
}

fn read_at_once(mut hardware: File) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HARDWARE_BYTES);
    let mut buffer = [0; 64];
    while bytes.len() < HARDWARE_BYTES {
        match hardware.read(&mut buffer) {
            Ok(length) if length > 0 => bytes.extend(&buffer[..length]),
            _ => break,
        }
    }
    bytes
}

/// The reseeds that tenants cause: [`COMMON_PER_SECOND`] at most, and one for all who wait.
#[derive(Debug, Default)]
pub struct CommonReseed {
    /// When the last one began.
    last: Mutex<Option<(u64, Fresh)>>,
}

impl CommonReseed {
    /// The shortest time between two, in nanoseconds.
    const GAP: u64 = 1_000_000_000 / COMMON_PER_SECOND;

    /// For somebody who asked for a change at `asked`, now that it is `now` (nanoseconds of one clock): a
    /// reseed that began at or after `asked`, made now if need be.
    ///
    /// # Errors
    ///
    /// When to ask again, if there may be none now. Whoever does so then with the same `asked` gets the one
    /// that somebody else's asking made.
    pub fn due(&self, asked: u64, now: u64) -> Result<Fresh, u64> {
        self.due_by(asked, now, common_reseed)
    }

    fn due_by(&self, asked: u64, now: u64, reseed: impl FnOnce() -> Fresh) -> Result<Fresh, u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, fresh)) = *last {
            // A reseed within the very moment of the question may have been before it.
            if began > asked {
                return Ok(fresh);
            }
            let next = began.saturating_add(Self::GAP);
            if now < next {
                return Err(next);
            }
        }
        let fresh = reseed();
        *last = Some((now, fresh));
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    #[test]
    fn a_reseed_succeeds_or_says_why_not_and_returns_in_any_case() {
        for fresh in [
            reseed_after_restore(&Differences::default()),
            reseed_for_trigger(),
            common_reseed(),
        ] {
            let is_root = rustix::process::geteuid().is_root();
            assert!(fresh.succeeded() || !is_root || fresh.failure() == Some(Errno::PERM));
            assert_eq!(fresh.succeeded(), fresh.failure().is_none());
        }
    }

    #[test]
    fn every_counter_makes_a_difference() {
        let numbers = |differs: Differences| differs.bytes()[..18].to_vec();
        let none = numbers(Differences::default());
        for counter in [0, 1] {
            let one = numbers(Differences {
                counter: Some(counter),
                ..Differences::default()
            });
            let other = numbers(Differences {
                notices: Some(counter),
                ..Differences::default()
            });
            assert!(none != one && none != other && one != other);
        }
    }

    #[test]
    fn the_clocks_make_a_difference() {
        let clocks = || Differences::default().bytes()[18..].to_vec();
        assert_ne!(clocks(), clocks());
    }

    #[test]
    fn a_hardware_generator_gives_what_it_has_and_is_not_waited_for() {
        assert!(from_hardware(Path::new("/nonexistent")).is_empty());
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("hwrng");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let writer = File::options().read(true).write(true).open(&pipe).unwrap();
        assert!(from_hardware(&pipe).is_empty());
        rustix::io::write(&writer, &[7; 100]).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&pipe, flags, Mode::empty()).unwrap();
        assert_eq!(read_at_once(reader.into()), [7; 100]);
        let zero = File::open("/dev/zero").unwrap();
        assert_eq!(read_at_once(zero).len(), HARDWARE_BYTES);
    }

    #[test]
    fn common_reseeds_are_few_and_each_is_for_all_who_asked_before_it() {
        const GAP: u64 = CommonReseed::GAP;
        let common = CommonReseed::default();
        let count = Cell::new(0);
        let due = |asked, now| {
            common.due_by(asked, now, || {
                count.set(count.get() + 1);
                Fresh::for_test()
            })
        };
        assert!(due(1000, 1001).is_ok());
        // It began after these asked.
        assert!(due(1000, 1002).is_ok());
        assert_eq!(count.get(), 1);
        // And not after these.
        assert_eq!(due(1001, 1001), Err(1001 + GAP));
        assert_eq!(due(1500, 1500), Err(1001 + GAP));
        assert_eq!(due(1600, 1600), Err(1001 + GAP));
        assert_eq!(count.get(), 1);
        assert!(due(1500, 1001 + GAP).is_ok());
        assert!(due(1600, 1002 + GAP).is_ok());
        assert_eq!(count.get(), 2);
    }

    #[test]
    fn a_second_of_asking_has_twenty_common_reseeds() {
        let common = CommonReseed::default();
        let count = Cell::new(0);
        for now in 0..1000 {
            let now = now * 1_000_000;
            let _ = common.due_by(now, now, || {
                count.set(count.get() + 1);
                Fresh::for_test()
            });
        }
        assert_eq!(count.get(), COMMON_PER_SECOND);
    }
}
