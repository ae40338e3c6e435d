// SPDX-License-Identifier: MIT OR Apache-2.0

//! Containers with instances of their own.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use sysgenid_interop::Stage;
use sysgenid_interop::container::Container;
use sysgenid_interop::conversation::Conversation;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::conversation::State;
use sysgenid_interop::daemon::Daemon;
use sysgenid_interop::node;
use sysgenid_interop::node::Mapping;
use sysgenid_interop::tool;
use sysgenid_interop::user_namespace::UserNamespace;

/// Where the containers have the program.
const PROGRAM: &str = "/program";

/// Where the containers have the machine's node, as if somebody had handed it to them by mistake.
const HOST_NODE: &str = "/dev/host";

#[test]
#[ignore = "needs root and crun"]
fn every_process_of_a_container_rebuilds_when_the_host_changes() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (mut container, _namespace) = set.start_container(stage, "c1")?;
        let (mut library, _running) = start_library(&container)?;
        let server: State = container.first.ask(Request::Now)?;
        let looked: State = library.ask(Request::Now)?;
        assert_eq!((server.generation, looked.generation), (0, 0));

        node::bump(&set.daemon.node("host", "sysgenid"), 0)?;

        let server_after: State = container.first.ask(Request::After(0))?;
        let looked_after: State = library.ask(Request::Now)?;
        assert_eq!((server_after.generation, looked_after.generation), (1, 1));
        assert_ne!(server_after.secret, server.secret);
        assert_ne!(looked_after.secret, looked.secret);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and crun"]
fn the_root_of_a_container_bumps_its_own_instance_and_no_other() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (mut container, _namespace) = set.start_container(stage, "c1")?;
        let (mut neighbour, _other_namespace) = set.start_container(stage, "c2")?;
        let (mut library, _running) = start_library(&container)?;
        let before: State = container.first.ask(Request::Now)?;
        let neighbour_before: State = neighbour.first.ask(Request::Now)?;
        let looked: State = library.ask(Request::Now)?;

        container.run(&[PROGRAM, "bump", "/dev/sysgenid", "--minimum", "7"])?;

        let after: State = container.first.ask(Request::After(0))?;
        let looked_after: State = library.ask(Request::Now)?;
        assert_eq!((after.generation, looked_after.generation), (7, 7));
        assert_ne!(after.secret, before.secret);
        assert_ne!(looked_after.secret, looked.secret);
        assert_eq!(set.host.generation(), 0);
        let neighbour_after: State = neighbour.first.ask(Request::Now)?;
        assert_eq!(neighbour_after, neighbour_before);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and crun"]
fn the_root_of_a_container_cannot_bump_the_host_even_where_it_sees_the_node() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (container, _namespace) = set.start_container(stage, "c1")?;
        let refused = container
            .run(&[PROGRAM, "bump", HOST_NODE])
            .expect_err("a container bumped the host");
        assert!(is_refusal(&refused), "{refused:#}");
        assert_eq!(set.host.generation(), 0);
        // The machine's own root can, so it was not the node's fault.
        node::bump(&set.daemon.node("host", "sysgenid"), 0)?;
        assert_eq!(set.host.generation(), 1);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and crun"]
fn a_container_s_unprivileged_user_cannot_bump_its_instance() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (mut container, _namespace) = set.start_container(stage, "c1")?;
        let refused = container
            .run_without_rights(&[PROGRAM, "bump", "/dev/sysgenid"])
            .expect_err("an unprivileged user bumped the instance");
        assert!(is_refusal(&refused), "{refused:#}");
        let state: State = container.first.ask(Request::Now)?;
        assert_eq!(state.generation, 0);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and crun"]
fn a_container_that_runs_already_can_be_given_an_instance() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        // A program that knows of no node, and gives back what it is sent.
        let files = [(set.program.as_path(), PROGRAM)];
        let container = Container::start(stage, "late", None, &files, &["cat"])?;
        let pid = container.pid()?;
        set.daemon
            .add_instance("late", &["--pid", &pid.to_string()])?;
        set.daemon.publish_into("late", pid)?;

        let (mut library, _running) = start_library(&container)?;
        let before: State = library.ask(Request::Now)?;
        assert_eq!(before.generation, 0);
        container.run(&[PROGRAM, "bump", "/dev/vmgenid"])?;
        let after: State = library.ask(Request::Now)?;
        assert_eq!(after.generation, 1);
        assert_ne!(after.secret, before.secret);
        assert_eq!(set.host.generation(), 0);
        Ok(())
    });
}

#[test]
#[ignore = "needs root, crun and jq"]
fn the_oci_hook_gives_a_container_an_instance_that_goes_with_it() {
    Stage::play(|stage| {
        tool::JQ.require()?;
        let set = Set::lay(stage)?;
        let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/oci/sysgenid-hook");
        let hook = stage.install(hook)?;
        let mut container = Container::start_with_hook(
            stage,
            "hooked",
            &hook,
            &[(&set.program, PROGRAM)],
            &[PROGRAM, "watch", "/dev/vmgenid", "--by", "poll"],
        )?;
        container.run(&[PROGRAM, "bump", "/dev/sysgenid"])?;
        let own: State = container.first.ask(Request::After(0))?;
        assert_eq!(own.generation, 1);
        assert_eq!(set.host.generation(), 0);
        node::bump(&set.daemon.node("host", "sysgenid"), 0)?;
        let hosts: State = container.first.ask(Request::After(1))?;
        assert_eq!(hosts.generation, 2);

        assert!(set.daemon.node("hooked", "status").exists());
        container.end()?;
        assert!(!set.daemon.node("hooked", "status").exists());
        Ok(())
    });
}

/// A daemon, and the program for containers.
struct Set {
    daemon: Daemon,
    host: Mapping,
    program: PathBuf,
}

impl Set {
    fn lay(stage: &Stage) -> Result<Self> {
        let daemon = Daemon::start(stage, &[])?;
        let host = Mapping::open(&daemon.node("host", "sysgenid"))?;
        let program = stage.install(env!("CARGO_BIN_EXE_watching-program"))?;
        Ok(Self {
            daemon,
            host,
            program,
        })
    }

    /// Starts a container with an instance of its own, in which a server watches.
    fn start_container(&self, stage: &Stage, name: &str) -> Result<(Container, UserNamespace)> {
        let namespace = UserNamespace::create()?;
        let pid = namespace.pid().to_string();
        self.daemon.add_instance(name, &["--pid", &pid])?;
        let container = Container::start(
            stage,
            name,
            Some(&namespace),
            &[
                (&self.program, PROGRAM),
                (&self.daemon.node(name, "sysgenid"), "/dev/sysgenid"),
                (&self.daemon.node(name, "vmgenid"), "/dev/vmgenid"),
                (&self.daemon.node("host", "sysgenid"), HOST_NODE),
            ],
            &[PROGRAM, "watch", "/dev/vmgenid", "--by", "poll"],
        )?;
        Ok((container, namespace))
    }
}

/// Starts a second process in the container, which only looks at its page.
fn start_library(container: &Container) -> Result<(Conversation, Running)> {
    container.start_another(&[PROGRAM, "watch", "/dev/sysgenid", "--by", "mapping"])
}

/// Whether the program found and opened the node, and the node said that it has no such right.
fn is_refusal(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("the node refused to change: Permission denied")
}
