// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls that a fuzzer chooses from: those of the contract with arguments at the edges, and what else
//! a program may do to a descriptor or to a mapping.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use rand::RngExt;
use rand::rngs::SmallRng;
use rustix::io::Errno;
use rustix::io::Result;
use sysgenid_core::abi;

use crate::fuzz::Descriptions;
use crate::fuzz::memory::Memory;
use crate::fuzz::memory::PAGE;
use crate::fuzz::memory::Range;
use crate::fuzz::memory::bits;
use crate::fuzz::memory::call;

/// A kind of call. Each must succeed at some time: else it examines nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Open,
    Close,
    Duplicate,
    Read,
    Write,
    WriteCurrent,
    ReadVector,
    Poll,
    Watch,
    Count,
    Wait,
    Bump,
    Trigger,
    Track,
    OtherIoctl,
    Map,
    LookAtMapping,
    Protect,
    Advise,
    Move,
    Unmap,
    Flags,
    Seek,
    Splice,
    Fork,
}

impl Kind {
    /// All of them, the more often the more they find.
    pub(super) const ALL: &[(Self, u32)] = &[
        (Self::Open, 8),
        (Self::Close, 6),
        (Self::Duplicate, 2),
        (Self::Read, 10),
        (Self::Write, 6),
        (Self::WriteCurrent, 12),
        (Self::ReadVector, 2),
        (Self::Poll, 6),
        (Self::Watch, 4),
        (Self::Count, 6),
        (Self::Wait, 3),
        (Self::Bump, 3),
        (Self::Trigger, 3),
        (Self::Track, 8),
        (Self::OtherIoctl, 8),
        (Self::Map, 8),
        (Self::LookAtMapping, 8),
        (Self::Protect, 4),
        (Self::Advise, 4),
        (Self::Move, 3),
        (Self::Unmap, 4),
        (Self::Flags, 3),
        (Self::Seek, 2),
        (Self::Splice, 2),
        // It is slow.
        (Self::Fork, 1),
    ];

    /// One of them.
    pub(super) fn choose(random: &mut SmallRng) -> Self {
        let total: u32 = Self::ALL.iter().map(|(_, weight)| weight).sum();
        let mut left = random.random_range(0..total);
        for (kind, weight) in Self::ALL {
            if left < *weight {
                return *kind;
            }
            left -= weight;
        }
        Self::Count
    }
}

/// What a thread makes its calls with.
pub(super) struct Caller<'a> {
    pub(super) random: SmallRng,
    pub(super) memory: &'a Memory,
    pub(super) nodes: &'a [String],
    pub(super) descriptions: &'a Descriptions,
    /// An instance of epoll, and a file in memory.
    pub(super) epoll: OwnedFd,
    pub(super) file: OwnedFd,
}

