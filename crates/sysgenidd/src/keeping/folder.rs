// SPDX-License-Identifier: MIT OR Apache-2.0

//! The folder of what outlives the service: `.keep` in the daemon's own, which only root enters.
//!
//! Each instance has a folder in it, with its name. What is there belongs to one boot of the kernel: no
//! mapping and no connection survives that.

use std::fs;
use std::io;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::config::InstanceName;
use crate::failure::{Failure, failed};
use crate::keeping::page::Page;
use crate::keeping::state::{State, StateError};
use crate::noticing::reseed;
use crate::sys;

/// The folder's name. No instance can have it.
const NAME: &str = ".keep";

/// Which boot the content is of. No instance can be called so.
const BOOT: &str = ".boot";

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The name of the file that says what an instance was asked to be.
const DEFINITION: &str = "definition";

/// How many pages of instances that nobody serves are kept, whoever may map them.
const DORMANT: usize = 1000;

/// Why something in the folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    System(#[from] Failure),
    /// Something that the daemon did not make.
    #[error("{} is not a folder of this user's: move it away, for the daemon keeps its pages there", .0.display())]
    Foreign(PathBuf),
}

/// What outlives the service, in files.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// That of the daemon's `directory`. What another boot has left in it is deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`] if somebody else could change what is in it, and [`Error::System`].
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let boot = fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?;
        Self::open_at_boot(directory, &boot)
    }

    fn open_at_boot(directory: &Path, boot: &str) -> Result<Self, Error> {
        let path = directory.join(NAME);
        make_folder(&path)?;
        let folder = Self { path };
        let file = folder.path.join(BOOT);
        if fs::read_to_string(&file).is_ok_and(|found| found == boot) {
            return Ok(folder);
        }
        for entry in list(&folder.path)? {
            remove(&entry)?;
        }
        // Last: a process that dies before has its successor begin again.
        replace(&file, boot.as_bytes())?;
        Ok(folder)
    }

    /// The page of an instance. One that is not there is made, and so is one in whose place there is
    /// something else.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn page(&self, name: &InstanceName) -> Result<Page, Error> {
        Page::open(&self.instance(name)?.join(Page::NAME))
    }

    /// An empty state for a new instance.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn new_state(&self, name: &InstanceName) -> Result<State, StateError> {
        State::create(&self.instance(name)?.join(State::NAME))
    }

    /// The state of an instance which another process served.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn state(&self, name: &InstanceName) -> Result<State, StateError> {
        State::resume(&self.path.join(name.as_str()).join(State::NAME))
    }

    /// Where the definition of an instance is, if it has one.
    pub(super) fn definition(&self, name: &InstanceName) -> PathBuf {
        self.path.join(name.as_str()).join(DEFINITION)
    }

    /// Ends the page of an instance, and deletes everything else of it.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn end(&self, name: &InstanceName) -> Result<(), Error> {
        let folder = self.path.join(name.as_str());
        if let Some(page) = self.existing_page(name)?
            && page.word().live
        {
            page.end(&reseed::reseed_at_end());
        }
        // First: with it an instance would be whole.
        remove(&folder.join(DEFINITION))?;
        if folder.exists() {
            remove_all_but_the_page(&folder)?;
        }
        Ok(())
    }

    /// The page of an instance, if it is there.
    pub(super) fn existing_page(&self, name: &InstanceName) -> Result<Option<Page>, Error> {
        Page::existing(&self.path.join(name.as_str()).join(Page::NAME))
    }

    /// The instances of which something is here.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn names(&self) -> Result<Vec<InstanceName>, Error> {
        let names = list(&self.path)?.into_iter();
        Ok(names
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect())
    }

    /// Deletes what is kept of instances that `is_served` does not know: all but their page, and of more
    /// than a thousand pages the oldest ones that nobody maps any more.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn tidy(&self, is_served: impl Fn(&InstanceName) -> bool) -> Result<(), Error> {
        self.tidy_to(DORMANT, is_served)
    }

    fn tidy_to(
        &self,
        dormant: usize,
        is_served: impl Fn(&InstanceName) -> bool,
    ) -> Result<(), Error> {
        let mut pages = Vec::new();
        for name in self.names()? {
            if is_served(&name) {
                continue;
            }
            let folder = self.path.join(name.as_str());
            remove_all_but_the_page(&folder)?;
            let page = folder.join(Page::NAME);
            let ended = fs::symlink_metadata(&page)
                .map_or((0, 0), |found| (found.mtime(), found.mtime_nsec()));
            pages.push((ended, page));
        }
        pages.sort_unstable();
        let too_many = pages.len().saturating_sub(dormant);
        let unmapped = pages
            .iter()
            .filter(|(_, page)| is_unmapped(page))
            .take(too_many);
        for (_, page) in unmapped {
            if let Some(folder) = page.parent() {
                remove(folder)?;
            }
        }
        Ok(())
    }

    /// The folder of an instance.
    fn instance(&self, name: &InstanceName) -> Result<PathBuf, Error> {
        let path = self.path.join(name.as_str());
        match make_folder(&path) {
            Err(Error::Foreign(_)) => {
                tracing::warn!("{} was not a folder, and is one now", path.display());
                remove(&path)?;
                make_folder(&path)?;
            }
            result => result?,
        }
        Ok(path)
    }
}

