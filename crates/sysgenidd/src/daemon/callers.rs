// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control socket: carrying out what the command line asks for.

use std::os::fd::AsFd;

use anyhow::{Context, bail};
use sysgenid_core::Generation;

use crate::clock;
use crate::config::{Attributes, InstanceName, Parent, check_attributes};
use crate::control::{self, Added, Origin, Progress, Request, Response, Token};
use crate::daemon::watch::Source;
use crate::judging::process::Process;

use super::instances::Wanted;
use super::{Daemon, End, LISTEN_AGAIN};

/// Somebody at the control socket.
pub(super) struct Caller {
    pub(super) connection: control::Connection,
    /// Whether the request has been carried out, and the response is on its way.
    pub(super) is_answered: bool,
}

impl Daemon {
    pub(super) fn accept(&mut self) {
        loop {
            let connection = match self.listener.accept() {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                Err(error) => {
                    // There may be no descriptor left. The caller waits, and would be reported again at once.
                    tracing::warn!("{error}");
                    self.watch.remove(self.listener.as_fd());
                    self.listen_at = Some(clock::now() + LISTEN_AGAIN);
                    return;
                }
            };
            let index = match self.callers.iter().position(Option::is_none) {
                Some(index) => index,
                None => {
                    self.callers.push(None);
                    self.callers.len() - 1
                }
            };
            match self
                .watch
                .add_both(connection.as_fd(), Source::Caller(index))
            {
                Ok(()) => {
                    self.callers[index] = Some(Caller {
                        connection,
                        is_answered: false,
                    });
                }
                Err(errno) => tracing::warn!("a caller cannot be served: {errno}"),
            }
        }
    }

    pub(super) fn serve_caller(&mut self, index: usize) -> Option<End> {
        let mut caller = self.callers.get_mut(index)?.take()?;
        let (progress, end) = self.advance(&mut caller);
        match progress {
            Ok(Progress::Pending) if end.is_none() => self.callers[index] = Some(caller),
            Ok(_) | Err(control::Error::Closed) => self.watch.remove(caller.connection.as_fd()),
            Err(error) => {
                tracing::warn!("{error}");
                self.watch.remove(caller.connection.as_fd());
            }
        }
        end
    }

    /// Carries out the request once all of it is there, and sends as much of the response as goes.
    pub(super) fn advance(
        &mut self,
        caller: &mut Caller,
    ) -> (Result<Progress<()>, control::Error>, Option<End>) {
        if caller.is_answered {
            return (caller.connection.flush(), None);
        }
        let (response, end) = match caller.connection.read_request() {
            Ok(Progress::Pending) => return (Ok(Progress::Pending), None),
            Ok(Progress::Done(request)) => self.carry_out(request),
            Err(error @ (control::Error::TooLong | control::Error::Malformed(_))) => {
                let reason = error.to_string();
                (Response::Refused { reason }, None)
            }
            Err(error) => return (Err(error), None),
        };
        caller.is_answered = true;
        (caller.connection.respond(&response), end)
    }

    pub(super) fn carry_out(&mut self, request: Request) -> (Response, Option<End>) {
        let result = match request {
            Request::List => return (Response::Instances(self.list()), None),
            Request::Stop => return (Response::Done, Some(End::Stop)),
            Request::Reload => self.reload(),
            Request::Add {
                name,
                attributes,
                generation,
                pid,
            } => match self.add_by_request(&name, attributes, generation, pid) {
                Ok(added) => return (Response::Added(added), None),
                Err(error) => Err(error),
            },
            Request::Remove { name, token } => self.remove_by_request(&name, token.as_ref()),
        };
        let response = match result {
            Ok(()) => Response::Done,
            Err(error) => Response::Refused {
                reason: format!("{error:#}"),
            },
        };
        (response, None)
    }

    fn add_by_request(
        &mut self,
        name: &InstanceName,
        attributes: Attributes,
        generation: Option<u32>,
        pid: Option<u32>,
    ) -> anyhow::Result<Added> {
        if self.find(name).is_some() {
            bail!("there is an instance {name} already");
        }
        check_attributes(name, &attributes).map_err(anyhow::Error::msg)?;
        let token = Token::draw().context("no token can be drawn")?;
        let wanted = Wanted {
            attributes,
            origin: Origin::Runtime,
            owner: None,
            // Before anything is looked up by its number, so that all of it is of one process.
            tie: pid.map(process).transpose()?,
            token: Some(token.clone()),
            above: generation.map(Generation::new),
        };
        let index = self.add(name, wanted)?;
        self.keeper.settle();
        let Some(served) = &self.served[index] else {
            bail!("its process has ended");
        };
        let generation = served.instance.accounts().registry().generation();
        Ok(Added {
            path: served.instance.path().to_owned(),
            token,
            generation: generation.get(),
        })
    }

    fn remove_by_request(
        &mut self,
        name: &InstanceName,
        token: Option<&Token>,
    ) -> anyhow::Result<()> {
        let index = self.find(name);
        let Some((index, served)) = index.zip(index.and_then(|at| self.served[at].as_ref())) else {
            bail!("there is no instance {name}");
        };
        let definition = &served.definition;
        control::check_removal(name, definition.origin, definition.token.as_ref(), token)
            .map_err(anyhow::Error::msg)?;
        self.remove(index);
        Ok(())
    }

    pub(super) fn list(&self) -> Vec<control::InstanceReport> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let mut list: Vec<_> = self
            .served
            .iter()
            .flatten()
            .map(|served| {
                let accounts = served.instance.accounts();
                let registry = accounts.registry();
                let parent = served.definition.attributes.parent_of(&served.name);
                control::InstanceReport {
                    name: served.name.clone(),
                    parent: (parent == Parent::Host).then(InstanceName::host),
                    generation: registry.generation().get(),
                    watchers: count(accounts.watchers()),
                    tracked: count(registry.tracked_watchers()),
                    outdated: count(registry.outdated_watchers()),
                    user_namespace: served.instance.settings().owner.inode(),
                    path: served.instance.path().to_owned(),
                    origin: served.definition.origin,
                    pid: served.definition.tie.map(|tie| tie.pid),
                }
            })
            .collect();
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
    }
}

fn process(pid: u32) -> anyhow::Result<Process> {
    Process::open(pid).with_context(|| format!("there is no process {pid} to end with"))
}
