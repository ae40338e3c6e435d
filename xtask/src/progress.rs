// SPDX-License-Identifier: MIT OR Apache-2.0

//! Shows what a long step is doing: a spinner with the elapsed time and the last line of output on a
//! terminal, a plain line now and then elsewhere.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// How often a step says that it is alive where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

/// How many lines of a log are shown when a step fails.
const SHOWN_LINES: usize = 25;

/// All spinners, for a step may have steps of its own.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A step under way.
pub(crate) struct Step {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    last_plain_line: Instant,
}

impl Step {
    /// Starts to show a step.
    pub(crate) fn start(title: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = SPINNERS.add(ProgressBar::new_spinner()).with_style(
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            spinner.set_prefix(title.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        if spinner.is_none() {
            eprintln!(".. {title}");
        }
        Self {
            title: title.to_owned(),
            started: Instant::now(),
            spinner,
            last_plain_line: Instant::now(),
        }
    }

    /// Shows the last line of output.
    pub(crate) fn show(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        if let Some(spinner) = &self.spinner {
            spinner.set_message(line.to_owned());
        } else if self.last_plain_line.elapsed() > PLAIN_INTERVAL {
            self.last_plain_line = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            let short: String = line.chars().take(100).collect();
            eprintln!("   {} ({seconds} s): {short}", self.title);
        }
    }

    /// Ends the step with success.
    pub(crate) fn done(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.end(&format!("ok {} ({seconds:.1} s)", self.title));
    }

    /// Ends the step with failure.
    pub(crate) fn failed(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.end(&format!("FAILED {} ({seconds:.1} s)", self.title));
    }

    fn end(&self, line: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
            SPINNERS.remove(spinner);
        }
        SPINNERS.suspend(|| eprintln!("{line}"));
    }
}

/// Runs a command as one step. All that it prints goes to the log.
///
/// # Errors
///
/// If it cannot be started or fails; the error carries the last lines and the log's name.
pub(crate) fn run_logged(title: &str, log: &Path, command: &mut Command) -> Result<()> {
    let mut step = Step::start(title);
    let result = run_into(log, command, &mut |line| step.show(line));
    match result {
        Ok(()) => step.done(),
        Err(_) => step.failed(),
    }
    result.with_context(|| format!("{title}: failed"))
}

/// Runs a command, writes all that it prints to the log and hands on each line.
pub(crate) fn run_into(
    log: &Path,
    command: &mut Command,
    show: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut file =
        File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // The command holds our ends of the pipe; with them open it would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        file.write_all(&line)?;
        show(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}; {}", last_lines(log));
    }
    Ok(())
}

/// The end of a log, for an error message.
pub(crate) fn last_lines(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    format!(
        "the last lines of {}:\n    {}",
        log.display(),
        shown.join("\n    ")
    )
}
