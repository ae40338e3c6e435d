// SPDX-License-Identifier: MIT OR Apache-2.0

//! Makes a file for the kernel out of one of this repository.

use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::series::manifest::Change;
use crate::series::manifest::File;
use crate::series::manifest::Rule;

/// How long a line of the kernel's may be.
const WIDTH: usize = 100;

/// The text of a file, where `kernel` has what the patches before have made of it.
pub(super) fn text(repository: &Path, kernel: &Path, file: &File) -> Result<String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut text = match (&file.from, &file.copy) {
        (Some(from), None) => read(&repository.join(from))?,
        (None, Some(copy)) => read(&repository.join("docs/upstream/tree").join(copy))?,
        (None, None) => read(&kernel.join(&file.to))?,
        (Some(_), Some(_)) => bail!("a file has one source"),
    };
    for rule in &file.rules {
        text = apply(*rule, &text, &file.to)?;
    }
    for change in &file.changes {
        text = make(change, &text, &read, repository)?;
    }
    if file.is_ours() && file.to.extension().is_some_and(|end| end == "rs") {
        text = wrap_comments(&text);
    }
    Ok(text)
}

fn apply(rule: Rule, text: &str, path: &Path) -> Result<String> {
    Ok(match rule {
        Rule::KernelCrate => text
            .replace("pub(crate)", "pub")
            .replace("use kernel::", "use crate::")
            .replace("> kernel::", "> crate::")
            .replace("[`kernel::", "[`crate::"),
        Rule::Driver => lines(text, |line| {
            (!line.trim_start().starts_with("#[path = ")).then(|| line.to_owned())
        }),
        Rule::Core => {
            let suite = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .context("the file has no name")?;
            let text = lines(text, |line| Some(line_of_core(line)));
            text.replace(
                "#[cfg(test)]\n",
                &format!(
                    "#[cfg(CONFIG_SYSGENID_KUNIT_TEST)]\n\
                     #[kernel::macros::kunit_tests(sysgenid_{suite})]\n"
                ),
            )
        }
    })
}

/// A line of the core as the driver has it: visible there only, and without the one assertion that KUnit lacks.
fn line_of_core(line: &str) -> String {
    let code = line.trim_start();
    let indent = &line[..line.len() - code.len()];
    if let Some(item) = code.strip_prefix("pub ") {
        return format!("{indent}pub(crate) {item}");
    }
    let unequal = code
        .strip_prefix("assert_ne!(")
        .and_then(|rest| rest.strip_suffix(");"))
        .and_then(|operands| operands.split_once(", "));
    if let Some((left, right)) = unequal {
        return format!("{indent}assert!({left} != {right});");
    }
    line.to_owned()
}

/// Each line changed, or left out.
fn lines(text: &str, change: impl Fn(&str) -> Option<String>) -> String {
    text.lines()
        .filter_map(change)
        .map(|line| line + "\n")
        .collect()
}

fn make(
    change: &Change,
    text: &str,
    read: &dyn Fn(&Path) -> Result<String>,
    repository: &Path,
) -> Result<String> {
    match change {
        Change::Replace { old, new } => {
            let at = only(text, old)?;
            Ok(format!("{}{new}{}", &text[..at], &text[at + old.len()..]))
        }
        Change::Cut { cut, until, with } => {
            let start = only(text, cut)?;
            let end = match until {
                Some(until) => {
                    let from = start + cut.len();
                    let found = text[from..].find(until.as_str());
                    from + found
                        .with_context(|| format!("`{until}` does not come after `{cut}`"))?
                }
                None => text.len(),
            };
            Ok(format!("{}{with}{}", &text[..start], &text[end..]))
        }
        Change::Append { append, after } => {
            let more = read(&repository.join(append))?;
            let start = match after {
                Some(after) => only(&more, after)? + after.len(),
                None => 0,
            };
            Ok(format!("{text}{}", &more[start..]))
        }
    }
}

