// SPDX-License-Identifier: MIT OR Apache-2.0

//! Another node: the module's, or one that an outer daemon serves.
//!
//! The node is opened for reading only. Such a watcher is never counted when others wait, and it can never
//! acknowledge: after the first change it is outdated, hence readable, for ever. So its page is mapped, what it
//! says is compared with what it said last, and its descriptor is watched for edges.
//!
//! Whatever is asked of a node may be asked of a daemon that hangs: to find it, to open it, even to poll it.
//! So a thread of its own does all that, and leaves here what the page says. If it never comes back, the other
//! backends go on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;
use sysgenid_core::{Generation, PageWord};

use super::authority::{Doubt, Presence};
use super::backend::GONE;
use super::presence::{self, Found};
use super::{Backend, Error, Kind, Seen, Settings, foreign};
use crate::sys::MappedWord;

/// Where the module and another daemon put a machine's own node.
const USUAL: &str = "/dev/sysgenid";

const NEEDED: &str = "a node of a system generation counter";

/// What the thread that follows the node has to say.
#[derive(Debug)]
struct Word {
    latest: Mutex<Latest>,
    /// Readable once there is something new.
    told: OwnedFd,
    /// Readable once nobody listens any more.
    dropped: OwnedFd,
}

#[derive(Debug, Default)]
struct Latest {
    word: Option<PageWord>,
    /// That there will be nothing more.
    ended: Option<Error>,
}

impl Word {
    fn new() -> Result<Self, Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            latest: Mutex::default(),
            told: eventfd(0, flags)?,
            dropped: eventfd(0, flags)?,
        })
    }

    fn tell(&self, change: impl FnOnce(&mut Latest)) {
        change(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner));
        kick(&self.told);
    }
}

/// Makes an eventfd readable. That fails only where it is.
fn kick(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

/// The backend.
#[derive(Debug)]
pub struct Parent {
    path: PathBuf,
    word: Arc<Word>,
    /// The generation that was seen last, in this process.
    generation: Option<Generation>,
    /// What the predecessor saw.
    resume_at: Option<u64>,
    presence: Presence,
}

impl Parent {
    /// Begins to open the node. The first looks may find nothing yet; one that finds that it cannot be opened
    /// says so.
    ///
    /// # Errors
    ///
    /// [`Error::NotPresent`], [`Error::Io`].
    pub fn open(settings: &Settings, resume_at: Option<u64>) -> Result<Self, Error> {
        let path = settings.parent.as_deref().unwrap_or(Path::new(USUAL));
        let path_of_error = path.to_owned();
        match presence::find(path).found {
            Found::Nothing => {
                return Err(Error::NotPresent {
                    path: path_of_error,
                });
            }
            Found::Served(device) if settings.own_devices.contains(&device) => {
                return Err(Error::OwnNode {
                    path: path_of_error,
                });
            }
            Found::Served(_) | Found::Something => {}
        }
        let failed = |source| Error::Io {
            path: path.to_owned(),
            action: "followed",
            source,
        };
        let opened = Self::with(Word::new().map_err(failed)?, path, resume_at);
        let word = Arc::clone(&opened.word);
        let (path, own_devices) = (path.to_owned(), settings.own_devices.clone());
        thread::Builder::new()
            .name("parent".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                let followed = open_node(&path, &own_devices)
                    .and_then(|(node, page)| follow(&node, &page, &path, &word));
                if let Err(error) = followed {
                    word.tell(|latest| latest.ended = Some(error));
                }
            })
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        Ok(opened)
    }

    fn with(word: Word, path: &Path, resume_at: Option<u64>) -> Self {
        Self {
            path: path.to_owned(),
            word: Arc::new(word),
            generation: None,
            resume_at,
            presence: Presence::Absent,
        }
    }

    /// What a page means after what was seen before.
    fn take_in(&mut self, word: PageWord) -> Seen {
        let mut seen = Seen::default();
        let differs = |before: u64| before != u64::from(word.generation.get());
        match (self.generation, self.resume_at) {
            (Some(before), _) => seen.reports = u64::from(before != word.generation),
            // It is back, and may have been anything meanwhile, this very number too.
            (None, Some(GONE)) => seen.doubt = Some(Doubt::CameBack(Kind::Parent)),
            (None, Some(before)) => seen.reports = u64::from(differs(before)),
            (None, None) => {}
        }
        self.generation = Some(word.generation);
        self.presence = match word {
            PageWord { live: false, .. } => Presence::Absent,
            PageWord { noticed: false, .. } => Presence::Follows,
            _ => Presence::Notices,
        };
        seen
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        kick(&self.word.dropped);
    }
}

