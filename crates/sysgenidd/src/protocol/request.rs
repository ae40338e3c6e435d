// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel asks for, read from its bytes without copying.

use std::fmt;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::wire::{self, opcode};

/// The identity of a request. It is never used twice in the life of a connection.
///
/// The kernel marks a request that it sends again; the mark is part of what an answer must repeat,
/// but not of the identity.
#[derive(Clone, Copy)]
pub struct Unique(u64);

impl Unique {
    /// From what the header says.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// What the header of the answer must say.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The same for the first sending and every later one.
    pub const fn identity(self) -> u64 {
        self.0 & !wire::UNIQUE_RESEND
    }

    /// Whether the request was sent before.
    pub const fn is_resent(self) -> bool {
        self.0 & wire::UNIQUE_RESEND != 0
    }
}

impl fmt::Debug for Unique {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_resent() { " again" } else { "" };
        write!(f, "{}{mark}", self.identity())
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its identity.
    pub unique: Unique,
    /// The file that it is about.
    pub inode: u64,
    /// The calling thread as the daemon sees it; 0 if it does not.
    pub tid: u32,
    /// The caller's user as the daemon sees it.
    pub uid: u32,
    /// What is asked for.
    pub operation: Operation<'a>,
    /// All of the request as it came, for whoever wants to put it off.
    pub bytes: &'a [u8],
}

/// What is asked for. `handle` is the daemon's name for an open file description.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The fields are those of `wire`.
pub enum Operation<'a> {
    Init(wire::InitIn),
    Lookup {
        name: &'a [u8],
    },
    GetAttributes,
    StatFileSystem,
    Open {
        flags: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
        /// Those of open(2), as they are now.
        flags: u32,
        /// The kernel fills a page of a mapping; no program reads.
        fills_page: bool,
    },
    Write {
        handle: u64,
        data: &'a [u8],
    },
    Release {
        handle: u64,
    },
    Ioctl {
        handle: u64,
        request: u32,
        argument: u64,
    },
    Poll {
        handle: u64,
        kernel_handle: u64,
        /// Somebody sleeps, and must be told of a change.
        notify: bool,
    },
    OpenFolder,
    ReadFolder {
        offset: u64,
        size: u32,
    },
    ReleaseFolder,
    /// The caller of another request has a signal pending.
    Interrupt {
        target: Unique,
    },
    /// The kernel drops what it knew of a file; it expects no answer.
    Forget,
    /// The file system is gone.
    Destroy,
    SetAttributes {
        /// Mode, owner or group, and not only size and times.
        changes_access: bool,
    },
    /// A file is to be created, removed, renamed and the like.
    Change,
    /// Nothing that a node has.
    Other(u32),
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// There is not even a header.
    #[error("{0} bytes are too short for the header of a request")]
    NoHeader(usize),
    /// The header names another length.
    #[error("the header says {named} bytes, and there are {found}")]
    Length {
        /// What the header says.
        named: u32,
        /// What there is.
        found: usize,
    },
    /// The body is shorter than the operation needs.
    #[error("a request with opcode {opcode} has a body that is too short or wrong")]
    Body {
        /// The operation.
        opcode: u32,
        /// The request, so that it can be refused.
        unique: u64,
    },
}

impl<'a> Request<'a> {
    /// Reads one request.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the bytes are not what `<linux/fuse.h>` says. The kernel never sends such.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, body) = wire::InHeader::read_from_prefix(bytes)
            .map_err(|_| Malformed::NoHeader(bytes.len()))?;
        if usize::try_from(header.len) != Ok(bytes.len()) {
            return Err(Malformed::Length {
                named: header.len,
                found: bytes.len(),
            });
        }
        let operation = Operation::parse(header.opcode, body).ok_or(Malformed::Body {
            opcode: header.opcode,
            unique: header.unique,
        })?;
        Ok(Self {
            unique: Unique::new(header.unique),
            inode: header.nodeid,
            tid: header.pid,
            uid: header.uid,
            operation,
            bytes,
        })
    }
}

