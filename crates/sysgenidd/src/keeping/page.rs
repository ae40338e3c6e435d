// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of an instance, in a file that has its name and is never replaced.
//!
//! A program that maps a page asks nobody ever again. So the page outlives whoever serves it: who serves the
//! name next goes on with this very file, and whoever ends says so in it first. The number in it never
//! begins anew while somebody may remember it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sysgenid_core::{Generation, PageWord};

use crate::failure::failed;
use crate::keeping::folder::{self, Error};
use crate::keeping::storage::{self, Storage};
use crate::noticing::Fresh;

/// The size of a page in bytes.
pub(crate) const SIZE: usize = 4096;

/// The page of an instance: the file that mappings go to.
#[derive(Debug)]
pub struct Page {
    storage: Storage,
}

impl Page {
    /// The name of its file.
    pub(super) const NAME: &str = "page";

    /// The page that is this file. One that cannot be a page is replaced by a new one.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        match Self::existing(path) {
            Ok(Some(page)) => return Ok(page),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        if std::fs::symlink_metadata(path).is_ok() {
            tracing::error!(
                "{} was not a page and is a new one now: programs that map the old one learn of no change \
                 any more; restart them",
                path.display()
            );
            folder::remove(path)?;
        }
        // It appears under its name when it is whole.
        let (file, new) = folder::create_beside(path)?;
        storage::allocate(&file, SIZE as u64).map_err(failed("make room for", &new))?;
        std::fs::rename(&new, path).map_err(failed("make", path))?;
        Ok(Self::of_file(file).map_err(failed("map", path))?)
    }

    /// The page that is this file, if there is one.
    pub(super) fn existing(path: &Path) -> Result<Option<Self>, Error> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => file,
            // Nothing, a link, a folder, a socket or a pipe.
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(failed("open", path)(errno).into()),
        };
        if !is_page(&file).map_err(failed("look at", path))? {
            return Ok(None);
        }
        Ok(Some(Self::of_file(file).map_err(failed("map", path))?))
    }

    /// The page whose descriptor this is, in a process that was given it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is something else.
    pub fn from_fd(file: OwnedFd) -> rustix::io::Result<Self> {
        if is_page(&file)? {
            Self::of_file(file)
        } else {
            Err(Errno::INVAL)
        }
    }

    fn of_file(file: OwnedFd) -> rustix::io::Result<Self> {
        let storage = Storage::of_file(file, SIZE / size_of::<u64>())?;
        Ok(Self { storage })
    }

    /// What programs see.
    pub fn word(&self) -> PageWord {
        PageWord::from_word(self.storage.words()[0].load(Ordering::Acquire))
    }

    /// Shows programs this, all at once.
    pub fn store(&self, word: PageWord) {
        self.storage.words()[0].store(word.to_word(), Ordering::Release);
    }

    /// What to show once serving begins: a generation that nobody has seen, neither in this page nor, as far
    /// as the caller knows, `above`; 0 only if there was none. `noticed` says whether something notices
    /// restores. Stores nothing: first everything else must be ready.
    #[must_use]
    pub fn begin(&self, above: Option<Generation>, noticed: bool) -> PageWord {
        let shown = self.word();
        let was_served = shown != PageWord::default();
        let generation = match above {
            None if !was_served => Generation::START,
            None => shown.generation.next(),
            Some(above) => match shown.generation.next_at_least(above.next()) {
                // Across the wrap.
                found if found == above => found.next(),
                found => found,
            },
        };
        PageWord {
            generation,
            live: true,
            noticed,
        }
    }

    /// Shows programs a last change, and that no other will be shown. Does nothing to a page that shows that
    /// already, or was never served.
    ///
    /// To those who map it that is a change, so the kernel's generator must be fresh.
    pub fn end(&self, fresh: &Fresh) {
        let _ = fresh;
        let shown = self.word();
        if shown.live {
            self.store(PageWord {
                generation: shown.generation.next(),
                live: false,
                noticed: false,
            });
        }
    }
}

