// SPDX-License-Identifier: MIT OR Apache-2.0

//! The web service.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sysgenid::{Orchestrator, Settlement};

use crate::PATIENCE;
use crate::program::Program;

/// Long enough to be seen.
const REBUILD: Duration = Duration::from_millis(500);

struct Service {
    program: Program,
    address: String,
}

impl Service {
    fn start() -> Self {
        let milliseconds = REBUILD.as_millis().to_string();
        let arguments = ["127.0.0.1:0", &milliseconds];
        let (program, address) = Program::start(env!("CARGO_BIN_EXE_web-service"), &arguments);
        Self { program, address }
    }

    /// The status and the body.
    fn request(&self, request: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "{request} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, body.to_owned())
    }

    fn make(&self, request: &str) -> String {
        let (status, body) = self.request(request);
        assert_eq!(status, 200, "{body}");
        body
    }
}

#[test]
#[ignore = "needs a node"]
fn it_is_ready_until_a_restore_and_again_only_when_it_has_acknowledged() {
    let service = Service::start();
    let orchestrator = Orchestrator::open().unwrap();
    let generation = orchestrator.generation().unwrap();
    let ready = |generation| (200, format!("generation {generation}"));
    assert_eq!(service.request("GET /ready"), ready(generation));

    for _ in 0..3 {
        let started = Instant::now();
        let generation = orchestrator.bump().unwrap();
        let mut refused = 0;
        loop {
            let (status, body) = service.request("GET /ready");
            if status == 200 {
                assert_eq!(orchestrator.outdated_watchers().unwrap(), 0);
                assert!(started.elapsed() >= REBUILD);
                assert_eq!((status, body), ready(generation));
                break;
            }
            assert_eq!(
                (status, body),
                (503, format!("rebuilding for generation {generation}"))
            );
            refused += 1;
            assert!(started.elapsed() < PATIENCE, "it is never ready again");
        }
        assert!(refused > 0, "ready before it was rebuilt");
        let rebuilding = format!("generation {generation}: rebuilding");
        assert_eq!(service.program.line(), rebuilding);
        let ready = format!("generation {generation}: ready");
        assert_eq!(service.program.line(), ready);
    }
}

#[test]
#[ignore = "needs a node"]
fn who_restored_the_machine_waits_until_it_has_rebuilt_also_if_that_happens_twice() {
    let service = Service::start();
    let orchestrator = Orchestrator::open().unwrap();
    let first = orchestrator.bump().unwrap();
    let rebuilding = |generation| format!("generation {generation}: rebuilding");
    assert_eq!(service.program.line(), rebuilding(first));
    assert_eq!(orchestrator.outdated_watchers().unwrap(), 1);
    // In the middle of the rebuild.
    let second = orchestrator.bump().unwrap();
    let settlement = orchestrator.settle(Some(PATIENCE)).unwrap();
    assert_eq!(settlement, Settlement::Settled(second));
    assert_eq!(service.program.line(), rebuilding(second));
    let ready = format!("generation {second}: ready");
    assert_eq!(service.program.line(), ready);
}

#[test]
#[ignore = "needs a node"]
fn a_session_ends_with_its_generation_and_no_id_is_given_out_twice() {
    let service = Service::start();
    let orchestrator = Orchestrator::open().unwrap();
    let mut ids = HashSet::new();
    let mut last_id = String::new();
    for _ in 0..3 {
        let session = service.make("POST /session");
        assert_eq!(session.len(), 64);
        let find = format!("GET /session/{session}");
        assert_eq!(service.request(&find).0, 204);
        for _ in 0..2 {
            let id = service.make("POST /id");
            assert!(id > last_id, "v7 ids sort by time");
            last_id.clone_from(&id);
            assert!(ids.insert(id));
        }
        assert!(ids.insert(session));
        // At once, and not only when the task has rebuilt.
        orchestrator.bump().unwrap();
        assert_eq!(service.request(&find).0, 404);
    }
}
