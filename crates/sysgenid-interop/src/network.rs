// SPDX-License-Identifier: MIT OR Apache-2.0

//! A network with nobody on it but a client of DHCP and its server.

use std::fmt;
use std::fs::File;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;

use crate::Stage;
use crate::conversation::Running;
use crate::patience::wait_until;
use crate::tool;
use crate::tool::DNSMASQ;

/// The client's end of the cable.
pub const INTERFACE: &str = "client0";

/// The server's end.
const SERVER_INTERFACE: &str = "server0";

/// The network namespace of the server, known to the stage alone.
const SERVER: &str = "dhcp-server";

/// What the server remembers.
const LEASES: &str = "/run/dhcp-server.leases";

/// What it has done.
const LOG: &str = "/run/dhcp-server.log";

/// Runs `ip`.
type Ip<'a> = dyn Fn(&[&str]) -> Result<String> + 'a;

/// A cable between a client's network namespace and one of the server's.
pub struct Network<'a> {
    ip: Box<Ip<'a>>,
}

impl fmt::Debug for Network<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Network").finish_non_exhaustive()
    }
}

impl<'a> Network<'a> {
    /// Lays the cable. `ip` runs the program of this name where the client is.
    pub fn lay(_stage: &Stage, ip: impl Fn(&[&str]) -> Result<String> + 'a) -> Result<Self> {
        tool::run(Command::new("ip").args(["netns", "add", SERVER]))?;
        let ends = "link add client0 type veth peer name server0 netns dhcp-server";
        ip(&ends.split(' ').collect::<Vec<_>>())?;
        at_server(&["link", "set", "dev", SERVER_INTERFACE, "up"])?;
        ip(&["link", "set", "dev", INTERFACE, "up"])?;
        Ok(Self { ip: Box::new(ip) })
    }

    /// The addresses that the client has given its interface.
    pub fn addresses(&self) -> Result<Vec<Ipv4Addr>> {
        let show = "-4 -oneline address show dev client0 scope global";
        let shown = (self.ip)(&show.split(' ').collect::<Vec<_>>())?;
        // "2: client0    inet 198.51.100.7/24 brd ..."
        shown
            .lines()
            .map(|line| {
                let address = line.split_whitespace().nth(3).unwrap_or_default();
                let address = address.split('/').next().unwrap_or_default();
                address.parse().with_context(|| line.to_owned())
            })
            .collect()
    }

    /// Starts a server that gives out addresses with these last bytes, and has the one before them. It remembers no
    /// other, and refuses them.
    pub fn serve(&self, numbers: RangeInclusive<u8>) -> Result<Server<'_>> {
        DNSMASQ.require()?;
        File::create(LEASES)?;
        File::create(LOG)?;
        let (first, last) = (address(*numbers.start()), address(*numbers.end()));
        let own = format!("{}/24", address(*numbers.start() - 1));
        at_server(&["address", "flush", "dev", SERVER_INTERFACE])?;
        at_server(&["address", "add", &own, "dev", SERVER_INTERFACE])?;
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", SERVER, "dnsmasq", "--keep-in-foreground"])
            .args(["--conf-file=/dev/null", "--user=root", "--pid-file"])
            .args(["--port=0", "--bind-interfaces", "--no-ping"])
            .arg(format!("--interface={SERVER_INTERFACE}"))
            .arg(format!("--dhcp-range={first},{last},1h"))
            .arg("--dhcp-authoritative")
            .arg(format!("--dhcp-leasefile={LEASES}"))
            .arg(format!("--log-facility={LOG}"))
            .stdin(Stdio::null());
        let running = command.spawn().map(Running)?;
        let server = Server {
            network: self,
            numbers,
            _running: running,
        };
        wait_until(
            || "the server listens".to_owned(),
            || Ok(server.said()?.contains("sockets bound")),
        )?;
        Ok(server)
    }
}

/// Who gives out addresses, until it is dropped.
#[derive(Debug)]
pub struct Server<'a> {
    network: &'a Network<'a>,
    numbers: RangeInclusive<u8>,
    _running: Running,
}

impl Server<'_> {
    /// Waits until the client has an address of this server that is none of `others`, and no other address.
    pub fn wait_for_client(&self, others: &[Ipv4Addr]) -> Result<Ipv4Addr> {
        let mut settled = None;
        wait_until(
            || {
                format!(
                    "the client has an address of this server; it has {:?}; the server said:\n{}",
                    self.network.addresses(),
                    self.said().unwrap_or_default()
                )
            },
            || {
                let [address] = self.network.addresses()?[..] else {
                    return Ok(false);
                };
                let is_new = self.numbers.contains(&address.octets()[3])
                    && !others.contains(&address)
                    && self
                        .said()?
                        .contains(&format!("DHCPACK({SERVER_INTERFACE}) {address} "));
                settled = is_new.then_some(address);
                Ok(is_new)
            },
        )?;
        settled.context("it has an address")
    }

    /// Who the clients say they are, of those that have an address.
    pub fn identifiers(&self) -> Result<Vec<String>> {
        // "1795616254 02:10:ca:f7:79:36 198.51.100.7 web ff:ca:f7:79:36:00:01"
        let leases = std::fs::read_to_string(LEASES)?;
        let identifiers = leases.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(identifiers.map(str::to_owned).collect())
    }

    /// What it has done so far.
    pub fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(LOG)?)
    }
}

fn at_server(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    tool::run(command.args(["-netns", SERVER]).args(arguments)).map(drop)
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number)
}
