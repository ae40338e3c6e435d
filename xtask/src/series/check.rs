// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether the series is one that may be sent: it applies, each patch builds, and `checkpatch.pl` is content.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;

use crate::cache;
use crate::cache::Cache;
use crate::kernel::BuildFolder;
use crate::progress;
use crate::progress::Step;
use crate::series::Series;
use crate::series::repository::Repository;
use crate::tree::Tree;

/// Makes all checks; those that build only if they are wanted.
pub(super) fn all(
    cache: &Cache,
    tree: &Tree,
    folder: &BuildFolder,
    series: &Series,
    with_builds: bool,
) -> Result<()> {
    let steps = cache.repository().join("target/series/steps");
    let step = Step::start("apply the series by git am");
    let patches = apply(cache, folder, series, &steps)?;
    step.done();
    look_through(cache, tree, folder, series)?;
    if with_builds {
        let (c, rust): (Vec<_>, Vec<_>) = patches.iter().partition(|patch| patch.is_c());
        build(cache, tree, folder, &c, "c", &["W=1"])?;
        build(cache, tree, folder, &rust, "rust", &[])?;
    }
    Ok(())
}

/// A patch that was applied.
struct Applied {
    /// What it changed, by their paths in the kernel.
    changed: Vec<PathBuf>,
    /// Where these are.
    files: PathBuf,
}

impl Applied {
    /// Whether it is about C files only.
    fn is_c(&self) -> bool {
        let ends = |path: &PathBuf, wanted: &str| path.extension().is_some_and(|end| end == wanted);
        self.changed
            .iter()
            .all(|path| ends(path, "c") || ends(path, "h"))
    }

    /// What `make` is to build.
    fn targets(&self) -> Vec<PathBuf> {
        let objects = self
            .changed
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "c"))
            .map(|path| path.with_extension("o"));
        if self.is_c() {
            objects.collect()
        } else {
            vec!["drivers/virt/".into()]
        }
    }
}

/// Applies the mails to the kernel's own files, as whoever receives them would.
fn apply(
    cache: &Cache,
    folder: &BuildFolder,
    series: &Series,
    steps: &Path,
) -> Result<Vec<Applied>> {
    let repository = Repository::create(
        cache.repository().join("target/series/applied"),
        folder.source(),
        series.person.clone(),
    )?;
    repository.commit_base(series.paths.iter().map(PathBuf::as_path))?;
    cache::empty_folder(steps)?;
    let mut patches = Vec::new();
    for mail in &series.mails[1..] {
        let name = mail.file_stem().context("a mail has no name")?;
        repository
            .git([Path::new("am"), Path::new("--quiet"), mail])
            .with_context(|| format!("{} does not apply", mail.display()))?;
        let files = steps.join(name);
        let changed = repository.copy_changed(&files)?;
        patches.push(Applied { changed, files });
    }
    Ok(patches)
}

/// What `checkpatch.pl` is allowed to say.
#[derive(Deserialize)]
struct Allowed {
    #[serde(rename = "allowed")]
    entries: Vec<Allowance>,
}

/// One kind of complaint in some mails.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowance {
    /// As `checkpatch.pl --show-types` names it.
    kind: String,
    /// What the name of the mail has in it.
    mail: String,
    /// Why it cannot be avoided.
    #[serde(rename = "reason")]
    _reason: String,
}

