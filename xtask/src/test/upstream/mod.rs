// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is to be sent to the kernel.

mod user_mode;
mod vmgenid;

use std::path::Path;

use anyhow::Result;
use anyhow::ensure;

use crate::series;
use crate::test::Context;
use crate::test::Test;
use crate::tree::Tree;

pub(crate) const LONG_TESTS: &[Test] = &[
    Test::long(
        "the patch series applies, each patch builds, and checkpatch.pl has nothing to say",
        series_may_be_sent,
    ),
    Test::long(
        "the fixes of vmgenid.c mend what they say",
        vmgenid::fixes_mend,
    ),
    Test::long(
        "the series passes its KUnit tests and its selftest in a user-mode kernel",
        user_mode::tests_pass,
    ),
];

fn series_may_be_sent(context: &Context<'_>) -> Result<()> {
    let environment = context.environment()?;
    let folder = &environment.modules()?.build_folder;
    series::prove(context.cache, &environment.tree, folder)
}

/// Packs what is in a folder, for a guest that unpacks one archive after the other.
fn pack(tree: &Tree, folder: &Path) -> Result<Vec<u8>> {
    let output = tree
        .command("sh")
        .args([
            "-ec",
            r#"cd "$1"; find . -print0 | cpio --null --quiet --create --format=newc --owner=0:0"#,
            "pack",
        ])
        .arg(folder)
        .output()?;
    ensure!(
        output.status.success(),
        "cpio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
