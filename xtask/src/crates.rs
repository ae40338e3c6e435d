// SPDX-License-Identifier: MIT OR Apache-2.0

//! The crates that our programs are made of, where a tree sees them: there is no network there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::cache::Cache;
use crate::progress;

/// Has cargo fetch all of them to this machine, and copies them. Returns what a cargo in a tree takes for its
/// home.
pub(crate) fn copy(cache: &Cache) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    progress::run_logged(
        "cargo fetch --locked",
        &cache.log("fetch")?,
        Command::new(cargo)
            .current_dir(cache.repository())
            .args(["fetch", "--locked"]),
    )?;
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let copy = cache.root().join("cargo-home");
    progress::run_into(
        &cache.log("copy-crates")?,
        Command::new("sh")
            .args(["-ec", COPY, "copy"])
            .args([&home, &copy]),
        &mut |_| (),
    )?;
    Ok(copy)
}

/// Copies the crates that cargo has fetched from $1 to $2.
const COPY: &str = r#"
rm -rf "$2"
mkdir -p "$2/registry"
cp -r "$1/registry/index" "$1/registry/cache" "$2/registry/"
for file in config config.toml; do
    test ! -e "$1/$file" || cp "$1/$file" "$2/"
done
"#;
