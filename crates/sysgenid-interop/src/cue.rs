// SPDX-License-Identifier: MIT OR Apache-2.0

//! Scripts that end when the test says so.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use anyhow::ensure;
use rustix::fs::OFlags;

use crate::Stage;
use crate::systemd::Machine;
use crate::tool;

/// What a script waits for, one run of it at a time.
#[derive(Debug)]
pub struct Cue {
    pipe: PathBuf,
}

impl Cue {
    /// Makes the cue of this name.
    pub fn new(stage: &Stage, name: &str) -> Result<Self> {
        let pipe = stage.folder("/run/cues")?.join(name);
        tool::run(Command::new("mkfifo").arg(&pipe))?;
        Ok(Self { pipe })
    }

    /// The last lines of a script for sh that waits for the cue, and ends with the exit status that it is given.
    pub fn script(&self) -> String {
        format!("read -r code <{}\nexit \"$code\"\n", self.pipe.display())
    }

    /// Lets the run that waits end with this exit status, as soon as there is one. The next cue is only to be given
    /// when the end of that run was seen.
    pub fn give(&self, machine: &Machine, code: u8) -> Result<()> {
        let is_pipe = self.pipe.metadata()?.file_type().is_fifo();
        ensure!(is_pipe, "{} is no pipe any more", self.pipe.display());
        machine.wait_until("somebody waits for the cue", || {
            let nonblocking = i32::try_from(OFlags::NONBLOCK.bits())?;
            let opened = File::options()
                .write(true)
                .custom_flags(nonblocking)
                .open(&self.pipe);
            // There is no reader yet.
            let Ok(mut pipe) = opened else {
                return Ok(false);
            };
            writeln!(pipe, "{code}")?;
            Ok(true)
        })
    }
}
