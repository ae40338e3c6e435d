// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is printed: in colours where a person reads it, plain where a program does.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use serde::Serialize;

pub(crate) const PLAIN: Style = Style::new();
pub(crate) const STRONG: Style = Style::new().bold();
pub(crate) const FAINT: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();

/// Prints a line. It is there at once, also where the output is a pipe.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a document, over several lines.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string_pretty(value)?)?)
}

/// Prints a document on a line of its own.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string(value)?)?)
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints an error, the program's name before it.
pub(crate) fn complain(text: &str) {
    note(BAD, text);
}

/// Tells the person at the terminal, or the log, something that is not the answer.
pub(crate) fn note(style: Style, text: &str) {
    // There is nobody to tell that the standard error is closed.
    let _ = writeln!(anstream::stderr(), "{style}sysgenctl:{style:#} {text}");
}

/// Rows under a header, in columns that fit.
pub(crate) fn table(header: &[&str], rows: &[(Style, Vec<String>)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for (_, cells) in rows {
        table.add_row(cells.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let styles = std::iter::once(STRONG).chain(rows.iter().map(|(style, _)| *style));
    let lines: Vec<_> = table
        .lines()
        .zip(styles)
        .map(|(line, style)| styled(style, line.trim_end()))
        .collect();
    lines.join("\n")
}

/// Names that somebody else chose must not write on the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// "1 watcher", "2 watchers".
pub(crate) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_a_row_and_the_columns_stand_below_each_other() {
        let rows = [
            (PLAIN, vec!["1".to_owned(), "a".to_owned()]),
            (PLAIN, vec!["12345".to_owned(), "b\u{1b}[2J\nc".to_owned()]),
        ];
        let text = anstream::adapter::strip_str(&table(&["PID", "COMMAND"], &rows)).to_string();
        assert_eq!(
            text,
            "PID    COMMAND\n1      a\n12345  b\u{fffd}[2J\u{fffd}c"
        );
    }
}
