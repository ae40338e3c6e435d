// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon on this machine, for tests and measurements that need no guest.
//!
//! It lives in a mount namespace of its own, with its folder there: the machine does not see its nodes,
//! and nothing of it is left when it ends, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use rustix::process::Pid;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::cache::Cache;
use crate::programs;
use crate::programs::Programs;
use crate::progress;

/// How long the daemon may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the daemon's folder is, in its mount namespace only. Every user can get there, which is not so of
/// the cache folder.
const DIRECTORY: &str = "/mnt";

/// Covers the folder $0, whatever is mounted there, and starts the command.
const ENTER: &str = r#"
mount -t tmpfs -o mode=755 tmpfs "$0"
exec "$@"
"#;

/// A running daemon. It is killed when this value goes away.
pub(crate) struct HostDaemon {
    programs: Programs,
    child: Child,
    folder: TempDir,
}

impl HostDaemon {
    /// Why it cannot run here, if it cannot.
    pub(crate) fn cannot_run() -> Option<&'static str> {
        if !rustix::process::geteuid().is_root() {
            Some("only root can mount")
        } else if !Path::new("/dev/fuse").exists() {
            Some("this machine has no /dev/fuse")
        } else {
            None
        }
    }

    /// Starts it with the text of a configuration, and returns once its nodes are there.
    pub(crate) fn start(cache: &Cache, programs: &Programs, config: &str) -> Result<Self> {
        let folder = cache.temporary_folder()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("config"), config)?;
        let log = File::create(path("log"))?;
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .args(["sh", "-ec", ENTER, DIRECTORY])
            .arg(programs.file(programs::DAEMON))
            .arg("--config")
            .arg(path("config"))
            .args(["--directory", DIRECTORY])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start unshare")?;
        let mut daemon = Self {
            programs: programs.clone(),
            child,
            folder,
        };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// A file of the host instance, for whoever is in the daemon's mount namespace.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory().join("host").join(name)
    }

    /// Where its instances are, likewise.
    pub(crate) fn directory(&self) -> &'static Path {
        Path::new(DIRECTORY)
    }

    /// One of our programs, in the daemon's mount namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.enter(self.programs.file(program))
    }

    /// What the daemon says of itself.
    pub(crate) fn status(&self) -> Result<String> {
        let output = self.enter("cat").arg(self.file("status")).output()?;
        ensure!(
            output.status.success(),
            "cannot read the daemon's status: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Any program, in the daemon's mount namespace.
    pub(crate) fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.pid()))
            .arg("--")
            .arg(program);
        command
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it end cleanly.
    pub(crate) fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("the daemon does not end at SIGINT; {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        ensure!(
            status.success(),
            "the daemon ended with {status}; {}",
            self.last_words()
        );
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(self.log())?;
            if log.lines().any(|line| line.contains("ready")) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended with {status}; {}", self.last_words());
            }
            if Instant::now() > deadline {
                bail!("the daemon does not get ready; {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn last_words(&self) -> String {
        progress::last_lines(&self.log())
    }
}

impl Drop for HostDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
