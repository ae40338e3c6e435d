// SPDX-License-Identifier: MIT OR Apache-2.0

//! The structures and numbers of the FUSE protocol that a node needs, as `<linux/fuse.h>` defines them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's major version; it has not changed since 2005.
pub const MAJOR: u32 = 7;

/// The minor version of the structures below: Linux 6.9, the first with passthrough.
pub const MINOR: u32 = 40;

/// The size of the buffer for reading a request, in bytes. The kernel accepts no less than 8192, and refuses
/// a caller's request that does not fit: an ioctl's argument may have up to 16 KiB by its number.
pub const READ_BUFFER: usize = 20 * 1024;

/// What kernel and daemon agree on at INIT, `FUSE_*` in the header; flags2 is the upper half.
pub mod flag {
    /// The structure of INIT has a second half of flags.
    pub const INIT_EXT: u64 = 1 << 30;
    /// A file without a page cache may be mapped all the same.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// A mapping may go straight to a file of the daemon.
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// Requests that were read but not answered can be asked for again.
    pub const HAS_RESEND: u64 = 1 << 39;
}

/// How a file is opened, `FOPEN_*` in the header.
pub mod fopen {
    /// Reads and writes come to the daemon.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// It has no file position, so no lock of one: threads may share a descriptor.
    pub const STREAM: u32 = 1 << 4;
    /// `close` of one of several references needs no request.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Writes need not wait for each other.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    /// A mapping goes to the backing file.
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// What the kernel asks for.
pub mod opcode {
    #![allow(missing_docs)] // They are the names of the header.
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const RENAME2: u32 = 45;
    pub const TMPFILE: u32 = 51;
}

/// What the daemon tells the kernel unasked, `FUSE_NOTIFY_*` in the header.
pub mod notify {
    /// Whoever polls shall look again.
    pub const POLL: i32 = 1;
    /// The attributes of a file have changed.
    pub const INVAL_INODE: i32 = 2;
    /// These bytes belong in the page cache of a file.
    pub const STORE: i32 = 4;
    /// Send again what was read but not answered.
    pub const RESEND: i32 = 7;
}

/// In `unique`: the request was sent before, perhaps to another process.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// In `read_flags`: a program reads. Without it the kernel fills a page of a mapping.
pub const READ_LOCKOWNER: u32 = 1 << 1;

/// In a poll's `flags`: somebody sleeps, and must be told of a change.
pub const POLL_SCHEDULE_NOTIFY: u32 = 1 << 0;

/// Before every request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InHeader {
    /// The length of the whole request in bytes.
    pub len: u32,
    /// What is asked for, see [`opcode`].
    pub opcode: u32,
    /// The request's identity, which the answer repeats.
    pub unique: u64,
    /// The file.
    pub nodeid: u64,
    /// The caller's user, as the mounter's user namespace sees it.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The calling thread, as the mounter's pid namespace sees it; 0 if it does not.
    pub pid: u32,
    /// The length of extensions at the end, in units of 8 bytes.
    pub total_extlen: u16,
    /// Unused.
    pub padding: u16,
}

/// Before every answer and notice.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// The length of the whole answer in bytes.
    pub len: u32,
    /// 0, a negative errno, or the code of a notice.
    pub error: i32,
    /// The request that it answers, 0 for a notice.
    pub unique: u64,
}

/// INIT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitIn {
    /// The kernel's major version.
    pub major: u32,
    /// The kernel's minor version.
    pub minor: u32,
    /// Bytes that the kernel would read ahead.
    pub max_readahead: u32,
    /// What the kernel can do, lower half.
    pub flags: u32,
    /// What the kernel can do, upper half.
    pub flags2: u32,
    /// Unused.
    pub unused: [u32; 11],
}

/// The answer to INIT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitOut {
    /// Our major version.
    pub major: u32,
    /// Our minor version.
    pub minor: u32,
    /// Bytes that the kernel may read ahead.
    pub max_readahead: u32,
    /// What is agreed on, lower half.
    pub flags: u32,
    /// Requests that nobody waits for and that may be under way at once.
    pub max_background: u16,
    /// When the kernel calls the daemon congested.
    pub congestion_threshold: u16,
    /// The longest write in bytes.
    pub max_write: u32,
    /// The granularity of times in nanoseconds.
    pub time_gran: u32,
    /// The most pages of a request.
    pub max_pages: u16,
    /// For DAX.
    pub map_alignment: u16,
    /// What is agreed on, upper half.
    pub flags2: u32,
    /// How many file systems may be stacked; 1 where passthrough is used.
    pub max_stack_depth: u32,
    /// Seconds after which the kernel gives up on an unanswered request; 0 is never.
    pub request_timeout: u16,
    /// Unused.
    pub unused: [u16; 11],
}

/// Attributes of a file.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)] // They are those of stat(2).
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

/// The answer to GETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttrOut {
    /// How long they are valid, in seconds.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// Unused.
    pub dummy: u32,
    /// The attributes.
    pub attr: Attr,
}