/// Ends all instances of the daemon's `directory`: their pages show a last change, and that they will show no
/// other; the rest is deleted. For when nobody serves them any more.
///
/// # Errors
///
/// The first [`Error`]; all with which it can be done are ended even so.
pub fn end_all(directory: &Path) -> Result<(), Error> {
    if !directory.join(NAME).exists() {
        return Ok(());
    }
    let folder = Folder::open(directory)?;
    let mut result = Ok(());
    for name in folder.names()? {
        result = result.and(folder.end(&name));
    }
    result
}

fn remove_all_but_the_page(folder: &Path) -> Result<(), Error> {
    for entry in list(folder)? {
        if !entry.ends_with(Page::NAME) {
            remove(&entry)?;
        }
    }
    Ok(())
}

/// Whether a page can be deleted without anybody's noticing.
fn is_unmapped(page: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::open(page, flags, Mode::empty()) {
        Ok(file) => sys::is_open_nowhere_else(file).unwrap_or(false),
        // There is none.
        Err(_) => true,
    }
}

/// Makes a folder for this user alone.
fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make", path)(error).into()),
    }
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Foreign(path.to_owned()));
    }
    if found.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(failed("close to others", path))?;
    }
    Ok(())
}

/// Replaces the content of a file, all at once. It is only for this user.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let (file, new) = create_beside(path)?;
    fs::File::from(file)
        .write_all(content)
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed("write", path))?;
    Ok(())
}

/// A new file that is to be renamed to `path`, and where it is until then.
pub(super) fn create_beside(path: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    let new = path.with_extension("new");
    remove(&new)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file =
        rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make", &new))?;
    Ok((file, new))
}

/// Removes whatever is there, with all that is in it.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_folder {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

