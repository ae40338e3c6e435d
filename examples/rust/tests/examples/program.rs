// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program under test: its input, and the lines of its output as they come.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::PATIENCE;

pub(crate) struct Program {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it and waits until it is ready. Returns what stands behind that word.
    pub(crate) fn start(path: &str, arguments: &[&str]) -> (Self, String) {
        let mut child = Command::new(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let program = Self {
            child,
            input,
            lines,
        };
        let ready = program.line();
        let rest = ready.strip_prefix("ready");
        let rest = rest.unwrap_or_else(|| panic!("not ready: {ready}"));
        (program, rest.trim().to_owned())
    }

    /// Its next line, which must come in time.
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the program prints a line")
    }

    /// Sends it a line. Returns the line that it answers with.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