/// Where a text is.
fn only(text: &str, wanted: &str) -> Result<usize> {
    let mut places = text.match_indices(wanted);
    let (at, _) = places
        .next()
        .with_context(|| format!("the source has no longer what is to be changed: `{wanted}`"))?;
    ensure!(
        places.next().is_none(),
        "the source has this more than once: `{wanted}`"
    );
    Ok(at)
}

/// Wraps the paragraphs of line comments again that have a line which is too long for the kernel.
fn wrap_comments(text: &str) -> String {
    let all: Vec<&str> = text.lines().collect();
    let mut wrapped = String::new();
    let mut index = 0;
    while index < all.len() {
        let end = paragraph_end(&all, index);
        let paragraph = &all[index..end];
        if paragraph.iter().any(|line| line.chars().count() > WIDTH) {
            wrap(paragraph, &mut wrapped);
        } else {
            for line in paragraph {
                wrapped.push_str(line);
                wrapped.push('\n');
            }
        }
        index = end;
    }
    wrapped
}

/// The end of the paragraph of a comment that begins here; of one line where it is something else.
fn paragraph_end(all: &[&str], start: usize) -> usize {
    let Some(marker) = marker(all[start]) else {
        return start + 1;
    };
    let belongs = |line: &&str| {
        if self::marker(line) != Some(marker) {
            return false;
        }
        let words = line[marker.len()..].trim_start();
        !words.is_empty() && !words.starts_with(['-', '#'])
    };
    let more = all[start + 1..].iter().take_while(|line| belongs(line));
    if all[start].len() == marker.len() {
        return start + 1;
    }
    start + 1 + more.count()
}

/// The indentation and the slashes that a line begins with, if it is a comment.
fn marker(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let slashes = ["///", "//!", "//"]
        .into_iter()
        .find(|slashes| code.starts_with(slashes))?;
    Some(&line[..line.len() - code.len() + slashes.len()])
}

fn wrap(paragraph: &[&str], wrapped: &mut String) {
    let marker = marker(paragraph[0]).unwrap_or_default();
    let words = paragraph
        .iter()
        .flat_map(|line| line[marker.len()..].split_whitespace());
    let mut line = marker.to_owned();
    for word in words {
        if line.len() > marker.len() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            wrapped.push_str(&line);
            wrapped.push('\n');
            line = marker.to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    wrapped.push_str(&line);
    wrapped.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, change: &Change) -> Result<String> {
        make(change, text, &|_| bail!("no file"), Path::new("/"))
    }

    #[test]
    fn what_is_to_be_changed_must_be_there_once() {
        let change = Change::Replace {
            old: "b".to_owned(),
            new: "x".to_owned(),
        };
        assert_eq!(changed("abc", &change).unwrap(), "axc");
        assert!(changed("ac", &change).is_err());
        assert!(changed("abcb", &change).is_err());
    }

    #[test]
    fn a_cut_ends_before_what_comes_after_it() {
        let cut = |until: Option<&str>| Change::Cut {
            cut: "b".to_owned(),
            until: until.map(str::to_owned),
            with: "-".to_owned(),
        };
        assert_eq!(changed("abcd", &cut(Some("d"))).unwrap(), "a-d");
        assert_eq!(changed("abcd", &cut(None)).unwrap(), "a-");
        assert!(changed("abcd", &cut(Some("a"))).is_err());
    }

    #[test]
    fn only_paragraphs_with_a_long_line_are_wrapped() {
        let long = format!("    /// {}\n    /// end\n", "word ".repeat(20).trim());
        let short = "    /// one\n    /// two\n    ///\n";
        let wrapped = wrap_comments(&format!("{short}{long}    fn f() {{}}\n"));
        assert!(wrapped.starts_with(short));
        assert!(wrapped.ends_with("    /// word word end\n    fn f() {}\n"));
        assert!(wrapped.lines().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn what_the_core_has_public_the_driver_has_not() {
        assert_eq!(
            line_of_core("    pub fn f() {}"),
            "    pub(crate) fn f() {}"
        );
        assert_eq!(line_of_core("pub(super) fn f() {}"), "pub(super) fn f() {}");
        assert_eq!(
            line_of_core("    assert_ne!(a, b);"),
            "    assert!(a != b);"
        );
    }
}
