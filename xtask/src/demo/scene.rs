// SPDX-License-Identifier: MIT OR Apache-2.0

//! One guest with programs in it, its snapshot, and two clones of that.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use anyhow::bail;
use serde::Serialize;
use sysgenid_guest::event::Event;
use sysgenid_guest::event::What;

use crate::agent::Correlation;
use crate::agent::host_ns;
use crate::cache;
use crate::cache::Cache;
use crate::cast;
use crate::cast::MAPPER;
use crate::cast::ORCHESTRATOR;
use crate::cast::TOKEN_SERVER;
use crate::cast::TRACKED;
use crate::demo::resume;
use crate::demo::resume::Drift;
use crate::demo::resume::Moment;
use crate::environment::Environment;
use crate::front_end::FrontEnd;
use crate::guid;
use crate::progress::Step;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::qemu::Start;
use crate::qemu::Vm;
use crate::trace;
use crate::trace::TraceEvent;
use crate::vm;

/// How long a clone is left alone before anything is asked of it, so that asking disturbs nothing.
const UNDISTURBED: Duration = Duration::from_millis(700);

/// How many clock comparisons are made; the sharpest one counts.
const COMPARISONS: u32 = 200;

/// The fewest tokens that clones must have handed out after the restore for a comparison to count.
const ENOUGH_TOKENS: usize = 5;

/// The clones' names; they are guests of `cargo xtask vm` if they go on running.
pub(crate) const CLONES: [&str; 2] = ["clone-a", "clone-b"];

/// A guest, its snapshot and its clones.
#[derive(Serialize)]
pub(crate) struct Scene {
    /// What served the nodes, or would have.
    pub(crate) front_end: FrontEnd,
    /// Whether it did.
    pub(crate) is_served: bool,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The clones.
    pub(crate) clones: Vec<Clone>,
}

/// What was seen of one clone.
#[derive(Serialize)]
pub(crate) struct Clone {
    /// Its name.
    pub(crate) name: String,
    /// When it ran on, from the stop before the snapshot.
    pub(crate) resumed: Moment,
    /// The same, from the clone's own clock and the time of the resume.
    pub(crate) resumed_by_itself: Moment,
    /// What its programs did since.
    pub(crate) events: Vec<Event>,
    /// What its kernel did since.
    pub(crate) trace: Vec<TraceEvent>,
    /// What `sysgenctl` says of it, where it is served.
    pub(crate) status: String,
}

/// A token that both clones handed out under the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TokenPair {
    /// The number.
    pub(crate) number: u64,
    /// The generation that each clone's server knew.
    pub(crate) generations: [u32; 2],
    /// The tokens.
    pub(crate) values: [String; 2],
}

impl Scene {
    /// Without a front end: only the token server runs, as it would anywhere.
    pub(crate) fn without(
        front_end: FrontEnd,
        cache: &Cache,
        environment: &Environment,
    ) -> Result<Self> {
        let scene = Self {
            front_end,
            is_served: false,
            kernel: environment.kernel.version.release.clone(),
            clones: Vec::new(),
        };
        scene.play(cache, environment, &[TOKEN_SERVER], false)
    }

    /// With the front end, and everybody in it.
    pub(crate) fn with(
        front_end: FrontEnd,
        cache: &Cache,
        environment: &Environment,
        keep: bool,
    ) -> Result<Self> {
        let scene = Self {
            front_end,
            is_served: true,
            kernel: environment.kernel.version.release.clone(),
            clones: Vec::new(),
        };
        let programs = [&TRACKED[..], &[MAPPER, TOKEN_SERVER]].concat();
        scene.play(cache, environment, &programs, keep)
    }

