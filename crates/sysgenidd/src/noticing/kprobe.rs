// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own notice, counted: a return probe on `add_vmfork_randomness`.
//!
//! The kernel's vmgenid driver calls this function once a restore, and it returns once the random number
//! generator has been reseeded and everybody in the kernel been told. The kernel counts the returns
//! (`kprobe_profile`), whether anybody reads or not: no flood overruns the count, no stranger moves it, and a
//! daemon that was down finds what it missed. To be woken, the probe is enabled in an instance of the tracing
//! file system (`instances/NAME`) that has a small buffer of its own, so that no other user of tracing is
//! disturbed or disturbs: its `trace_pipe` is one descriptor to poll, and what is in it does not matter.
//!
//! `perf_event_open` could have the same probe. It takes a descriptor and a mapped ring a CPU, care for CPUs
//! that come online later, and keeping the descriptors for the next process, which this does not: probe and
//! instance stay in the kernel until they are [removed](Backend::remove).
//!
//! The definition is that of `Documentation/trace/kprobetrace.rst`.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::authority::{Doubt, Presence};
use super::backend::{kernel_notices, presence_of_the_kernel};
use super::{Backend, Error, Kind, Seen, Settings};

/// Where the tracing file system usually is.
const USUAL: &str = "/sys/kernel/tracing";

/// `TRACEFS_MAGIC` of `include/uapi/linux/magic.h`.
const TRACEFS_MAGIC: u64 = 0x7472_6163;

/// The function that the kernel's driver calls.
const FUNCTION: &str = "add_vmfork_randomness";

/// The group of our probes.
const GROUP: &str = "sysgenid";

/// What is said once only: which kernel mode forbids it all.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// The size of the buffer, in KiB a CPU. It only has to be not empty.
const BUFFER: &str = "8";

/// What the probe and its instance are called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    event: String,
    instance: String,
}

impl Names {
    /// Named after the daemon's folder itself, so that two daemons do not fight, not even if each has a mount
    /// namespace in which its folder has the same path.
    fn of(directory: &Path) -> Self {
        let mut bytes = directory.as_os_str().as_bytes().to_vec();
        if let Ok(found) = fs::symlink_metadata(directory) {
            bytes.extend(found.dev().to_ne_bytes());
            bytes.extend(found.ino().to_ne_bytes());
        }
        // FNV-1a. The next version of this program has to come to the same names.
        let id = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            event: format!("restore_{id:016x}"),
            instance: format!("sysgenid_{id:016x}"),
        }
    }
}

/// The backend.
#[derive(Debug)]
pub struct Kprobe {
    tracing: Tracing,
    names: Names,
    drivers: Vec<PathBuf>,
    /// The instance's stream of events.
    pipe: OwnedFd,
    /// The count at the last look.
    count: u64,
    /// What a successor could not know, which the next look is to report.
    doubt: Option<Doubt>,
}

impl Kprobe {
    /// Opens the probe that a predecessor left, or makes it.
    ///
    /// # Errors
    ///
    /// [`Error::NoGenerationId`], because the kernel would never call the function; [`Error::NoProbe`].
    pub fn open(settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        if !kernel_notices(&settings.drivers) {
            return Err(Error::NoGenerationId);
        }
        let names = Names::of(&settings.directory);
        let open = |tracing: Tracing| Self::prepare(tracing, &names, settings, resume_at);
        if let Some(path) = &settings.tracefs {
            return open(Tracing::at(path)?);
        }
        // A service may see it read-only, or not at all. A mount of one's own depends on nobody.
        match Tracing::usual().and_then(open) {
            Err(Error::NoProbe {
                source: Errno::ROFS | Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::ACCESS,
                ..
            }) => open(Tracing::own()?),
            result => result,
        }
    }

    fn prepare(
        tracing: Tracing,
        names: &Names,
        settings: &Settings,
        resume_at: Option<u64>,
    ) -> Result<Self, Error> {
        let is_new = tracing.ensure_probe(names)?;
        let instance = format!("instances/{}", names.instance);
        let pipe = tracing.open(
            &format!("{instance}/trace_pipe"),
            OFlags::RDONLY | OFlags::NONBLOCK,
            "another process reads the daemon's own trace_pipe",
        )?;
        let count = tracing.count(&names.event)?;
        let doubt =
            resume_at.and_then(|before| (is_new || count < before).then_some(Doubt::CountAnew));
        Ok(Self {
            tracing,
            names: names.clone(),
            drivers: settings.drivers.clone(),
            pipe,
            count: resume_at.filter(|_| doubt.is_none()).unwrap_or(count),
            doubt,
        })
    }
}

