// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's backends: opening them, looking, and matching what they notice.

use std::time::Duration;

use crate::clock;
use crate::daemon::watch::Source;
use crate::keeping::state::Record;
use crate::noticing::{self, Restores};
use crate::placing::mounts;
use crate::serving::report;

use super::{Daemon, RETRY, nanoseconds};

/// How soon a backend is looked at again that was busy.
const SOON: Duration = Duration::from_millis(1);

/// One backend, working or not.
pub(super) struct Watched {
    pub(super) kind: noticing::Kind,
    pub(super) backend: Option<Box<dyn noticing::Backend>>,
    /// When to try again, and how long to wait if that fails.
    pub(super) retry: Option<(u64, Duration)>,
}

impl Daemon {
    /// Opens the backends that the configuration names and that are not open yet.
    pub(super) fn open_backends(&mut self) {
        for fd in self
            .backends
            .iter()
            .filter_map(|watched| watched.backend.as_ref()?.fd())
        {
            self.watch.remove(fd);
        }
        let order = &self.config.backends.order;
        self.backends = order
            .iter()
            .map(|&kind| Watched {
                kind,
                backend: None,
                retry: None,
            })
            .collect();
        self.backend_reports = self
            .backends
            .iter()
            .map(|watched| report::Backend {
                kind: watched.kind,
                works: false,
                description: "not looked for yet".to_owned(),
            })
            .collect();
        for index in 0..self.backends.len() {
            self.open_backend(index, RETRY.0);
        }
    }

    /// Opens one backend, and looks at once for what happened while it was not open.
    pub(super) fn open_backend(&mut self, index: usize, wait: Duration) {
        let kind = self.backends[index].kind;
        let settings = self.backend_settings();
        let Some(host) = self.instances.first_mut().and_then(Option::as_mut) else {
            return;
        };
        let position = host.instance.record().positions[kind as usize];
        match noticing::open(kind, &settings, position) {
            Ok(backend) => {
                if let Some(fd) = backend.fd()
                    && let Err(errno) = self.watch.add_edges(fd, Source::Backend(index))
                {
                    tracing::error!(backend = %kind, "cannot be watched: {errno}");
                }
                if position.is_none() {
                    host.instance.note(|record| {
                        let mut restores = Restores::from_words(record.restores);
                        restores.join(kind);
                        record.restores = restores.to_words();
                        record.positions[kind as usize] = Some(backend.position());
                    });
                }
                tracing::info!(backend = %kind, "watching {}", backend.description());
                self.backend_reports[index] = report::Backend {
                    kind,
                    works: backend.can_notice(),
                    description: backend.description(),
                };
                self.backends[index].retry = None;
                self.backends[index].backend = Some(backend);
                self.look(index);
            }
            Err(error) => {
                // What was there once is expected back; what never was is not waited for, and the published
                // link to the own node is no news.
                let was_there = self.backends[index].retry.is_some() || position.is_some();
                let (is_news, may_pass) = match error {
                    noticing::Error::NotPresent { .. } => (false, was_there),
                    noticing::Error::OwnNode { .. } => (false, false),
                    noticing::Error::NoPermission { .. }
                    | noticing::Error::Unsuitable { .. }
                    | noticing::Error::Malformed { .. } => (true, false),
                    _ => (!was_there, true),
                };
                if is_news {
                    tracing::warn!(backend = %kind, "{error}");
                } else {
                    tracing::debug!(backend = %kind, "{error}");
                }
                self.backends[index].retry =
                    may_pass.then(|| (clock::now() + nanoseconds(wait), (wait * 2).min(RETRY.1)));
                self.backend_reports[index] = report::Backend {
                    kind,
                    works: false,
                    description: error.to_string(),
                };
            }
        }
    }

    pub(super) fn backend_settings(&self) -> noticing::Settings {
        let configured = &self.config.backends;
        noticing::Settings {
            vmclock: Some(configured.vmclock.clone()),
            kmsg: configured.kmsg.clone(),
            parent: Some(configured.parent.clone()),
            own_devices: mounts::devices(&self.config.directory),
        }
    }

    /// Asks a backend whether there was a change.
    pub(super) fn look(&mut self, index: usize) {
        let Some(watched) = self.backends.get_mut(index) else {
            return;
        };
        let Some(backend) = &mut watched.backend else {
            return;
        };
        let Some(host) = self.instances.first_mut().and_then(Option::as_mut) else {
            return;
        };
        match backend.look() {
            Ok(changes) => {
                let kind = watched.kind;
                let position = backend.position();
                let host = &mut host.instance;
                let mut restores = Restores::from_words(host.record().restores);
                let bumps = restores.notice(kind, changes);
                if changes > 0 {
                    tracing::info!(backend = %kind, changes, bumps, "noticed a restore");
                    self.settle_at = Some(clock::now() + nanoseconds(Restores::SETTLE));
                }
                let seen = |record: &mut Record| {
                    record.restores = restores.to_words();
                    record.positions[kind as usize] = Some(position);
                };
                for left in (0..bumps).rev() {
                    // All of it with the last: rather one too many than one too few.
                    host.bump(&self.renewals, |record| {
                        if left == 0 {
                            seen(record);
                        }
                    });
                }
                host.note(seen);
            }
            Err(noticing::Error::Busy { .. }) => {
                watched.retry = Some((clock::now() + nanoseconds(SOON), RETRY.0));
            }
            Err(error) => {
                tracing::warn!(backend = %watched.kind, "{error}; trying again from time to time");
                if let Some(fd) = backend.fd() {
                    self.watch.remove(fd);
                }
                watched.backend = None;
                watched.retry = Some((clock::now() + nanoseconds(RETRY.0), RETRY.0));
                self.backend_reports[index] = report::Backend {
                    kind: watched.kind,
                    works: false,
                    description: error.to_string(),
                };
            }
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.host()
            .is_none_or(|host| Restores::from_words(host.instance.record().restores).is_settled())
    }

    /// Some backends cannot say when to look at them: they are looked at whenever anything happens.
    pub(super) fn look_at_the_silent(&mut self) {
        for index in 0..self.backends.len() {
            let silent = self.backends[index]
                .backend
                .as_ref()
                .is_some_and(|backend| backend.fd().is_none());
            if silent {
                self.look(index);
            }
        }
    }

    /// How often a silent backend is looked at for want of anything that happens.
    pub(super) fn interval(&self) -> Option<Duration> {
        let works = |kind| {
            self.backends
                .iter()
                .filter(|watched| watched.kind == kind)
                .find_map(|watched| watched.backend.as_ref())
        };
        let silent = works(noticing::Kind::Vmclock).is_some_and(|backend| backend.fd().is_none());
        let kmsg = works(noticing::Kind::Kmsg).is_some_and(|backend| backend.can_notice());
        if silent && !kmsg {
            self.config.backends.vmclock_interval
        } else {
            None
        }
    }
}