impl<'a> Operation<'a> {
    fn parse(code: u32, body: &'a [u8]) -> Option<Self> {
        Some(match code {
            opcode::INIT => Self::Init(init(body)?),
            opcode::LOOKUP => Self::Lookup { name: name(body)? },
            opcode::GETATTR => Self::GetAttributes,
            opcode::STATFS => Self::StatFileSystem,
            opcode::OPEN => Self::Open {
                flags: structure::<wire::OpenIn>(body)?.0.flags,
            },
            opcode::READ => {
                let (read, _) = structure::<wire::ReadIn>(body)?;
                Self::Read {
                    handle: read.fh,
                    offset: read.offset,
                    size: read.size,
                    flags: read.flags,
                    fills_page: read.read_flags & wire::READ_LOCKOWNER == 0,
                }
            }
            opcode::WRITE => {
                let (write, data) = structure::<wire::WriteIn>(body)?;
                Self::Write {
                    handle: write.fh,
                    data: data.get(..usize::try_from(write.size).ok()?)?,
                }
            }
            opcode::RELEASE => Self::Release {
                handle: structure::<wire::ReleaseIn>(body)?.0.fh,
            },
            opcode::IOCTL => {
                let (ioctl, _) = structure::<wire::IoctlIn>(body)?;
                Self::Ioctl {
                    handle: ioctl.fh,
                    request: ioctl.cmd,
                    argument: ioctl.arg,
                }
            }
            opcode::POLL => {
                let (poll, _) = structure::<wire::PollIn>(body)?;
                Self::Poll {
                    handle: poll.fh,
                    kernel_handle: poll.kh,
                    notify: poll.flags & wire::POLL_SCHEDULE_NOTIFY != 0,
                }
            }
            opcode::OPENDIR => Self::OpenFolder,
            opcode::READDIR => {
                let (read, _) = structure::<wire::ReadIn>(body)?;
                Self::ReadFolder {
                    offset: read.offset,
                    size: read.size,
                }
            }
            opcode::RELEASEDIR => Self::ReleaseFolder,
            opcode::INTERRUPT => Self::Interrupt {
                target: Unique::new(structure::<wire::InterruptIn>(body)?.0.unique),
            },
            opcode::SETATTR => Self::SetAttributes {
                changes_access: structure::<wire::SetAttrIn>(body)?.0.valid & wire::SETS_ACCESS
                    != 0,
            },
            opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::LINK
            | opcode::CREATE
            | opcode::RENAME2
            | opcode::TMPFILE => Self::Change,
            opcode::FORGET | opcode::BATCH_FORGET => Self::Forget,
            opcode::DESTROY => Self::Destroy,
            other => Self::Other(other),
        })
    }
}

fn structure<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(body).ok()
}

/// INIT of a kernel before 5.17 has no second half of flags, and is 16 bytes long.
fn init(body: &[u8]) -> Option<wire::InitIn> {
    let mut whole = [0; size_of::<wire::InitIn>()];
    let known = body.len().min(whole.len());
    if known < 16 {
        return None;
    }
    whole[..known].copy_from_slice(&body[..known]);
    wire::InitIn::read_from_bytes(&whole).ok()
}

fn name(body: &[u8]) -> Option<&[u8]> {
    let end = body.iter().position(|byte| *byte == 0)?;
    Some(&body[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn bytes(code: u32, unique: u64, body: &[u8]) -> Vec<u8> {
        let length = size_of::<wire::InHeader>() + body.len();
        let header = wire::InHeader {
            len: u32::try_from(length).unwrap(),
            opcode: code,
            unique,
            nodeid: 2,
            uid: 7,
            gid: 8,
            pid: 9,
            total_extlen: 0,
            padding: 0,
        };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_write_carries_exactly_the_bytes_that_it_names() {
        let write = wire::WriteIn {
            fh: 5,
            offset: 0,
            size: 4,
            write_flags: 0,
            lock_owner: 0,
            flags: 0,
            padding: 0,
        };
        let whole = bytes(
            opcode::WRITE,
            6,
            &[write.as_bytes(), &[1, 2, 3, 4]].concat(),
        );
        let request = Request::parse(&whole).unwrap();
        assert!(matches!(
            request.operation,
            Operation::Write {
                handle: 5,
                data: [1, 2, 3, 4]
            }
        ));
        let short = bytes(opcode::WRITE, 6, &[write.as_bytes(), &[1, 2, 3]].concat());
        assert_eq!(
            Request::parse(&short).unwrap_err(),
            Malformed::Body {
                opcode: opcode::WRITE,
                unique: 6
            }
        );
    }

    #[test]
    fn a_length_that_is_not_that_of_the_bytes_is_refused() {
        let mut whole = bytes(opcode::GETATTR, 2, &[]);
        whole.push(0);
        assert_eq!(
            Request::parse(&whole).unwrap_err(),
            Malformed::Length {
                named: 40,
                found: 41
            }
        );
        assert_eq!(
            Request::parse(&whole[..39]).unwrap_err(),
            Malformed::NoHeader(39)
        );
    }

    #[test]
    fn a_resent_request_keeps_its_identity() {
        let again = Unique::new(6 | wire::UNIQUE_RESEND);
        assert!(again.is_resent());
        assert_eq!(again.identity(), Unique::new(6).identity());
        assert_ne!(again.raw(), 6);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(code in 0..60_u32, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let whole = bytes(code, 2, &body);
            if let Ok(Request { operation: Operation::Write { data, .. }, .. }) = Request::parse(&whole) {
                prop_assert!(data.len() <= body.len());
            }
        }
    }
}