impl Backend for Parent {
    fn kind(&self) -> Kind {
        Kind::Parent
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.word.told.as_fd())
    }

    /// A generation that differs is one report, however far it jumped: a trigger may name any minimum.
    fn look(&mut self) -> Result<Seen, Error> {
        let _ = rustix::io::read(&self.word.told, &mut [0; 8]);
        let latest = std::mem::take(
            &mut *self
                .word
                .latest
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let mut seen = latest
            .word
            .map_or_else(Seen::default, |word| self.take_in(word));
        seen.ended = latest.ended;
        Ok(seen)
    }

    fn position(&self) -> Option<u64> {
        self.generation
            .map(|generation| generation.get().into())
            .or(self.resume_at)
    }

    fn presence(&self) -> Presence {
        self.presence
    }

    fn description(&self) -> String {
        let path = self.path.display();
        match self.presence {
            Presence::Absent => format!("{path}: it has not answered yet"),
            Presence::Follows => {
                format!("{path}: followed, but nothing there notices a restore by itself")
            }
            Presence::Notices => format!(
                "{path}: no window but that of the parent itself and the time to wake the daemon"
            ),
        }
    }
}

fn open_node(path: &Path, own_devices: &[(u32, u32)]) -> Result<(OwnedFd, MappedWord), Error> {
    let node = foreign::open(path, own_devices)?;
    let unsuitable = || Error::Unsuitable {
        path: path.to_owned(),
        needed: NEEDED,
    };
    // Any other file would be taken for one: a node always polls, and is always mapped.
    if !is_node(&node).map_err(|errno| Error::reading(path, errno))? {
        return Err(unsuitable());
    }
    let page = MappedWord::new(&node).map_err(|_| unsuitable())?;
    Ok((node, page))
}

/// Whether a file can be waited for, which a regular file and a device without `poll` cannot, and is not dead.
fn is_node(file: &OwnedFd) -> Result<bool, Errno> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    match epoll::add(&epoll, file, EventData::new_u64(0), EventFlags::IN) {
        Ok(()) => {}
        Err(Errno::PERM) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let mut asked = [PollFd::new(file, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut asked, Some(&Timespec::default())))?;
    let dead = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    Ok(!asked[0].revents().intersects(dead))
}

