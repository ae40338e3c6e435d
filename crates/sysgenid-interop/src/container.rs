// SPDX-License-Identifier: MIT OR Apache-2.0

//! A container with namespaces of its own, run by crun from an OCI bundle that is written here.

use std::fs::File;
use std::os::unix::fs::chown;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use crate::Stage;
use crate::conversation::Conversation;
use crate::conversation::Request;
use crate::conversation::Running;
use crate::hook;
use crate::hook::Hook;
use crate::tool;
use crate::user_namespace::FIRST_ID;
use crate::user_namespace::IDS;
use crate::user_namespace::UserNamespace;

/// The right that a container's root has here, and needs to bump its instance.
const CAPABILITIES: &[&str] = &["CAP_CHECKPOINT_RESTORE"];

/// What programs from the machine need to run in a container.
const LIBRARIES: &[&str] = &["/usr", "/lib", "/lib64"];

/// A running container. Its first process is a program that the test talks with.
#[derive(Debug)]
pub struct Container {
    name: String,
    /// The conversation with its first process.
    pub first: Conversation,
    running: Running,
}

impl Container {
    /// Starts a container for which a hook is run when it is created, and after it stopped. Otherwise as
    /// [`start`](Self::start).
    pub fn start_with_hook(
        stage: &Stage,
        name: &str,
        hook: &Hook,
        files: &[(&Path, &str)],
        command: &[&str],
    ) -> Result<Self> {
        let mut configuration = configuration(None, files, command);
        let hook = json!([{ "path": hook.path(), "env": [format!("PATH={}", hook::PATH)] }]);
        configuration["hooks"] = json!({ "createRuntime": hook, "poststop": hook });
        Self::create(stage, name, &configuration)
    }

    /// Starts a container with process, mount, IPC, host name and network namespaces of its own; its user
    /// namespace may be there already. `files` are seen in it: where they are on the machine, and in the
    /// container. Its first program answers requests.
    pub fn start(
        stage: &Stage,
        name: &str,
        namespace: Option<&UserNamespace>,
        files: &[(&Path, &str)],
        command: &[&str],
    ) -> Result<Self> {
        Self::create(stage, name, &configuration(namespace, files, command))
    }

    fn create(stage: &Stage, name: &str, configuration: &Value) -> Result<Self> {
        tool::CRUN.require()?;
        let bundle = stage.folder(Path::new("/run/bundles").join(name))?;
        let root = stage.folder(bundle.join("rootfs"))?;
        chown(&root, Some(FIRST_ID), Some(FIRST_ID))?;
        serde_json::to_writer(File::create(bundle.join("config.json"))?, configuration)?;
        let (mut first, running) =
            Conversation::start(crun("run").arg("--bundle").arg(&bundle).arg(name))?;
        // Nothing can be run in a container that is still being made.
        let _: Value = first
            .ask(Request::Now)
            .with_context(|| format!("the container {name} does not start"))?;
        Ok(Self {
            name: name.to_owned(),
            first,
            running,
        })
    }

    /// Its first process, as the machine numbers it.
    pub fn pid(&self) -> Result<u32> {
        let state: Value = serde_json::from_str(&tool::run(crun("state").arg(&self.name))?)?;
        let pid = state["pid"].as_u64().context("crun tells no pid")?;
        Ok(pid.try_into()?)
    }

    /// Starts another program in the container, to talk with.
    pub fn start_another(&self, command: &[&str]) -> Result<(Conversation, Running)> {
        Conversation::start(crun("exec").arg(&self.name).args(command))
    }

    /// Ends the container, and waits for all that crun does then.
    pub fn end(&mut self) -> Result<()> {
        tool::run(crun("kill").args([&self.name, "KILL"]))?;
        self.running.0.wait()?;
        Ok(())
    }

    /// Runs a program in the container to its end.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        tool::run(crun("exec").arg(&self.name).args(command))
    }

    /// Runs a program in the container, without any capability, to its end.
    pub fn run_without_rights(&self, command: &[&str]) -> Result<String> {
        tool::run(
            crun("exec")
                .args(["--user", "1000:1000"])
                .arg(&self.name)
                .args(command),
        )
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What crun says is of no interest if the container has ended by itself.
        let _ = crun("delete")
            .args(["--force", &self.name])
            .stderr(Stdio::null())
            .status();
    }
}

fn crun(action: &str) -> Command {
    let mut command = Command::new(tool::CRUN.program);
    // The tests limit no resources, and a machine may have control groups of a version of its own.
    command.args(["--cgroup-manager", "disabled"]).arg(action);
    command
}

fn configuration(
    namespace: Option<&UserNamespace>,
    files: &[(&Path, &str)],
    command: &[&str],
) -> Value {
    // Ids are mapped where the namespace is made.
    let (user, map) = match namespace {
        Some(namespace) => {
            let path = format!("/proc/{}/ns/user", namespace.pid());
            (json!({ "type": "user", "path": path }), json!([]))
        }
        None => (
            json!({ "type": "user" }),
            json!([{ "containerID": 0, "hostID": FIRST_ID, "size": IDS }]),
        ),
    };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }),
    ];
    let libraries = LIBRARIES.iter().map(|path| (PathBuf::from(path), *path));
    let files = files.iter().map(|(from, to)| (from.to_path_buf(), *to));
    for (source, destination) in libraries.filter(|(path, _)| path.exists()).chain(files) {
        mounts.push(json!({
            "source": source,
            "destination": destination,
            "type": "bind",
            "options": ["rbind", "rw"],
        }));
    }
    json!({
        "ociVersion": "1.0.0",
        "root": { "path": "rootfs" },
        "process": {
            "args": command,
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": { "uid": 0, "gid": 0 },
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "mounts": mounts,
        "linux": {
            "namespaces": [
                user,
                { "type": "pid" },
                { "type": "mount" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "network" },
            ],
            "uidMappings": map,
            "gidMappings": map,
        },
    })
}