/// Has `checkpatch.pl` look through all mails.
fn look_through(cache: &Cache, tree: &Tree, folder: &BuildFolder, series: &Series) -> Result<()> {
    let step = Step::start("checkpatch.pl --strict");
    let list = cache.repository().join("docs/upstream/checkpatch.toml");
    let allowed: Allowed = toml::from_str(&std::fs::read_to_string(&list)?)
        .with_context(|| format!("in {}", list.display()))?;
    let mut needed = vec![false; allowed.entries.len()];
    let mut complaints = Vec::new();
    for mail in &series.mails[1..] {
        let name = mail.file_name().unwrap_or_default().to_string_lossy();
        // It is in the tree, where the mails need not be.
        let copy = cache.repository().join("target/series/mail");
        std::fs::copy(mail, &copy)?;
        let output = tree
            .command("sh")
            .args(["-c", r#"cd "$1" && exec perl scripts/checkpatch.pl --strict --terse --show-types --no-summary "$2""#, "sh"])
            .arg(folder.source())
            .arg(&copy)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = 0;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            lines += 1;
            let entry = allowed.entries.iter().position(|entry| {
                name.contains(&entry.mail) && line.contains(&format!(":{}:", entry.kind))
            });
            match entry {
                Some(entry) => needed[entry] = true,
                None => complaints.push(line.replace(&*copy.to_string_lossy(), &name)),
            }
        }
        if !output.status.success() && lines == 0 {
            bail!("checkpatch.pl: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let idle = allowed
        .entries
        .iter()
        .zip(needed)
        .filter(|(_, needed)| !needed);
    complaints.extend(idle.map(|(entry, _)| {
        format!(
            "nothing needs that {} is allowed in {}",
            entry.kind, entry.mail
        )
    }));
    if complaints.is_empty() {
        step.done();
        return Ok(());
    }
    step.failed();
    bail!("checkpatch.pl --strict:\n    {}", complaints.join("\n    "))
}

/// Applies some patches in a copy of source and build folder, and builds after each. Both are overlaid, so that
/// they keep their paths (else everything would be built again) and nothing in them changes.
const BUILD: &str = r#"
set -eux
source=$1 build=$2 list=$3
shift 3
scratch=/mnt
mount -t tmpfs -o size=6g tmpfs "$scratch"
for name in source build; do
    eval "folder=\$$name"
    mkdir -p "$scratch/$name" "$scratch/$name.work"
    mount -t overlay overlay -o \
        "lowerdir=$folder,upperdir=$scratch/$name,workdir=$scratch/$name.work" "$folder"
done
cd "$source"
while read -r files targets; do
    echo "=== $files"
    cp -r "$files/." "$source/"
    for option in SYSGENID SYSGENID_VMFORK; do
        scripts/config --file "$build/.config" --module "$option"
    done
    "$@" -C "$source" "O=$build" olddefconfig
    # The kernel crate is among what everything else needs.
    "$@" -C "$source" "O=$build" prepare
    "$@" -C "$source" "O=$build" $targets
done < "$list"
if [ -d "$source/drivers/virt/sysgenid" ]; then
    grep '^CONFIG_SYSGENID=m' "$build/.config"
    grep '^CONFIG_SYSGENID_VMFORK=m' "$build/.config"
    ls "$build/drivers/virt/sysgenid/sysgenid.o" "$build/drivers/virt/sysgenid/sysgenid_vmfork.o"
fi
"#;

fn build(
    cache: &Cache,
    tree: &Tree,
    folder: &BuildFolder,
    patches: &[&Applied],
    name: &str,
    options: &[&str],
) -> Result<()> {
    let list = cache
        .repository()
        .join(format!("target/series/{name}.list"));
    let mut text = String::new();
    for patch in patches {
        text += &patch.files.display().to_string();
        for target in patch.targets() {
            text += &format!(" {}", target.display());
        }
        text.push('\n');
    }
    std::fs::write(&list, text)?;
    let log = cache.log(&format!("series-{name}"))?;
    progress::run_logged(
        &format!("build after each of {} {name} patches", patches.len()),
        &log,
        tree.command("sh")
            .args(["-c", BUILD, "build"])
            .args([folder.source(), folder.build(), list])
            .arg("make")
            .args(folder.make_arguments())
            .args(options),
    )?;
    let log_text = std::fs::read_to_string(&log)?;
    let warnings: Vec<&str> = log_text
        .lines()
        .filter(|line| line.contains("warning:"))
        .collect();
    if !warnings.is_empty() {
        bail!(
            "the compiler warns, see {}:\n    {}",
            log.display(),
            warnings.join("\n    ")
        );
    }
    Ok(())
}
