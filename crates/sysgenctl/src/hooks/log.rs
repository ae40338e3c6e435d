// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is said about hooks: to the journal with its importance, to people in colours.

use std::io::{self, Write};

use rustix::fs::fstat;

use crate::output::{self, DOUBTFUL, FAINT};

/// How important it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Info,
    Warning,
}

/// Says it, and goes on whether or not somebody listens.
pub(super) fn say(level: Level, text: &str) {
    let (number, style) = match level {
        // The levels of syslog.
        Level::Info => (6, FAINT),
        Level::Warning => (4, DOUBTFUL),
    };
    if journal_listens() {
        // The journal looks for the level at the start of a line.
        let _ = writeln!(io::stderr(), "<{number}>{text}");
    } else {
        output::note(style, text);
    }
}

/// Whether the standard error goes to the journal. The variable is inherited by programs whose output goes elsewhere.
fn journal_listens() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

/// Reads `device:inode`.
fn is_stream(text: &str, device: u64, inode: u64) -> bool {
    text.split_once(':')
        .is_some_and(|(first, second)| first.parse() == Ok(device) && second.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        assert!(is_stream("9:4711", 9, 4711));
        for other in ["9:4712", "8:4711", "9", "", ":", "a:b"] {
            assert!(!is_stream(other, 9, 4711), "{other}");
        }
    }
}
