// SPDX-License-Identifier: MIT OR Apache-2.0

//! The uevents of the module.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt,
};

use super::{Case, case};
use crate::abi::UEVENT_VARIABLE;
use crate::node::Node;
use crate::outcome::{Outcome, fail, name_of, same, skip};
use crate::process::{PATIENCE, wait_readable};

pub(super) const CASES: &[Case] = &[
    case(
        "each-change-sends-a-uevent-with-its-generation",
        &["uevent"],
        each_change_sends_a_uevent,
    ),
    case(
        "each-change-of-a-burst-sends-a-uevent-in-order",
        &["uevent"],
        each_change_of_a_burst_sends_a_uevent,
    ),
    case(
        "no-change-sends-a-uevent-where-they-are-turned-off",
        &["uevent-parameter"],
        no_uevent_where_turned_off,
    ),
];

/// Where the module says whether it sends uevents.
const PARAMETER: &str = "/sys/module/sysgenid/parameters/uevents";

fn each_change_sends_a_uevent(node: &Node) -> Outcome {
    let listener = Listener::new(node, true)?;
    let control = node.control()?;
    for _ in 0..3 {
        let generation = control.bump()?;
        listener.hears(generation)?;
    }
    Ok(())
}

fn each_change_of_a_burst_sends_a_uevent(node: &Node) -> Outcome {
    let listener = Listener::new(node, true)?;
    let control = node.control()?;
    let generations: Result<Vec<u32>, _> = (0..10).map(|_| control.bump()).collect();
    let generations = generations?;
    listener.hears(generations[0])?;
    for generation in &generations[1..] {
        let heard = listener.next(PATIENCE)?;
        same(
            "the generation of the next uevent",
            heard,
            Some(*generation),
        )?;
    }
    Ok(())
}

fn no_uevent_where_turned_off(node: &Node) -> Outcome {
    let listener = Listener::new(node, false)?;
    let control = node.control()?;
    control.bump()?;
    // That nothing comes is no event, so this takes its time.
    let heard = listener.next(Duration::from_millis(500))?;
    same("the generation of a uevent", heard, None)
}

/// Hears what the kernel tells udev.
struct Listener(OwnedFd);

impl Listener {
    /// Listens, if the node belongs to a module that sends uevents, or not, as wanted.
    fn new(node: &Node, wanted: bool) -> Outcome<Self> {
        if !node.is_char_device() {
            return skip("the node is not a character device");
        }
        // Not every kernel shows the parameters of a module.
        let sends = match std::fs::read_to_string(PARAMETER) {
            Ok(parameter) => matches!(parameter.trim(), "Y" | "1"),
            Err(_) => node.sends_uevents,
        };
        match (sends, wanted) {
            (true, false) => return skip("uevents are on"),
            (false, true) => return skip("uevents are turned off"),
            _ => {}
        }
        let listening = || {
            let socket = socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                Some(KOBJECT_UEVENT),
            )?;
            sockopt::set_socket_recv_buffer_size(&socket, 1 << 20)?;
            // Group 1 is the kernel, group 2 is udev.
            bind(&socket, &SocketAddrNetlink::new(0, 1))?;
            Ok(socket)
        };
        match listening() {
            Ok(socket) => Ok(Self(socket)),
            Err(errno) => skip(format!("uevents cannot be heard here ({})", name_of(errno))),
        }
    }

    /// Checks that the uevent of this generation comes; earlier ones may come before it.
    fn hears(&self, generation: u32) -> Outcome {
        let mut before = Vec::new();
        loop {
            match self.next(PATIENCE)? {
                Some(heard) if heard == generation => return Ok(()),
                Some(heard) => before.push(heard),
                None => {
                    return fail(format!(
                        "no uevent of generation {generation} within {PATIENCE:?}, only of {before:?}"
                    ));
                }
            }
        }
    }

    /// The generation of the next uevent of a node, if one comes before the limit.
    fn next(&self, limit: Duration) -> Outcome<Option<u32>> {
        let deadline = Instant::now() + limit;
        while wait_readable(&[&self.0], deadline)? {
            let mut buffer = vec![0; 16 * 1024];
            let (_, length) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            let variables: Vec<&str> = text.split('\0').collect();
            let variable = |name: &str| {
                variables
                    .iter()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            };
            let Some(generation) = variable(UEVENT_VARIABLE) else {
                // Of another device.
                continue;
            };
            same("ACTION", variable("ACTION"), Some("change"))?;
            same("SUBSYSTEM", variable("SUBSYSTEM"), Some("misc"))?;
            return match generation.parse() {
                Ok(generation) => Ok(Some(generation)),
                Err(_) => fail(format!("{UEVENT_VARIABLE} is {generation:?}")),
            };
        }
        Ok(None)
    }
}
