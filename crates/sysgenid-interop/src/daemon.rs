// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon whose nodes are shown.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::Stage;
use crate::built::DAEMON;
use crate::conversation::Running;
use crate::tool;

/// The daemon's folder, as on any machine.
const DIRECTORY: &str = "/run/sysgenid";

/// How long the daemon may take to serve its nodes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    _running: Running,
}

impl Daemon {
    /// Starts the daemon with these options, and waits until it serves its nodes.
    pub fn start(stage: &Stage, options: &[&str]) -> Result<Self> {
        // The OCI hook calls it by this name.
        let program = stage.install_as("sysgenidd", DAEMON.program()?)?;
        let socket = stage.folder("/run/notify")?.join("socket");
        let notices = UnixDatagram::bind(&socket)?;
        let running = Command::new(&program)
            .args(["--directory", DIRECTORY, "--log-level", "warn"])
            .args(options)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .spawn()
            .map(Running)
            .with_context(|| format!("cannot start {}", program.display()))?;
        wait_until_ready(notices)?;
        Ok(Self {
            program,
            _running: running,
        })
    }

    /// A node of an instance.
    pub fn node(&self, instance: &str, name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(instance).join(name)
    }

    /// Adds an instance, with these options.
    pub fn add_instance(&self, name: &str, options: &[&str]) -> Result<()> {
        let mut command = self.ask(&["instance", "add", name]);
        tool::run(command.args(options)).map(drop)
    }

    /// Removes an instance.
    pub fn remove_instance(&self, name: &str) -> Result<()> {
        tool::run(&mut self.ask(&["instance", "remove", name])).map(drop)
    }

    /// Puts the nodes of an instance at `/dev` in the running container of this process.
    pub fn publish_into(&self, name: &str, pid: u32) -> Result<()> {
        let mut command = self.ask(&["instance", "publish", name]);
        tool::run(command.args(["--into", &pid.to_string()])).map(drop)
    }

    /// What container engines need to know to put the nodes of the instances into containers.
    pub fn container_device_interface(&self) -> Result<String> {
        tool::run(&mut self.ask(&["cdi"]))
    }

    fn ask(&self, task: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(task).args(["--directory", DIRECTORY]);
        command
    }
}

/// Waits for the daemon's word. Goes on to listen, as a service manager does, so that no later notice
/// of the daemon's finds the socket full.
fn wait_until_ready(notices: UnixDatagram) -> Result<()> {
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        let mut notice = [0; 4096];
        while let Ok(length) = notices.recv(&mut notice) {
            let text = String::from_utf8_lossy(&notice[..length]);
            if text.lines().any(|line| line == "READY=1") {
                let _ = ready.send(());
            }
        }
    });
    is_ready
        .recv_timeout(PATIENCE)
        .context("the daemon has not said that it is ready; its own words are above")
}
