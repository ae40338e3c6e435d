// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control socket: carrying out what the command line asks for.

use std::os::fd::AsFd;

use crate::clock;
use crate::config::{InstanceName, Parent};
use crate::control::{self, Origin, Progress, Request, Response};
use crate::daemon::watch::Source;

use super::{Daemon, End, RETRY, nanoseconds};

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
                    self.listen_at = Some(clock::now() + nanoseconds(RETRY.0));
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
            Request::Add { name, attributes } => match self.find(&name) {
                Some(_) => Err(anyhow::anyhow!("there is an instance {name} already")),
                None => crate::config::check_attributes(&name, &attributes)
                    .map_err(anyhow::Error::msg)
                    .and_then(|()| self.add(&name, attributes, Origin::Runtime)),
            },
            Request::Remove { name } => match self.find(&name) {
                None => Err(anyhow::anyhow!("there is no instance {name}")),
                Some(0) => Err(anyhow::anyhow!(
                    "the host's own instance cannot be removed: stop the daemon instead"
                )),
                Some(index) => {
                    self.remove(index);
                    Ok(())
                }
            },
        };
        let response = match result {
            Ok(()) => Response::Done,
            Err(error) => Response::Refused {
                reason: format!("{error:#}"),
            },
        };
        (response, None)
    }

    pub(super) fn list(&self) -> Vec<control::InstanceReport> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let mut list: Vec<_> = self
            .instances
            .iter()
            .flatten()
            .map(|served| {
                let registry = served.instance.registry();
                let parent = served.definition.attributes.parent_of(&served.name);
                control::InstanceReport {
                    name: served.name.clone(),
                    parent: (parent == Parent::Host).then(InstanceName::host),
                    generation: registry.generation().get(),
                    watchers: count(served.instance.watchers()),
                    tracked: count(registry.tracked_watchers()),
                    outdated: count(registry.outdated_watchers()),
                    user_namespace: served.instance.settings().owner.inode(),
                    path: served.instance.path().to_owned(),
                    origin: served.definition.origin,
                }
            })
            .collect();
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
    }
}