fn is_page(file: &OwnedFd) -> rustix::io::Result<bool> {
    let found = rustix::fs::fstat(file)?;
    Ok(
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && usize::try_from(found.st_size) == Ok(SIZE),
    )
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.storage.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn word(generation: u32, live: bool) -> PageWord {
        PageWord {
            generation: Generation::new(generation),
            live,
            noticed: live,
        }
    }

    fn place() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(Page::NAME);
        (folder, path)
    }

    #[test]
    fn the_page_of_a_name_is_the_same_file_for_whoever_serves_it_next() {
        let (_folder, path) = place();
        let page = Page::open(&path).unwrap();
        assert_eq!(page.word(), PageWord::default());
        let mapped = Page::open(&path).unwrap();
        page.store(word(7, true));
        drop(page);
        let next = Page::open(&path).unwrap();
        assert_eq!(next.word(), word(7, true));
        next.store(word(8, true));
        assert_eq!(mapped.word(), word(8, true));
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (4096, 0o600));
        assert!(found.blocks() * 512 >= 4096);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn serving_never_begins_with_a_generation_that_somebody_may_remember() {
        let (_folder, path) = place();
        let page = Page::open(&path).unwrap();
        let begin = |above: Option<u32>| page.begin(above.map(Generation::new), true);
        assert_eq!(begin(None), word(0, true));
        assert_eq!(begin(Some(0)), word(1, true));
        assert_eq!(begin(Some(u32::MAX)), word(1, true));
        assert_eq!(page.word(), PageWord::default());
        // Served at generation 0, by a process that left it at that.
        page.store(word(0, true));
        assert_eq!(begin(None), word(1, true));
        page.end(&Fresh::for_test());
        assert_eq!(page.word(), word(1, false));
        assert_eq!(begin(None), word(2, true));
        assert_eq!(begin(Some(1)), word(2, true));
        assert_eq!(begin(Some(5)), word(6, true));
        for (shown, above, expected) in [
            (u32::MAX, None, 1),
            (u32::MAX, Some(1), 2),
            (u32::MAX, Some(u32::MAX), 1),
            (u32::MAX - 1, Some(u32::MAX), 1),
            (3, Some(u32::MAX), 4),
        ] {
            page.store(word(shown, false));
            assert_eq!(begin(above), word(expected, true), "{shown} {above:?}");
        }
        assert!(!page.begin(None, false).noticed);
    }

    #[test]
    fn the_end_of_serving_is_one_change_and_no_page_ends_twice() {
        let (_folder, path) = place();
        let page = Page::open(&path).unwrap();
        page.end(&Fresh::for_test());
        assert_eq!(page.word(), PageWord::default());
        page.store(word(u32::MAX, true));
        for _ in 0..2 {
            page.end(&Fresh::for_test());
            assert_eq!(page.word(), word(1, false));
        }
    }

    #[test]
    fn what_cannot_be_a_page_is_replaced_by_one() {
        let (folder, path) = place();
        let other = folder.path().join("other");
        std::fs::write(&other, [9; SIZE]).unwrap();
        let makers: [&dyn Fn(); 5] = [
            &|| std::fs::write(&path, [1; SIZE - 1]).unwrap(),
            &|| std::fs::write(&path, [1; SIZE + 1]).unwrap(),
            &|| symlink(&other, &path).unwrap(),
            &|| std::fs::create_dir_all(path.join("full")).unwrap(),
            &|| {
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, Mode::RUSR, 0).unwrap();
            },
        ];
        for make in makers {
            folder::remove(&path).unwrap();
            make();
            let page = Page::open(&path).unwrap();
            assert_eq!(page.word(), PageWord::default());
            let found = std::fs::symlink_metadata(&path).unwrap();
            assert!(found.is_file());
            assert_eq!(
                (found.len(), found.permissions().mode() & 0o777),
                (4096, 0o600)
            );
        }
        assert_eq!(std::fs::read(&other).unwrap(), [9; SIZE]);
    }
}
