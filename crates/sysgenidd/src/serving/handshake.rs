// SPDX-License-Identifier: MIT OR Apache-2.0

//! The first request of a file system: kernel and daemon agree on how to talk.

use std::time::Duration;

use anyhow::bail;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::clock;
use crate::protocol::wire::{self, flag};
use crate::protocol::{Buffer, Connection, Operation, Received, Unique};

/// What is offered to the kernel at INIT, as far as it has it.
const WANTED: u64 =
    flag::INIT_EXT | flag::DIRECT_IO_ALLOW_MMAP | flag::PASSTHROUGH | flag::HAS_RESEND;

/// How long the kernel may take to begin talking.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until kernel and daemon have agreed.
///
/// # Errors
///
/// Why they cannot, and what to do.
pub fn agree(connection: &Connection) -> anyhow::Result<()> {
    let mut buffer = Buffer::default();
    let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
    let until = clock::now().saturating_add(patience);
    loop {
        match connection.receive(&mut buffer)? {
            Received::Request(request) => match request.operation {
                Operation::Init(init) => return answer(connection, request.unique, &init),
                // The kernel asks nothing before.
                _ => connection.refuse(request.unique, Errno::IO),
            },
            Received::Nothing => {
                let left = until.saturating_sub(clock::now());
                let timeout = Timespec::try_from(Duration::from_nanos(left))?;
                let mut poll = [PollFd::new(connection, PollFlags::IN)];
                if rustix::event::poll(&mut poll, Some(&timeout))? == 0 {
                    bail!("the kernel does not talk to the file system it has just mounted");
                }
            }
            Received::Gone => bail!("somebody unmounted it at once"),
        }
    }
}

fn answer(connection: &Connection, unique: Unique, init: &wire::InitIn) -> anyhow::Result<()> {
    let offered = u64::from(init.flags) | u64::from(init.flags2) << 32;
    let agreed = offered & WANTED;
    if init.major != wire::MAJOR || init.minor < wire::MINOR || agreed & flag::HAS_RESEND == 0 {
        connection.refuse(unique, Errno::PROTO);
        bail!(
            "the kernel is too old: it speaks FUSE {}.{}, and sysgenidd needs {}.{}, which Linux 6.9 and \
             newer have",
            init.major,
            init.minor,
            wire::MAJOR,
            wire::MINOR
        );
    }
    // Only whole halves are taken.
    #[allow(clippy::cast_possible_truncation)]
    let (flags, flags2) = (agreed as u32, (agreed >> 32) as u32);
    let answer = wire::InitOut {
        major: wire::MAJOR,
        minor: wire::MINOR,
        max_readahead: 0,
        flags,
        // Closing is a request that nobody waits for, and many programs may end at once.
        max_background: u16::MAX,
        congestion_threshold: u16::MAX,
        max_write: 4096,
        time_gran: 1,
        max_pages: 1,
        map_alignment: 0,
        flags2,
        max_stack_depth: 1,
        request_timeout: 0,
        unused: [0; 11],
    };
    connection.answer(unique, &answer);
    Ok(())
}
