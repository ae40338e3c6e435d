// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client for QEMU's debugging stub that does one thing: it writes to a machine's memory.

use std::fmt::Write as _;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to one QEMU. Its machine stands still from the first answer on, until it is resumed.
pub(crate) struct Debugger {
    stream: BufReader<UnixStream>,
}

impl Debugger {
    /// Takes over a fresh connection.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut debugger = Self {
            stream: BufReader::new(stream),
        };
        // Addresses are those of the machine, not of whatever its processor runs.
        debugger.execute("Qqemu.PhyMemMode:1")?;
        Ok(debugger)
    }

    /// Writes bytes to a physical address.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut command = format!("M{address:x},{:x}:", bytes.len());
        for byte in bytes {
            write!(command, "{byte:02x}")?;
        }
        self.execute(&command)
            .with_context(|| format!("cannot write to the machine's address {address:#x}"))
    }

    /// Sends one command, which QEMU has to answer with `OK`.
    fn execute(&mut self, command: &str) -> Result<()> {
        self.stream.get_mut().write_all(&packet(command))?;
        // QEMU acknowledges what it received (`+`) and answers in a packet, whose checksum ends it.
        let (mut before, mut answer) = (Vec::new(), Vec::new());
        self.stream.read_until(b'$', &mut before)?;
        self.stream.read_until(b'#', &mut answer)?;
        self.stream.read_exact(&mut [0; 2])?;
        self.stream.get_mut().write_all(b"+")?;
        ensure!(
            answer == b"OK#",
            "QEMU's debugging stub answered {command} with {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    }
}

/// A command as it goes over the line.
fn packet(command: &str) -> Vec<u8> {
    let checksum = command.bytes().fold(0, u8::wrapping_add);
    format!("${command}#{checksum:02x}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_ends_with_the_sum_of_its_bytes() {
        // The example of the protocol's own documentation: an answer that is acknowledged everywhere.
        assert_eq!(packet("OK"), b"$OK#9a");
    }
}
