// SPDX-License-Identifier: MIT OR Apache-2.0

//! A web service whose ids are its own in each clone, and which is ready only when it has dealt with a restore.
//!
//! ```console
//! $ web-service 127.0.0.1:8080 200
//! ready 127.0.0.1:8080
//! ```
//!
//! The second argument is how long a rebuild is to take, in milliseconds.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /session` | a new session id: 256 bits that no clone draws again |
//! | `GET /session/{id}` | 204 if that session was begun in this generation, else 404 |
//! | `POST /id` | a UUID v7 for a record, an order, a trace |
//! | `GET /ready` | 200 and the generation; 503 from a restore until this service has acknowledged it, or without a node |
//!
//! Three things work together:
//!
//! - The generators and the sessions are checked at each use, so that nothing old is given away even before the task
//!   below has woken.
//! - A task does what takes time, then acknowledges, and whoever restored the machine waits for that
//!   ([`sysgenid::Orchestrator::settle`]).
//! - A request that was under way at the restore is answered 503, whatever it has made: each clone has made it.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use rand::Rng as _;
use rand::rngs::StdRng;
use sysgenid::{
    Acknowledged, AsyncWatcher, Guarded, Probe, SnapSafeRng, Stamp, Tracking, UuidGenerator,
};
use tokio::net::TcpListener;

struct Service {
    probe: Probe,
    rng: Mutex<SnapSafeRng<StdRng>>,
    ids: UuidGenerator,
    /// A session that was begun before the snapshot would go on in each clone. So it ends.
    sessions: Guarded<Mutex<HashSet<String>>>,
    /// What the probe saw before the last rebuild that was acknowledged.
    acknowledged: Mutex<Stamp>,
    rebuild_time: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let milliseconds = arguments.next().unwrap_or_else(|| "200".into());
    let rebuild_time = Duration::from_millis(milliseconds.parse().context("not a number")?);

    // The watcher before everything else: of what changes from now on, it is told.
    let watcher = AsyncWatcher::open(Tracking::Tracked)?;
    let service = Arc::new(Service::new(Probe::open()?, rebuild_time)?);
    let router = Router::new()
        .route("/session", post(begin_session))
        .route("/session/{id}", get(find_session))
        .route("/id", post(make_id))
        .layer(middleware::from_fn_with_state(
            service.probe.clone(),
            refuse_what_a_restore_has_met,
        ))
        .route("/ready", get(ready))
        .with_state(Arc::clone(&service));
    let listener = TcpListener::bind(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    println!("ready {}", listener.local_addr()?);
    tokio::select! {
        result = axum::serve(listener, router) => result.context("cannot serve"),
        // A service that hears of restores no more ends, and who supervises it starts it again.
        result = watch(watcher, &service) => {
            let Err(error) = result;
            Err(error.context("cannot watch the generation any more"))
        }
    }
}

/// Rebuilds and acknowledges, for ever.
async fn watch(watcher: AsyncWatcher, service: &Service) -> Result<Infallible> {
    loop {
        let mut change = watcher.changed().await?;
        loop {
            println!("generation {}: rebuilding", change.generation());
            let generation = change.generation();
            let stamp = service.rebuild().await;
            match change.acknowledge()? {
                Acknowledged::Current => {
                    *lock(&service.acknowledged) = stamp;
                    println!("generation {generation}: ready");
                    break;
                }
                Acknowledged::ChangedAgain(newer) => change = newer,
            }
        }
    }
}

impl Service {
    fn new(probe: Probe, rebuild_time: Duration) -> Result<Self> {
        let stamp = probe.stamp();
        Ok(Self {
            rng: Mutex::new(SnapSafeRng::new(probe.clone())?),
            ids: UuidGenerator::new(probe.clone())?,
            sessions: Guarded::new(probe.clone(), |_generation| Mutex::default()),
            acknowledged: Mutex::new(stamp),
            rebuild_time,
            probe,
        })
    }

    /// What takes time after a restore: new connections to a database, a lease, a warm cache. Returns the stamp that it
    /// was done under, taken first, so that a restore during the work is not overlooked.
    async fn rebuild(&self) -> Stamp {
        let stamp = self.probe.stamp();
        tokio::time::sleep(self.rebuild_time).await;
        stamp
    }
}

async fn begin_session(State(service): State<Arc<Service>>) -> String {
    let mut id = [0; 32];
    lock(&service.rng).fill_bytes(&mut id);
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    lock(&service.sessions.get()).insert(id.clone());
    id
}

async fn find_session(State(service): State<Arc<Service>>, Path(id): Path<String>) -> StatusCode {
    if lock(&service.sessions.get()).contains(&id) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn make_id(State(service): State<Arc<Service>>) -> String {
    service.ids.v7().to_string()
}

/// Ready while nothing has changed since the rebuild that was acknowledged. It asks the probe, not the task: from the
/// restore until the task wakes, this service is not ready either. Nor is it while nobody serves the node: nothing would be
/// noticed.
async fn ready(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    let acknowledged = *lock(&service.acknowledged);
    let refused = if service.probe.has_changed(&acknowledged) {
        format!("rebuilding for generation {}", service.probe.generation())
    } else if !service.probe.is_live() {
        "the node has gone".into()
    } else {
        let generation = acknowledged.generation();
        return (StatusCode::OK, format!("generation {generation}"));
    };
    (StatusCode::SERVICE_UNAVAILABLE, refused)
}

/// What was made of a request over a restore was made in each clone, and may be made of old secrets.
async fn refuse_what_a_restore_has_met(
    State(probe): State<Probe>,
    request: Request,
    next: Next,
) -> Response {
    let stamp = probe.stamp();
    let response = next.run(request).await;
    if probe.has_changed(&stamp) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    response
}

/// What is in these is whole whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use sysgenid::testing::SimulatedMachine;

    use super::*;

    #[tokio::test]
    async fn a_request_that_a_restore_has_met_is_refused_and_the_next_is_not() {
        let machine = Arc::new(SimulatedMachine::new());
        let probe = machine.probe();
        let router = Router::new()
            .route("/", get("made in one generation"))
            .route(
                "/slow",
                get(async move || machine.restore().get().to_string()),
            )
            .layer(middleware::from_fn_with_state(
                probe,
                refuse_what_a_restore_has_met,
            ));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let client = tokio::task::spawn_blocking(move || {
            ["/", "/slow", "/"].map(|path| {
                let mut socket = TcpStream::connect(address).unwrap();
                write!(socket, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).unwrap();
                answer.split(' ').nth(1).map(str::to_owned)
            })
        });
        let statuses = client.await.unwrap();
        assert_eq!(
            statuses,
            ["200", "503", "200"].map(|status| Some(status.into()))
        );
        server.abort();
    }
}
