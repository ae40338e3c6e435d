// SPDX-License-Identifier: MIT OR Apache-2.0

//! One generation change, from the notice to the acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use sysgenid_core::Generation;

use crate::deadline::Deadline;
use crate::error::{Access, Error};
use crate::node::{Node, Waited};
use crate::watcher::Inner;

/// A generation change that a watcher was told of and has not acknowledged.
///
/// Everybody who waits for all watchers waits for this one until it is acknowledged, which consumes it. So rebuild
/// first: there is no way back to a change that was acknowledged. One that is dropped is not lost; the watcher is
/// told of it again.
///
/// It keeps the watcher open, and may be handed to another thread.
#[derive(Debug)]
#[must_use = "everybody waits for this change to be acknowledged"]
pub struct Change {
    watcher: Arc<Inner>,
    generation: Generation,
    is_acknowledged: bool,
}

/// What there is to do after an acknowledgement.
#[derive(Debug)]
#[must_use = "another change may have to be dealt with"]
pub enum Acknowledged {
    /// Nothing: the watcher is current.
    Current,
    /// The machine was restored once more, while the change was dealt with. What was rebuilt is outdated already.
    ChangedAgain(Change),
}

/// How a wait for everybody else ended.
#[derive(Debug)]
#[must_use = "not everybody may be done"]
pub enum Others {
    /// All tracked watchers have acknowledged.
    Settled,
    /// The time is over.
    TimedOut {
        /// So many tracked watchers have not acknowledged.
        outdated: u32,
        /// With what to wait on.
        waiting: Waiting,
    },
    /// The machine was restored once more, so the caller has to deal with that first.
    ChangedAgain(Change),
}

/// A change that its watcher has acknowledged, and not all others have.
///
/// It keeps the watcher open. Dropped, nothing is lost: the watcher is told of the next change all the same.
#[derive(Debug)]
pub struct Waiting {
    watcher: Arc<Inner>,
    generation: Generation,
}

impl Change {
    pub(crate) fn new(watcher: Arc<Inner>, generation: Generation) -> Self {
        Self {
            watcher,
            generation,
            is_acknowledged: false,
        }
    }

    /// The generation that the machine is in now.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Says that everything was rebuilt for this generation.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn acknowledge(mut self) -> Result<Acknowledged, Error> {
        let newer = self.watcher.acknowledge(self.generation)?;
        self.is_acknowledged = true;
        Ok(match newer {
            None => Acknowledged::Current,
            Some(current) => {
                Acknowledged::ChangedAgain(Self::new(Arc::clone(&self.watcher), current))
            }
        })
    }

    /// Rebuilds, and acknowledges if that succeeds; all over again if the machine was restored meanwhile. Returns
    /// the generation that was acknowledged.
    ///
    /// # Errors
    ///
    /// That of the closure, and then nothing is acknowledged: the watcher will be told of the change again.
    /// [`Error::Gone`] and [`Error::Io`], converted.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let watcher = sysgenid::Watcher::open(sysgenid::Tracking::Tracked)?;
    /// let generation = watcher.wait()?.rebuild(|generation| {
    ///     std::fs::write("/run/my-service/generation", generation.to_string())
    ///         .map_err(Box::<dyn std::error::Error>::from)
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rebuild<E: From<Error>>(
        self,
        mut rebuild: impl FnMut(Generation) -> Result<(), E>,
    ) -> Result<Generation, E> {
        let mut change = self;
        loop {
            let generation = change.generation;
            rebuild(generation)?;
            match change.acknowledge()? {
                Acknowledged::Current => return Ok(generation),
                Acknowledged::ChangedAgain(newer) => change = newer,
            }
        }
    }

    /// The same where the rebuild is to be awaited.
    ///
    /// It may be cancelled at any time: then nothing is acknowledged, and the watcher is told of the change again.
    ///
    /// # Errors
    ///
    /// As [`rebuild`](Self::rebuild).
    pub async fn rebuild_async<E: From<Error>, F: Future<Output = Result<(), E>>>(
        self,
        mut rebuild: impl FnMut(Generation) -> F,
    ) -> Result<Generation, E> {
        let mut change = self;
        loop {
            let generation = change.generation;
            rebuild(generation).await?;
            match change.acknowledge()? {
                Acknowledged::Current => return Ok(generation),
                Acknowledged::ChangedAgain(newer) => change = newer,
            }
        }
    }

    /// Acknowledges, and waits until every other tracked watcher has acknowledged too; for ever without a time-out.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn acknowledge_and_wait(self, timeout: Option<Duration>) -> Result<Others, Error> {
        let (watcher, generation) = (Arc::clone(&self.watcher), self.generation);
        match self.acknowledge()? {
            Acknowledged::Current => Waiting {
                watcher,
                generation,
            }
            .wait(timeout),
            Acknowledged::ChangedAgain(newer) => Ok(Others::ChangedAgain(newer)),
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.is_acknowledged {
            self.watcher.remind();
        }
    }
}

impl Waiting {
    /// The generation that was acknowledged.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Waits until every other tracked watcher has acknowledged too; for ever without a time-out.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`], [`Error::Io`].
    pub fn wait(self, timeout: Option<Duration>) -> Result<Others, Error> {
        let deadline = Deadline::after(timeout);
        let fresh;
        let node = match self.watcher.node() {
            // It is outdated for as long as it lives, and could wait for nobody.
            node if node.access() == Access::Read => {
                fresh = Node::open(node.path(), Access::Read)?;
                &fresh
            }
            node => node,
        };
        // There may have been a change before the fresh one was opened.
        let mut current = node.generation()?;
        loop {
            if current != self.generation {
                let change = Change::new(Arc::clone(&self.watcher), current);
                return Ok(Others::ChangedAgain(change));
            }
            match node.wait_watchers(deadline.left())? {
                Waited::Everybody => return Ok(Others::Settled),
                // By a change, or else by a signal.
                Waited::Interrupted if !deadline.is_over() => {}
                Waited::Interrupted | Waited::TimedOut => match node.outdated_watchers()? {
                    0 => return Ok(Others::Settled),
                    outdated => {
                        return Ok(Others::TimedOut {
                            outdated,
                            waiting: self,
                        });
                    }
                },
            }
            current = node.generation()?;
        }
    }
}
