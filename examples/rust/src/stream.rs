// SPDX-License-Identifier: MIT OR Apache-2.0

//! A connection that does not outlive its generation.

use std::io::{self, Read, Write};

use sysgenid::{Generation, Probe, Stamp};

/// A stream that fails from the first restore on.
///
/// Both clones of a machine have every connection that was open at the snapshot, with its traffic keys and the number
/// of its next record. Whatever they send then is encrypted under the same key and nonce, and with AES-GCM or
/// ChaCha20-Poly1305 two different records under one nonce give away both texts and the key that authenticates. So
/// such a connection must not send another byte.
///
/// Put this *under* the encryption. A record is then checked after it was encrypted and before it leaves. One that
/// leaves although the machine is restored between the check and the system call was encrypted before the restore: it
/// is the same in all clones, and gives nothing away.
#[derive(Debug)]
pub struct OneGeneration<S> {
    stream: S,
    probe: Probe,
    stamp: Stamp,
}

impl<S> OneGeneration<S> {
    /// A stream that belongs to the current generation. Take it before the first secret of the connection is drawn.
    pub fn new(stream: S, probe: Probe) -> Self {
        let stamp = probe.stamp();
        Self {
            stream,
            probe,
            stamp,
        }
    }

    /// The generation that it belongs to.
    pub fn generation(&self) -> Generation {
        self.stamp.generation()
    }

    fn check(&self) -> io::Result<()> {
        if self.probe.has_changed(&self.stamp) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the machine was restored since this connection was opened",
            ));
        }
        Ok(())
    }
}

impl<S: Read> Read for OneGeneration<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        // It may have slept over a restore.
        self.check()?;
        Ok(length)
    }
}

impl<S: Write> Write for OneGeneration<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use sysgenid::testing::SimulatedMachine;

    use super::*;

    #[test]
    fn nothing_is_sent_or_received_once_the_machine_was_restored() {
        let machine = SimulatedMachine::new();
        let mut sent = Vec::new();
        let mut stream = OneGeneration::new(&mut sent, machine.probe());
        stream.write_all(b"before").unwrap();
        machine.restore();
        let error = stream.write_all(b"after").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(sent, b"before");

        let mut stream = OneGeneration::new(&b"received"[..], machine.probe());
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        machine.restore();
        assert!(stream.read_exact(&mut byte).is_err());
    }
}
