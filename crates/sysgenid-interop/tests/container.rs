// SPDX-License-Identifier: MIT OR Apache-2.0

//! Containers with instances of their own.

use std::path::PathBuf;

use anyhow::Result;
use sysgenid_interop::Stage;
use sysgenid_interop::container::Container;
use sysgenid_interop::conversation::Conversation;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::conversation::State;
use sysgenid_interop::daemon::Daemon;
use sysgenid_interop::hook::Hook;
use sysgenid_interop::hook::Planned;
use sysgenid_interop::node;
use sysgenid_interop::node::Mapping;
use sysgenid_interop::patience::wait_until;
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
        let set = Set::lay(stage)?;
        let hook = Hook::install(stage)?;
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

#[test]
#[ignore = "needs root and jq"]
fn a_container_with_a_name_of_the_configuration_is_not_created_and_that_instance_stays() {
    Stage::play(|stage| {
        let configuration = stage.folder("/run/configuration")?.join("sysgenidd.toml");
        std::fs::write(&configuration, "[instances.web]\n")?;
        let daemon = Daemon::start(stage, &["--config", &configuration.to_string_lossy()])?;
        let configured = Mapping::open(&daemon.node("web", "sysgenid"))?;
        let before = configured.generation();
        let hook = Hook::install(stage)?;
        let container = Planned::make(stage, "web", "web")?;

        let refused = hook
            .create(&container)
            .expect_err("a container took the name of a configured instance");
        assert!(format!("{refused:#}").contains("web"), "{refused:#}");
        // runc does so for a container that could not be created, too.
        hook.stop(&container)?;

        node::bump(&daemon.node("web", "sysgenid"), 0)?;
        assert_eq!(configured.generation(), before + 1);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and jq"]
fn a_second_container_of_a_name_is_not_created_and_harms_the_first_in_no_bundle() {
    Stage::play(|stage| {
        let daemon = Daemon::start(stage, &[])?;
        let hook = Hook::install(stage)?;
        let first = Planned::make(stage, "c1", "c1")?;
        hook.create(&first)?;
        let page = Mapping::open(&daemon.node("c1", "sysgenid"))?;
        let before = page.generation();

        // Two containerd namespaces, or two roots of a runtime, which may even share the bundle.
        for bundle in ["other", "c1"] {
            let second = Planned::make(stage, "c1", bundle)?;
            hook.create(&second)
                .expect_err("two containers share an instance");
            hook.stop(&second)?;
        }

        node::bump(&daemon.node("c1", "sysgenid"), 0)?;
        assert_eq!(page.generation(), before + 1);
        assert!(Hook::record("c1").exists());
        Ok(())
    });
}

#[test]
#[ignore = "needs root and jq"]
fn the_instance_of_a_container_goes_with_its_process_though_no_runtime_says_so() {
    Stage::play(|stage| {
        let daemon = Daemon::start(stage, &[])?;
        let hook = Hook::install(stage)?;
        let container = Planned::make(stage, "c1", "c1")?;
        hook.create(&container)?;
        let page = Mapping::open(&daemon.node("c1", "sysgenid"))?;
        let before = page.generation();

        drop(container);

        let status = daemon.node("c1", "status");
        wait_until(
            || "the instance is not removed".to_owned(),
            || Ok(!status.exists()),
        )?;
        assert_ne!(page.generation(), before, "who maps its page is told");
        // The name is free, whatever the hook had noted.
        hook.create(&Planned::make(stage, "c1", "again")?)
    });
}

#[test]
#[ignore = "needs root and jq"]
fn the_instance_of_a_restored_container_begins_above_the_generation_of_its_snapshot() {
    Stage::play(|stage| {
        let daemon = Daemon::start(stage, &[])?;
        let hook = Hook::install(stage)?;
        let restored = Planned::make(stage, "c1", "c1")?.annotated("sysgenid.generation", "7");
        hook.create(&restored)?;
        assert_eq!(
            Mapping::open(&daemon.node("c1", "sysgenid"))?.generation(),
            8
        );

        let faulty = Planned::make(stage, "c2", "c2")?.annotated("sysgenid.generation", "-1");
        hook.create(&faulty)
            .expect_err("a generation is no number, and the container was created");
        assert!(!daemon.node("c2", "status").exists());
        Ok(())
    });
}

#[test]
#[ignore = "needs root and jq"]
fn a_container_that_cannot_be_given_its_nodes_leaves_no_instance_behind() {
    Stage::play(|stage| {
        let daemon = Daemon::start(stage, &[])?;
        let hook = Hook::install(stage)?;
        let container = Planned::make(stage, "c1", "c1")?;
        std::fs::remove_dir_all(container.root())?;

        hook.create(&container)
            .expect_err("a container without a root has nodes");

        assert!(!daemon.node("c1", "status").exists());
        assert!(!Hook::record("c1").exists());
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
