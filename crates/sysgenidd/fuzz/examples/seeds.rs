// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes the seeds that are binary: one file for each kind of request, and pages of a vmclock device.

use std::fs;
use std::path::Path;

use sysgenidd::protocol::wire::{self, opcode};
use zerocopy::{FromZeros, Immutable, IntoBytes};

fn main() -> std::io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, code, body) in requests() {
        fs::write(seeds.join("request").join(name), request(code, &body))?;
    }
    for (name, page) in pages() {
        fs::write(seeds.join("vmclock").join(name), page)?;
    }
    Ok(())
}

fn request(code: u32, body: &[u8]) -> Vec<u8> {
    let mut header = wire::InHeader::new_zeroed();
    header.len = u32::try_from(size_of_val(&header) + body.len()).expect("they are short");
    header.opcode = code;
    header.unique = 2;
    header.nodeid = 2;
    header.pid = 1;
    [header.as_bytes(), body].concat()
}

/// A structure with a field or two set.
fn body<T: FromZeros + IntoBytes + Immutable>(set: impl FnOnce(&mut T)) -> Vec<u8> {
    let mut structure = T::new_zeroed();
    set(&mut structure);
    structure.as_bytes().to_vec()
}

fn requests() -> Vec<(&'static str, u32, Vec<u8>)> {
    let mut write = body(|write: &mut wire::WriteIn| write.size = 4);
    write.extend_from_slice(&1_u32.to_ne_bytes());
    vec![
        (
            "init",
            opcode::INIT,
            body(|init: &mut wire::InitIn| init.major = wire::MAJOR),
        ),
        ("init-of-an-old-kernel", opcode::INIT, vec![7; 16]),
        ("lookup", opcode::LOOKUP, b"sysgenid\0".to_vec()),
        ("getattr", opcode::GETATTR, Vec::new()),
        (
            "setattr",
            opcode::SETATTR,
            body(|set: &mut wire::SetAttrIn| set.valid = 8),
        ),
        ("statfs", opcode::STATFS, Vec::new()),
        (
            "open",
            opcode::OPEN,
            body(|open: &mut wire::OpenIn| open.flags = 2),
        ),
        (
            "read",
            opcode::READ,
            body(|read: &mut wire::ReadIn| {
                read.size = 4;
                read.read_flags = wire::READ_LOCKOWNER;
            }),
        ),
        (
            "page-fill",
            opcode::READ,
            body(|read: &mut wire::ReadIn| read.size = 4096),
        ),
        ("write", opcode::WRITE, write),
        (
            "ioctl",
            opcode::IOCTL,
            body(|ioctl: &mut wire::IoctlIn| ioctl.cmd = 0xe403),
        ),
        (
            "poll",
            opcode::POLL,
            body(|poll: &mut wire::PollIn| poll.flags = 1),
        ),
        (
            "release",
            opcode::RELEASE,
            body(|release: &mut wire::ReleaseIn| release.fh = 1),
        ),
        ("opendir", opcode::OPENDIR, body(|_: &mut wire::OpenIn| ())),
        (
            "readdir",
            opcode::READDIR,
            body(|read: &mut wire::ReadIn| read.size = 4096),
        ),
        (
            "releasedir",
            opcode::RELEASEDIR,
            body(|_: &mut wire::ReleaseIn| ()),
        ),
        (
            "interrupt",
            opcode::INTERRUPT,
            body(|other: &mut wire::InterruptIn| other.unique = 2),
        ),
        ("forget", opcode::FORGET, vec![0; 8]),
        ("batch-forget", opcode::BATCH_FORGET, vec![0; 8]),
        ("create", opcode::CREATE, vec![0; 16]),
        ("destroy", opcode::DESTROY, Vec::new()),
        ("unknown", 46, vec![0; 40]),
    ]
}

fn pages() -> Vec<(&'static str, Vec<u8>)> {
    let mut good = vec![0; 4096];
    good[..4].copy_from_slice(b"VCLK");
    good[4..8].copy_from_slice(&4096_u32.to_le_bytes());
    good[8] = 1;
    good[0x19] = 3;
    good[0x68] = 7;
    let with = |offset: usize, byte: u8| {
        let mut page = good[..0x70].to_vec();
        page[offset] = byte;
        page
    };
    vec![
        ("torn", with(0xc, 1)),
        ("wrong-magic", with(0, b'X')),
        ("version-2", with(8, 2)),
        ("without-counter", with(0x19, 0)),
        ("wrong-size", with(5, 0)),
        ("short", good[..0x6f].to_vec()),
        ("good", good),
    ]
}
