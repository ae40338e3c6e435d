// SPDX-License-Identifier: MIT OR Apache-2.0

//! For whoever restores a machine or container: change the generation, and wait until everybody has dealt with it.

use std::path::Path;
use std::time::Duration;

use sysgenid_core::Generation;

use crate::change::{Change, Others, Waiting};
use crate::deadline::Deadline;
use crate::error::{Access, Error};
use crate::node::{Node, Waited};

/// The operator's side of a node: it changes the generation, counts those who lag behind, and waits for them. Nobody
/// waits for it.
///
/// # Example
///
/// What the restore hook of a container does, which was told the generation that its snapshot was taken at:
///
/// ```no_run
/// use std::time::Duration;
/// use sysgenid::{Generation, Orchestrator, Settlement};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let in_snapshot = Generation::new(7);
/// let orchestrator = Orchestrator::open()?;
/// match orchestrator.bump_and_settle(in_snapshot.next(), Some(Duration::from_secs(5)))? {
///     Settlement::Settled(generation) => println!("everybody is in generation {generation}"),
///     Settlement::TimedOut { outdated } => eprintln!("{outdated} watchers are late"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Orchestrator(Node);

/// How a wait for everybody ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "not everybody may be done"]
pub enum Settlement {
    /// All tracked watchers have acknowledged this generation.
    Settled(Generation),
    /// The time is over.
    TimedOut {
        /// So many tracked watchers have not acknowledged.
        outdated: u32,
    },
}

/// How a service that pauses at a change went on.
#[derive(Debug)]
#[must_use = "the service may still be paused"]
pub enum Resumption {
    /// It was resumed, in this generation.
    Resumed(Generation),
    /// The time is over, and it is still paused.
    TimedOut {
        /// So many tracked watchers have not acknowledged.
        outdated: u32,
        /// With what to wait on, by [`Orchestrator::resume`].
        waiting: Waiting,
    },
}

impl Orchestrator {
    /// Opens the node of this machine, for reading: see [`Watcher::open`](crate::Watcher::open) for where it is.
    ///
    /// # Errors
    ///
    /// [`Error::NoNode`], [`Error::KernelTooOld`], [`Error::NoPermission`], [`Error::NotANode`], [`Error::Gone`],
    /// [`Error::Io`].
    pub fn open() -> Result<Self, Error> {
        Node::find(Access::Read).map(Self)
    }

