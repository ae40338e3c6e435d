// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a program that watches, and is in charge of others, waits for: changes, signals, the return of a node that
//! has gone, and the end of a time.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::Signal;
use sysgenid::{Change, Error, Watcher};

use crate::permission::explain;

/// The first and the longest pause between two attempts to find a node that has gone.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The token of the watcher; signals have their index.
const WATCHER: u64 = u64::MAX;

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The generation has changed. While that was not acknowledged, the same one may be told again.
    Changed(Change),
    /// Whoever served the node has gone. It is looked for from now on.
    Gone,
    /// Something stands where the node was that cannot be used, in words for people. It is looked for on.
    Hindered(String),
    /// The node is there again. Nobody knows what happened meanwhile.
    Back(Change),
    /// A signal came.
    Signal(Signal),
    /// The time is over.
    TimeOut,
}

/// Where all of that comes from.
#[derive(Debug)]
pub(crate) struct Events {
    watcher: Watcher,
    gone: Option<Retry>,
    /// With a watcher that is tracked, a change would be ready until it is acknowledged; here each is ready once.
    epoll: OwnedFd,
    signals: Vec<(Signal, UnixStream)>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
    /// It was said that something is in the way.
    is_hindered: bool,
}

impl Events {
    /// Takes over a watcher and these signals, which do not do from now on what they do else.
    pub(crate) fn new(watcher: Watcher, signals: &[Signal]) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        let ignored = std::fs::read_to_string("/proc/self/status")
            .map_or(0, |status| ignored_signals(&status));
        let signals = signals
            .iter()
            // What nohup, or a shell for what it runs in the background, ignores stays ignored, by the children too.
            .filter(|&&signal| signal == Signal::CHILD || !is_in(ignored, signal))
            .map(|&signal| Ok((signal, receive(signal)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for (index, (_, stream)) in (0..).zip(&signals) {
            epoll::add(
                &epoll,
                stream,
                epoll::EventData::new_u64(index),
                epoll::EventFlags::IN,
            )
            .context("cannot wait for signals")?;
        }
        let events = Self {
            watcher,
            gone: None,
            epoll,
            signals,
        };
        events.register()?;
        Ok(events)
    }

    pub(crate) fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// Hears of the node no more.
    pub(crate) fn leave_node(&mut self) {
        self.gone = None;
        // One that has gone is not registered.
        let _ = epoll::delete(&self.epoll, &self.watcher);
    }

    /// Waits for the next event; for ever without a deadline.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> anyhow::Result<Event> {
        loop {
            if let Some(event) = self.look_for_node()? {
                return Ok(event);
            }
            let Some((token, flags)) = self.sleep(deadline)? else {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Ok(Event::TimeOut);
                }
                continue;
            };
            if token == WATCHER {
                if let Some(event) = self.ask_watcher(flags)? {
                    return Ok(event);
                }
            } else if let Some(signal) = self.take_signal(token) {
                return Ok(Event::Signal(signal));
            }
        }
    }

    /// Looks for a node that has gone, if it is time to.
    fn look_for_node(&mut self) -> anyhow::Result<Option<Event>> {
        let Some(retry) = &mut self.gone else {
            return Ok(None);
        };
        if retry.at > Instant::now() {
            return Ok(None);
        }
        match self.watcher.reconnect(Some(Duration::ZERO)) {
            Ok(change) => {
                self.gone = None;
                self.register()?;
                Ok(Some(Event::Back(change)))
            }
            Err(error) if is_away(&error) || is_hindrance(&error) => {
                retry.pause = (retry.pause * 2).min(PAUSES.1);
                retry.at = Instant::now() + retry.pause;
                if is_away(&error) || retry.is_hindered {
                    return Ok(None);
                }
                retry.is_hindered = true;
                let text = format!("{}; waiting until the node is back", explain(&error));
                Ok(Some(Event::Hindered(text)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sleep(&self, deadline: Option<Instant>) -> anyhow::Result<Option<(u64, epoll::EventFlags)>> {
        let retry = self.gone.as_ref().map(|retry| retry.at);
        let timeout = [deadline, retry]
            .into_iter()
            .flatten()
            .min()
            .map(|moment| moment.saturating_duration_since(Instant::now()))
            // More than the kernel can count is as good as for ever.
            .and_then(|left| Timespec::try_from(left).ok());
        let mut events = Vec::with_capacity(1);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno)).context("cannot wait"),
        }
        Ok(events.first().map(|event: &epoll::Event| {
            let (data, flags) = (event.data, event.flags);
            (data.u64(), flags)
        }))
    }

    fn ask_watcher(&mut self, flags: epoll::EventFlags) -> anyhow::Result<Option<Event>> {
        let mut answer = self.watcher.try_changed();
        let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if failed && matches!(answer, Ok(None)) {
            // The library looks for errors where it sleeps.
            answer = self.watcher.wait_timeout(Duration::from_millis(1));
        }
        match answer {
            Ok(change) => Ok(change.map(Event::Changed)),
            Err(error) if is_away(&error) => {
                // A change that is still in hand keeps the descriptor open.
                let _ = epoll::delete(&self.epoll, &self.watcher);
                self.gone = Some(Retry {
                    at: Instant::now() + PAUSES.0,
                    pause: PAUSES.0,
                    is_hindered: false,
                });
                Ok(Some(Event::Gone))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn take_signal(&mut self, token: u64) -> Option<Signal> {
        let (signal, stream) = self.signals.get_mut(usize::try_from(token).ok()?)?;
        let mut bytes = [0; 64];
        match stream.read(&mut bytes) {
            Ok(length) if length > 0 => Some(*signal),
            _ => None,
        }
    }

    fn register(&self) -> anyhow::Result<()> {
        epoll::add(
            &self.epoll,
            &self.watcher,
            epoll::EventData::new_u64(WATCHER),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .with_context(|| format!("cannot poll {}", self.watcher.path().display()))
    }
}

/// Whether the node may come back.
pub(crate) fn is_away(error: &Error) -> bool {
    error.is_absent() || error.is_gone()
}

/// Whether there is something in the node's place that may make way for it.
fn is_hindrance(error: &Error) -> bool {
    matches!(error, Error::NotANode { .. } | Error::NoPermission { .. })
}

/// The set of the signals that a process ignores, by its `status` in /proc.
fn ignored_signals(status: &str) -> u64 {
    let mut lines = status.lines();
    lines
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok())
        .unwrap_or(0)
}

fn is_in(set: u64, signal: Signal) -> bool {
    set >> (signal.as_raw() - 1) & 1 == 1
}

/// A stream that has a byte to read after each signal.
fn receive(signal: Signal) -> anyhow::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair().context("cannot make a pair of sockets")?;
    reader.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal.as_raw(), writer)
        .with_context(|| format!("cannot receive {signal:?}"))?;
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_read_from_the_status() {
        let set = ignored_signals("SigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n");
        assert!(is_in(set, Signal::HUP) && is_in(set, Signal::PIPE));
        assert!(!is_in(set, Signal::INT) && !is_in(set, Signal::TERM));
        assert_eq!(ignored_signals(""), 0);
    }
}
