// SPDX-License-Identifier: MIT OR Apache-2.0

//! A daemon of the test's own, by the program that `SYSGENIDD` names.
//!
//! It needs root and a mount namespace of its own, as `cargo xtask test` makes one.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use sysgenid::Orchestrator;
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::await_outdated;

/// A daemon, with its nodes in a folder of its own. It ends with this value.
#[derive(Debug)]
pub struct Daemon {
    folder: TempDir,
    config: NamedTempFile,
    child: Option<Child>,
}

impl Daemon {
    /// Starts it, and waits until it serves.
    pub fn start() -> Self {
        Self::with("")
    }

    /// The same with a configuration.
    pub fn with(config: &str) -> Self {
        let mut daemon = Self {
            // Anybody may come to the nodes, whose own modes decide.
            folder: Builder::new()
                .permissions(Permissions::from_mode(0o755))
                .tempdir()
                .unwrap(),
            config: NamedTempFile::new().unwrap(),
            child: None,
        };
        daemon.config.write_all(config.as_bytes()).unwrap();
        daemon.start_again();
        daemon
    }

    /// Starts another one in its place, which knows nothing of the first. That is ended if it still runs.
    pub fn start_again(&mut self) {
        self.stop();
        let program = std::env::var_os("SYSGENIDD").expect("SYSGENIDD names the daemon");
        let mut child = Command::new(program)
            .arg("--foreground")
            .arg("--config")
            .arg(self.config.path())
            .arg("--directory")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended");
        }
        // What else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        self.child = Some(child);
    }

    /// Ends it cleanly; its folder is empty then.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Ends it by a signal, if it runs. One that was killed leaves its nodes behind, dead.
    pub fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), signal).unwrap();
            child.wait().unwrap();
        }
    }

    /// Where its nodes are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its node.
    pub fn node(&self) -> String {
        let node = self.folder().join("host/sysgenid");
        node.to_str().unwrap().to_owned()
    }

    /// The operator's side of that.
    pub fn orchestrator(&self) -> Orchestrator {
        Orchestrator::open_at(self.node()).unwrap()
    }

    /// Waits until it has no watcher that holds up those who wait for all.
    pub fn await_settled(&self) {
        await_outdated(&self.orchestrator(), 0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        // What one that was killed leaves mounted.
        for mount in [self.folder().join("host"), self.folder().to_owned()] {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
    }
}
