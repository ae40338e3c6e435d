// SPDX-License-Identifier: MIT OR Apache-2.0

//! A control group that can be frozen.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::call::look_again_soon;
use crate::outcome::{Failure, Outcome, fail, skip};
use crate::process::PATIENCE;

/// A group of the second version of control groups. When this is dropped, it is removed with whoever is
/// still in it.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a group below that of this process, and moves another process there.
    ///
    /// # Errors
    ///
    /// A skip where that is not to be had.
    pub(crate) fn of(process: Pid) -> Outcome<Self> {
        let Some(parent) = own_group() else {
            return skip("no control groups (version 2) are mounted here");
        };
        let path = parent.join(format!(
            "sysgenid-conformance-{}",
            getpid().as_raw_nonzero()
        ));
        fs::create_dir(&path).or_else(may_not)?;
        let group = Self(path);
        if !group.0.join("cgroup.freeze").exists() {
            return skip("this kernel cannot freeze control groups (version 2)");
        }
        let pid = process.as_raw_nonzero().to_string();
        fs::write(group.0.join("cgroup.procs"), pid).or_else(may_not)?;
        Ok(group)
    }

    /// Freezes it, and returns once all of its processes are.
    pub(crate) fn freeze(&self) -> Outcome {
        self.set(true)
    }

    /// Lets its processes go on.
    pub(crate) fn thaw(&self) -> Outcome {
        self.set(false)
    }

    fn set(&self, frozen: bool) -> Outcome {
        let value = u8::from(frozen);
        fs::write(self.0.join("cgroup.freeze"), value.to_string())?;
        let line = format!("frozen {value}");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let events = fs::read_to_string(self.0.join("cgroup.events"))?;
            if events.lines().any(|event| event == line) {
                return Ok(());
            }
            look_again_soon();
        }
        fail(format!("no {line:?} in cgroup.events within {PATIENCE:?}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that is frozen can be killed. Linux 5.14 has the file.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            look_again_soon();
        }
    }
}

/// The folder of the group that this process is in.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // The fifth field is where it is mounted, and the type follows a lone dash.
    let root = mounts.lines().find_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        let is_version_2 = kind.starts_with("cgroup2 ");
        is_version_2.then(|| place.split(' ').nth(4))?
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups
        .lines()
        .find_map(|group| group.strip_prefix("0::/"))?;
    Some(Path::new(root).join(own))
}

/// A skip if the error says that this system does not let us.
fn may_not(error: std::io::Error) -> Outcome {
    match Errno::from_io_error(&error) {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT | Errno::BUSY) => {
            skip("this system lets nobody make control groups (version 2) here")
        }
        _ => Err(Failure::from(error)),
    }
}
