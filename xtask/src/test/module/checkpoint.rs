// SPDX-License-Identifier: MIT OR Apache-2.0

//! CRIU beside the module: it knows few character devices, and not ours. What programs that are to be dumped have
//! instead is an instance of the daemon.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;

use crate::agent::Outcome;
use crate::environment::Environment;
use crate::progress;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::test::Context;
use crate::test::Test;
use crate::test::guest::Guest;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "CRIU dumps no program that has the module's node, and one that has an instance of the daemon",
    only_the_daemons_nodes_are_dumped,
)];

/// An instance of the daemon's beside the module's nodes.
const START_DAEMON: &str = r"
mkdir -p /etc/sysgenid
printf '[backends]\nuse = []\n[instances.container]\n' > /etc/sysgenid/sysgenidd.toml
sysgenidd > /run/sysgenidd.log 2>&1 &
sysgenid-guest await /run/sysgenidd.log ready
";

/// Restores the program that was dumped, and ends it. It gets its number back, which nobody may have any more: not even
/// what is left of it until init has heard of its end.
const RESTORE: &str = r"
set -e
pid=$(cat /run/holder.pid)
timeout 20 sh -c 'while [ -e /proc/$0 ]; do usleep 10000; done' $pid
criu restore --images-dir /run/images --restore-detached
kill $pid
";

/// That instance's node.
const INSTANCE: &str = "/run/sysgenid/container/sysgenid";

/// The module's.
const MODULE: &str = "/dev/sysgenid";

fn only_the_daemons_nodes_are_dumped(context: &Context<'_>) -> Result<()> {
    let environment = context.environment()?;
    let folder = context.cache.temporary_folder()?;
    let machine = Machine {
        initramfs: with_criu(context, environment, folder.path())?,
        ..environment.machine_with_guid()?
    };
    let mut guest = Guest::boot_in(context, environment, machine)?;
    guest.run("criu check", PATIENCE).context("CRIU itself")?;
    guest.run("modprobe sysgenid", PATIENCE)?;
    guest.run(START_DAEMON, PATIENCE)?;
    for (node, how, is_dumped) in [
        (MODULE, "", false),
        (MODULE, "--mapped", false),
        (INSTANCE, "", true),
        (INSTANCE, "--mapped", true),
    ] {
        let Outcome { status, output } = dump(&mut guest, node, how)
            .with_context(|| format!("a program that has {node} ({how})"))?;
        ensure!(
            (status == 0) == is_dumped,
            "a program that has {node} ({how}) was to be dumped: {is_dumped}. CRIU ended with {status}: {output}"
        );
        if is_dumped {
            guest
                .run(RESTORE, PATIENCE)
                .with_context(|| format!("a program that has {node} ({how}) was not restored"))?;
        } else {
            guest.run("kill $(cat /run/holder.pid)", PATIENCE)?;
        }
    }
    guest.finish()
}

/// Has CRIU dump a program that has a node, and says how that ended.
fn dump(guest: &mut Vm, node: &str, how: &str) -> Result<Outcome> {
    guest.run(
        &format!(
            "rm -rf /run/images; mkdir /run/images; \
             setsid sysgenid-guest hold {how} {node} > /run/holder 2>&1 < /dev/null & \
             echo $! > /run/holder.pid; sysgenid-guest await /run/holder ready"
        ),
        PATIENCE,
    )?;
    guest.outcome(
        "criu dump --tree $(cat /run/holder.pid) --images-dir /run/images --log-file log -v4; \
         status=$?; grep -E 'Error|Warn' /run/images/log; exit $status",
        PATIENCE,
    )
}

/// The guests' file system, with CRIU and all that it needs from the tree.
fn with_criu(context: &Context<'_>, environment: &Environment, folder: &Path) -> Result<PathBuf> {
    let together = folder.join("initramfs.cpio");
    progress::run_into(
        &context.cache.log("initramfs-criu")?,
        environment
            .tree
            .command("sh")
            .args(["-euxc", ADD_CRIU, "add"])
            .args([&environment.machine().initramfs, &together]),
        &mut |_| (),
    )
    .context("cannot pack CRIU for the guest")?;
    Ok(together)
}

/// Packs the archive $1 and CRIU into $2. A kernel unpacks one archive after the other.
const ADD_CRIU: &str = r#"
scratch=$(mktemp -d)
for file in $(command -v criu) $(ldd "$(command -v criu)" | grep -o '/[^ ]*'); do
    install -D "$(realpath "$file")" "$scratch$file"
done
mkdir -p "$scratch/bin"
ln -s ..$(command -v criu) "$scratch/bin/criu"
cp "$1" "$2"
cd "$scratch"
find . -print0 | cpio --null --quiet --create --format=newc --owner=0:0 >> "$2"
rm -r "$scratch"
"#;