    /// The same for the node at a path.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self, Error> {
        Node::open(path.as_ref(), Access::Read).map(Self)
    }

    /// The node.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The current generation.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn generation(&self) -> Result<Generation, Error> {
        self.0.generation()
    }

    /// Changes the generation by one. Returns the new one, or a later one if somebody else changed it since.
    ///
    /// # Errors
    ///
    /// [`Error::NotCapable`], [`Error::Gone`], [`Error::Io`].
    pub fn bump(&self) -> Result<Generation, Error> {
        self.bump_at_least(Generation::START)
    }

    /// Changes the generation by one, or to `minimum` if that is more. A container whose snapshot was taken at
    /// generation *g* is told apart after its restore, on whatever host, by a minimum of *g* + 1.
    ///
    /// # Errors
    ///
    /// As [`bump`](Self::bump).
    pub fn bump_at_least(&self, minimum: Generation) -> Result<Generation, Error> {
        self.0.trigger(minimum)?;
        // The page shows a change before its trigger returns.
        self.generation()
    }

    /// The number of tracked watchers that have not acknowledged the current generation.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn outdated_watchers(&self) -> Result<u32, Error> {
        self.0.outdated_watchers()
    }

    /// Waits until all tracked watchers have acknowledged; for ever without a time-out. If the generation changes
    /// meanwhile, it waits on, for the latest.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`], and if the node went away and came back meanwhile those of
    /// [`open`](Self::open).
    pub fn settle(&self, timeout: Option<Duration>) -> Result<Settlement, Error> {
        let deadline = Deadline::after(timeout);
        loop {
            // Whoever is outdated may not wait for others, and a new watcher never is.
            let node = Node::open(self.path(), Access::Read)?;
            let generation = node.generation()?;
            match node.wait_watchers(deadline.left())? {
                Waited::Everybody => return Ok(Settlement::Settled(generation)),
                // By another change, or by a signal.
                Waited::Interrupted if !deadline.is_over() => {}
                Waited::Interrupted | Waited::TimedOut => match node.outdated_watchers()? {
                    // The last one has acknowledged at the last moment.
                    0 => return Ok(Settlement::Settled(node.generation()?)),
                    outdated => return Ok(Settlement::TimedOut { outdated }),
                },
            }
        }
    }

    /// Changes the generation as [`bump_at_least`](Self::bump_at_least) does, and waits as
    /// [`settle`](Self::settle) does.
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn bump_and_settle(
        &self,
        minimum: Generation,
        timeout: Option<Duration>,
    ) -> Result<Settlement, Error> {
        self.bump_at_least(minimum)?;
        self.settle(timeout)
    }

    /// What a service does that must not be seen before everybody is done: pauses, acknowledges, waits for all
    /// others, resumes.
    ///
    /// `pause` stops serving, and rebuilds. It is called again, with the new generation, if the machine is restored
    /// once more meanwhile, so it must do no harm twice. `resume` is called once, when all tracked watchers have
    /// acknowledged the generation that it gets. When the time is over it is not called: the service stays paused, and
    /// the caller decides; [`resume`](Self::resume) goes on waiting. The time counts from the call, so that of `pause` is
    /// a part of it; `pause` is never cut short.
    ///
    /// # Errors
    ///
    /// Those of the closures; [`Error::Gone`] and [`Error::Io`], converted. If `pause` fails, nothing is
    /// acknowledged.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use sysgenid::{Error, Generation, Orchestrator, Resumption, Tracking, Watcher};
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pause = |_generation| { /* stop accepting; draw new keys */ Ok::<_, Error>(()) };
    /// let resume = |_generation| { /* accept again */ Ok::<_, Error>(()) };
    /// let patience = Some(Duration::from_secs(30));
    ///
    /// let watcher = Watcher::open(Tracking::Tracked)?;
    /// loop {
    ///     let mut end = Orchestrator::pause_and_resume(watcher.wait()?, patience, pause, resume)?;
    ///     while let Resumption::TimedOut { outdated, waiting } = end {
    ///         eprintln!("{outdated} watchers have not acknowledged: not serving");
    ///         end = Orchestrator::resume(waiting, patience, pause, resume)?;
    ///     }
    /// }
    /// # }
    /// ```
    pub fn pause_and_resume<E: From<Error>>(
        change: Change,
        timeout: Option<Duration>,
        mut pause: impl FnMut(Generation) -> Result<(), E>,
        resume: impl FnOnce(Generation) -> Result<(), E>,
    ) -> Result<Resumption, E> {
        let deadline = Deadline::after(timeout);
        let generation = change.generation();
        pause(generation)?;
        let others = change.acknowledge_and_wait(deadline.left())?;
        go_on(generation, others, deadline, pause, resume)
    }

    /// Goes on after a [`Resumption::TimedOut`].
    ///
    /// # Errors
    ///
    /// As [`pause_and_resume`](Self::pause_and_resume).
    pub fn resume<E: From<Error>>(
        waiting: Waiting,
        timeout: Option<Duration>,
        pause: impl FnMut(Generation) -> Result<(), E>,
        resume: impl FnOnce(Generation) -> Result<(), E>,
    ) -> Result<Resumption, E> {
        let deadline = Deadline::after(timeout);
        let generation = waiting.generation();
        let others = waiting.wait(deadline.left())?;
        go_on(generation, others, deadline, pause, resume)
    }
}

/// What a service does once it has acknowledged a generation and knows of the others.
fn go_on<E: From<Error>>(
    mut generation: Generation,
    mut others: Others,
    deadline: Deadline,
    mut pause: impl FnMut(Generation) -> Result<(), E>,
    resume: impl FnOnce(Generation) -> Result<(), E>,
) -> Result<Resumption, E> {
    loop {
        match others {
            Others::Settled => {
                resume(generation)?;
                return Ok(Resumption::Resumed(generation));
            }
            Others::TimedOut { outdated, waiting } => {
                return Ok(Resumption::TimedOut { outdated, waiting });
            }
            Others::ChangedAgain(newer) => {
                generation = newer.generation();
                pause(generation)?;
                others = newer.acknowledge_and_wait(deadline.left())?;
            }
        }
    }
}
