// SPDX-License-Identifier: MIT OR Apache-2.0

//! AWS-LC, as it is published, on the daemon's node.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use sysgenid_interop::Stage;
use sysgenid_interop::conversation::Conversation;
use sysgenid_interop::conversation::Draw;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::daemon::Daemon;
use sysgenid_interop::node;

/// The user that may do nothing.
const NOBODY: u32 = 65_534;

#[test]
#[ignore = "needs root"]
fn aws_lc_follows_bumps_as_an_unprivileged_user_and_reseeds_once_for_each() {
    Stage::play(|stage| {
        let _daemon = Daemon::start(stage, &["--publish=always"])?;
        let (mut client, _running) = start_client(stage)?;

        let first: Draw = client.ask(Request::Now)?;
        assert_eq!(first.user, NOBODY);
        assert!(first.supported, "AWS-LC does not see the node");
        assert!(first.active, "AWS-LC cannot map the node");
        assert_eq!(first.generation, Some(0));

        // A jump, too: AWS-LC must not rely on steps of one.
        let mut before = first;
        for (minimum, generation) in [(0, 1), (0, 2), (1000, 1000), (0, 1001)] {
            let undisturbed: Draw = client.ask(Request::Now)?;
            assert_eq!(undisturbed.reseeds, before.reseeds, "nothing has changed");

            node::bump(Path::new("/dev/sysgenid"), minimum)?;
            let after: Draw = client.ask(Request::Now)?;
            assert_eq!(after.generation, Some(generation));
            assert_eq!(after.reseeds, before.reseeds + 1);
            assert_ne!(after.bytes, undisturbed.bytes);
            before = after;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn aws_lc_does_without_a_node_where_none_is_published() {
    Stage::play(|stage| {
        let _daemon = Daemon::start(stage, &[])?;
        let (mut client, _running) = start_client(stage)?;

        let draw: Draw = client.ask(Request::Now)?;
        assert!(!draw.supported, "there is no node, but AWS-LC sees one");
        assert!(!draw.active);
        assert_eq!(draw.generation, Some(0));
        Ok(())
    });
}

fn start_client(stage: &Stage) -> Result<(Conversation, Running)> {
    let client = stage.install(env!("CARGO_BIN_EXE_aws-lc-client"))?;
    Conversation::start(Command::new(client).uid(NOBODY).gid(NOBODY))
}