/// The beginning of SETATTR; the new attributes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetAttrIn {
    /// Which attributes are to be set.
    pub valid: u32,
    /// Unused.
    pub padding: u32,
}

/// In `valid` of [`SetAttrIn`]: mode, user or group.
pub const SETS_ACCESS: u32 = 1 << 0 | 1 << 1 | 1 << 2;

/// The answer to LOOKUP.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryOut {
    /// The file.
    pub nodeid: u64,
    /// Tells apart files that had the same number one after the other.
    pub generation: u64,
    /// How long the name is valid, in seconds.
    pub entry_valid: u64,
    /// How long the attributes are valid, in seconds.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub entry_valid_nsec: u32,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// The attributes.
    pub attr: Attr,
}

/// OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenIn {
    /// Those of open(2).
    pub flags: u32,
    /// Unused here.
    pub open_flags: u32,
}

/// The answer to OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenOut {
    /// The daemon's name for the open file description.
    pub fh: u64,
    /// See [`fopen`].
    pub open_flags: u32,
    /// The file that mappings go to.
    pub backing_id: i32,
}

/// RELEASE and RELEASEDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReleaseIn {
    /// The open file description.
    pub fh: u64,
    /// Those of open(2).
    pub flags: u32,
    /// Unused here.
    pub release_flags: u32,
    /// Unused here.
    pub lock_owner: u64,
}

/// READ and READDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadIn {
    /// The open file description.
    pub fh: u64,
    /// Where from.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
    /// See [`READ_LOCKOWNER`].
    pub read_flags: u32,
    /// Unused here.
    pub lock_owner: u64,
    /// Those of open(2), as they are now.
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// WRITE; the bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteIn {
    /// The open file description.
    pub fh: u64,
    /// Where to.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
    /// Unused here.
    pub write_flags: u32,
    /// Unused here.
    pub lock_owner: u64,
    /// Those of open(2), as they are now.
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// The answer to WRITE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteOut {
    /// How many bytes were taken.
    pub size: u32,
    /// Unused.
    pub padding: u32,
}

/// INTERRUPT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptIn {
    /// The request whose caller has a signal pending.
    pub unique: u64,
}

/// IOCTL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoctlIn {
    /// The open file description.
    pub fh: u64,
    /// Whether the caller is 32-bit and the like.
    pub flags: u32,
    /// The request.
    pub cmd: u32,
    /// The argument, by value.
    pub arg: u64,
    /// Bytes of data that follow.
    pub in_size: u32,
    /// Bytes of data that the answer may have.
    pub out_size: u32,
}

/// The answer to IOCTL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoctlOut {
    /// What ioctl(2) returns, or a negative errno.
    pub result: i32,
    /// Unused here.
    pub flags: u32,
    /// Unused here.
    pub in_iovs: u32,
    /// Unused here.
    pub out_iovs: u32,
}

/// POLL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PollIn {
    /// The open file description.
    pub fh: u64,
    /// The kernel's name for it, which a notice names.
    pub kh: u64,
    /// See [`POLL_SCHEDULE_NOTIFY`].
    pub flags: u32,
    /// What the caller asks for.
    pub events: u32,
}

/// The answer to POLL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PollOut {
    /// What is the case.
    pub revents: u32,
    /// Unused.
    pub padding: u32,
}

/// The answer to STATFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)] // They are those of statfs(2).
pub struct StatfsOut {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

/// An entry of a folder; its name follows, padded to 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Dirent {
    /// The file.
    pub ino: u64,
    /// Where the next entry begins.
    pub off: u64,
    /// The length of the name in bytes.
    pub namelen: u32,
    /// `DT_*`.
    pub kind: u32,
}

/// The notice [`notify::INVAL_INODE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyInvalInodeOut {
    /// The file.
    pub ino: u64,
    /// Negative: its attributes only.
    pub off: i64,
    /// How many bytes.
    pub len: i64,
}

/// The notice [`notify::STORE`]; the bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyStoreOut {
    /// The file.
    pub nodeid: u64,
    /// Where to.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
    /// Unused.
    pub padding: u32,
}

/// The argument of the ioctl that gives the kernel a backing file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BackingMap {
    /// The descriptor.
    pub fd: i32,
    /// Must be 0.
    pub flags: u32,
    /// Must be 0.
    pub padding: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_the_size_that_the_kernel_expects() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitIn>(), 64);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<OpenIn>(), 8);
        assert_eq!(size_of::<OpenOut>(), 16);
        assert_eq!(size_of::<ReleaseIn>(), 24);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<WriteOut>(), 8);
        assert_eq!(size_of::<IoctlIn>(), 32);
        assert_eq!(size_of::<IoctlOut>(), 16);
        assert_eq!(size_of::<PollIn>(), 24);
        assert_eq!(size_of::<PollOut>(), 8);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!(size_of::<NotifyStoreOut>(), 24);
        assert_eq!(size_of::<BackingMap>(), 16);
    }
}
