// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that watch, dumped and restored by CRIU.

use std::path::Path;

use anyhow::Result;
use sysgenid_interop::Stage;
use sysgenid_interop::checkpoint::Criu;
use sysgenid_interop::checkpoint::Program;
use sysgenid_interop::conversation::Draw;
use sysgenid_interop::conversation::Request;
use sysgenid_interop::conversation::State;
use sysgenid_interop::daemon::Daemon;
use sysgenid_interop::node;
use sysgenid_interop::node::Mapping;

/// The instance of what is restored.
const INSTANCE: &str = "restored";

/// The generation at which the programs are dumped.
const SNAPSHOT: u32 = 5;

#[test]
#[ignore = "needs root and CRIU"]
fn a_restored_program_that_polls_rebuilds_at_the_trigger() {
    check_that_a_woken_program_rebuilds("poll");
}

#[test]
#[ignore = "needs root and CRIU"]
fn a_restored_program_that_reads_rebuilds_at_the_trigger() {
    check_that_a_woken_program_rebuilds("read");
}

#[test]
#[ignore = "needs root and CRIU"]
fn a_restored_program_that_only_maps_rebuilds_at_the_trigger() {
    Stage::play(|stage| {
        let theatre = Theatre::open(stage)?;
        let criu = Criu::find()?;
        let (mut program, before) = theatre.snapshot(stage, &criu, "mapping")?;

        program.restore()?;
        let restored: State = program.conversation.ask(Request::Now)?;
        assert_eq!(restored, before, "CRIU restores the secret as it was");
        theatre.trigger()?;
        let first: State = program.conversation.ask(Request::Now)?;
        assert_eq!(first.generation, SNAPSHOT + 1);
        assert_ne!(first.secret, before.secret);

        // The page has moved on meanwhile: the second clone rebuilds at its first use.
        program.restore()?;
        let second: State = program.conversation.ask(Request::Now)?;
        assert_eq!(second.generation, SNAPSHOT + 1);
        assert_ne!(second.secret, before.secret);
        assert_ne!(second.secret, first.secret);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and CRIU"]
fn a_restored_program_rebuilds_where_its_instance_was_made_for_the_restore() {
    Stage::play(|stage| {
        let theatre = Theatre::open(stage)?;
        let criu = Criu::find()?;
        let (mut program, before) = theatre.snapshot(stage, &criu, "mapping")?;

        // As on another machine, which knows of the snapshot no more than its generation, and that is larger there.
        let known = SNAPSHOT + 100;
        theatre.make_again_for(known)?;
        program.restore()?;

        // At its first look, and without a trigger.
        let restored: State = program.conversation.ask(Request::Now)?;
        assert_eq!(restored.generation, known + 1);
        assert_ne!(restored.secret, before.secret);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and CRIU"]
fn two_clones_of_aws_lc_draw_the_same_bytes_until_the_trigger() {
    Stage::play(|stage| {
        let _daemon = Daemon::start(stage, &["--publish=always"])?;
        let criu = Criu::find()?;
        let client = stage.install(env!("CARGO_BIN_EXE_aws-lc-client"))?;
        let mut program = Program::start(stage, &criu, &[&client.to_string_lossy()])?;
        let _: Draw = program.conversation.ask(Request::Now)?;
        program.dump()?;

        // AWS-LC mixes nothing new into its draws where there is a node: it relies on being told.
        let mut untold = Vec::new();
        for _ in 0..2 {
            program.restore()?;
            let draw: Draw = program.conversation.ask(Request::Now)?;
            assert_eq!(draw.generation, Some(0));
            untold.push(draw.bytes);
        }
        assert_eq!(untold[0], untold[1], "this is what the trigger is for");

        let mut told = Vec::new();
        for _ in 0..2 {
            program.restore()?;
            node::bump(Path::new("/dev/sysgenid"), 1)?;
            let draw: Draw = program.conversation.ask(Request::Now)?;
            told.push(draw.bytes);
        }
        assert_ne!(told[0], told[1]);
        assert!(!told.contains(&untold[0]));
        Ok(())
    });
}

fn check_that_a_woken_program_rebuilds(means: &'static str) {
    Stage::play(move |stage| {
        let theatre = Theatre::open(stage)?;
        let criu = Criu::find()?;
        let (mut program, before) = theatre.snapshot(stage, &criu, means)?;

        let mut clones = Vec::new();
        for clone in 1..=2 {
            program.restore()?;
            let restored: State = program.conversation.ask(Request::Now)?;
            assert_eq!(restored, before, "CRIU restores the secret as it was");
            theatre.trigger()?;
            let after: State = program.conversation.ask(Request::After(SNAPSHOT))?;
            // The second clone finds that the first has used the next generation.
            assert_eq!(after.generation, SNAPSHOT + clone);
            assert_ne!(after.secret, before.secret);
            clones.push(after.secret);
        }
        assert_ne!(clones[0], clones[1]);
        assert_eq!(theatre.host.generation(), 0, "only the instance changes");
        Ok(())
    });
}

/// An instance for what is restored, which no change of the host disturbs.
struct Theatre {
    daemon: Daemon,
    host: Mapping,
}

impl Theatre {
    fn open(stage: &Stage) -> Result<Self> {
        let daemon = Daemon::start(stage, &[])?;
        daemon.add_instance(INSTANCE, &["--parent", "none"])?;
        let theatre = Self {
            host: Mapping::open(&daemon.node("host", "sysgenid"))?,
            daemon,
        };
        theatre.bump(SNAPSHOT)?;
        Ok(theatre)
    }

    fn start<'a>(&self, stage: &Stage, criu: &'a Criu, means: &str) -> Result<Program<'a>> {
        let program = stage.install(env!("CARGO_BIN_EXE_watching-program"))?;
        let node = self.daemon.node(INSTANCE, "sysgenid");
        Program::start(
            stage,
            criu,
            &[
                &program.to_string_lossy(),
                "watch",
                &node.to_string_lossy(),
                "--by",
                means,
            ],
        )
    }

    /// Starts it, and dumps it at the generation of the snapshot. Returns its state at that moment, too.
    fn snapshot<'a>(
        &self,
        stage: &Stage,
        criu: &'a Criu,
        means: &str,
    ) -> Result<(Program<'a>, State)> {
        let mut program = self.start(stage, criu, means)?;
        let before: State = program.conversation.ask(Request::Now)?;
        assert_eq!(before.generation, SNAPSHOT);
        program.dump()?;
        Ok((program, before))
    }

    /// Removes the instance, and makes one for what was snapshotted at this generation.
    fn make_again_for(&self, snapshot: u32) -> Result<()> {
        self.daemon.remove_instance(INSTANCE)?;
        let generation = snapshot.to_string();
        self.daemon
            .add_instance(INSTANCE, &["--parent", "none", "--generation", &generation])
    }

    /// What whoever restores a snapshot does next.
    fn trigger(&self) -> Result<()> {
        self.bump(SNAPSHOT + 1)
    }

    fn bump(&self, minimum: u32) -> Result<()> {
        node::bump(&self.daemon.node(INSTANCE, "sysgenid"), minimum)?;
        Ok(())
    }
}
