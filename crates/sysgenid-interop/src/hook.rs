// SPDX-License-Identifier: MIT OR Apache-2.0

//! The packaged OCI hook, run as a container runtime runs it.

use std::io::Write;
use std::os::unix::fs::chown;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;
use serde_json::json;

use crate::Stage;
use crate::tool;
use crate::user_namespace::FIRST_ID;
use crate::user_namespace::UserNamespace;

/// Where a hook finds programs: those of the stage come first.
pub(crate) const PATH: &str = "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the hook keeps what it has added.
const RECORDS: &str = "/run/sysgenid-oci";

/// The hook.
#[derive(Debug)]
pub struct Hook(PathBuf);

impl Hook {
    /// Puts the hook on the stage.
    pub fn install(stage: &Stage) -> Result<Self> {
        tool::JQ.require()?;
        let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/oci/sysgenid-hook");
        stage.install(hook).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it has noted for a container of this name.
    pub fn record(name: &str) -> PathBuf {
        Path::new(RECORDS).join(name)
    }

    /// What a runtime runs once a container's namespaces are there.
    pub fn create(&self, container: &Planned) -> Result<()> {
        self.run(&container.state("creating"))
    }

    /// What a runtime runs once a container has ended, or could not be created.
    pub fn stop(&self, container: &Planned) -> Result<()> {
        self.run(&container.state("stopped"))
    }

    fn run(&self, state: &Value) -> Result<()> {
        let mut hook = Command::new(&self.0)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run the hook")?;
        let mut input = hook.stdin.take().context("the hook has no input")?;
        input.write_all(state.to_string().as_bytes())?;
        drop(input);
        let output = hook.wait_with_output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// A container of which there is no more than its first process, in a user and a mount namespace of its own.
#[derive(Debug)]
pub struct Planned {
    name: String,
    bundle: PathBuf,
    annotations: Value,
    process: UserNamespace,
}

impl Planned {
    /// Makes the namespaces, and a bundle with this name.
    pub fn make(stage: &Stage, name: &str, bundle: &str) -> Result<Self> {
        let bundle = stage.folder(Path::new("/run/bundles").join(bundle))?;
        let devices = stage.folder(bundle.join("rootfs/dev"))?;
        chown(devices, Some(FIRST_ID), Some(FIRST_ID))?;
        let configuration = json!({ "root": { "path": "rootfs" } });
        std::fs::write(bundle.join("config.json"), configuration.to_string())?;
        Ok(Self {
            name: name.to_owned(),
            bundle,
            annotations: json!({}),
            process: UserNamespace::create_with(&["--mount"])?,
        })
    }

    /// With this annotation.
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations[name] = value.into();
        self
    }

    /// Where its root is to be.
    pub fn root(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    fn state(&self, status: &str) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "id": self.name,
            "status": status,
            // A runtime tells the process as long as there is one.
            "pid": if status == "stopped" { 0 } else { self.process.pid() },
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }
}
