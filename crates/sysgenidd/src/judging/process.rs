// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `/proc` tells about a caller.

use std::fs;

use crate::keeping::state::Opener;

/// Who the thread `tid` belongs to, as this process sees it.
pub(crate) fn opener(tid: u32) -> Opener {
    let unknown = Opener {
        pid: tid,
        command: [0; 16],
    };
    if tid == 0 {
        return unknown;
    }
    let Ok(status) = fs::read(format!("/proc/{tid}/status")) else {
        return unknown;
    };
    let field = |name: &[u8]| {
        status
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(name))
            .map(<[u8]>::trim_ascii)
    };
    let mut command = [0; 16];
    let name = field(b"Name:").unwrap_or_default();
    // The kernel's limit is 15 bytes, and escapes can make it longer here.
    let length = name.len().min(command.len());
    command[..length].copy_from_slice(&name[..length]);
    let pid = field(b"Tgid:")
        .and_then(|text| std::str::from_utf8(text).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or(tid);
    Opener { pid, command }
}

/// Whether a process has ended, its parent knowing of it or not.
pub(crate) fn is_gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The name in parentheses may hold anything; the state follows the last one.
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_known_by_its_own_name_also_from_a_thread() {
        let here = std::process::id();
        let opener = std::thread::Builder::new()
            .name("elsewhere".to_owned())
            .spawn(|| {
                opener(
                    rustix::thread::gettid()
                        .as_raw_nonzero()
                        .get()
                        .unsigned_abs(),
                )
            })
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(opener.pid, here);
        assert!(opener.command.starts_with(b"elsewhere"));
    }

    #[test]
    fn a_process_that_nobody_waited_for_is_gone_all_the_same() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        assert!(!is_gone(pid));
        drop(child.stdin.take());
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&child),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        let mut poll = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).unwrap();
        assert!(is_gone(pid));
        child.wait().unwrap();
        assert!(is_gone(pid));
    }
}
