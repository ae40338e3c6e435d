// SPDX-License-Identifier: MIT OR Apache-2.0

//! Containers of a user who is not root, by podman, which puts the nodes in by a CDI file.

use std::path::PathBuf;

use anyhow::Result;
use sysgenid_interop::Stage;
use sysgenid_interop::conversation::Conversation;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::conversation::State;
use sysgenid_interop::daemon::Daemon;
use sysgenid_interop::node;
use sysgenid_interop::node::Mapping;
use sysgenid_interop::podman;
use sysgenid_interop::podman::User;
use sysgenid_interop::tool;
use sysgenid_interop::user_namespace::UserNamespace;

/// The user's instance.
const INSTANCE: &str = "rootless";

/// The right to bump, which podman gives to no container by itself.
const RIGHT: &str = "--cap-add=CHECKPOINT_RESTORE";

#[test]
#[ignore = "needs root, crun, podman and uidmap"]
fn a_rootless_container_rebuilds_when_the_host_changes_and_when_its_user_says_so() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (mut server, _running) = set.start_server(stage)?;
        let first: State = server.ask(Request::Now)?;
        assert_eq!(first.generation, 0);

        node::bump(&set.daemon.node("host", "sysgenid"), 0)?;
        let second: State = server.ask(Request::After(0))?;
        assert_eq!(second.generation, 1);
        assert_ne!(second.secret, first.secret);

        // What the user's own restore does, from outside the container.
        let instance = set.daemon.node(INSTANCE, "sysgenid");
        let mut bump = set.user.podman();
        bump.arg("unshare")
            .arg(&set.program)
            .arg("bump")
            .arg(&instance);
        tool::run(&mut bump)?;
        let third: State = server.ask(Request::After(1))?;
        assert_eq!(third.generation, 2);
        assert_ne!(third.secret, second.secret);
        assert_eq!(set.host.generation(), 1);
        Ok(())
    });
}

#[test]
#[ignore = "needs root, crun, podman and uidmap"]
fn a_rootless_container_bumps_its_instance_only_with_the_capability() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let (mut server, _running) = set.start_server(stage)?;
        let bump = |options| -> Result<String> {
            let mut command = set
                .user
                .run_container(stage, &set.program, INSTANCE, options)?;
            tool::run(command.args(["/program", "bump", "/dev/sysgenid"]))
        };

        bump(&[]).expect_err("a container bumped its instance without the capability");
        let state: State = server.ask(Request::Now)?;
        assert_eq!(state.generation, 0);

        bump(&[RIGHT])?;
        let state: State = server.ask(Request::After(0))?;
        assert_eq!(state.generation, 1);
        assert_eq!(set.host.generation(), 0);
        Ok(())
    });
}

#[test]
#[ignore = "needs root, crun, podman and uidmap"]
fn a_rootless_user_cannot_bump_the_host() {
    Stage::play(|stage| {
        let set = Set::lay(stage)?;
        let mut bump = set.user.podman();
        bump.arg("unshare")
            .arg(&set.program)
            .arg("bump")
            .arg(set.daemon.node("host", "sysgenid"));
        let refused = tool::run(&mut bump).expect_err("root of a user namespace bumped the host");
        assert!(
            format!("{refused:#}").contains("the node refused to change: Permission denied"),
            "{refused:#}"
        );
        assert_eq!(set.host.generation(), 0);
        Ok(())
    });
}

/// A daemon, and a user with an instance.
struct Set {
    daemon: Daemon,
    host: Mapping,
    program: PathBuf,
    user: User,
    _namespace: UserNamespace,
}

impl Set {
    fn lay(stage: &Stage) -> Result<Self> {
        let user = User::create(stage)?;
        let namespace = user.namespace()?;
        let daemon = Daemon::start(stage, &[])?;
        let host = Mapping::open(&daemon.node("host", "sysgenid"))?;
        let program = stage.install(env!("CARGO_BIN_EXE_watching-program"))?;
        daemon.add_instance(INSTANCE, &["--pid", &namespace.pid().to_string()])?;
        podman::define_devices(stage, &daemon)?;
        Ok(Self {
            daemon,
            host,
            program,
            user,
            _namespace: namespace,
        })
    }

    fn start_server(&self, stage: &Stage) -> Result<(Conversation, Running)> {
        let mut command = self
            .user
            .run_container(stage, &self.program, INSTANCE, &[])?;
        Conversation::start(command.args(["/program", "watch", "/dev/vmgenid", "--by", "poll"]))
    }
}