impl Backend for Kprobe {
    fn kind(&self) -> Kind {
        Kind::Kprobe
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pipe.as_fd())
    }

    /// Each return of the function is a report. A count that went back is that of another kernel, or somebody
    /// made the probe anew.
    fn look(&mut self) -> Result<Seen, Error> {
        // First the events, then the count: what comes between wakes once more.
        drain(&self.pipe)?;
        let count = self.tracing.count(&self.names.event)?;
        let before = std::mem::replace(&mut self.count, count);
        let went_back = (count < before).then_some(Doubt::CountAnew);
        Ok(Seen {
            reports: count.saturating_sub(before),
            doubt: self.doubt.take().or(went_back),
            ended: None,
        })
    }

    fn position(&self) -> Option<u64> {
        Some(self.count)
    }

    fn presence(&self) -> Presence {
        presence_of_the_kernel(&self.drivers)
    }

    fn description(&self) -> String {
        format!(
            "{FUNCTION}: the kernel counts its returns, once it has handled the hypervisor's notice; no \
             window but that and the time to wake the daemon"
        )
    }

    fn remove(self: Box<Self>) {
        let Self {
            tracing,
            names,
            pipe,
            ..
        } = *self;
        // It holds the instance.
        drop(pipe);
        if let Err(error) = tracing.remove(&names) {
            tracing::warn!("the probe stays in the kernel: {error}");
        }
    }
}

/// Reads all that there is.
fn drain(pipe: &OwnedFd) -> Result<(), Error> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(pipe, &mut buffer) {
            // A stream that somebody stopped ends here; the count goes on.
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(no_probe("its events cannot be read", source)),
        }
    }
}

/// The tracing file system.
#[derive(Debug)]
struct Tracing(OwnedFd);

impl Tracing {
    /// Where it usually is.
    fn usual() -> Result<Self, Error> {
        let tracing = Self::at(Path::new(USUAL))?;
        let found = rustix::fs::fstatfs(&tracing.0)
            .map_err(|source| no_probe("the tracing file system cannot be asked", source))?;
        // The type of the number differs by machine.
        #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
        if found.f_type as u64 != TRACEFS_MAGIC {
            return Err(no_probe("tracefs is not mounted", Errno::NODEV));
        }
        Ok(tracing)
    }

    fn at(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|source| no_probe("there is no tracing file system", source))?;
        Ok(Self(folder))
    }

    /// A mount that nobody else sees, and that goes with its descriptor.
    fn own() -> Result<Self, Error> {
        let mount = || {
            let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(&context)?;
            rustix::mount::fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
        };
        mount().map(Self).map_err(|source| {
            let reason = match source {
                Errno::NODEV => "it was built without tracing (CONFIG_TRACING)",
                Errno::PERM | Errno::ACCESS => {
                    "run sysgenidd as root of the machine, not of a container"
                }
                _ => "tracefs cannot be mounted",
            };
            no_probe(reason, source)
        })
    }

    fn open(&self, path: &str, flags: OFlags, reason: &'static str) -> Result<OwnedFd, Error> {
        rustix::fs::openat(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| no_probe(reason, source))
    }

    fn read(&self, path: &str, reason: &'static str) -> Result<String, Error> {
        let mut text = String::new();
        fs::File::from(self.open(path, OFlags::RDONLY, reason)?)
            .read_to_string(&mut text)
            .map_err(|error| no_probe(reason, errno(&error)))?;
        Ok(text)
    }

    fn write(&self, path: &str, text: &str, reason: &'static str) -> Result<(), Error> {
        // Without O_TRUNC, which would remove all probes of everybody.
        let file = self.open(path, OFlags::WRONLY | OFlags::APPEND, reason)?;
        fs::File::from(file)
            .write_all(text.as_bytes())
            .map_err(|error| no_probe(reason, errno(&error)))
    }

    /// Sees to it that the probe is there and counts. Says whether it is new, or did not count meanwhile.
    fn ensure_probe(&self, names: &Names) -> Result<bool, Error> {
        let Names { event, instance } = names;
        let profile = self.read(
            "kprobe_profile",
            "it was built without CONFIG_KPROBE_EVENTS",
        )?;
        let is_missing = count_in(&profile, event).is_none();
        if is_missing {
            self.write(
                "kprobe_events",
                &format!("r:{GROUP}/{event} {FUNCTION}\n"),
                "it lets nobody probe the function that its vmgenid driver calls",
            )?;
        }
        let instance = format!("instances/{instance}");
        match rustix::fs::mkdirat(&self.0, &instance, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => {
                return Err(no_probe("it makes no instance of its tracing", source));
            }
        }
        let refused = "it does not let an instance of its tracing be set up";
        self.write(&format!("{instance}/buffer_size_kb"), BUFFER, refused)?;
        // Readers are woken by the first event, not when the buffer is half full.
        self.write(&format!("{instance}/buffer_percent"), "0", refused)?;
        let enable = format!("{instance}/events/{GROUP}/{event}/enable");
        let is_off = !self.read(&enable, refused)?.starts_with('1');
        if is_off {
            self.write(&enable, "1", refused)?;
        }
        Ok(is_missing || is_off)
    }

    fn count(&self, event: &str) -> Result<u64, Error> {
        let profile = self.read("kprobe_profile", "its count cannot be read")?;
        count_in(&profile, event).ok_or_else(|| Error::Gone {
            path: Path::new(USUAL).join("events").join(GROUP).join(event),
        })
    }

    fn remove(&self, names: &Names) -> Result<(), Error> {
        let Names { event, instance } = names;
        let refused = "it does not let the probe be removed";
        let instance = format!("instances/{instance}");
        let enable = format!("{instance}/events/{GROUP}/{event}/enable");
        let disabled = self.write(&enable, "0", refused);
        let unlinked = rustix::fs::unlinkat(&self.0, OsStr::new(&instance), AtFlags::REMOVEDIR)
            .map_err(|source| no_probe(refused, source));
        self.write("kprobe_events", &format!("-:{GROUP}/{event}\n"), refused)?;
        disabled.and(unlinked)
    }
}