    fn play(
        mut self,
        cache: &Cache,
        environment: &Environment,
        programs: &[&str],
        keep: bool,
    ) -> Result<Self> {
        let title = self.title();
        let step = Step::start(&format!("{title}: boot a guest, start its programs"));
        let folder = cache.temporary_folder()?;
        let machine = environment.machine_with_guid()?;
        let mut source = Vm::boot(&environment.tree, &machine, &folder.path().join("source"))?;
        let first = source.agent.correlate(COMPARISONS)?;
        if self.is_served {
            self.front_end.start(&mut source)?;
            trace::start(&mut source)?;
        }
        cast::start(&mut source, programs)?;
        step.done();

        let step = Step::start(&format!("{title}: take a snapshot"));
        let snapshot = folder.path().join("snapshot");
        let comparison = source.agent.correlate(COMPARISONS)?;
        let drift = Drift::between(first, comparison);
        let before = host_ns();
        let stopped = source.snapshot(&snapshot)?;
        let stopped = resume::translate(before, stopped.microseconds * 1000, comparison, drift)?;
        step.done();

        let mut running = Vec::new();
        for name in CLONES {
            let step = Step::start(&format!("{title}: restore {name} with a new GUID"));
            let kept = vm::folder(cache, name);
            let own = folder.path().join(name);
            let folder = if keep { &kept } else { &own };
            let (clone, vm) = Clone::restore(
                environment,
                &Machine {
                    guid: Some(guid::random()?),
                    ..machine.clone()
                },
                folder,
                &snapshot,
                name,
                Source {
                    stopped,
                    drift,
                    programs,
                    is_served: self.is_served,
                },
                keep,
            )?;
            self.clones.push(clone);
            running.push(vm);
            step.done();
        }
        for vm in running {
            if keep {
                vm.leave_running();
            } else {
                vm.power_off()?;
            }
        }
        Ok(self)
    }

    /// What to call it.
    pub(crate) fn title(&self) -> String {
        let with = if self.is_served { "with" } else { "without" };
        format!("{with} {}", self.front_end)
    }

    /// The tokens that both clones handed out since they run, in order.
    pub(crate) fn token_pairs(&self) -> Vec<TokenPair> {
        let [first, second] = self.clones.as_slice() else {
            return Vec::new();
        };
        first
            .tokens()
            .filter_map(|(number, a_generation, a)| {
                let (_, b_generation, b) = second.tokens().find(|other| other.0 == number)?;
                Some(TokenPair {
                    number,
                    generations: [a_generation, b_generation],
                    values: [a.to_owned(), b.to_owned()],
                })
            })
            .collect()
    }

    /// What this scene should have shown but did not.
    pub(crate) fn faults(&self) -> Vec<String> {
        let pairs = self.token_pairs();
        let mut faults: Vec<_> = token_faults(self.is_served, &pairs)
            .into_iter()
            .map(|fault| format!("{} {fault}", self.title()))
            .collect();
        if self.is_served {
            for clone in &self.clones {
                faults.extend(clone.faults());
            }
        }
        faults
    }
}

/// What is wrong with the tokens of two clones.
fn token_faults(is_served: bool, pairs: &[TokenPair]) -> Option<String> {
    let is_same = |pair: &&TokenPair| pair.values[0] == pair.values[1];
    if !is_served {
        let same = pairs.iter().filter(is_same).count();
        return (same < ENOUGH_TOKENS || same < pairs.len()).then(|| {
            format!(
                "{same} of {} tokens were identical, which should be all of them, and at least \
                 {ENOUGH_TOKENS}",
                pairs.len()
            )
        });
    }
    let fresh = pairs
        .iter()
        .filter(|pair| pair.generations.iter().all(|&generation| generation > 0));
    let count = fresh.clone().count();
    let same = fresh.filter(is_same).count();
    (same > 0 || count < ENOUGH_TOKENS).then(|| {
        format!(
            "{same} of {count} tokens were identical after both servers had noticed, which should \
             be none of at least {ENOUGH_TOKENS}"
        )
    })
}

/// What a clone has from the guest that it is a clone of.
struct Source<'a> {
    stopped: Moment,
    drift: Drift,
    programs: &'a [&'a str],
    is_served: bool,
}

impl Clone {
    fn restore(
        environment: &Environment,
        machine: &Machine,
        folder: &Path,
        snapshot: &Path,
        name: &str,
        source: Source<'_>,
        keep: bool,
    ) -> Result<(Self, Vm)> {
        cache::empty_folder(folder)?;
        cache::write_stamp(&folder.join("machine"), machine)?;
        let mut vm = Vm::start(
            &environment.tree,
            machine,
            folder,
            Start::Restore(snapshot),
            keep,
        )?;
        let resumed = vm.qmp.resume()?;
        let resumed_latest = host_ns();
        std::thread::sleep(UNDISTURBED);
        if source.is_served {
            await_everybody(&mut vm)?;
        }
        await_tokens(&mut vm, source.is_served)?;
        let comparison: Correlation = vm.agent.correlate(COMPARISONS)?;
        let resumed_by_itself = resume::translate(
            resumed.microseconds * 1000,
            resumed_latest,
            comparison,
            source.drift,
        )?;
        let mut events = Vec::new();
        for program in source.programs {
            events.extend(cast::events(&mut vm, program)?);
        }
        let mut trace = if source.is_served {
            trace::stop(&mut vm)?
        } else {
            Vec::new()
        };
        let start = source.stopped.guest_ns;
        events.retain(|event| event.monotonic_ns >= start);
        events.sort_by_key(|event| event.monotonic_ns);
        trace.retain(|event| event.monotonic_ns >= start);
        let status = if source.is_served {
            vm.run("sysgenctl status && echo && sysgenctl watchers", PATIENCE)?
        } else {
            String::new()
        };
        let clone = Self {
            status,
            name: name.to_owned(),
            resumed: source.stopped,
            resumed_by_itself,
            events,
            trace,
        };
        Ok((clone, vm))
    }

