// SPDX-License-Identifier: MIT OR Apache-2.0

//! A TLS server of which two clones share nothing that must not be shared.
//!
//! ```console
//! $ tls-server 127.0.0.1:4433 /tmp/certificate.pem &
//! ready 127.0.0.1:4433
//! $ openssl s_client -connect localhost:4433 -CAfile /tmp/certificate.pem -quiet
//! hello
//! full handshake, generation 0
//! ```
//!
//! It answers each line of a client by how the connection began and in which generation: `full handshake`, or
//! `resumed handshake` for a client that came back with a session ticket. The certificate is made at the start, and
//! written to the file of the second argument for clients to trust.
//!
//! # What repeats in clones of a TLS server, and what is done about it
//!
//! - **The ticket keys.** With one key, a ticket of one clone is good in all of them, and who gets hold of one clone
//!   can open the tickets of all. They are `Guarded` ([`GuardedTicketer`]): drawn anew before their first use in each
//!   generation. A client whose ticket is from before does a full handshake.
//! - **Sessions that the server remembers** by a number, for clients of TLS 1.2 that take no tickets. Each clone has
//!   them, and a machine that was rolled back has those again that were used up. They are switched off
//!   (`NoServerSessionStorage`); one that needs them keeps them in a `Guarded`. The same holds for early data (0-RTT),
//!   which is only safe from replay while no session can be used twice: rustls has it off unless asked.
//! - **The traffic keys of open connections**, and the number of the next record: the worst of all, as both clones
//!   encrypt different records under one nonce. No connection outlives its generation ([`OneGeneration`]). That also
//!   ends handshakes that were under way, with their ephemeral key, random and ticket.
//! - **The randomness of handshakes**: server random, ephemeral keys, initialisation vectors, the nonces of ECDSA
//!   signatures. rustls draws all of it from its provider when it is needed, and keeps none in stock. The default
//!   provider, AWS-LC, has a generator of its own in this process, with a state for each thread that each clone has.
//!   It maps `/dev/sysgenid` when it first draws, and seeds the state anew when the generation has changed. So serve
//!   the node at that path, *before* this server starts: AWS-LC knows no `SYSGENID_PATH`, does not look again, and
//!   where it found no node, two clones would draw even the new ticket keys alike. (A provider that asks the kernel
//!   for each byte, like that of ring, needs only the kernel to be reseeded.)
//! - **The certificate's key.** It is what the server is known by, so clones of one service may have the same, as its
//!   replicas do. Where each clone must be known by its own, put it into a `Guarded` behind
//!   `rustls::server::ResolvesServerCert`, and have a new certificate issued as a watcher's rebuild.
//! - **What the application says inside**: cookies, tokens, ids. See `web-service`.
//! - **A client inside of this machine** has the same troubles: its stored tickets are used by every clone, which at
//!   least lets the server tell that they were one. Keep its session store (`rustls::client::Resumption`) in a
//!   `Guarded` as well.
//!
//! Nobody has to wait for it, as all of this is looked at when it is used. A server that closes idle connections at
//! once, or is ready only when it has done something, is a tracked watcher: see `web-service`. This one watches
//! only to hear if the node goes away, of which a mapped page says nothing.

#![forbid(unsafe_code)]

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::CertifiedKey;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::NoServerSessionStorage;
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use sysgenid::{Probe, Tracking, Watcher};
use sysgenid_examples::{GuardedTicketer, OneGeneration};

/// How long a client may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:4433".into());
    let address = address.to_str().context("the address is no text")?;

    let watcher = Watcher::open(Tracking::Untracked)?;
    thread::Builder::new().spawn(move || end_with_the_node(&watcher))?;
    let probe = Probe::open()?;
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".into()])?;
    if let Some(path) = arguments.next() {
        std::fs::write(path, cert.pem()).context("cannot write the certificate")?;
    }
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())?;
    config.ticketer = Arc::new(GuardedTicketer::new(probe.clone()));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let config = Arc::new(config);

    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("ready {}", listener.local_addr()?);
    for socket in listener.incoming() {
        let (config, probe) = (Arc::clone(&config), probe.clone());
        let connection = move |socket| match serve(socket, config, probe) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                println!("closed: the client says nothing");
            }
            Err(error) => println!("closed: {error}"),
            Ok(()) => {}
        };
        match socket {
            Ok(socket) => drop(thread::Builder::new().spawn(move || connection(socket))?),
            Err(error) => eprintln!("cannot accept a connection: {error}"),
        }
    }
    Ok(())
}

/// Ends the program when the node has gone: its page would show the last generation for ever, and no restore would be
/// noticed. Who supervises this program starts it again.
fn end_with_the_node(watcher: &Watcher) {
    let error = loop {
        match watcher.wait() {
            Ok(_change) => {}
            Err(error) => break error,
        }
    };
    eprintln!("{error}");
    process::exit(1);
}

fn serve(socket: TcpStream, config: Arc<ServerConfig>, probe: Probe) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    // Before the connection draws anything.
    let socket = OneGeneration::new(socket, probe);
    let generation = socket.generation();
    let tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(tls, socket));
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        line.clear();
        let tls = stream.get_mut();
        let kind = match tls.conn.handshake_kind() {
            Some(HandshakeKind::Resumed) => "resumed",
            _ => "full",
        };
        // One record, which leaves as a whole or not at all.
        tls.write_all(format!("{kind} handshake, generation {generation}\n").as_bytes())?;
        tls.flush()?;
        println!("generation {generation}: answered, {kind} handshake");
    }
    // The client has said good-bye.
    let tls = stream.get_mut();
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}
