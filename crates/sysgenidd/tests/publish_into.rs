// SPDX-License-Identifier: MIT OR Apache-2.0

//! An instance's nodes in a container.
//!
//! The host is a shell in namespaces of its own, in which it is root, so that an ordinary user can run
//! this too; a container is another below it. Whoever enters a container is a process of one thread,
//! so it is the program itself, not this test.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

const NODES: [&str; 2] = ["sysgenid", "vmgenid"];
const UNSHARE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--mount"];

/// A shell that does what it is told.
struct Shell {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut command: Command) -> Self {
        let mut process = command
            .arg("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        let mut shell = Self { process, lines };
        // It is in its namespaces once it answers.
        assert_eq!(shell.run("true"), "status 0\n");
        shell
    }

    fn host() -> Self {
        let mut command = Command::new(UNSHARE[0]);
        command.args(&UNSHARE[1..]);
        Self::start(command)
    }

    fn container(&self, unshare: &[&str]) -> Self {
        let mut command = self.inside();
        command.args(unshare);
        Self::start(command)
    }

    /// Runs what follows in the namespaces of this shell.
    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.process.id().to_string()])
            .args(["--user", "--mount", "--preserve-credentials"]);
        command
    }

    fn run(&mut self, script: &str) -> String {
        let input = self.process.stdin.as_mut().unwrap();
        writeln!(input, "{{ {script}\n}} 2>&1\necho \"status $?\"").unwrap();
        let mut output = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "{output}");
            output += &line;
            if line.starts_with("status ") {
                return output;
            }
        }
    }

    /// Publishes the instance `web` of this host.
    fn publish_into(&self, root: &Path, pid: u32) -> (bool, String) {
        let output = self
            .inside()
            .arg(env!("CARGO_BIN_EXE_sysgenidd"))
            .args(["instance", "publish", "web", "--into"])
            .arg(pid.to_string())
            .arg("--directory")
            .arg(root.join("run"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn host_with_nodes(folder: &Path) -> Shell {
    let nodes = folder.join("run/web");
    std::fs::create_dir_all(&nodes).unwrap();
    let nodes = nodes.display();
    let mut host = Shell::host();
    let said = host.run(&format!(
        "mount -t tmpfs -o nosuid,nodev,noexec web {nodes} &&
         echo the new node >{nodes}/sysgenid && echo the old node >{nodes}/vmgenid"
    ));
    assert_eq!(said, "status 0\n");
    host
}

#[test]
fn a_container_gets_the_nodes_of_its_instance_with_the_flags_of_their_mount() {
    let folder = tempfile::tempdir().unwrap();
    let host = host_with_nodes(folder.path());
    // One with a user namespace of its own, and one that shares the host's.
    for unshare in [&UNSHARE[..], &["unshare", "--mount"]] {
        let mut container = host.container(unshare);
        assert_eq!(container.run("mount -t tmpfs dev /dev"), "status 0\n");
        let pid = container.process.id();
        let (done, said) = host.publish_into(folder.path(), pid);
        assert!(done, "{said}");
        assert_eq!(
            container.run("cat /dev/sysgenid /dev/vmgenid"),
            "the new node\nthe old node\nstatus 0\n"
        );
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        for node in NODES {
            let point = format!(" /dev/{node} ");
            let mount = mounts.lines().find(|line| line.contains(&point)).unwrap();
            assert!(mount.contains("nosuid,nodev,noexec"), "{mount}");
        }

        let (done, said) = host.publish_into(folder.path(), pid);
        assert!(!done);
        assert!(said.contains("exists in the container"), "{said}");
    }
}

#[test]
fn a_container_that_has_gone_and_an_instance_that_is_absent_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host_with_nodes(folder.path());
    let container = host.container(&UNSHARE);
    let pid = container.process.id();
    drop(container);
    let (done, said) = host.publish_into(folder.path(), pid);
    assert!(!done);
    assert!(said.contains("is the container running?"), "{said}");
    let nodes = folder.path().join("run/web");
    host.run(&format!("rm {}/vmgenid", nodes.display()));
    let (done, said) = host.publish_into(folder.path(), std::process::id());
    assert!(!done);
    assert!(said.contains("there is no node"), "{said}");
}