/// How often the function returned, as `kprobe_profile` says: a line an event, with its name, its hits, and the
/// returns that it missed for want of memory.
fn count_in(profile: &str, event: &str) -> Option<u64> {
    profile.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == event).then_some(())?;
        let hits: u64 = words.next()?.parse().ok()?;
        let missed: u64 = words.next()?.parse().ok()?;
        hits.checked_add(missed)
    })
}

fn no_probe(reason: &'static str, source: Errno) -> Error {
    let forbidden = matches!(source, Errno::PERM | Errno::ACCESS);
    let locked_down = forbidden
        && fs::read_to_string(LOCKDOWN).is_ok_and(|text| text.contains("[confidentiality]"));
    Error::NoProbe {
        reason: if locked_down {
            "it is locked down (lockdown=confidentiality)"
        } else {
            reason
        },
        source,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Removes what a daemon with this folder has left in the kernel, if anything.
///
/// # Errors
///
/// [`Error::NoProbe`].
pub fn clean(settings: &Settings) -> Result<(), Error> {
    let tracing = match &settings.tracefs {
        Some(path) => Tracing::at(path)?,
        None => Tracing::usual().or_else(|_| Tracing::own())?,
    };
    let names = Names::of(&settings.directory);
    let profile = tracing.read("kprobe_profile", "its probes cannot be listed")?;
    let has_instance = rustix::fs::statat(
        &tracing.0,
        format!("instances/{}", names.instance),
        AtFlags::empty(),
    )
    .is_ok();
    if count_in(&profile, &names.event).is_none() && !has_instance {
        return Ok(());
    }
    tracing.remove(&names)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt as _;

    use rustix::fs::{CWD, FileType};
    use tempfile::TempDir;

    use super::*;

    /// Files that stand for the tracing file system, as it is once the probe is there.
    pub(in crate::noticing) struct Fake {
        folder: TempDir,
        pub(in crate::noticing) settings: Settings,
        names: Names,
    }

    impl Fake {
        pub(in crate::noticing) fn new(count: Option<&str>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings {
                directory: folder.path().join("run"),
                drivers: vec![folder.path().join("driver")],
                tracefs: Some(folder.path().to_owned()),
                ..Settings::default()
            };
            fs::create_dir(folder.path().join("run")).unwrap();
            fs::create_dir(folder.path().join("driver")).unwrap();
            std::os::unix::fs::symlink("/x", folder.path().join("driver/VMGENCTR:00")).unwrap();
            let names = Names::of(&settings.directory);
            let fake = Self {
                folder,
                settings,
                names,
            };
            let instance = format!("instances/{}", fake.names.instance);
            let events = format!("{instance}/events/{GROUP}/{}", fake.names.event);
            fs::create_dir_all(fake.path(&events)).unwrap();
            for file in ["buffer_size_kb", "buffer_percent"] {
                fs::write(fake.path(&format!("{instance}/{file}")), "").unwrap();
            }
            fs::write(fake.path(&format!("{events}/enable")), "1\n").unwrap();
            fs::write(fake.path("kprobe_events"), "").unwrap();
            let pipe = fake.path(&format!("{instance}/trace_pipe"));
            rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
            fake.set(count);
            fake
        }

        pub(in crate::noticing) fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        pub(in crate::noticing) fn set(&self, count: Option<&str>) {
            let other = "  restore_other      99      9\n";
            let line = count.map(|count| format!("  {}    {count}\n", self.names.event));
            let text = format!("{other}{}", line.unwrap_or_default());
            // Never empty meanwhile, which the kernel's is not either: somebody may be looking.
            let profile = fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(self.path("kprobe_profile"))
                .unwrap();
            profile.write_all_at(text.as_bytes(), 0).unwrap();
            profile.set_len(text.len() as u64).unwrap();
        }

        /// An event comes.
        pub(in crate::noticing) fn wake(&self) {
            let path = format!("instances/{}/trace_pipe", self.names.instance);
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            let pipe = rustix::fs::open(self.path(&path), flags, Mode::empty()).unwrap();
            rustix::io::write(&pipe, b"x").unwrap();
        }

        fn open(&self, resume_at: Option<u64>) -> Kprobe {
            Kprobe::open(&self.settings, resume_at).unwrap()
        }
    }

    fn look(backend: &mut Kprobe) -> (u64, Option<Doubt>) {
        let seen = backend.look().unwrap();
        (seen.reports, seen.doubt)
    }

    #[test]
    fn each_return_of_the_function_is_a_report_and_so_is_one_that_was_missed() {
        let fake = Fake::new(Some("3 1"));
        let mut backend = fake.open(None);
        assert_eq!(look(&mut backend), (0, None));
        fake.set(Some("4 2"));
        assert_eq!(look(&mut backend), (2, None));
        assert_eq!(look(&mut backend), (0, None));
        assert_eq!(backend.position(), Some(6));
    }

    #[test]
    fn what_returned_while_nobody_looked_is_noticed_by_the_successor() {
        let fake = Fake::new(Some("3 0"));
        let position = fake.open(None).position();
        assert_eq!(look(&mut fake.open(position)), (0, None));
        fake.set(Some("4 0"));
        assert_eq!(look(&mut fake.open(position)), (1, None));
    }

    #[test]
    fn a_count_that_went_back_is_a_doubt() {
        let fake = Fake::new(Some("3 0"));
        let mut backend = fake.open(Some(5));
        assert_eq!(look(&mut backend), (0, Some(Doubt::CountAnew)));
        assert_eq!(look(&mut backend), (0, None));
        fake.set(Some("1 0"));
        assert_eq!(look(&mut backend), (0, Some(Doubt::CountAnew)));
        assert_eq!(backend.position(), Some(1));
    }

    #[test]
    fn a_probe_that_did_not_count_meanwhile_is_a_doubt_for_a_successor_only() {
        let fake = Fake::new(Some("3 0"));
        let instance = format!("instances/{}", fake.names.instance);
        let enable = format!("{instance}/events/{GROUP}/{}/enable", fake.names.event);
        for (resume_at, doubt) in [(Some(3), Some(Doubt::CountAnew)), (None, None)] {
            fs::write(fake.path(&enable), "0\n").unwrap();
            assert_eq!(look(&mut fake.open(resume_at)), (0, doubt));
            assert_eq!(fs::read_to_string(fake.path(&enable)).unwrap(), "0\n1");
        }
    }

    #[test]
    fn a_probe_that_somebody_removed_is_gone() {
        let fake = Fake::new(Some("3 0"));
        let mut backend = fake.open(None);
        fake.set(None);
        assert!(matches!(backend.look(), Err(Error::Gone { .. })));
    }

    #[test]
    fn a_probe_is_added_to_those_of_others() {
        let fake = Fake::new(None);
        fs::write(fake.path("kprobe_events"), "p:other/one do_exit\n").unwrap();
        // A file does not count, so the probe is not found.
        assert!(Kprobe::open(&fake.settings, None).is_err());
        let events = fs::read_to_string(fake.path("kprobe_events")).unwrap();
        let own = format!("r:sysgenid/{} add_vmfork_randomness\n", fake.names.event);
        assert_eq!(events, format!("p:other/one do_exit\n{own}"));
    }

    #[test]
    fn where_the_kernel_cannot_notice_nothing_is_probed() {
        let fake = Fake::new(None);
        fs::remove_file(fake.path("driver/VMGENCTR:00")).unwrap();
        let error = Kprobe::open(&fake.settings, None).unwrap_err();
        assert!(matches!(error, Error::NoGenerationId), "{error}");
        assert_eq!(fs::read_to_string(fake.path("kprobe_events")).unwrap(), "");
    }

    #[test]
    fn a_kernel_without_probes_says_which_option_it_lacks() {
        let fake = Fake::new(None);
        fs::remove_file(fake.path("kprobe_profile")).unwrap();
        let error = Kprobe::open(&fake.settings, None).unwrap_err();
        assert!(
            error.to_string().contains("CONFIG_KPROBE_EVENTS"),
            "{error}"
        );
    }

    #[test]
    fn daemons_with_other_folders_have_other_names() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::create_dir(&one).unwrap();
        assert_ne!(Names::of(&one), Names::of(&other));
        let before = Names::of(&one);
        assert_eq!(Names::of(&one), before);
        // The same path in another mount namespace leads elsewhere.
        fs::rename(&one, &other).unwrap();
        fs::create_dir(&one).unwrap();
        assert_ne!(Names::of(&one), before);
    }
}
