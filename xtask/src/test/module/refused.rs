// SPDX-License-Identifier: MIT OR Apache-2.0

//! What safe code cannot make the abstractions under `kernel/support` do: it does not compile.
//!
//! Each file in `kernels/refused` is a driver as one is written, with lines that must be refused. Without them it
//! compiles, and with any of them it fails with the error that the line names.

use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::cache;
use crate::test::Context;
use crate::test::Test;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "a driver that would leak, free or share too much does not compile",
    does_not_compile,
)];

/// The drivers.
const DRIVERS: &[&str] = &["device", "notice"];

/// What stands before the error's code, on a line that must not compile.
const MARK: &str = "// refused: ";

fn does_not_compile(context: &Context<'_>) -> Result<()> {
    let folder = context.cache.target().join("refused");
    cache::empty_folder(&folder)?;
    let ours = context.cache.repository();
    copy(&ours.join("kernel/support"), &folder.join("support"))?;
    for name in DRIVERS {
        let file = ours.join("xtask/kernels/refused").join(name);
        let source = std::fs::read_to_string(file.with_extension("rs"))?;
        let build = |kept: Option<usize>| build(context, &folder, name, &only(&source, kept));
        let (builds, output) = build(None)?;
        ensure!(builds, "{name}.rs does not compile at all:\n{output}");
        let refused: Vec<_> = source
            .lines()
            .enumerate()
            .filter_map(|(index, line)| Some((index, line.split_once(MARK)?.1)))
            .collect();
        ensure!(!refused.is_empty(), "{name}.rs has no line with {MARK}");
        for (index, code) in refused {
            let place = format!("{name}.rs:{}", index + 1);
            let (builds, output) = build(Some(index))?;
            if builds {
                bail!("{place} compiles");
            }
            ensure!(
                output.contains(&format!("error[{code}]")),
                "{place} does not compile, but for another reason than {code}:\n{output}"
            );
        }
    }
    Ok(())
}

/// A source without the lines that must not compile, but for one. The others keep their numbers.
fn only(source: &str, kept: Option<usize>) -> String {
    let lines = source.lines().enumerate();
    let lines = lines.map(|(index, line)| {
        let dropped = line.contains(MARK) && Some(index) != kept;
        if dropped { "" } else { line }
    });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// Whether a driver compiles, and what the compiler says.
fn build(context: &Context<'_>, folder: &Path, name: &str, source: &str) -> Result<(bool, String)> {
    // As deep as the drivers are that use the abstractions.
    let driver = folder.join("driver");
    std::fs::create_dir_all(&driver)?;
    std::fs::write(driver.join("main.rs"), source)?;
    std::fs::write(
        folder.join("Kbuild"),
        format!("obj-m := {name}.o\n{name}-y := driver/main.o\n"),
    )?;
    let environment = context.environment()?;
    let build_folder = &environment.modules()?.build_folder;
    let output = build_folder
        .make_command(&environment.tree)
        .arg("-C")
        .arg(build_folder.build())
        .arg(format!("M={}", folder.display()))
        .arg("driver/main.o")
        .stdin(Stdio::null())
        .output()
        .context("cannot start make")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success(), text))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-rL").args([from, to]).status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_refused_are_left_out() {
        let source = "a\nb // refused: E1\nc // refused: E2\n";
        assert_eq!(only(source, None), "a\n\n\n");
        assert_eq!(only(source, Some(2)), "a\n\nc // refused: E2\n");
    }
}
