// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that random calls may do with as they like, and the calls themselves.
//!
//! Whatever arguments a call is given, it cannot reach memory of the program's own: what the kernel writes to is in
//! the scratch area or nowhere, and what it maps or unmaps is in the playground. Rust has no reference into either.

use rand::RngExt;
use rand::rngs::SmallRng;
use rustix::io::Errno;
use rustix::io::Result;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

/// A page of memory. Guests have no other size.
pub(super) const PAGE: usize = 4096;

/// How many pages calls may write to.
const SCRATCH_PAGES: usize = 4;

/// How many pages calls may map and unmap.
const PLAYGROUND_PAGES: usize = 64;

/// Addresses at which nothing of a program's ever is: the first page, the kernel's half, and between the halves.
const NOWHERE: [usize; 4] = [0, 8, 0xffff_8880_0000_0000, 0x0100_0000_0000_0000];

/// An address and a length in bytes.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) length: usize,
}

/// The two areas of one thread.
pub(super) struct Memory {
    scratch: Range,
    playground: Range,
}

/// Where playgrounds are. Calls leave holes in them, so they are where the kernel looks last when it chooses a place
/// for somebody: it goes down from the end of the address space, or up from a third of it.
const PLAYGROUNDS: usize = 0x1000_0000_0000;

/// From one playground to the next.
const STRIDE: usize = 1 << 30;

impl Memory {
    /// Takes two areas of new memory. Each thread has a number of its own.
    pub(super) fn new(thread: usize) -> Result<Self> {
        let length = SCRATCH_PAGES * PAGE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: A mapping at an address of the kernel's choice replaces nothing.
        let scratch = unsafe {
            rustix::mm::mmap_anonymous(core::ptr::null_mut(), length, protection, MapFlags::PRIVATE)
        }?;
        let memory = Self {
            scratch: Range {
                start: scratch.expose_provenance(),
                length,
            },
            playground: Range {
                start: PLAYGROUNDS + thread * STRIDE,
                length: PLAYGROUND_PAGES * PAGE,
            },
        };
        // Nothing may be there yet.
        memory.reserve(libc::MAP_FIXED_NOREPLACE)?;
        Ok(memory)
    }

    /// Takes everything away that is mapped in the playground.
    pub(super) fn clear(&self) -> Result<()> {
        self.reserve(libc::MAP_FIXED)
    }

    /// Maps nothing in the whole playground.
    fn reserve(&self, how: libc::c_int) -> Result<()> {
        let Range { start, length } = self.playground;
        let flags = bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how);
        call(libc::SYS_mmap, [start, length, 0, flags, usize::MAX, 0]).map(drop)
    }

    /// Where the kernel may read from or write to so many bytes: mostly scratch, sometimes its last bytes and what
    /// comes after, sometimes nowhere.
    pub(super) fn buffer(&self, random: &mut SmallRng, length: usize) -> usize {
        match random.random_range(0..16) {
            0 => NOWHERE[random.random_range(0..NOWHERE.len())],
            1 => self.pages(random).start,
            _ => {
                let last = self.scratch.length - length.min(self.scratch.length);
                self.scratch.start + random.random_range(0..=last)
            }
        }
    }

    /// Some pages of the playground.
    pub(super) fn pages(&self, random: &mut SmallRng) -> Range {
        let first = random.random_range(0..PLAYGROUND_PAGES);
        let most = (PLAYGROUND_PAGES - first).min(4);
        Range {
            start: self.playground.start + first * PAGE,
            length: random.random_range(1..=most) * PAGE,
        }
    }

    /// Puts words at the start of scratch and says where.
    pub(super) fn put<const N: usize>(&self, words: [u64; N]) -> usize {
        const { assert!(N * size_of::<u64>() <= PAGE) };
        let address = core::ptr::with_exposed_provenance_mut::<[u64; N]>(self.scratch.start);
        // SAFETY: The scratch area is there for as long as this is, is larger, is aligned to a page, and nobody has
        // a reference into it.
        unsafe { address.write_volatile(words) };
        self.scratch.start
    }
}

/// Flags as an argument.
pub(super) fn bits(flags: libc::c_int) -> usize {
    usize::try_from(flags.cast_unsigned()).unwrap_or(0)
}

/// Makes a system call. Pointers among its arguments come from a [`Memory`].
pub(super) fn call(number: libc::c_long, arguments: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: The callers in this folder give the kernel pointers of a `Memory` alone, so it writes to none of Rust's.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    usize::try_from(result).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
    })
}
