// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node and its calls.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::io::Result;
use rustix::ioctl::Ioctl;
use rustix::ioctl::IoctlOutput;
use rustix::ioctl::Opcode;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use sysgenid_core::abi;

/// The node of programs that only look.
pub(crate) const UNTRACKED_NODE: &str = "/dev/sysgenid";

/// An open node.
pub(crate) struct Node {
    fd: OwnedFd,
}

impl Node {
    /// Opens a node for reading and writing.
    pub(crate) fn open(path: &str) -> Result<Self> {
        Self::open_with(path, OFlags::RDWR)
    }

    /// Opens a node for reading and writing, without ever sleeping in `read`.
    pub(crate) fn open_nonblocking(path: &str) -> Result<Self> {
        Self::open_with(path, OFlags::RDWR | OFlags::NONBLOCK)
    }

    /// Opens a node as one who can only look, without ever sleeping in `read`.
    pub(crate) fn open_to_look(path: &str) -> Result<Self> {
        Self::open_with(path, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    fn open_with(path: &str, flags: OFlags) -> Result<Self> {
        let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Reads the current generation; sleeps until it has changed unless non-blocking.
    pub(crate) fn read(&self) -> Result<u32> {
        let mut generation = [0; abi::GENERATION_SIZE];
        rustix::io::read(&self.fd, &mut generation)?;
        Ok(u32::from_ne_bytes(generation))
    }

    /// Acknowledges a generation.
    pub(crate) fn acknowledge(&self, generation: u32) -> Result<()> {
        rustix::io::write(&self.fd, &generation.to_ne_bytes()).map(drop)
    }

    /// Acknowledges a generation, if it is still the current one. Says whether it was.
    pub(crate) fn acknowledges(&self, generation: u32) -> Result<bool> {
        match self.acknowledge(generation) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Any of the contract's ioctls.
    pub(crate) fn ioctl(&self, request: u32, argument: usize) -> Result<i32> {
        let call = ByValue { request, argument };
        // SAFETY: The contract's ioctls take an integer, not a pointer, so no memory is accessed.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }
    }

    /// The number of tracked watchers that have not acknowledged.
    pub(crate) fn outdated_watchers(&self) -> Result<i32> {
        self.ioctl(abi::VMGENID_GET_OUTDATED_WATCHERS, 0)
    }

    /// Waits until everybody has acknowledged; 0 waits for ever.
    pub(crate) fn wait_for_everybody(&self, milliseconds: usize) -> Result<()> {
        self.ioctl(abi::VMGENID_WAIT_WATCHERS, milliseconds)
            .map(drop)
    }

    /// Bumps the generation.
    pub(crate) fn bump(&self) -> Result<()> {
        self.ioctl(abi::VMGENID_FORCE_GEN_UPDATE, 0).map(drop)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An ioctl whose argument and result are integers.
struct ByValue {
    request: u32,
    argument: usize,
}

// SAFETY: The argument is handed over as it is and no output is read from memory.
unsafe impl Ioctl for ByValue {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.request
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> Result<Self::Output> {
        Ok(output)
    }
}

/// The mapped generation. Looking at it is one load.
pub(crate) struct Page {
    generation: &'static AtomicU32,
}

impl Page {
    /// Opens, maps four bytes, closes: exactly what crypto libraries do. The mapping stays.
    pub(crate) fn map(path: &str) -> Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                abi::GENERATION_SIZE,
                ProtFlags::READ,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        // SAFETY: The mapping is aligned to a page, at least four bytes long, and never unmapped.
        let generation = unsafe { address.cast::<AtomicU32>().as_ref() };
        Ok(Self {
            generation: generation.ok_or(Errno::FAULT)?,
        })
    }

    /// The current generation.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}
