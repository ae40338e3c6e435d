// SPDX-License-Identifier: MIT OR Apache-2.0

//! An unprivileged user who runs containers by podman.

use std::os::unix::fs::chown;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::Stage;
use crate::daemon::Daemon;
use crate::tool;
use crate::user_namespace::UserNamespace;

/// The user's name, id, and further ids for containers.
const USER: (&str, u32) = ("sysgenid-interop", 61_000);
const FURTHER_IDS: (u32, u32) = (1_000_000, 65_536);

/// The kind of device that an instance is.
const DEVICE_KIND: &str = "sysgenid/instance";

/// What programs from the machine need to run in a container.
const LIBRARIES: &[&str] = &["/usr", "/lib", "/lib64"];

/// A user that only the stage knows.
#[derive(Debug)]
pub struct User {
    home: PathBuf,
    runtime: PathBuf,
}

impl User {
    /// Adds the user to the stage.
    pub fn create(stage: &Stage) -> Result<Self> {
        tool::PODMAN.require()?;
        tool::NEWUIDMAP.require()?;
        tool::CRUN.require()?;
        let (name, id) = USER;
        let home = stage.folder("/run/home")?;
        let runtime = stage.folder(format!("/run/user/{id}"))?;
        for folder in [&home, &runtime] {
            chown(folder, Some(id), Some(id))?;
        }
        let further = format!("{name}:{}:{}\n", FURTHER_IDS.0, FURTHER_IDS.1);
        let account = format!("{name}:x:{id}:{id}::{}:/bin/sh\n", home.display());
        let group = format!("{name}:x:{id}:\n");
        for (file, line) in [
            ("passwd", &account),
            ("group", &group),
            ("subuid", &further),
            ("subgid", &further),
        ] {
            add_line(stage, file, line)?;
        }
        Ok(Self { home, runtime })
    }

    /// The user namespace of this user's containers, which an instance can belong to.
    pub fn namespace(&self) -> Result<UserNamespace> {
        UserNamespace::enter(self.podman().arg("unshare"))
    }

    /// A command that starts a container which has the nodes of an instance, with these options of
    /// podman's. What it shall run is to be added.
    pub fn run_container(
        &self,
        stage: &Stage,
        program: &Path,
        instance: &str,
        options: &[&str],
    ) -> Result<Command> {
        let root = stage.folder(self.home.join(instance))?;
        chown(&root, Some(USER.1), Some(USER.1))?;
        let mut command = self.podman();
        command
            .args(["run", "--rm", "--interactive"])
            .args(["--network", "none", "--cgroups", "disabled"])
            .arg(format!("--device={DEVICE_KIND}={instance}"))
            .args(options);
        for library in LIBRARIES.iter().filter(|path| Path::new(path).exists()) {
            command.arg(format!("--volume={library}:{library}:ro"));
        }
        command
            .arg(format!("--volume={}:/program:ro", program.display()))
            .arg("--rootfs")
            .arg(root);
        Ok(command)
    }

    /// Podman, run by this user.
    pub fn podman(&self) -> Command {
        let mut command = Command::new("setpriv");
        let id = USER.1.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(tool::PODMAN.program)
            .args(["--runtime", tool::CRUN.program])
            .args(["--cgroup-manager", "cgroupfs"])
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .env("USER", USER.0)
            .current_dir("/");
        command
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Podman leaves a process behind that keeps the user namespace, and with it the stage.
        let _ = tool::run(self.podman().args(["system", "migrate"]));
    }
}

/// Adds a line to a file of `/etc` that only the stage has.
fn add_line(stage: &Stage, file: &str, line: &str) -> Result<()> {
    let original = Path::new("/etc").join(file);
    let copy = stage.folder("/run/etc")?.join(file);
    let mut text = std::fs::read_to_string(&original)
        .with_context(|| format!("cannot read {}", original.display()))?;
    text.push_str(line);
    std::fs::write(&copy, text)?;
    stage.bind(&copy, &original)
}

/// Tells container engines of the daemon's instances.
pub fn define_devices(stage: &Stage, daemon: &Daemon) -> Result<()> {
    let file = stage.folder("/run/cdi")?.join("sysgenid.json");
    std::fs::write(file, daemon.container_device_interface()?)?;
    Ok(())
}