fn list(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(failed("list", path))?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::mm::{MapFlags, ProtFlags};
    use sysgenid_core::{Generation, PageWord};

    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    const LIVE: PageWord = PageWord {
        generation: Generation::new(4),
        live: true,
        noticed: true,
    };

    #[test]
    fn what_another_boot_left_is_deleted_and_what_this_one_left_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open_at_boot(directory.path(), "first\n").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&folder.path), 0o700);
        folder.page(&name("boot")).unwrap().store(LIVE);
        folder.page(&name("a.b-c")).unwrap();
        assert_eq!(mode(&folder.path.join("boot")), 0o700);
        let folder = Folder::open_at_boot(directory.path(), "first\n").unwrap();
        assert_eq!(folder.page(&name("boot")).unwrap().word(), LIVE);
        let mut names = folder.names().unwrap();
        names.sort();
        assert_eq!(names, [name("a.b-c"), name("boot")]);
        let folder = Folder::open_at_boot(directory.path(), "second\n").unwrap();
        assert_eq!(folder.names().unwrap(), []);
        let page = folder.page(&name("boot")).unwrap();
        assert_eq!(page.word(), PageWord::default());
        page.store(LIVE);
        // A process that died before it was done.
        fs::remove_file(folder.path.join(BOOT)).unwrap();
        let folder = Folder::open_at_boot(directory.path(), "second\n").unwrap();
        assert_eq!(folder.names().unwrap(), []);
    }

    #[test]
    fn a_link_in_the_folders_place_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join(NAME)).unwrap();
        let refused = Folder::open(directory.path());
        assert!(matches!(refused, Err(Error::Foreign(_))), "{refused:?}");

        fs::remove_file(directory.path().join(NAME)).unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let link = folder.path.join("web");
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        folder.page(&name("web")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_dir());
        assert_eq!(list(elsewhere.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_end_of_all_ends_every_page_and_needs_no_folder() {
        let directory = tempfile::tempdir().unwrap();
        end_all(directory.path()).unwrap();
        assert!(!directory.path().join(NAME).exists());
        let folder = Folder::open(directory.path()).unwrap();
        let pages: Vec<_> = (0..5)
            .map(|n| folder.page(&name(&format!("i{n}"))).unwrap())
            .collect();
        for page in &pages[1..] {
            page.store(LIVE);
        }
        // One without a page must not keep the others from it.
        fs::create_dir(folder.path.join("a")).unwrap();
        // Nor one that is no folder.
        fs::write(folder.path.join("b"), "").unwrap();
        folder.new_state(&name("i1")).unwrap();
        assert!(end_all(directory.path()).is_err());
        assert!(folder.state(&name("i1")).is_err());
        assert_eq!(pages[0].word(), PageWord::default());
        for page in &pages[1..] {
            let ended = PageWord {
                generation: LIVE.generation.next(),
                ..PageWord::default()
            };
            assert_eq!(page.word(), ended);
        }
        assert!(!folder.path.join("a").join(Page::NAME).exists());
    }

    /// A mapping whose descriptor is closed.
    struct Mapping(*mut std::ffi::c_void);

    impl Mapping {
        fn of(page: &Path) -> Self {
            let file = fs::File::open(page).unwrap();
            let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
            // SAFETY: the kernel chooses a free place.
            let mapped = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    4096,
                    protection,
                    flags,
                    file.as_fd(),
                    0,
                )
            };
            Self(mapped.unwrap())
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: nothing refers to it.
            unsafe { rustix::mm::munmap(self.0, 4096) }.unwrap();
        }
    }

    fn only_unmapped_pages_are_deleted_below(place: &Path) {
        let directory = tempfile::tempdir_in(place).unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let path = |n: usize| folder.path.join(format!("i{n}")).join(Page::NAME);
        for n in 0..6 {
            let page = folder.page(&name(&format!("i{n}"))).unwrap();
            page.store(LIVE);
            page.end(&crate::noticing::Fresh::for_test());
            drop(page);
            let when = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n as u64);
            let file = fs::File::options().write(true).open(path(n)).unwrap();
            file.set_modified(when).unwrap();
        }
        let mapping = Mapping::of(&path(0));
        let open = fs::File::open(path(1)).unwrap();
        fs::write(path(0).with_file_name("left over"), "x").unwrap();
        fs::write(path(2).with_file_name("in use"), "x").unwrap();
        let there = || (0..6).filter(|&n| path(n).exists()).collect::<Vec<_>>();
        folder.tidy_to(6, |name| name.as_str() == "i2").unwrap();
        assert_eq!(there(), [0, 1, 2, 3, 4, 5]);
        folder.tidy_to(3, |name| name.as_str() == "i2").unwrap();
        assert_eq!(there(), [0, 1, 2, 5]);
        assert!(!path(0).with_file_name("left over").exists());
        assert!(path(2).with_file_name("in use").exists());
        drop((mapping, open));
        folder.tidy_to(0, |name| name.as_str() == "i2").unwrap();
        assert_eq!(there(), [2]);
        assert_eq!(folder.names().unwrap(), [name("i2")]);
    }

    #[test]
    fn of_too_many_dormant_pages_the_oldest_that_nobody_maps_are_deleted() {
        only_unmapped_pages_are_deleted_below(&std::env::temp_dir());
        // Where the daemon's own usually is: a tmpfs.
        only_unmapped_pages_are_deleted_below(Path::new("/dev/shm"));
    }
}