/// Tells what the page says, each time that it says something new, for as long as anybody listens.
///
/// `node` is what tells when to look. In tests, it is not the file that was mapped.
fn follow(node: &OwnedFd, page: &MappedWord, path: &Path, word: &Word) -> Result<(), Error> {
    const NODE: u64 = 0;
    const DROPPED: u64 = 1;
    let failed = |errno| Error::reading(path, errno);
    let gone = || Error::Gone {
        path: path.to_owned(),
    };
    let watch = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
    let edges = EventFlags::IN | EventFlags::ET;
    epoll::add(&watch, node, EventData::new_u64(NODE), edges).map_err(failed)?;
    let dropped = EventData::new_u64(DROPPED);
    epoll::add(&watch, &word.dropped, dropped, EventFlags::IN).map_err(failed)?;
    let mut last = None;
    let mut ended = false;
    loop {
        // Watched before it is looked at: a change in between wakes once more.
        let found = match page.load() {
            Ok(found) => PageWord::from_word(found),
            Err(Errno::FAULT) => return Err(gone()),
            Err(errno) => return Err(failed(errno)),
        };
        if last.replace(found) != Some(found) {
            word.tell(|latest| latest.word = Some(found));
        }
        if ended || !found.live {
            return Err(gone());
        }
        let mut events = Vec::with_capacity(2);
        match epoll::wait(&watch, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        for event in &events {
            if event.data.u64() == DROPPED {
                return Ok(());
            }
            let flags = event.flags;
            ended |= flags.intersects(EventFlags::ERR | EventFlags::HUP);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use rustix::pipe::PipeFlags;

    use super::*;

    fn word(generation: u32) -> PageWord {
        PageWord {
            generation: Generation::new(generation),
            live: true,
            noticed: true,
        }
    }

    fn known(resume_at: Option<u64>) -> Parent {
        Parent::with(Word::new().unwrap(), Path::new("the node"), resume_at)
    }

    fn take_in(parent: &mut Parent, word: PageWord) -> (u64, Option<Doubt>) {
        let seen = parent.take_in(word);
        (seen.reports, seen.doubt)
    }

    #[test]
    fn a_generation_that_is_repeated_is_one_report() {
        let mut parent = known(None);
        assert_eq!(take_in(&mut parent, word(3)), (0, None));
        assert_eq!(take_in(&mut parent, word(4)), (1, None));
        assert_eq!(take_in(&mut parent, word(4)), (0, None));
        assert_eq!(take_in(&mut parent, word(900)), (1, None));
        assert_eq!(parent.position(), Some(900));
    }

    #[test]
    fn what_changed_while_nobody_looked_is_noticed_by_the_successor() {
        assert_eq!(take_in(&mut known(Some(4)), word(4)), (0, None));
        let mut other = known(Some(4));
        assert_eq!(other.position(), Some(4));
        assert_eq!(take_in(&mut other, word(5)), (1, None));
        assert_eq!(take_in(&mut other, word(5)), (0, None));
        assert_eq!(take_in(&mut other, word(6)), (1, None));
    }

    #[test]
    fn one_that_was_gone_and_is_back_is_a_doubt_whatever_its_number() {
        for number in [0, 4, 5] {
            let mut back = known(Some(GONE));
            let doubt = Some(Doubt::CameBack(Kind::Parent));
            assert_eq!(take_in(&mut back, word(number)), (0, doubt));
            assert_eq!(take_in(&mut back, word(number)), (0, None));
        }
    }

    #[test]
    fn the_flags_say_whether_it_is_followed_or_relied_on() {
        let mut parent = known(None);
        assert_eq!(parent.presence(), Presence::Absent);
        let mut page = word(3);
        take_in(&mut parent, page);
        assert_eq!(parent.presence(), Presence::Notices);
        page.noticed = false;
        assert_eq!(take_in(&mut parent, page), (0, None));
        assert_eq!(parent.presence(), Presence::Follows);
        page.live = false;
        take_in(&mut parent, page);
        assert_eq!(parent.presence(), Presence::Absent);
    }

    /// A page, and what wakes those who wait for it to change.
    struct Served {
        page: File,
        wake: Option<OwnedFd>,
        parent: Parent,
        follower: Option<thread::JoinHandle<Result<(), Error>>>,
    }

    impl Served {
        fn new(first: PageWord) -> Self {
            let page = tempfile::tempfile().unwrap();
            page.write_all_at(&first.to_word().to_ne_bytes(), 0)
                .unwrap();
            let mapped = page.try_clone().unwrap();
            let (reader, wake) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
            let parent = known(None);
            let word = Arc::clone(&parent.word);
            let follower = thread::spawn(move || {
                let page = MappedWord::new(&mapped).unwrap();
                follow(&reader, &page, Path::new("the node"), &word)
            });
            Self {
                page,
                wake: Some(wake),
                parent,
                follower: Some(follower),
            }
        }

        fn change(&self, word: PageWord) {
            let bytes = word.to_word().to_ne_bytes();
            self.page.write_all_at(&bytes, 0).unwrap();
            rustix::io::write(self.wake.as_ref().unwrap(), b"x").unwrap();
        }

        /// The next thing that the follower has to say.
        fn next(&mut self) -> Seen {
            let mut told = [PollFd::new(&self.parent.word.told, PollFlags::IN)];
            let patience = Timespec::try_from(Duration::from_secs(30)).unwrap();
            assert_eq!(rustix::event::poll(&mut told, Some(&patience)).unwrap(), 1);
            self.parent.look().unwrap()
        }

        /// Nobody listens any more.
        fn end(self) -> Result<(), Error> {
            drop(self.parent);
            self.follower.unwrap().join().unwrap()
        }
    }

    #[test]
    fn each_change_of_the_page_is_told() {
        let mut served = Served::new(word(3));
        assert_eq!(served.next().reports, 0);
        assert_eq!(served.parent.position(), Some(3));
        served.change(word(4));
        assert_eq!(served.next().reports, 1);
        served.change(word(9));
        assert_eq!(served.next().reports, 1);
        assert!(served.end().is_ok());
    }

    #[test]
    fn one_that_ends_is_told_with_its_last_change() {
        let mut served = Served::new(word(3));
        served.next();
        served.change(PageWord {
            live: false,
            ..word(4)
        });
        assert_eq!(served.next().reports, 1);
        let ended = served.follower.take().unwrap().join().unwrap();
        assert!(matches!(ended, Err(Error::Gone { .. })));
    }

    #[test]
    fn one_whose_server_is_gone_is_gone() {
        let mut served = Served::new(word(3));
        served.next();
        served.wake = None;
        let ended = served.follower.take().unwrap().join().unwrap();
        assert!(matches!(ended, Err(Error::Gone { .. })));
    }

    #[test]
    fn a_node_whose_server_went_away_is_gone() {
        for errno in [Errno::NODEV, Errno::NOTCONN, Errno::CONNABORTED] {
            let error = Error::reading(Path::new("the node"), errno);
            assert!(matches!(error, Error::Gone { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sysgenid");
        fs::write(&file, 7_u64.to_ne_bytes()).unwrap();
        for path in [file, PathBuf::from("/dev/zero")] {
            let settings = Settings {
                parent: Some(path.clone()),
                ..Settings::default()
            };
            let error = open_node(&path, &[]).unwrap_err();
            assert!(matches!(error, Error::Unsuitable { .. }), "{error}");
            // The thread says the same.
            let mut parent = Parent::open(&settings, None).unwrap();
            let mut told = [PollFd::new(&parent.word.told, PollFlags::IN)];
            rustix::event::poll(&mut told, None).unwrap();
            let ended = parent.look().unwrap().ended;
            assert!(matches!(ended, Some(Error::Unsuitable { .. })));
        }
    }
}
