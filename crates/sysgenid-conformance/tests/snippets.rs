// SPDX-License-Identifier: MIT OR Apache-2.0

//! The C in the documents compiles against the uapi headers.

#![allow(clippy::unwrap_used)] // The lint does not see that all of this file is tests.

use std::path::Path;
use std::process::Command;

/// What a program around the snippets would have.
const AROUND: &str = r#"
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/sysgenid.h>
#include <linux/vmgenid.h>

extern int epoll, secret;
extern uint32_t now, generation_of_secret, generation_in_snapshot;
void rebuild_secrets(void);
void take_own_precautions(void);
int make_secret(void);
void use(int secret);
"#;

/// The texts of the fenced or directed blocks of C in a document, but for those of definitions.
fn snippets(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        let snippet: Vec<&str> = match line {
            "```c" => lines.by_ref().take_while(|line| *line != "```").collect(),
            ".. code-block:: c" => {
                let inside = |line: &&str| line.is_empty() || line.starts_with("    ");
                std::iter::from_fn(|| lines.next_if(inside)).collect()
            }
            _ => continue,
        };
        let text = snippet.join("\n");
        if !text.contains("#define") {
            found.push(text);
        }
    }
    found
}

fn check(document: &str, expected: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let snippets = snippets(&std::fs::read_to_string(root.join(document)).unwrap());
    assert_eq!(snippets.len(), expected, "the snippets of {document}");
    let folder = tempfile::tempdir().unwrap();
    for snippet in snippets {
        let source = folder.path().join("snippet.c");
        let text = format!("{AROUND}\nint main(void)\n{{\n{snippet}\nreturn 0;\n}}\n");
        std::fs::write(&source, text).unwrap();
        let output = Command::new("cc")
            .args(["-fsyntax-only", "-std=gnu11", "-Wall", "-Wextra", "-Werror"])
            .arg("-I")
            .arg(root.join("include/uapi"))
            .arg(&source)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{document}:\n{snippet}\n{complaint}"
        );
    }
}

#[test]
fn the_c_in_the_contract_compiles() {
    check("docs/sysgenid.rst", 5);
}

#[test]
fn the_c_in_the_readme_compiles() {
    check("README.md", 1);
}