    /// Number, generation and value of each token.
    fn tokens(&self) -> impl Iterator<Item = (u64, u32, &str)> {
        self.events.iter().filter_map(|event| match &event.what {
            What::Token { number, value } => Some((*number, event.generation, value.as_str())),
            _ => None,
        })
    }

    /// Who was not woken, did not acknowledge, or could not go on.
    fn faults(&self) -> Vec<String> {
        let name = &self.name;
        let did = |program: &str, what: &What| {
            self.events
                .iter()
                .any(|event| event.program == program && event.what == *what)
        };
        let mut faults = Vec::new();
        for program in [&TRACKED[..], &[MAPPER, TOKEN_SERVER]].concat() {
            if !did(program, &What::Noticed) {
                faults.push(format!("in {name} the {program} did not notice the change"));
            }
        }
        for program in TRACKED {
            if !did(program, &What::Acknowledged) {
                faults.push(format!("in {name} the {program} did not acknowledge"));
            }
        }
        if !did(ORCHESTRATOR, &What::EverybodyDone) {
            faults.push(format!(
                "in {name} the {ORCHESTRATOR} did not see everybody done"
            ));
        }
        for event in &self.events {
            if let What::Failed { reason } = &event.what {
                faults.push(format!("in {name} the {} failed: {reason}", event.program));
            }
        }
        faults
    }
}

/// Waits until everybody has dealt with the change, as an operator would. Whoever is missing is reported later, with
/// everything else.
fn await_everybody(vm: &mut Vm) -> Result<()> {
    let seconds = PATIENCE.as_secs();
    vm.outcome(&format!("sysgenctl wait --timeout {seconds}"), PATIENCE * 2)?;
    for (program, text) in [(ORCHESTRATOR, "everybody-done"), (MAPPER, "noticed")] {
        let report = cast::report_of(program);
        vm.outcome(
            &format!("sysgenid-guest await {} {text}", report.display()),
            PATIENCE,
        )?;
    }
    Ok(())
}

/// Waits until the server handed out enough tokens that can be compared.
fn await_tokens(vm: &mut Vm, is_served: bool) -> Result<()> {
    let report = cast::report_of(TOKEN_SERVER);
    let report = report.display();
    // With a front end those count that were handed out under the new generation.
    let pattern = if is_served {
        r#""token".*"generation":[1-9]"#
    } else {
        r#""token""#
    };
    let count = format!("grep -c '{pattern}' {report}");
    let start: usize = if is_served {
        0
    } else {
        vm.outcome(&count, PATIENCE)?.output.trim().parse()?
    };
    for _ in 0..200 {
        let now: usize = vm.outcome(&count, PATIENCE)?.output.trim().parse()?;
        if now >= start + ENOUGH_TOKENS + 5 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the token server hands out no tokens any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(count: u64, generation: u32, same: bool) -> Vec<TokenPair> {
        (0..count)
            .map(|number| TokenPair {
                number,
                generations: [generation; 2],
                values: [
                    format!("{number}"),
                    format!("{number}{}", if same { "" } else { "!" }),
                ],
            })
            .collect()
    }

    #[test]
    fn identical_tokens_with_a_front_end_are_a_fault() {
        assert!(token_faults(true, &pairs(10, 1, true)).is_some());
        assert!(token_faults(true, &pairs(10, 1, false)).is_none());
    }

    #[test]
    fn tokens_before_the_notice_may_be_identical() {
        let mut all = pairs(3, 0, true);
        all.extend(pairs(10, 1, false));
        assert!(token_faults(true, &all).is_none());
    }

    #[test]
    fn different_tokens_without_a_front_end_are_a_fault() {
        assert!(token_faults(false, &pairs(10, 0, false)).is_some());
        assert!(token_faults(false, &pairs(10, 0, true)).is_none());
    }

    #[test]
    fn too_few_tokens_prove_nothing() {
        assert!(token_faults(true, &pairs(2, 1, false)).is_some());
        assert!(token_faults(false, &pairs(2, 0, true)).is_some());
    }
}
