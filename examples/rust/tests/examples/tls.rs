// SPDX-License-Identifier: MIT OR Apache-2.0

//! The TLS server, and a client that keeps its tickets.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, Tls12Resumption};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use sysgenid::{Generation, Orchestrator};

use crate::PATIENCE;
use crate::program::Program;

struct Server {
    program: Program,
    address: String,
    roots: Arc<RootCertStore>,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = folder.path().join("certificate.pem");
        let arguments = ["127.0.0.1:0", certificate.to_str().unwrap()];
        let (program, address) = Program::start(env!("CARGO_BIN_EXE_tls-server"), &arguments);
        Self {
            program,
            address,
            roots: roots(&certificate),
        }
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Client<'_> {
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        Client {
            server: self,
            config: Arc::new(config),
        }
    }
}

fn roots(certificate: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(certificate).unwrap())
        .unwrap();
    Arc::new(roots)
}

struct Client<'a> {
    server: &'a Server,
    config: Arc<ClientConfig>,
}

impl Client<'_> {
    fn connect(&self) -> Connection {
        let socket = TcpStream::connect(&self.server.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = "localhost".try_into().unwrap();
        let client = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        Connection(BufReader::new(StreamOwned::new(client, socket)))
    }

    /// Connects once, and checks that both sides have begun in this way. With the answer the tickets have come.
    #[track_caller]
    fn expect(&self, kind: HandshakeKind, generation: Generation) {
        let mut connection = self.connect();
        let answer = connection.ask().unwrap();
        let word = match kind {
            HandshakeKind::Resumed => "resumed",
            _ => "full",
        };
        assert_eq!(
            answer,
            format!("{word} handshake, generation {generation}\n")
        );
        assert_eq!(connection.0.get_ref().conn.handshake_kind(), Some(kind));
        connection.end();
        assert_eq!(
            self.server.program.line(),
            format!("generation {generation}: answered, {word} handshake")
        );
    }
}

struct Connection(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Connection {
    fn ask(&mut self) -> std::io::Result<String> {
        let tls = self.0.get_mut();
        tls.write_all(b"hello\n")?;
        tls.flush()?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        Ok(answer)
    }

    /// Says good-bye, and waits until the server has as well.
    fn end(mut self) {
        let tls = self.0.get_mut();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let rest = self.0.fill_buf().unwrap();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
#[ignore = "needs a node"]
fn a_ticket_resumes_within_its_generation_and_not_over_a_restore() {
    let server = Server::start();
    let orchestrator = Orchestrator::open().unwrap();
    for version in [&TLS13, &TLS12] {
        let client = server.client(version);
        let mut generation = orchestrator.generation().unwrap();
        for _ in 0..2 {
            client.expect(HandshakeKind::Full, generation);
            client.expect(HandshakeKind::Resumed, generation);
            client.expect(HandshakeKind::Resumed, generation);
            generation = orchestrator.bump().unwrap();
        }
    }
}

#[test]
#[ignore = "needs a node"]
fn a_session_is_not_remembered_for_a_client_that_takes_no_tickets() {
    let server = Server::start();
    let generation = Orchestrator::open().unwrap().generation().unwrap();
    let mut client = server.client(&TLS12);
    Arc::get_mut(&mut client.config).unwrap().resumption =
        Resumption::in_memory_sessions(4).tls12_resumption(Tls12Resumption::SessionIdOnly);
    client.expect(HandshakeKind::Full, generation);
    client.expect(HandshakeKind::Full, generation);
}

#[test]
#[ignore = "needs a node"]
fn a_connection_that_was_open_at_a_restore_is_closed_and_sends_nothing_more() {
    let server = Server::start();
    let mut connection = server.client(&TLS13).connect();
    for _ in 0..2 {
        assert!(connection.ask().unwrap().starts_with("full handshake"));
        assert!(server.program.line().ends_with("answered, full handshake"));
    }
    Orchestrator::open().unwrap().bump().unwrap();
    // The end of the connection, without as much as a farewell, which would be a record as well.
    let error = connection.ask().unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    assert_eq!(
        server.program.line(),
        "closed: the machine was restored since this connection was opened"
    );
}
