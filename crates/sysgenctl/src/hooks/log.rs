// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is said about hooks: to the journal with its importance, to people in colours.

use crate::output::{self, DOUBTFUL, FAINT};

/// How important it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Info,
    Warning,
}

/// Says it, and goes on whether or not somebody listens.
pub(super) fn say(level: Level, text: &str) {
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The levels of syslog, which the journal looks for at the start of a line.
        let number = match level {
            Level::Info => 6,
            Level::Warning => 4,
        };
        let _ =
            std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("<{number}>{text}\n"));
        return;
    }
    let style = match level {
        Level::Info => FAINT,
        Level::Warning => DOUBTFUL,
    };
    output::note(style, text);
}