impl Caller<'_> {
    /// Makes a call of a kind.
    pub(super) fn make(&mut self, kind: Kind) -> Result<()> {
        if kind == Kind::Open {
            return self.open();
        }
        let Some(description) = self.descriptions.some(&mut self.random) else {
            return Err(Errno::AGAIN);
        };
        let fd = number(&description.fd);
        match kind {
            Kind::Open => Ok(()),
            Kind::Close => {
                drop(description);
                self.descriptions.close(&mut self.random);
                Ok(())
            }
            Kind::Duplicate => {
                let copy = rustix::io::fcntl_dupfd_cloexec(&description.fd, 3)?;
                self.descriptions.add(copy, description.number);
                Ok(())
            }
            Kind::Read => {
                let length = self.length();
                let buffer = self.memory.buffer(&mut self.random, length);
                let offset = self.offset();
                if self.one_in(4) {
                    call(libc::SYS_pread64, [fd, buffer, length, offset, 0, 0]).map(drop)
                } else {
                    call(libc::SYS_read, [fd, buffer, length, 0, 0, 0]).map(drop)
                }
            }
            Kind::Write => {
                let length = self.length();
                let buffer = self.memory.buffer(&mut self.random, length);
                let offset = self.offset();
                if self.one_in(4) {
                    call(libc::SYS_pwrite64, [fd, buffer, length, offset, 0, 0]).map(drop)
                } else {
                    call(libc::SYS_write, [fd, buffer, length, 0, 0, 0]).map(drop)
                }
            }
            Kind::WriteCurrent => self.acknowledge(fd),
            Kind::ReadVector => self.vector(fd),
            Kind::Poll => {
                let wanted = u64::from(self.random.random::<u16>());
                let nanoseconds = self.random.random_range(0..2_000_000);
                let entry = wanted << 32 | u64::try_from(fd).unwrap_or(0);
                let entry = self.memory.put([entry, 0, nanoseconds]);
                let time = entry + size_of::<u64>();
                call(libc::SYS_ppoll, [entry, 1, time, 0, 0, 0]).map(drop)
            }
            Kind::Watch => self.watch(fd),
            Kind::Count => ioctl(fd, abi::VMGENID_GET_OUTDATED_WATCHERS, 0),
            Kind::Wait => {
                let time = match self.random.random_range(0..8) {
                    0 => self.argument(),
                    _ => self.random.random_range(1..20),
                };
                let request = match self.one_in(2) {
                    true => abi::VMGENID_WAIT_WATCHERS,
                    false => abi::SYSGENID_WAIT_WATCHERS,
                };
                match ioctl(fd, request, time) {
                    // Somebody is always late here, so that a wait ends in no other way.
                    Err(Errno::INTR | Errno::TIME) => Ok(()),
                    other => other,
                }
            }
            Kind::Bump => {
                let argument = self.argument();
                ioctl(fd, abi::VMGENID_FORCE_GEN_UPDATE, argument)
            }
            Kind::Trigger => {
                // Seldom near the end of the numbers, so that ordinary ones are seen, too.
                let minimum = match self.random.random_range(0..64) {
                    0 => self.argument(),
                    _ => 0,
                };
                ioctl(fd, abi::SYSGENID_TRIGGER_GEN_UPDATE, minimum)
            }
            Kind::Track => {
                let on = match self.random.random_range(0..8) {
                    0 => self.argument(),
                    _ => self.random.random_range(0..=1),
                };
                ioctl(fd, abi::SYSGENID_SET_WATCHER_TRACKING, on)
            }
            Kind::OtherIoctl => self.other_ioctl(fd),
            Kind::Map => self.map(fd),
            Kind::LookAtMapping => {
                // The kernel looks, so that a page that is not there is an error and not a signal.
                let Range { start, .. } = self.memory.pages(&mut self.random);
                let file = number(&self.file);
                call(libc::SYS_pwrite64, [file, start, 8, 0, 0, 0]).map(drop)
            }
            Kind::Protect => {
                let Range { start, length } = self.memory.pages(&mut self.random);
                let protection = self.random.random_range(0..8);
                call(libc::SYS_mprotect, [start, length, protection, 0, 0, 0]).map(drop)
            }
            Kind::Advise => {
                let Range { start, length } = self.memory.pages(&mut self.random);
                let advice = self.random.random_range(0..26);
                // Poisoned and offlined memory is the machine's, not the program's.
                call(libc::SYS_madvise, [start, length, advice, 0, 0, 0]).map(drop)
            }
            Kind::Move => {
                let from = self.memory.pages(&mut self.random);
                let to = self.memory.pages(&mut self.random);
                let old = if self.one_in(4) { 0 } else { from.length };
                // To a place of its own choice within the playground, or nowhere.
                let how = bits(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
                let how = how | if self.one_in(4) { 4 } else { 0 };
                call(
                    libc::SYS_mremap,
                    [from.start, old, to.length, how, to.start, 0],
                )
                .map(drop)
            }
            Kind::Unmap => {
                let Range { start, length } = self.memory.pages(&mut self.random);
                call(libc::SYS_munmap, [start, length, 0, 0, 0, 0])?;
                Ok(())
            }
            Kind::Flags => {
                let flags = match self.random.random_range(0..8) {
                    0 => usize::from(self.random.random::<u16>()),
                    _ => bits(libc::O_NONBLOCK),
                };
                let set = bits(libc::F_SETFL);
                call(libc::SYS_fcntl, [fd, set, flags, 0, 0, 0]).map(drop)
            }
            Kind::Seek => {
                let offset = self.offset();
                let whence = self.random.random_range(0..6);
                // A node has no place to seek to, and none to cut off.
                let sought = call(libc::SYS_lseek, [fd, offset, whence, 0, 0, 0]);
                let _ = call(libc::SYS_ftruncate, [fd, offset, 0, 0, 0, 0]);
                let _ = call(libc::SYS_fsync, [fd, 0, 0, 0, 0, 0]);
                match sought {
                    Err(Errno::SPIPE | Errno::INVAL | Errno::NXIO) => Ok(()),
                    other => other.map(drop),
                }
            }
            Kind::Splice => {
                let file = number(&self.file);
                let length = self.length();
                match call(libc::SYS_sendfile, [file, fd, 0, length, 0, 0]) {
                    // It says what it has always said.
                    Err(Errno::INVAL | Errno::SPIPE | Errno::BADF) => Ok(()),
                    other => other.map(drop),
                }
            }
            Kind::Fork => self.fork(fd),
        }
    }

    fn open(&mut self) -> Result<()> {
        use rustix::fs::OFlags;
        let node = &self.nodes[self.random.random_range(0..self.nodes.len())];
        let mut flags = match self.random.random_range(0..8) {
            0 => OFlags::RDONLY,
            1 => OFlags::WRONLY,
            // No access at all, but for ioctls.
            2 => OFlags::WRONLY | OFlags::RDWR,
            _ => OFlags::RDWR,
        };
        for flag in [
            OFlags::NONBLOCK,
            OFlags::APPEND,
            OFlags::DIRECT,
            OFlags::SYNC,
        ] {
            if self.one_in(4) {
                flags |= flag;
            }
        }
        let fd = rustix::fs::open(
            node.as_str(),
            flags | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        self.descriptions.open(fd);
        Ok(())
    }

    /// Reads and writes what was read, as programs do. Whether it is still current then is another matter.
    fn acknowledge(&mut self, fd: usize) -> Result<()> {
        let address = self.memory.put([0]);
        call(libc::SYS_read, [fd, address, abi::GENERATION_SIZE, 0, 0, 0])?;
        call(
            libc::SYS_write,
            [fd, address, abi::GENERATION_SIZE, 0, 0, 0],
        )
        .map(drop)
    }

    fn vector(&mut self, fd: usize) -> Result<()> {
        let length = self.length();
        let buffer = self.memory.buffer(&mut self.random, length);
        let part = [buffer, length].map(|word| u64::try_from(word).unwrap_or(0));
        let vector = self.memory.put([part[0], part[1], part[0], part[1]]);
        let parts = self.random.random_range(0..3);
        let number = match self.one_in(2) {
            true => libc::SYS_readv,
            false => libc::SYS_writev,
        };
        call(number, [fd, vector, parts, 0, 0, 0]).map(drop)
    }

    fn watch(&mut self, fd: usize) -> Result<()> {
        let epoll = number(&self.epoll);
        let events = self.random.random::<u32>() & !(libc::EPOLLWAKEUP.cast_unsigned());
        let event = self.memory.put([u64::from(events), 0]);
        let operation = self.random.random_range(1..=3);
        let changed = call(libc::SYS_epoll_ctl, [epoll, operation, fd, event, 0, 0]);
        let buffer = self.memory.buffer(&mut self.random, 48);
        let time = self.random.random_range(0..2);
        let _ = call(libc::SYS_epoll_pwait, [epoll, buffer, 4, time, 0, 0]);
        changed.map(drop)
    }

    fn other_ioctl(&mut self, fd: usize) -> Result<()> {
        let argument = self.argument();
        let kind = match self.random.random_range(0..4) {
            0 => self.random.random::<u32>(),
            1 => 0x2d00 | u32::from(self.random.random::<u8>()),
            2 => 0xe400 | u32::from(self.random.random::<u8>()),
            // With a direction and a size, as another kernel might have it.
            _ => self.random.random::<u32>() << 16 | 0x2d00 | self.random.random_range(0..5),
        };
        match ioctl(fd, kind, argument) {
            Err(Errno::NOTTY) => Ok(()),
            other => other,
        }
    }

    fn map(&mut self, fd: usize) -> Result<()> {
        let Range { start, length } = self.memory.pages(&mut self.random);
        let length = if self.one_in(4) {
            length
        } else {
            self.random.random_range(1..=PAGE)
        };
        let protection = match self.random.random_range(0..4) {
            0 => self.random.random_range(0..8),
            _ => bits(libc::PROT_READ),
        };
        let mut flags = libc::MAP_FIXED;
        flags |= match self.random.random_range(0..4) {
            0 => libc::MAP_PRIVATE,
            1 => libc::MAP_SHARED_VALIDATE,
            _ => libc::MAP_SHARED,
        };
        for flag in [libc::MAP_POPULATE, libc::MAP_LOCKED, libc::MAP_NORESERVE] {
            if self.one_in(4) {
                flags |= flag;
            }
        }
        let offset = if self.one_in(8) {
            self.offset() & !(PAGE - 1)
        } else {
            0
        };
        let flags = bits(flags);
        call(
            libc::SYS_mmap,
            [start, length, protection, flags, fd, offset],
        )
        .map(drop)
    }

    /// A child that has everything that its parent has, makes a call, and ends.
    fn fork(&mut self, fd: usize) -> Result<()> {
        let request = abi::VMGENID_GET_OUTDATED_WATCHERS;
        let flags = bits(libc::SIGCHLD);
        let child = call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])?;
        if child == 0 {
            // Other threads are not here, so nothing may be done that could wait for them.
            let _ = ioctl(fd, request, 0);
            loop {
                let _ = call(libc::SYS_exit_group, [0; 6]);
            }
        }
        while call(libc::SYS_wait4, [child, 0, 0, 0, 0, 0]) == Err(Errno::INTR) {}
        Ok(())
    }

    /// A number of bytes.
    fn length(&mut self) -> usize {
        match self.random.random_range(0..8) {
            0 => self.random.random_range(0..32),
            1 => PAGE,
            _ => abi::GENERATION_SIZE,
        }
    }

    /// A place in a file.
    fn offset(&mut self) -> usize {
        match self.random.random_range(0..4) {
            0 => 0,
            1 => PAGE,
            2 => usize::MAX - self.random.random_range(0..PAGE),
            _ => self.random.random_range(0..=usize::MAX),
        }
    }

    /// An ioctl's argument. None is the address of anything.
    fn argument(&mut self) -> usize {
        match self.random.random_range(0..8) {
            0 => 0,
            1 => usize::MAX,
            2 => usize::MAX >> 1,
            3 => (usize::MAX >> 1) + 1,
            4 => usize::try_from(u32::MAX).unwrap_or(0),
            5 => self.memory.buffer(&mut self.random, 256),
            6 => usize::try_from(self.random.random::<u32>() >> 12).unwrap_or(0),
            _ => self.random.random_range(0..100),
        }
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.random.random_range(0..many) == 0
    }
}

fn ioctl(fd: usize, request: u32, argument: usize) -> Result<()> {
    let request = usize::try_from(request).unwrap_or(0);
    call(libc::SYS_ioctl, [fd, request, argument, 0, 0, 0]).map(drop)
}

/// A descriptor as an argument.
pub(super) fn number(fd: &impl AsRawFd) -> usize {
    usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX)
}
