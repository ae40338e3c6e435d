// SPDX-License-Identifier: MIT OR Apache-2.0

//! A mounted file system: requests come in, answers and notices go out.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::mount::{MountFlags, UnmountFlags};
use thiserror::Error;
use zerocopy::{Immutable, IntoBytes};

use super::backing::{self, BackingId};
use super::request::{Malformed, Request, Unique};
use super::wire::{self, notify};

/// What the kernel calls the file system in `/proc/self/mountinfo`.
pub const FILE_SYSTEM_TYPE: &str = "fuse.sysgenid";

/// Where a request is read into.
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; wire::READ_BUFFER].into())
    }
}

/// What reading a request found.
#[derive(Debug)]
pub enum Received<'a> {
    /// A request.
    Request(Request<'a>),
    /// Nothing now.
    Nothing,
    /// The file system was unmounted or aborted; nothing will come any more.
    Gone,
}

/// Why a file system cannot be mounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// There is no FUSE.
    #[error(
        "{DEVICE} cannot be opened: {0}; load the module (modprobe fuse), or give the container the device"
    )]
    NoDevice(Errno),
    /// May not mount.
    #[error("mounting needs CAP_SYS_ADMIN: run as root, or give the container the capability")]
    NotPermitted,
    /// Mounting failed for another reason.
    #[error("{path} cannot be mounted: {errno}")]
    Failed {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// The device of FUSE.
const DEVICE: &str = "/dev/fuse";

/// A mounted file system, seen from the process that serves it.
#[derive(Debug)]
pub struct Connection {
    device: OwnedFd,
}

impl Connection {
    /// Mounts a file system at `path`, whose root is a folder. The kernel asks for INIT next.
    ///
    /// Nothing on it is ever executed, so a mapping cannot be made executable either.
    ///
    /// # Errors
    ///
    /// [`MountError`] says what is missing.
    pub fn mount(path: &Path) -> Result<Self, MountError> {
        let device = rustix::fs::open(
            DEVICE,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(MountError::NoDevice)?;
        let options = format!(
            "fd={},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).unwrap_or_default();
        rustix::mount::mount(
            c"sysgenid",
            path,
            FILE_SYSTEM_TYPE,
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            options.as_c_str(),
        )
        .map_err(|errno| match errno {
            Errno::PERM => MountError::NotPermitted,
            errno => MountError::Failed {
                path: path.to_owned(),
                errno,
            },
        })?;
        Ok(Self { device })
    }

    /// Goes on with a file system that another process mounted.
    pub const fn resume(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Unmounts what is at `path`, and ends its connection: everybody who has a file open gets an error from
    /// then on, and a request that nobody answered fails.
    ///
    /// # Errors
    ///
    /// `EINVAL` if nothing is mounted there, `EPERM`.
    pub fn unmount(path: &Path) -> io::Result<()> {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(path, flags)
    }

    /// Reads the next request, if there is one.
    ///
    /// # Errors
    ///
    /// Any of read(2) that is not part of the protocol, and [`Malformed`] as `EBADMSG`: then the request
    /// has been refused.
    pub fn receive<'b>(&self, buffer: &'b mut Buffer) -> io::Result<Received<'b>> {
        let length = loop {
            match io::read(&self.device, &mut buffer.0[..]) {
                Ok(length) => break length,
                // The caller was killed before its request could be read.
                Err(Errno::NOENT | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::NODEV) => return Ok(Received::Gone),
                Err(errno) => return Err(errno),
            }
        };
        match Request::parse(&buffer.0[..length]) {
            Ok(request) => Ok(Received::Request(request)),
            Err(malformed) => {
                tracing::error!("the kernel sent what is no request: {malformed}");
                if let Malformed::Body { unique, .. } = malformed {
                    self.refuse(Unique::new(unique), Errno::IO);
                }
                Err(Errno::BADMSG)
            }
        }
    }

    /// Answers a request with a structure.
    pub fn answer(&self, unique: Unique, body: &(impl IntoBytes + Immutable)) {
        self.answer_bytes(unique, body.as_bytes());
    }

    /// Answers a request with bytes.
    pub fn answer_bytes(&self, unique: Unique, body: &[u8]) {
        self.send(0, unique.raw(), &[body]);
    }

    /// Answers a request with an error.
    pub fn refuse(&self, unique: Unique, errno: Errno) {
        self.send(-errno.raw_os_error(), unique.raw(), &[]);
    }

    /// Wakes those who poll a description.
    pub fn notify_poll(&self, kernel_handle: u64) {
        self.send(notify::POLL, 0, &[kernel_handle.as_bytes()]);
    }

    /// Puts bytes at the start of a file into the page cache. It waits for the page's lock, which a
    /// fault holds until its READ is answered: never to be called by whoever answers that.
    pub fn notify_store(&self, inode: u64, bytes: &[u8]) {
        let store = wire::NotifyStoreOut {
            nodeid: inode,
            offset: 0,
            size: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            padding: 0,
        };
        self.send(notify::STORE, 0, &[store.as_bytes(), bytes]);
    }

    /// Says that the attributes of a file have changed.
    pub fn notify_attributes(&self, inode: u64) {
        let inval = wire::NotifyInvalInodeOut {
            ino: inode,
            off: -1,
            len: 0,
        };
        self.send(notify::INVAL_INODE, 0, &[inval.as_bytes()]);
    }

    /// Asks for everything again that was read, by whomever, and not answered.
    ///
    /// # Errors
    ///
    /// `EINVAL` from a kernel before 6.9.
    pub fn ask_again(&self) -> io::Result<()> {
        self.try_send(notify::RESEND, 0, &[])
    }

    /// Gives the kernel the file that mappings go to.
    ///
    /// # Errors
    ///
    /// `EPERM` or `ENOTTY` where there is no passthrough.
    pub fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        backing::open(self.device.as_fd(), file)
    }

    fn send(&self, error: i32, unique: u64, body: &[&[u8]]) {
        match self.try_send(error, unique, body) {
            // ENOENT: the caller was killed, or nobody knows this file (any more). ENODEV: unmounted.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNREFUSED) => {}
            Err(errno) => {
                tracing::error!(error, unique, "the kernel does not take an answer: {errno}");
            }
        }
    }

    fn try_send(&self, error: i32, unique: u64, body: &[&[u8]]) -> io::Result<()> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        let header = wire::OutHeader {
            len: u32::try_from(size_of::<wire::OutHeader>() + length).map_err(|_| Errno::TOOBIG)?,
            error,
            unique,
        };
        // An answer has at most two parts.
        let mut parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(&[]),
            IoSlice::new(&[]),
        ];
        for (part, bytes) in parts[1..].iter_mut().zip(body) {
            *part = IoSlice::new(bytes);
        }
        io::writev(&self.device, &parts[..=body.len()]).map(drop)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
