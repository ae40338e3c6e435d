// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node, from the side of a program.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::io::Result;
use rustix::io::retry_on_intr;
use rustix::ioctl::IntegerSetter;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use sysgenid_core::abi;

/// Why a node was not bumped.
#[derive(Debug, thiserror::Error)]
pub enum BumpError {
    /// The node could not even be opened.
    #[error("cannot open the node: {0}")]
    Open(Errno),
    /// The node said no. `EACCES` is for callers without the right.
    #[error("the node refused to change: {0}")]
    Refused(Errno),
}

/// Moves the node to a new generation, of at least `minimum`.
///
/// # Errors
///
/// [`BumpError`].
pub fn bump(path: &Path, minimum: u32) -> std::result::Result<(), BumpError> {
    let node = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(BumpError::Open)?;
    // SAFETY: This call takes an integer and touches no memory of ours.
    let call = unsafe {
        IntegerSetter::<{ abi::SYSGENID_TRIGGER_GEN_UPDATE }>::new_usize(minimum as usize)
    };
    // SAFETY: As above.
    unsafe { rustix::ioctl::ioctl(&node, call) }.map_err(BumpError::Refused)
}

/// The mapped generation.
pub struct Mapping {
    generation: &'static AtomicU32,
}

impl Mapping {
    /// Opens, maps and closes, as a crypto library does. The mapping stays for ever.
    pub fn open(path: &Path) -> Result<Self> {
        let node = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let page = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                abi::GENERATION_SIZE,
                ProtFlags::READ,
                MapFlags::SHARED,
                &node,
                0,
            )
        }?;
        // SAFETY: The mapping is aligned to a page, at least four bytes long, and never unmapped.
        let generation = unsafe { page.cast::<AtomicU32>().as_ref() };
        Ok(Self {
            generation: generation.ok_or(Errno::FAULT)?,
        })
    }

    /// The current generation.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}

/// An open description of a node.
pub struct Watcher {
    node: OwnedFd,
}

impl Watcher {
    /// Opens the node so that it can be acknowledged.
    pub fn open(path: &Path) -> Result<Self> {
        let node = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { node })
    }

    /// Sleeps in `poll` until this watcher is outdated.
    pub fn poll(&self) -> Result<()> {
        let mut fds = [PollFd::new(&self.node, PollFlags::IN)];
        retry_on_intr(|| rustix::event::poll(&mut fds, None)).map(drop)
    }

    /// Sleeps in `read` until this watcher is outdated. Says which generation it is then.
    pub fn read(&self) -> Result<u32> {
        let mut generation = [0; abi::GENERATION_SIZE];
        // What freezes a program to dump it may end this call.
        retry_on_intr(|| rustix::io::read(&self.node, &mut generation))?;
        Ok(u32::from_ne_bytes(generation))
    }

    /// Acknowledges a generation. `EINVAL` says that it is not the current one any more.
    pub fn acknowledge(&self, generation: u32) -> Result<()> {
        rustix::io::write(&self.node, &generation.to_ne_bytes()).map(drop)
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.node.as_fd()
    }
}
