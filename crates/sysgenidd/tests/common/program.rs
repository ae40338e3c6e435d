// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that only looks at the page, as crypto libraries do: opens, maps four bytes, closes, and loads once a
//! use. It is a process of its own and an ordinary user's, so that a page which is gone kills nothing but this.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use sysgenid_core::PageWord;

use super::process::Part;
use super::watcher::Page;

/// The name of the test that is [`run`], and where it finds the node.
const PART: &str = "part_program";
const NODE: &str = "SYSGENIDD_TEST_NODE";

/// What begins a line of it; the others are the harness's.
const MARK: &str = "page";

/// The user that may do nothing.
pub(crate) const NOBODY: u32 = 65_534;

/// Such a program, which looks all the time. It ends with the test.
#[derive(Debug)]
pub(crate) struct Program(Part);

impl Program {
    /// Starts it, and waits until it has the page.
    pub(crate) fn start(node: &Path) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(Part::arguments(PART))
            .env(NODE, node)
            .uid(NOBODY)
            .gid(NOBODY);
        let mut program = Self(Part::start(&mut command));
        program.words();
        program
    }

    /// The generation that it sees, by a load of four bytes.
    pub(crate) fn generation(&mut self) -> u32 {
        self.ask().0
    }

    /// What the page says now.
    pub(crate) fn word(&mut self) -> PageWord {
        *self.words().last().unwrap()
    }

    /// All that it has ever seen the page say, each once in a row.
    pub(crate) fn words(&mut self) -> Vec<PageWord> {
        self.ask().1
    }

    fn ask(&mut self) -> (u32, Vec<PageWord>) {
        let asked = self.0.tell("");
        let heard = self.0.hear(|line| line.contains(MARK));
        let Some(line) = heard.filter(|_| asked.is_ok()) else {
            let status = self.0.status("a program");
            panic!("a program that looks at its page ended with {status}");
        };
        let (_, seen) = line.split_once(MARK).unwrap();
        let mut numbers = seen.split_ascii_whitespace();
        let generation = numbers.next().unwrap().parse().unwrap();
        let words = numbers.map(|word| PageWord::from_word(word.parse().unwrap()));
        (generation, words.collect())
    }
}

/// Is the program. It does nothing unless a test starts it.
pub(crate) fn run() {
    let Some(node) = std::env::var_os(NODE).map(PathBuf::from) else {
        return;
    };
    let page = Page::open(&node).unwrap();
    let (question, questions) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            line.unwrap();
            if question.send(()).is_err() {
                break;
            }
        }
    });
    let mut seen: Vec<PageWord> = Vec::new();
    loop {
        let word = page.word();
        if seen.last() != Some(&word) {
            seen.push(word);
        }
        match questions.try_recv() {
            Ok(()) => {
                // What is answered is no older than the question.
                let word = page.word();
                if seen.last() != Some(&word) {
                    seen.push(word);
                }
                let words: Vec<_> = seen.iter().map(|word| word.to_word().to_string()).collect();
                println!("{MARK} {} {}", page.generation(), words.join(" "));
            }
            Err(mpsc::TryRecvError::Empty) => thread::yield_now(),
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}
