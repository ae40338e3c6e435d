// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the log is written: for the journal, or for a person.

use std::env;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::io::IsTerminal as _;

use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime as _;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::registry::LookupSpan;

/// Sends what happens at `level` and above to standard error.
///
/// Under a service manager each line begins with its syslog level, which the journal takes off
/// again (`SyslogLevelPrefix=`), and has no time, which the journal knows. Otherwise, and in the
/// foreground, the lines are for a person.
pub fn init_tracing(foreground: bool, level: Level) {
    let format = if !foreground && stderr_is_journal() {
        LineFormat::Journal
    } else {
        LineFormat::Person {
            colors: io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none(),
        }
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(false)
        .event_format(format)
        .finish();
    // An earlier subscriber, as a test may have, is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[derive(Clone, Copy, Debug)]
enum LineFormat {
    Journal,
    Person { colors: bool },
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = event.metadata().level();
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        match self {
            Self::Journal => writer.write_str(&journal_lines(level, &text)),
            Self::Person { colors } => {
                SystemTime.format_time(&mut writer)?;
                if *colors {
                    let color = match *level {
                        Level::ERROR => 31,
                        Level::WARN => 33,
                        _ => 2,
                    };
                    writeln!(writer, " \x1b[{color}m{level:>5}\x1b[0m {text}")
                } else {
                    writeln!(writer, " {level:>5} {text}")
                }
            }
        }
    }
}

/// A line without a level of its own would be taken for an informational one.
fn journal_lines(level: &Level, text: &str) -> String {
    let priority = match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let mut lines = String::new();
    for line in text.lines() {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "<{priority}>{line}");
    }
    lines
}

fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| {
        dev.parse::<u64>() == Ok(device) && ino.parse::<u64>() == Ok(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_for_the_journal_has_the_level_of_its_event() {
        assert_eq!(journal_lines(&Level::ERROR, "a\nb"), "<3>a\n<3>b\n");
        assert_eq!(journal_lines(&Level::WARN, "a"), "<4>a\n");
        assert_eq!(journal_lines(&Level::INFO, "a"), "<6>a\n");
        assert_eq!(journal_lines(&Level::TRACE, "a"), "<7>a\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_stream("8:44", 8, 44));
        assert!(!is_stream("8:44", 8, 45));
        assert!(!is_stream("9:44", 8, 44));
        assert!(!is_stream("44", 8, 44));
        assert!(!is_stream("", 0, 0));
    }
}
