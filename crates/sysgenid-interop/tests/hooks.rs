// SPDX-License-Identifier: MIT OR Apache-2.0

//! The packaged hooks, with the tools that they call, and the units that run them.
//!
//! They change who a machine is. Each test plays on a stage with an `/etc` and a `/var/lib` of its own, and with
//! a host name and a network of its own. Where a tool cannot do its work there, or is to fail, a stub stands in for
//! it that writes down how it was called.
//!
//! | tool | as it is | as a stub |
//! | --- | --- | --- |
//! | `dhcpcd`, `dhclient`, `networkctl` | with a DHCP server, dnsmasq | for what is hard to set up |
//! | `nmcli` | never: its package would take over this machine's network | always |
//! | `hostnamectl` | in a booted machine | where it fails |
//! | `hostname`, `ssh-keygen` | yes | where it is killed half-way |
//! | `sshd` | never | always |
//! | `chronyc` | with chronyd, which must not set the clock | where it would |
//! | `systemctl`, `systemd-run` | in a booted machine | elsewhere |

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;
use sysgenid_interop::Stage;
use sysgenid_interop::conversation::Running;
use sysgenid_interop::cue::Cue;
use sysgenid_interop::network::INTERFACE;
use sysgenid_interop::network::Network;
use sysgenid_interop::patience;
use sysgenid_interop::systemd;
use sysgenid_interop::systemd::COMMAND_LINE_PATH;
use sysgenid_interop::systemd::Machine;
use sysgenid_interop::systemd::SLEEPER;
use sysgenid_interop::tool;
use sysgenid_interop::tool::CHRONYD;
use sysgenid_interop::tool::DHCLIENT;
use sysgenid_interop::tool::DHCPCD;
use sysgenid_interop::tool::SHELLCHECK;
use sysgenid_interop::tool::SSH_KEYGEN;

const MACHINE_ID: &str = "available/10-machine-id";
const HOSTNAME_SUFFIX: &str = "available/20-hostname-suffix";
const SSH_HOST_KEYS: &str = "available/30-ssh-host-keys";
const DHCP_RENEW: &str = "available/40-dhcp-renew";
const CHRONY_MAKESTEP: &str = "enabled/50-chrony-makestep";
const RESTART_UNITS: &str = "enabled/90-restart-units";

/// All hooks, below the folder of the packaging.
const HOOKS: [&str; 6] = [
    MACHINE_ID,
    HOSTNAME_SUFFIX,
    SSH_HOST_KEYS,
    DHCP_RENEW,
    CHRONY_MAKESTEP,
    RESTART_UNITS,
];

/// Where stubs are, before everything else on the path.
const STUBS: &str = "/run/stubs";

/// What they were called with, a call a line.
const CALLS: &str = "/run/calls";

/// The path that hooks are run with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The letters of suffixes.
const LETTERS: &str = "bcdfghjkmnpqrstvwxz";

const SETTLED: &str = "sysgenid-settled.target";
const WAIT: &str = "sysgenid-settled.service";

/// What the runner of the hooks says to systemd when a change has come.
const UNSETTLE: [&str; 4] = ["--no-block", "try-restart", WAIT, SETTLED];

#[test]
#[ignore = "needs shellcheck"]
fn no_hook_has_a_fault_that_shellcheck_finds() -> Result<()> {
    SHELLCHECK.require()?;
    tool::run(Command::new("shellcheck").args(HOOKS.map(file)))?;
    Ok(())
}

#[test]
#[ignore = "belongs to the tests of hooks"]
fn every_hook_can_be_run_and_says_how_it_is_turned_off() -> Result<()> {
    for folder in ["available", "enabled"] {
        for entry in std::fs::read_dir(file(folder))? {
            let name = format!("{folder}/{}", entry?.file_name().display());
            assert!(HOOKS.contains(&name.as_str()), "{name} is not tested");
        }
    }
    let table = std::fs::read_to_string(file("README.md"))?;
    for hook in HOOKS {
        let (path, name) = (file(hook), base_name(hook));
        let text = std::fs::read_to_string(&path)?;
        let shell = "#!/bin/sh\n# SPDX-License-Identifier: MIT OR Apache-2.0\n#\n";
        assert!(text.starts_with(shell), "{hook}");
        assert_eq!(path.metadata()?.mode() & 0o777, 0o755, "{hook}");
        let (on, off) = if hook.starts_with("available/") {
            let on = format!("ln -s /usr/share/sysgenid/hooks/{name} /etc/sysgenid/hooks.d/\n");
            (on, format!("rm /etc/sysgenid/hooks.d/{name}\n"))
        } else {
            let on = "on wherever sysgenid is installed".to_owned();
            (
                on,
                format!("ln -s /dev/null /etc/sysgenid/hooks.d/{name}\n"),
            )
        };
        let wanted = [&on, &off, "# What it cuts: ", "# Settings: ", "\nset -eu\n"];
        for part in wanted {
            assert!(text.contains(part), "{hook} lacks {part:?}");
        }
        assert!(
            table.contains(&format!("| `{name}` |")),
            "{name} is not in the table"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_hook_whose_tool_is_missing_says_so_and_succeeds() {
    Stage::play(|stage| {
        set(stage)?;
        let empty = stage.folder("/run/nothing")?;
        for (hook, tool) in [
            (SSH_HOST_KEYS, "no ssh-keygen"),
            (DHCP_RENEW, "no interface"),
            (CHRONY_MAKESTEP, "no chronyc"),
        ] {
            let said = succeed(Hook::new(hook).command().env("PATH", &empty))?;
            assert!(said.contains(tool), "{hook}: {said}");
        }
        stage.folder("/etc/sysgenid")?;
        std::fs::write("/etc/sysgenid/restart-units", "web.service\n")?;
        let said = Hook::new(RESTART_UNITS).run()?;
        assert!(said.contains("not run by systemd"), "{said}");
        Ok(())
    });
}

// 10-machine-id

#[test]
#[ignore = "needs root"]
fn the_machine_id_becomes_a_new_one_and_the_old_is_kept() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        std::fs::write("/var/lib/dbus/machine-id", format!("{OLD_ID}\n"))?;

        let said = Hook::new(MACHINE_ID).generation(7).run()?;

        assert!(!said.contains("mounted"), "{said}");
        let first = machine_id()?;
        assert_ne!(first, OLD_ID);
        assert_eq!(
            std::fs::read_to_string("/var/lib/dbus/machine-id")?,
            format!("{first}\n")
        );
        for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
            assert_eq!(Path::new(path).metadata()?.mode() & 0o777, 0o444, "{path}");
        }
        let kept = Path::new("/var/lib/sysgenid/machine-ids");
        assert_eq!(std::fs::read_to_string(kept)?, format!("7 {OLD_ID}\n"));
        assert_eq!(kept.metadata()?.mode() & 0o777, 0o600);

        Hook::new(MACHINE_ID).generation(7).attempt(2).run()?;
        assert_ne!(machine_id()?, first);
        let kept = std::fs::read_to_string(kept)?;
        assert_eq!(kept, format!("7 {OLD_ID}\n7 {first}\n"));
        assert_eq!(left_behind("/etc")?, [""; 0]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_link_to_the_machine_id_stays_a_link() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        std::fs::remove_file("/var/lib/dbus/machine-id")?;
        symlink("/etc/machine-id", "/var/lib/dbus/machine-id")?;
        std::fs::rename("/etc/machine-id", "/etc/real-machine-id")?;
        symlink("real-machine-id", "/etc/machine-id")?;

        Hook::new(MACHINE_ID).run()?;

        assert_ne!(machine_id()?, OLD_ID);
        for path in ["/var/lib/dbus/machine-id", "/etc/machine-id"] {
            assert!(std::fs::symlink_metadata(path)?.is_symlink(), "{path}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_id_that_is_mounted_from_elsewhere_is_covered_and_not_written_to() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        let elsewhere = Path::new("/run/elsewhere");
        std::fs::write(elsewhere, format!("{OLD_ID}\n"))?;
        stage.bind(elsewhere, Path::new("/etc/machine-id"))?;
        // As in a container. Else what is mounted over it would be seen there, too.
        rustix::mount::mount_change("/etc/machine-id", MountPropagationFlags::PRIVATE)?;

        let said = Hook::new(MACHINE_ID).run()?;

        assert!(said.contains("until the next boot"), "{said}");
        let first = machine_id()?;
        assert_ne!(first, OLD_ID);
        assert_eq!(std::fs::read_to_string(elsewhere)?, format!("{OLD_ID}\n"));
        let mounts = mounts_of("/etc/machine-id")?;

        Hook::new(MACHINE_ID).run()?;
        assert_ne!(machine_id()?, first);
        assert_eq!(mounts_of("/etc/machine-id")?, mounts, "mounts pile up");
        assert_eq!(left_behind("/etc")?, [""; 0]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_id_that_systemd_made_for_this_boot_is_renewed_for_it() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        let transient = Path::new("/run/machine-id");
        std::fs::write(transient, format!("{OLD_ID}\n"))?;
        stage.bind(transient, Path::new("/etc/machine-id"))?;
        rustix::mount::mount_remount("/etc/machine-id", MountFlags::BIND | MountFlags::RDONLY, "")?;
        let mounts = mounts_of("/etc/machine-id")?;

        Hook::new(MACHINE_ID).run()?;

        assert_ne!(machine_id()?, OLD_ID);
        assert_eq!(
            std::fs::read_to_string(transient)?,
            format!("{}\n", machine_id()?)
        );
        assert_eq!(mounts_of("/etc/machine-id")?, mounts);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_id_on_a_read_only_file_system_is_renewed_until_the_next_boot() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        rustix::mount::mount_remount("/etc", MountFlags::BIND | MountFlags::RDONLY, "")?;

        let said = Hook::new(MACHINE_ID).run()?;

        assert!(said.contains("until the next boot"), "{said}");
        let first = machine_id()?;
        assert_ne!(first, OLD_ID);
        Hook::new(MACHINE_ID).run()?;
        assert_ne!(machine_id()?, first);
        assert_eq!(mounts_of("/etc/machine-id")?, 1);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_without_a_machine_id_is_left_without() {
    Stage::play(|stage| {
        set_machine_id(stage)?;
        for text in ["", "uninitialized\n"] {
            std::fs::write("/etc/machine-id", text)?;
            let said = Hook::new(MACHINE_ID).run()?;
            assert!(said.contains("nothing to renew"), "{said}");
            assert_eq!(std::fs::read_to_string("/etc/machine-id")?, text);
        }
        std::fs::remove_file("/etc/machine-id")?;
        Hook::new(MACHINE_ID).run()?;
        assert!(!Path::new("/etc/machine-id").exists());
        Ok(())
    });
}

// 20-hostname-suffix

#[test]
#[ignore = "needs root"]
fn a_host_name_gets_a_suffix_and_the_next_replaces_it() {
    Stage::play(|stage| {
        set(stage)?;
        set_host_name("web")?;
        let mut names = Vec::new();
        for generation in 1..=3 {
            Hook::new(HOSTNAME_SUFFIX).generation(generation).run()?;
            let name = host_name()?;
            assert_suffix(&name, "web", "");
            assert_eq!(
                std::fs::read_to_string("/etc/hostname")?,
                format!("{name}\n")
            );
            names.push(name);
        }
        names.dedup();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(left_behind("/etc")?, [""; 0]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_that_was_given_another_name_keeps_that() {
    Stage::play(|stage| {
        set(stage)?;
        set_host_name("web")?;
        Hook::new(HOSTNAME_SUFFIX).run()?;
        // It looks like the base with something behind it.
        set_host_name("web-canaries")?;
        Hook::new(HOSTNAME_SUFFIX).run()?;
        assert_suffix(&host_name()?, "web-canaries", "");
        Hook::new(HOSTNAME_SUFFIX).run()?;
        assert_suffix(&host_name()?, "web-canaries", "");

        stage.folder("/etc/sysgenid")?;
        std::fs::write("/etc/sysgenid/hostname-base", "shop\n")?;
        Hook::new(HOSTNAME_SUFFIX).run()?;
        assert_suffix(&host_name()?, "shop", "");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn whoever_is_killed_while_naming_leaves_no_suffix_on_a_suffix() {
    Stage::play(|stage| {
        set(stage)?;
        set_host_name("web")?;
        Hook::new(HOSTNAME_SUFFIX).run()?;
        // Before the name is set, and after it.
        for script in [
            "kill -KILL $PPID",
            "/usr/bin/hostname \"$1\"; kill -KILL $PPID",
        ] {
            stub(stage, "hostname", script)?;
            Hook::new(HOSTNAME_SUFFIX)
                .run()
                .expect_err("the hook was not killed");
            std::fs::remove_file(Path::new(STUBS).join("hostname"))?;
            Hook::new(HOSTNAME_SUFFIX).attempt(2).run()?;
            assert_suffix(&host_name()?, "web", "");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_suffix_goes_before_the_domain_and_no_name_becomes_too_long() {
    Stage::play(|stage| {
        set(stage)?;
        let long = "l".repeat(63);
        let cases = [
            ("web.example.org", "web", ".example.org"),
            (&long, &"l".repeat(54), ""),
            (
                &format!("{}.example.org", "m".repeat(52)),
                &"m".repeat(43),
                ".example.org",
            ),
        ];
        for (name, label, domain) in cases {
            set_host_name(name)?;
            for _ in 0..2 {
                Hook::new(HOSTNAME_SUFFIX).run()?;
                assert_suffix(&host_name()?, label, domain);
            }
        }
        let domain = format!("a.{}", "d".repeat(60));
        set_host_name(&domain)?;
        let refused = Hook::new(HOSTNAME_SUFFIX)
            .run()
            .expect_err("there is no room");
        assert!(
            format!("{refused:#}").contains("hostname-base"),
            "{refused:#}"
        );
        assert_eq!(host_name()?, domain);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn where_systemd_runs_it_is_told_the_host_name() {
    Stage::play(|stage| {
        set(stage)?;
        set_host_name("web")?;
        let before = std::fs::read("/etc/hostname").ok();
        stage.folder("/run/systemd/system")?;
        stub(stage, "hostnamectl", "")?;
        Hook::new(HOSTNAME_SUFFIX).run()?;
        let calls = calls()?;
        let [call] = calls.as_slice() else {
            bail!("{calls:?}");
        };
        let name = call
            .strip_prefix("hostnamectl --static --transient set-hostname ")
            .with_context(|| call.clone())?;
        assert_suffix(name, "web", "");
        assert_eq!(std::fs::read("/etc/hostname").ok(), before);

        stub(stage, "hostnamectl", "exit 1")?;
        Hook::new(HOSTNAME_SUFFIX)
            .run()
            .expect_err("nobody has set the name");
        Ok(())
    });
}

#[test]
#[ignore = "needs root, systemd and dbus-daemon"]
fn hostnamectl_gives_the_name_that_it_is_told() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        stage.lay_over("/var/lib")?;
        machine.start_bus(stage)?;
        let hostnamectl = |arguments: &[&str]| machine.run(Path::new("hostnamectl"), arguments);
        hostnamectl(&["set-hostname", "web"])?;
        hostnamectl(&["--pretty", "set-hostname", "Web server"])?;

        for _ in 0..2 {
            Hook::new(HOSTNAME_SUFFIX).run_in(&machine)?;

            let name = machine.run(Path::new("hostname"), &[])?;
            assert_suffix(&name, "web", "");
            assert_eq!(
                std::fs::read_to_string("/etc/hostname")?,
                format!("{name}\n")
            );
            assert_eq!(hostnamectl(&["--transient"])?, name);
            assert_eq!(hostnamectl(&["--pretty"])?, "Web server");
        }
        Ok(())
    });
}

// 30-ssh-host-keys

#[test]
#[ignore = "needs root and ssh-keygen"]
fn ssh_host_keys_are_renewed_with_their_types_and_the_old_are_kept() {
    Stage::play(|stage| {
        let old = set_keys(stage)?;
        std::fs::set_permissions(key_file("rsa"), PermissionsExt::from_mode(0o640))?;
        std::os::unix::fs::chown(key_file("rsa"), None, Some(4))?;
        std::fs::write("/etc/ssh/ssh_host_ed25519_key-cert.pub", "a certificate\n")?;

        let said = Hook::new(SSH_HOST_KEYS).generation(7).run()?;

        assert!(
            said.contains("ssh_host_ed25519_key-cert.pub is for the key"),
            "{said}"
        );
        let new = keys("/etc/ssh")?;
        assert_renewed(&old, &new);
        for (kind, (fingerprint, _)) in &new {
            assert!(
                said.contains(fingerprint.as_str()),
                "{kind} is not in: {said}"
            );
        }
        let rsa = std::fs::metadata(key_file("rsa"))?;
        assert_eq!((rsa.mode() & 0o777, rsa.gid()), (0o640, 4));
        let ecdsa = std::fs::metadata(key_file("ecdsa"))?;
        assert_eq!((ecdsa.mode() & 0o777, ecdsa.gid()), (0o600, 0));
        let public = std::fs::metadata("/etc/ssh/ssh_host_rsa_key.pub")?;
        assert_eq!(public.mode() & 0o777, 0o644);

        assert_eq!(keys("/etc/ssh/sysgenid-old/7")?, old);
        for folder in ["/etc/ssh/sysgenid-old", "/etc/ssh/sysgenid-old/7"] {
            assert_eq!(std::fs::metadata(folder)?.mode() & 0o777, 0o700, "{folder}");
        }

        // The same generation comes again: what was kept is not written over.
        Hook::new(SSH_HOST_KEYS).generation(7).run()?;
        assert_renewed(&new, &keys("/etc/ssh")?);
        assert_eq!(keys("/etc/ssh/sysgenid-old/7")?, old);
        assert_eq!(keys("/etc/ssh/sysgenid-old/7.2")?, new);
        assert_eq!(left_behind("/etc/ssh")?, [""; 0]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn killed_while_it_makes_keys_the_hook_leaves_the_old_ones() {
    Stage::play(|stage| {
        let old = set_keys(stage)?;
        // The second key is half written for ever.
        let script = r#"
            case "$*" in
                *"-t ecdsa"*) ;;
                *-t*) for last; do :; done; echo half >"$last"; exec sleep 1000 ;;
            esac
            exec /usr/bin/ssh-keygen "$@""#;
        stub(stage, "ssh-keygen", script)?;
        let hook = Hook::new(SSH_HOST_KEYS).start()?;
        wait_until("a key is half written", || {
            Ok(calls()?.iter().any(|call| call.contains("-t ed25519")))
        })?;
        kill(hook)?;
        assert_eq!(keys("/etc/ssh")?, old);

        std::fs::remove_file(Path::new(STUBS).join("ssh-keygen"))?;
        Hook::new(SSH_HOST_KEYS).attempt(2).run()?;
        assert_renewed(&old, &keys("/etc/ssh")?);
        assert_eq!(left_behind("/etc/ssh")?, [""; 0]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn killed_while_it_moves_keys_the_hook_leaves_whole_ones_and_can_be_run_again() {
    Stage::play(|stage| {
        let old = set_keys(stage)?;
        // Before each move, and after the last.
        for moves in 0..=2 * old.len() {
            let before = keys("/etc/ssh")?;
            let script = format!(
                "[ $(grep -c '^mv ' {CALLS}) -le {moves} ] || {{ kill -KILL $PPID; exit; }}; exec /usr/bin/mv \"$@\""
            );
            stub(stage, "mv", &script)?;
            stub(stage, "systemctl", "kill -KILL $PPID")?;
            stage.folder("/run/systemd/system")?;
            Hook::new(SSH_HOST_KEYS)
                .run()
                .expect_err("the hook was not killed");
            // Whatever sshd would load is a key of the right type, old or new.
            let after = private_keys("/etc/ssh")?;
            assert_eq!(after.len(), old.len(), "after {moves} moves");
            let changed = after
                .iter()
                .filter(|(kind, key)| before[*kind].0 != **key)
                .count();
            // Of each key the private part is moved first.
            assert_eq!(changed, moves.div_ceil(2), "after {moves} moves");

            std::fs::remove_file(Path::new(STUBS).join("mv"))?;
            std::fs::remove_file(Path::new(STUBS).join("systemctl"))?;
            std::fs::remove_dir("/run/systemd/system")?;
            Hook::new(SSH_HOST_KEYS).attempt(2).run()?;
            assert_renewed(&before, &keys("/etc/ssh")?);
            assert_eq!(left_behind("/etc/ssh")?, [""; 0]);
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn a_key_that_cannot_be_renewed_keeps_all_the_old_ones_and_is_named() {
    Stage::play(|stage| {
        let old = set_keys(stage)?;
        std::fs::write(key_file("zz"), "no key\n")?;
        let failed = Hook::new(SSH_HOST_KEYS).run().expect_err("that is no key");
        assert!(
            format!("{failed:#}").contains("ssh_host_zz_key"),
            "{failed:#}"
        );
        std::fs::remove_file(key_file("zz"))?;
        assert_eq!(keys("/etc/ssh")?, old);

        // All others could be moved into place.
        std::fs::copy(key_file("rsa"), "/run/elsewhere")?;
        stage.bind(Path::new("/run/elsewhere"), &key_file("rsa"))?;
        let failed = Hook::new(SSH_HOST_KEYS).run().expect_err("that is a mount");
        assert!(
            format!("{failed:#}").contains("is mounted from elsewhere"),
            "{failed:#}"
        );
        rustix::mount::unmount(key_file("rsa"), UnmountFlags::empty())?;
        assert_eq!(keys("/etc/ssh")?, old);

        // A key of a type that OpenSSH does not know any more is of no use to sshd.
        std::fs::write(key_file("dsa"), "no key\n")?;
        Hook::new(SSH_HOST_KEYS).run()?;
        std::fs::remove_file(key_file("dsa"))?;
        assert_renewed(&old, &keys("/etc/ssh")?);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn sshd_is_told_of_its_new_keys_and_says_where_they_are() {
    Stage::play(|stage| {
        let old = set_keys(stage)?;
        stage.folder("/run/keys")?;
        let moved = Path::new("/run/keys/of-sshd");
        std::fs::copy(key_file("rsa"), moved)?;
        std::fs::remove_file(key_file("rsa"))?;
        stub(
            stage,
            "sshd",
            "echo port 22; echo hostkey /run/keys/of-sshd; echo hostkey /run/none",
        )?;
        stage.folder("/run/systemd/system")?;
        stub(
            stage,
            "systemctl",
            r#"case "$*" in *is-active*) [ "$3" = sshd.service ] ;; esac"#,
        )?;

        Hook::new(SSH_HOST_KEYS).run()?;

        assert_ne!(fingerprint(moved)?, old["RSA 2048"].0);
        let calls = calls()?;
        let reload = "systemctl --job-mode=ignore-dependencies reload sshd.service";
        assert_eq!(calls.last().map(String::as_str), Some(reload), "{calls:?}");

        stub(
            stage,
            "systemctl",
            "case $1 in --quiet) ;; *) exit 1 ;; esac",
        )?;
        Hook::new(SSH_HOST_KEYS)
            .run()
            .expect_err("sshd goes on with the old keys");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn without_systemd_sshd_is_told_by_a_signal() {
    Stage::play(|stage| {
        set_keys(stage)?;
        // A program of this name, which says when it was told.
        let script =
            "trap 'echo told >>/run/told' HUP; echo $$ >/run/sshd.pid; while :; do sleep 0.1; done";
        stub(stage, "sshd", script)?;
        let sshd = Command::new(Path::new(STUBS).join("sshd"))
            .stdin(Stdio::null())
            .spawn()?;
        let _sshd = Running(sshd);
        wait_until("it runs", || {
            Ok(std::fs::read_to_string("/run/sshd.pid").is_ok_and(|text| text.ends_with('\n')))
        })?;
        // Only for the signal: as a command it would run for ever.
        std::fs::remove_file(Path::new(STUBS).join("sshd"))?;

        Hook::new(SSH_HOST_KEYS).run()?;

        wait_until("it was told", || Ok(Path::new("/run/told").exists()))?;
        Ok(())
    });
}

#[test]
#[ignore = "needs root and ssh-keygen"]
fn a_machine_without_ssh_host_keys_gets_none() {
    Stage::play(|stage| {
        set(stage)?;
        stage.folder("/etc/ssh")?;
        for key in ["rsa", "ecdsa", "ed25519"] {
            let _ = std::fs::remove_file(key_file(key));
        }
        let said = Hook::new(SSH_HOST_KEYS).run()?;
        assert!(said.contains("no SSH host keys"), "{said}");
        assert!(!Path::new("/etc/ssh/sysgenid-old").exists());
        Ok(())
    });
}

// 40-dhcp-renew

#[test]
#[ignore = "needs root"]
fn networkd_asks_anew_on_interfaces_with_dhcp_alone() {
    Stage::play(|stage| {
        set(stage)?;
        let links = stage.folder("/run/systemd/netif/links")?;
        std::fs::write(links.join("1"), "ADMIN_STATE=unmanaged\n")?;
        std::fs::write(links.join("2"), "DHCP_LEASE=/run/systemd/netif/leases/2\n")?;
        std::fs::write(links.join("3"), "NETWORK_FILE=/etc/static.network\n")?;
        std::fs::write(
            links.join("4"),
            "DHCP6_CLIENT_IAID=0x1\nDHCP6_CLIENT_DUID=00:02\n",
        )?;
        stage.folder("/run/systemd/system")?;
        stub(stage, "networkctl", "")?;
        stub(stage, "systemctl", "")?;
        Hook::new(DHCP_RENEW).run()?;
        let wanted = [
            "systemctl --quiet is-active systemd-networkd.service",
            "systemctl --job-mode=ignore-dependencies restart systemd-networkd.service",
            "networkctl reconfigure 2 4",
        ];
        assert_eq!(calls()?, wanted);

        stub(stage, "networkctl", "exit 1")?;
        let failed = Hook::new(DHCP_RENEW).run().expect_err("it cannot ask");
        assert!(
            format!("{failed:#}").contains("failed: networkctl"),
            "{failed:#}"
        );

        stub(stage, "systemctl", "exit 3")?;
        Hook::new(DHCP_RENEW).run()?;
        assert_eq!(calls()?, [wanted[0]], "networkd does not run");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn network_manager_asks_anew_on_interfaces_with_dhcp_alone() {
    Stage::play(|stage| {
        set(stage)?;
        let script = r#"
            cat >/dev/null
            case "$*" in
                *RUNNING*) echo running ;;
                *--active) printf 'aa-1:eth0\nbb-2:eth1\ncc-3:\n' ;;
                *"show eth0") echo 'ip_address = 192.0.2.7' ;;
                *"uuid bb-2"*) exit 1 ;;
            esac"#;
        stub(stage, "nmcli", script)?;
        Hook::new(DHCP_RENEW).run()?;
        let up: Vec<_> = calls()?
            .into_iter()
            .filter(|call| call.contains(" up "))
            .collect();
        assert_eq!(up, ["nmcli --wait 20 connection up uuid aa-1 ifname eth0"]);

        stub(
            stage,
            "nmcli",
            &script.replace("show eth0\"", "show eth\"?"),
        )?;
        let failed = Hook::new(DHCP_RENEW).run().expect_err("one of two fails");
        assert!(
            format!("{failed:#}").contains("failed: nmcli"),
            "{failed:#}"
        );

        stub(stage, "nmcli", "exit 8")?;
        Hook::new(DHCP_RENEW).run()?;
        assert_eq!(calls()?.len(), 1, "it does not run");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn dhcpcd_rebinds_as_it_runs() {
    Stage::play(|stage| {
        set(stage)?;
        stub(stage, "dhcpcd", "")?;
        let dhcpcd = start_named(stage, "dhcpcd", &[])?;
        let pid = dhcpcd.0.id().to_string();
        stage.folder("/run/dhcpcd")?;

        std::fs::write("/run/dhcpcd/eth0.pid", &pid)?;
        std::fs::write("/run/dhcpcd/eth1-4.pid", &pid)?;
        // It has ended.
        std::fs::write("/run/dhcpcd/eth2.pid", "4194304")?;
        Hook::new(DHCP_RENEW).run()?;
        assert_eq!(
            calls()?,
            ["dhcpcd --rebind eth0", "dhcpcd -4 --rebind eth1"]
        );

        std::fs::write("/run/dhcpcd/pid", &pid)?;
        std::fs::write(CALLS, "")?;
        Hook::new(DHCP_RENEW).run()?;
        assert_eq!(calls()?, ["dhcpcd --rebind"]);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn dhclient_is_started_again_as_it_was() {
    Stage::play(|stage| {
        set(stage)?;
        stub(stage, "dhclient", "")?;
        let as_it_was = [
            "-4",
            "-pf",
            "/run/dhclient eth0.pid",
            "-lf",
            "/run/*",
            "eth0",
        ];
        // It is killed, because the stub does not stop it.
        let mut dhclient = start_named(stage, "dhclient", &as_it_was)?;
        let _managed = start_named(stage, "dhclient", &["-d", "eth1"])?;

        let said = Hook::new(DHCP_RENEW).run()?;

        assert!(said.contains("is left to the program"), "{said}");
        let arguments = as_it_was.join(" ");
        let wanted = [
            format!("dhclient -x {arguments}"),
            format!("dhclient -nw {arguments}"),
        ];
        assert_eq!(calls()?, wanted);
        dhclient.0.wait()?;

        // Where systemd runs, not in the service of the hooks.
        stage.folder("/run/systemd/system")?;
        stub(stage, "systemctl", "exit 3")?;
        stub(stage, "systemd-run", "")?;
        std::fs::write(CALLS, "")?;
        let mut dhclient = start_named(stage, "dhclient", &as_it_was)?;
        Hook::new(DHCP_RENEW).run()?;
        let calls = calls()?;
        let wanted = format!("systemd-run --quiet --collect --scope dhclient -nw {arguments}");
        assert_eq!(calls.last(), Some(&wanted), "{calls:?}");
        dhclient.0.wait()?;

        stub(stage, "systemd-run", "exit 1")?;
        let _dhclient = start_named(stage, "dhclient", &as_it_was)?;
        let failed = Hook::new(DHCP_RENEW).run().expect_err("it does not start");
        assert!(
            format!("{failed:#}").contains("failed: dhclient"),
            "{failed:#}"
        );
        Ok(())
    });
}

#[test]
#[ignore = "needs root, dnsmasq and dhcpcd"]
fn dhcpcd_has_another_address_if_the_server_refuses_the_old() {
    // One for all interfaces, and as ifupdown runs it.
    for arguments in [&[][..], &[INTERFACE], &["-4", INTERFACE]] {
        Stage::play(move |stage| {
            DHCPCD.require()?;
            set(stage)?;
            let _daemons = Daemons::of_this_test()?;
            // It would wait for others that have the address, for some seconds, and for udev, and tell other programs
            // of this machine.
            let hasty = "noarp\nnodelay\nnodev\nscript /usr/bin/true\n";
            std::fs::write("/etc/dhcpcd.conf", hasty)?;
            let network = Network::lay(stage, ip)?;
            let server = network.serve(HERE)?;
            tool::run(Command::new("dhcpcd").args(arguments))?;
            server.wait_for_client(&[])?;
            drop(server);

            let server = network.serve(THERE)?;
            Hook::new(DHCP_RENEW).run()?;
            server.wait_for_client(&[])?;
            Ok(())
        });
    }
}

#[test]
#[ignore = "needs root, dnsmasq and dhclient"]
fn dhclient_has_another_address_if_the_server_refuses_the_old_and_waits_for_one_in_the_background()
{
    let by_ifupdown = [
        "-4",
        "-i",
        "-pf",
        "/run/dhclient.client0.pid",
        "-lf",
        "/var/lib/dhcp/dhclient.client0.leases",
        "-I",
        "-df",
        "/var/lib/dhcp/dhclient6.client0.leases",
        INTERFACE,
    ];
    // The second cannot be found by a file.
    for arguments in [&by_ifupdown[..], &["-4", "--no-pid", INTERFACE]] {
        let arguments: Vec<_> = arguments.iter().map(|one| (*one).to_owned()).collect();
        Stage::play(move |stage| {
            DHCLIENT.require()?;
            set(stage)?;
            let daemons = Daemons::of_this_test()?;
            let network = Network::lay(stage, ip)?;
            configure_dhclient(stage)?;
            let server = network.serve(HERE)?;
            tool::run(Command::new("dhclient").args(&arguments))?;
            server.wait_for_client(&[])?;
            drop(server);

            let server = network.serve(THERE)?;
            Hook::new(DHCP_RENEW).run()?;
            server.wait_for_client(&[])?;
            drop(server);

            // Nobody answers while the hook runs, which has not the patience of the client.
            let mut hook = Hook::new(DHCP_RENEW).start()?;
            wait_until("the hook ends", || Ok(hook.try_wait()?.is_some()))?;
            assert!(hook.wait()?.success());
            let server = network.serve(HERE)?;
            server.wait_for_client(&[])?;

            let clients = daemons.named("dhclient")?;
            let [client] = clients.as_slice() else {
                bail!("{clients:?} run");
            };
            let mut as_it_was = vec!["dhclient".to_owned(), "-nw".to_owned()];
            as_it_was.extend(arguments);
            assert_eq!(command_line(*client)?, as_it_was);
            Ok(())
        });
    }
}

#[test]
#[ignore = "needs root, dnsmasq, dhclient and systemd"]
fn dhclient_outlives_the_service_of_the_hooks() {
    Stage::play(|stage| {
        DHCLIENT.require()?;
        let machine = Machine::boot(stage)?;
        stage.lay_over("/var/lib")?;
        configure_dhclient(stage)?;
        let network = Network::lay(stage, |arguments| machine.run(Path::new("ip"), arguments))?;
        let server = network.serve(HERE)?;
        machine.run(Path::new("dhclient"), &["-4", INTERFACE])?;
        server.wait_for_client(&[])?;
        drop(server);

        // When it has ended, the client still asks.
        Hook::new(DHCP_RENEW).run_as_service(&machine)?;
        let server = network.serve(THERE)?;
        server.wait_for_client(&[])?;
        Ok(())
    });
}

#[test]
#[ignore = "needs root, dnsmasq, systemd and dbus-daemon"]
fn networkd_has_another_address_if_the_machine_has_another_id() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        stage.lay_over("/var/lib")?;
        std::fs::write("/etc/machine-id", format!("{OLD_ID}\n"))?;
        machine.start_bus(stage)?;
        let network = Network::lay(stage, |arguments| machine.run(Path::new("ip"), arguments))?;
        let server = network.serve(HERE)?;
        std::fs::write(
            stage.folder("/etc/systemd/network")?.join("client.network"),
            format!("[Match]\nName={INTERFACE}\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n"),
        )?;
        machine.add_unit_of_system(NETWORKD)?;
        // Else it waits for udev, which does not run.
        let without_udev = "[Service]\nReadOnlyPaths=/sys\n";
        machine.add_unit(&format!("{NETWORKD}.d/udev.conf"), without_udev)?;
        machine.systemctl(&["start", NETWORKD])?;
        let old = server.wait_for_client(&[])?;
        let before = server.identifiers()?;

        Hook::new(MACHINE_ID).run_in(&machine)?;
        Hook::new(DHCP_RENEW).run_in(&machine)?;

        server.wait_for_client(&[old])?;
        let after = server.identifiers()?;
        assert!(after.iter().any(|one| !before.contains(one)), "{after:?}");
        Ok(())
    });
}

/// The addresses of the server that the machine was cloned with, and those of the one that it wakes up with.
const HERE: RangeInclusive<u8> = 10..=99;
const THERE: RangeInclusive<u8> = 110..=199;

const NETWORKD: &str = "systemd-networkd.service";

fn ip(arguments: &[&str]) -> Result<String> {
    tool::run(Command::new("ip").args(arguments))
}

/// Has dhclient do after seconds what it does after minutes, and tell no other programs of this machine.
fn configure_dhclient(stage: &Stage) -> Result<()> {
    let folder = stage.folder("/etc/dhcp")?;
    let times = "initial-interval 1; backoff-cutoff 1; reboot 1; retry 1;\n";
    std::fs::write(folder.join("dhclient.conf"), times)?;
    let empty = stage.folder("/run/nothing")?;
    for scripts in ["dhclient-enter-hooks.d", "dhclient-exit-hooks.d"] {
        stage.bind(&empty, &stage.folder(folder.join(scripts))?)?;
    }
    Ok(())
}

/// The processes in a network namespace that a test has to itself. They are killed when it is done.
struct Daemons {
    namespace: PathBuf,
}

impl Daemons {
    fn of_this_test() -> Result<Self> {
        let namespace = std::fs::read_link("/proc/thread-self/ns/net")?;
        let of_others = std::fs::read_link("/proc/self/ns/net")?;
        ensure!(namespace != of_others, "it is the namespace of the machine");
        Ok(Self { namespace })
    }

    fn all(&self) -> Result<Vec<Pid>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(number) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // One that has ended has none.
            let namespace = std::fs::read_link(entry.path().join("ns/net"));
            if namespace.is_ok_and(|namespace| namespace == self.namespace) {
                all.extend(Pid::from_raw(number));
            }
        }
        Ok(all)
    }

    fn named(&self, name: &str) -> Result<Vec<Pid>> {
        let mut named = self.all()?;
        named.retain(|process| {
            let path = format!("/proc/{process}/comm");
            std::fs::read_to_string(path).is_ok_and(|comm| comm.trim_end() == name)
        });
        Ok(named)
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        // Until one has been killed it may start another.
        let killed = wait_until("what the test has started ends", || {
            let all = self.all()?;
            for process in &all {
                let _ = rustix::process::kill_process(*process, Signal::KILL);
            }
            Ok(all.is_empty())
        });
        if let Err(error) = killed {
            eprintln!("{error:#}");
        }
    }
}

/// What a process was started with.
fn command_line(process: Pid) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cmdline"))?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

// 50-chrony-makestep

#[test]
#[ignore = "needs root and chrony"]
fn chronyd_measures_anew_and_then_steps() {
    Stage::play(|stage| {
        set(stage)?;
        tool::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let _server = Chronyd::start(stage, "server", "port 123\nlocal stratum 1\nallow\n")?;
        // It would measure once in a day.
        let sources = "server 127.0.0.1 minpoll 17 maxpoll 17\nport 0\nlog measurements\n";
        let _client = Chronyd::start(stage, "", sources)?;
        // It must not set the clock, so this is how it answers when it is told to.
        let script = r#"
            case $* in
                *makestep*) /usr/bin/chronyc "$@" | grep -q '^500 Failure' ;;
                *) exec /usr/bin/chronyc "$@" ;;
            esac"#;
        stub(stage, "chronyc", script)?;

        Hook::new(CHRONY_MAKESTEP).run()?;

        let measured = std::fs::read_to_string("/run/chronyd/measurements.log")?;
        let from_server = |line: &&str| line.contains("127.0.0.1");
        assert!(
            measured.lines().filter(from_server).count() >= 4,
            "{measured}"
        );
        let calls = calls()?;
        let wanted = Some("chronyc -n makestep");
        assert_eq!(calls.last().map(String::as_str), wanted, "{calls:?}");

        // What it answers counts.
        std::fs::remove_file(Path::new(STUBS).join("chronyc"))?;
        stub(stage, "sleep", "")?;
        let failed = Hook::new(CHRONY_MAKESTEP).run().expect_err("it must not");
        assert!(format!("{failed:#}").contains("500 Failure"), "{failed:#}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and chrony"]
fn a_chronyd_that_does_not_keep_the_clock_is_left_alone_but_not_one_that_hangs() {
    Stage::play(|stage| {
        set(stage)?;
        CHRONYD.require()?;
        let said = Hook::new(CHRONY_MAKESTEP).run()?;
        assert!(said.contains("chronyd does not run"), "{said}");

        // Nor is one that leaves the clock to others, as in a container.
        let pid_file = "pidfile /run/chrony/chronyd.pid\n";
        let chronyd = Chronyd::start(stage, "", pid_file)?;
        let said = Hook::new(CHRONY_MAKESTEP).run()?;
        assert!(said.contains("does not set this machine's clock"), "{said}");
        drop(chronyd);

        // One that was killed leaves this.
        stage.folder("/run/chrony")?;
        std::fs::write("/run/chrony/chronyd.pid", std::process::id().to_string())?;
        Hook::new(CHRONY_MAKESTEP).run()?;

        let chronyd = start_named(stage, "chronyd", &[])?;
        std::fs::write("/run/chrony/chronyd.pid", chronyd.0.id().to_string())?;
        let failed = Hook::new(CHRONY_MAKESTEP).run().expect_err("it hangs");
        assert!(
            format!("{failed:#}").contains("does not answer"),
            "{failed:#}"
        );
        Ok(())
    });
}

// 90-restart-units

#[test]
#[ignore = "needs root and systemd"]
fn named_units_are_restarted_if_they_run() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        for name in ["one", "two", "three", "idle"] {
            machine.add_unit(&format!("{name}.service"), SLEEPER)?;
        }
        machine.systemctl(&["start", "one", "two", "three"])?;
        let before = machine.invocations(&["one", "two", "three"])?;
        let restart = Hook::new(RESTART_UNITS);
        let said = restart.run_in(&machine)?;
        assert!(said.contains("none to restart"), "{said}");

        name_units(
            stage,
            "# A comment\n\none.service # another\n  idle.service\ntwo",
        )?;
        let more = stage.folder("/etc/sysgenid/restart-units.d")?;
        std::fs::write(more.join("shop"), "three.service one.service\n")?;
        let said = restart.run_in(&machine)?;

        let restarted = [
            "one.service: restarted",
            "two: restarted",
            "three.service: restarted",
        ];
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.ends_with(": restarted"))
            .collect();
        assert_eq!(lines, restarted);
        assert!(said.contains("idle.service: does not run"), "{said}");
        let after = machine.invocations(&["one", "two", "three"])?;
        for (unit, invocation) in &before {
            assert_ne!(after[unit], *invocation, "{unit}");
        }
        let idle: String = machine.property("idle.service", "ActiveState")?;
        assert_eq!(idle, "inactive");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_unit_that_fails_is_named_and_it_alone_is_tried_again() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        // One that is restarted too often shows it.
        let good = format!("[Unit]\nStartLimitIntervalSec=0\n{SLEEPER}");
        machine.add_unit("good.service", &good)?;
        machine.add_unit(
            "bad.service",
            "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=test ! -e /run/fail\n",
        )?;
        machine.systemctl(&["start", "good", "bad"])?;
        name_units(stage, "bad.service\ngood.service\n")?;
        std::fs::write("/run/fail", "")?;
        let before = machine.invocations(&["good"])?;
        let hook = |attempt| Hook::new(RESTART_UNITS).generation(3).attempt(attempt);

        let failed = hook(1).run_in(&machine).expect_err("one unit fails");
        assert!(
            format!("{failed:#}").contains("not restarted: bad.service ("),
            "{failed:#}"
        );
        let after = machine.invocations(&["good"])?;
        assert_ne!(after, before, "the unit after it was left out");

        // It does not run any more, because of the hook: so it is not left as it is, not even when nobody
        // remembers the first attempt.
        for attempt in [2, 1, 2] {
            hook(attempt).run_in(&machine).expect_err("it fails still");
        }
        let after = machine.invocations(&["good"])?;
        hook(3).run_in(&machine).expect_err("it fails still");
        assert_eq!(
            machine.invocations(&["good"])?,
            after,
            "was restarted again"
        );

        std::fs::remove_file("/run/fail")?;
        hook(4).run_in(&machine)?;
        let state: String = machine.property("bad.service", "ActiveState")?;
        assert_eq!(state, "active");

        // At the next change, all of them, also if it comes as a second attempt.
        Hook::new(RESTART_UNITS)
            .generation(4)
            .attempt(2)
            .run_in(&machine)?;
        assert_ne!(machine.invocations(&["good"])?, after);
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn units_that_cannot_be_restarted_are_named() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        name_units(stage, "mistyped.service\nsysgenid-hooks.service\n")?;
        let failed = Hook::new(RESTART_UNITS)
            .run_in(&machine)
            .expect_err("neither can be restarted");
        let failed = format!("{failed:#}");
        let wanted = "not restarted: mistyped.service sysgenid-hooks.service";
        assert!(failed.contains(wanted), "{failed}");
        assert!(
            failed.contains("mistyped.service is not a unit"),
            "{failed}"
        );
        assert!(failed.contains("runs this hook"), "{failed}");
        Ok(())
    });
}

// The units

#[test]
#[ignore = "needs root and systemd"]
fn systemd_finds_no_fault_in_the_units() {
    Stage::play(|stage| {
        // The programs of the units must be there.
        for (folder, program) in [("/usr/bin", "sysgenctl"), ("/usr/sbin", "sysgenidd")] {
            stage.lay_over(folder)?;
            stage.write_program(&Path::new(folder).join(program), "#!/bin/sh\n")?;
        }
        for unit in systemd::PACKAGED {
            let mut command = Command::new("systemd-analyze");
            command
                .args(["verify", "--man=no"])
                .arg(systemd::packaged().join(unit));
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<_> = said
                .lines()
                .filter(|line| line.contains("sysgenid"))
                .filter(|line| !TOO_NEW.iter().any(|key| line.contains(key)))
                .collect();
            assert_eq!(ours, [""; 0], "{unit}");
            assert!(output.status.success(), "{unit}: {said}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn what_a_hook_changes_is_changed_for_the_whole_machine() {
    Stage::play(|stage| {
        let machine = Machine::boot(stage)?;
        stage.lay_over("/var/lib")?;
        let elsewhere = Path::new("/run/elsewhere");
        std::fs::write(elsewhere, format!("{OLD_ID}\n"))?;
        if !Path::new("/etc/machine-id").exists() {
            File::create("/etc/machine-id")?;
        }
        stage.bind(elsewhere, Path::new("/etc/machine-id"))?;

        Hook::new(MACHINE_ID).run_as_service(&machine)?;
        let seen = machine.run(Path::new("cat"), &["/etc/machine-id"])?;
        assert_ne!(seen, OLD_ID, "{}", systemd::said());
        assert_eq!(seen.len(), 32, "{seen}");

        machine.run(Path::new("hostname"), &["web"])?;
        stage.lay_over("/usr/bin")?;
        std::fs::remove_file("/usr/bin/hostnamectl")?;
        Hook::new(HOSTNAME_SUFFIX).run_as_service(&machine)?;
        assert_suffix(&machine.run(Path::new("hostname"), &[])?, "web", "");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn the_target_is_reached_anew_after_each_change_and_stops_what_is_part_of_it() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_waiter(stage)?;
        File::create("/dev/sysgenid")?;

        machine.systemctl(&["start", "--no-block", "web.service"])?;
        machine.wait_for_state(WAIT, "activating")?;
        assert_eq!(machine.state("web.service")?, "inactive");
        cue.give(&machine, 0)?;
        machine.wait_for_state("web.service", "active")?;
        assert_eq!(machine.state(SETTLED)?, "active");
        let first = machine.invocations(&["web"])?;

        machine.systemctl(&UNSETTLE)?;
        machine.wait_for_state(WAIT, "activating")?;
        machine.wait_for_state("web.service", "inactive")?;
        assert_eq!(machine.state(SETTLED)?, "inactive");
        assert_eq!(machine.state("other.service")?, "active");

        // Another change while the first is dealt with: it waits anew.
        let waiting = machine.invocations(&[WAIT])?;
        machine.systemctl(&UNSETTLE)?;
        machine.wait_until("it waits anew", || {
            Ok(machine.invocations(&[WAIT])? != waiting && machine.state(WAIT)? == "activating")
        })?;
        assert_eq!(machine.state(SETTLED)?, "inactive");

        // Meanwhile a hook restarts units. Neither waits for the other.
        name_units(stage, "web.service\nlate.service\nother.service\n")?;
        let other = machine.invocations(&["other", "late"])?;
        let said = Hook::new(RESTART_UNITS).run_in(&machine)?;
        for unit in ["web.service", "late.service"] {
            let told = format!("{unit}: restarted as soon as sysgenid-settled.target is reached");
            assert!(said.contains(&told), "{said}");
        }
        assert_eq!(machine.invocations(&["late"])?["late"], other["late"]);
        assert_ne!(machine.invocations(&["other"])?["other"], other["other"]);

        cue.give(&machine, 0)?;
        machine.wait_for_state("web.service", "active")?;
        machine.wait_for_state(SETTLED, "active")?;
        assert_ne!(machine.invocations(&["web"])?, first);
        machine.wait_until("what is only ordered after it is restarted", || {
            let now = machine.invocations(&["late"])?;
            Ok(machine.state("late.service")? == "active" && now["late"] != other["late"])
        })?;

        // Whoever starts it after a stop waits.
        machine.systemctl(&["stop", SETTLED])?;
        machine.wait_for_state(WAIT, "inactive")?;
        Ok(())
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_change_is_not_lost_that_comes_just_before_the_target_is_reached() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_waiter(stage)?;
        File::create("/dev/sysgenid")?;
        // "Just before" lasts for as long as this takes.
        tool::run(Command::new("mkfifo").arg("/run/rest"))?;
        let rest = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=cat /run/rest\n";
        machine.add_unit("rest.service", rest)?;
        let and_rest = "[Unit]\nWants=rest.service\nAfter=rest.service\n";
        machine.add_unit(&format!("{SETTLED}.d/rest.conf"), and_rest)?;
        machine.systemctl(&["start", "--no-block", SETTLED])?;
        cue.give(&machine, 0)?;
        machine.wait_for_state(WAIT, "active")?;
        assert_eq!(machine.state(SETTLED)?, "inactive");

        machine.systemctl(&UNSETTLE)?;
        machine.wait_for_state(WAIT, "activating")?;
        std::fs::write("/run/rest", "")?;
        machine.wait_for_state("rest.service", "active")?;
        assert_eq!(machine.state(SETTLED)?, "inactive");
        cue.give(&machine, 0)?;
        machine.wait_for_state(SETTLED, "active")
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn a_machine_without_a_node_reaches_the_target_at_once() {
    Stage::play(|stage| {
        let (machine, cue) = boot_with_waiter(stage)?;
        machine.systemctl(&["start", "--no-block", "web.service"])?;
        machine.wait_for_state("web.service", "active")?;
        assert_eq!(machine.state(SETTLED)?, "active");

        // Nor does one whose node goes away in that moment fail.
        machine.systemctl(&["stop", SETTLED])?;
        File::create("/dev/sysgenid")?;
        machine.systemctl(&["start", "--no-block", SETTLED])?;
        machine.wait_for_state(WAIT, "activating")?;
        cue.give(&machine, 4)?;
        machine.wait_for_state(SETTLED, "active")?;

        // Where somebody limits the time, the target is not reached when it is over.
        machine.systemctl(&UNSETTLE)?;
        machine.wait_for_state(WAIT, "activating")?;
        cue.give(&machine, 3)?;
        machine.wait_for_state(WAIT, "failed")?;
        assert_eq!(machine.state(SETTLED)?, "inactive");
        Ok(())
    });
}

/// Settings that older releases of systemd do not know, and leave out.
const TOO_NEW: [&str; 2] = ["'RestartMode'", "'FileDescriptorStorePreserve'"];

/// A machine where `sysgenctl wait` waits for the cue: 0 if everybody has acknowledged. `web` is part of the
/// target, `late` is ordered after it, `other` knows nothing of it.
fn boot_with_waiter(stage: &Stage) -> Result<(Machine, Cue)> {
    stage.lay_over("/usr/bin")?;
    let cue = Cue::new(stage, "wait")?;
    let waiter = format!("#!/bin/sh\n[ \"$*\" = wait ] || exit 9\n{}", cue.script());
    stage.write_program(Path::new(COMMAND_LINE_PATH), &waiter)?;
    let machine = Machine::boot(stage)?;
    let after = format!("[Unit]\nAfter={SETTLED}\n");
    machine.add_unit("late.service", &format!("{after}{SLEEPER}"))?;
    machine.add_unit(
        "web.service",
        &format!("{after}Wants={SETTLED}\nPartOf={SETTLED}\n{SLEEPER}"),
    )?;
    machine.add_unit("other.service", SLEEPER)?;
    machine.systemctl(&["start", "late.service", "other.service"])?;
    Ok((machine, cue))
}

fn name_units(stage: &Stage, text: &str) -> Result<()> {
    stage.folder("/etc/sysgenid")?;
    Ok(std::fs::write("/etc/sysgenid/restart-units", text)?)
}

/// A hook, and what it is told.
struct Hook {
    path: PathBuf,
    variables: [(&'static str, String); 3],
}

impl Hook {
    fn new(name: &str) -> Self {
        Self {
            path: file(name),
            variables: [
                ("SYSGENID_GENERATION", "1".to_owned()),
                ("SYSGENID_PREVIOUS_GENERATION", "0".to_owned()),
                ("SYSGENID_ATTEMPT", "1".to_owned()),
            ],
        }
    }

    fn generation(mut self, generation: u32) -> Self {
        self.variables[0].1 = generation.to_string();
        self
    }

    fn attempt(mut self, attempt: u32) -> Self {
        self.variables[2].1 = attempt.to_string();
        self
    }

    /// As it is run, but for the stubs.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env("PATH", format!("{STUBS}:{PATH}"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end. Says what it wrote.
    fn run(&self) -> Result<String> {
        succeed(&mut self.command())
    }

    /// The same in a machine, and within the time that a hook has: it might wait for what waits for it.
    fn run_in(&self, machine: &Machine) -> Result<String> {
        let variables = self.variables.iter();
        let path = ("PATH", PATH.to_owned());
        let mut arguments: Vec<_> = ["30", "env", "-i"].map(str::to_owned).into();
        arguments.extend(
            variables
                .chain([&path])
                .map(|(name, value)| format!("{name}={value}")),
        );
        arguments.push(self.path.display().to_string());
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        machine.run(Path::new("timeout"), &arguments)
    }

    /// The same in the packaged unit as it is, but for what that runs. What it leaves behind ends with it.
    fn run_as_service(&self, machine: &Machine) -> Result<()> {
        let mut unit = "[Service]\nType=oneshot\nRestart=no\nExecStart=\n".to_owned();
        unit += &format!(
            "ExecStart={}\nEnvironment=PATH={PATH}\n",
            self.path.display()
        );
        for (name, value) in &self.variables {
            unit += &format!("Environment={name}={value}\n");
        }
        machine.add_unit("sysgenid-hooks.service.d/hook.conf", &unit)?;
        File::create("/dev/sysgenid")?;
        machine
            .systemctl(&["start", "sysgenid-hooks.service"])
            .map(drop)
    }

    /// Starts it with a process group of its own, to be killed.
    fn start(&self) -> Result<Child> {
        Ok(self.command().process_group(0).spawn()?)
    }
}

fn succeed(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output()?;
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(status.success(), "{command:?} failed ({status}): {said}");
    Ok(said)
}

/// Kills a hook and all that it started.
fn kill(mut hook: Child) -> Result<()> {
    let group = Pid::from_raw(hook.id().try_into()?).context("a process has an identifier")?;
    rustix::process::kill_process_group(group, Signal::KILL)?;
    hook.wait()?;
    Ok(())
}

fn wait_until(what: &str, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    patience::wait_until(|| what.to_owned(), is_so)
}

/// A file of the packaged hooks.
fn file(name: &str) -> PathBuf {
    systemd::packaged().join("../hooks").join(name)
}

fn base_name(hook: &str) -> &str {
    hook.rsplit('/').next().unwrap_or(hook)
}

/// Lets a test change what hooks change, and leaves no network to them.
fn set(stage: &Stage) -> Result<()> {
    // SAFETY: Only this thread is moved, and whatever it starts; the stage was made for it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUTS | UnshareFlags::NEWNET) }?;
    stage.lay_over("/etc")?;
    stage.lay_over("/var/lib")?;
    stage.folder(STUBS)?;
    Ok(())
}

/// Puts a script in the place of a program. It writes down how it is called, first of all. The list of calls
/// begins anew.
fn stub(stage: &Stage, name: &str, script: &str) -> Result<()> {
    let path = stage.folder(STUBS)?.join(name);
    std::fs::write(CALLS, "")?;
    stage.write_program(
        &path,
        &format!("#!/bin/sh\necho \"{name} $*\" >>{CALLS}\n{script}\n"),
    )
}

/// How the stubs were called, since the last was made.
fn calls() -> Result<Vec<String>> {
    Ok(std::fs::read_to_string(CALLS)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// A process of this name that does nothing.
fn start_named(stage: &Stage, name: &str, arguments: &[&str]) -> Result<Running> {
    let mut program = Path::new("/run/bin").join(name);
    if !program.exists() {
        program = stage.install_as(name, env!("CARGO_BIN_EXE_stand-in"))?;
    }
    let mut command = Command::new(program);
    Ok(Running(
        command.args(arguments).stdin(Stdio::piped()).spawn()?,
    ))
}

/// The names of files in a folder that a hook made on the way.
fn left_behind(folder: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.contains("sysgenid-new") {
            left.push(name);
        }
    }
    Ok(left)
}

const OLD_ID: &str = "0123456789abcdef0123456789abcdef";

fn set_machine_id(stage: &Stage) -> Result<()> {
    set(stage)?;
    stage.folder("/var/lib/dbus")?;
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        if Path::new(path).symlink_metadata().is_ok() {
            std::fs::remove_file(path)?;
        }
        std::fs::write(path, format!("{OLD_ID}\n"))?;
    }
    Ok(())
}

/// The machine-id, which must be one.
fn machine_id() -> Result<String> {
    let text = std::fs::read_to_string("/etc/machine-id")?;
    let id = text
        .strip_suffix('\n')
        .with_context(|| format!("{text:?}"))?;
    let is_one = id.len() == 32 && id.chars().all(|digit| "0123456789abcdef".contains(digit));
    ensure!(is_one, "{id:?} is no machine-id");
    Ok(id.to_owned())
}

/// How many mounts there are at a path, one over the other.
fn mounts_of(path: &str) -> Result<usize> {
    let list = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let is_there = |line: &&str| line.split(' ').nth(4) == Some(path);
    Ok(list.lines().filter(is_there).count())
}

fn host_name() -> Result<String> {
    tool::run(&mut Command::new("hostname"))
}

fn set_host_name(name: &str) -> Result<()> {
    tool::run(Command::new("hostname").arg(name)).map(drop)
}

fn assert_suffix(name: &str, label: &str, domain: &str) {
    let suffix = name
        .strip_prefix(label)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.strip_suffix(domain))
        .unwrap_or_else(|| panic!("{name:?} is not of {label:?} and {domain:?}"));
    let is_one = suffix.len() == 8 && suffix.chars().all(|letter| LETTERS.contains(letter));
    assert!(is_one, "{name:?}");
    assert!(name.len() <= 64, "{name:?}");
}

/// Fingerprint and public part of keys, by type and size.
type Keys = BTreeMap<String, (String, String)>;

fn key_file(kind: &str) -> PathBuf {
    PathBuf::from(format!("/etc/ssh/ssh_host_{kind}_key"))
}

/// Puts three keys at `/etc/ssh`, of which some are not of the usual size.
fn set_keys(stage: &Stage) -> Result<Keys> {
    SSH_KEYGEN.require()?;
    set(stage)?;
    stage.folder("/etc/ssh")?;
    for (kind, bits) in [("rsa", "2048"), ("ecdsa", "384"), ("ed25519", "256")] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"]);
        tool::run(command.arg(key_file(kind)))?;
    }
    let keys = keys("/etc/ssh")?;
    assert_eq!(
        keys.keys().collect::<Vec<_>>(),
        ["ECDSA 384", "ED25519 256", "RSA 2048"]
    );
    Ok(keys)
}

/// The fingerprints of the private keys of a folder. Each must be whole.
fn private_keys(folder: &str) -> Result<BTreeMap<String, String>> {
    let mut keys = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if name.contains("/ssh_host_") && name.ends_with("_key") {
            // "384 SHA256:... comment (ECDSA)"
            let about = about(&path)?;
            let mut public = Command::new("ssh-keygen");
            let public = tool::run(public.args(["-y", "-P", "", "-f", ALONE]))?;
            ensure!(!public.is_empty(), "{name} is no private key");
            let (bits, kind) = (about[0].clone(), about[about.len() - 1].clone());
            let kind = format!("{} {bits}", kind.trim_matches(['(', ')']));
            let double = keys.insert(kind, about[1].clone());
            ensure!(double.is_none(), "two keys of one type");
        }
    }
    Ok(keys)
}

/// The keys of a folder. Each must be whole, and its public part must belong to it.
fn keys(folder: &str) -> Result<Keys> {
    let mut keys = Keys::new();
    for (kind, fingerprint) in private_keys(folder)? {
        let name = kind.split(' ').next().unwrap_or_default().to_lowercase();
        let public = format!("{folder}/ssh_host_{name}_key.pub");
        ensure!(
            about(Path::new(&public))?[1] == fingerprint,
            "{public} is another's"
        );
        keys.insert(kind, (fingerprint, std::fs::read_to_string(public)?));
    }
    Ok(keys)
}

/// A key is examined here. At its place another file could be read for it, the one with its public part.
const ALONE: &str = "/run/key-alone";

fn about(key: &Path) -> Result<Vec<String>> {
    std::fs::copy(key, ALONE)?;
    // It does not read what others might.
    std::fs::set_permissions(ALONE, PermissionsExt::from_mode(0o600))?;
    let about = tool::run(Command::new("ssh-keygen").args(["-l", "-f", ALONE]))?;
    Ok(about.split(' ').map(str::to_owned).collect())
}

fn fingerprint(key: &Path) -> Result<String> {
    Ok(about(key)?[1].clone())
}

/// Each key is another one of the same type.
fn assert_renewed(old: &Keys, new: &Keys) {
    assert!(new.keys().eq(old.keys()), "{old:?} {new:?}");
    for (kind, key) in old {
        assert_ne!(new[kind].0, key.0, "{kind} is the same");
    }
}

/// A chronyd that never touches the clock.
struct Chronyd {
    _running: Running,
}

impl Chronyd {
    /// With no name it is the one that `chronyc` talks to. The hook finds its process only if the configuration
    /// says where its file is.
    fn start(stage: &Stage, name: &str, configuration: &str) -> Result<Self> {
        CHRONYD.require()?;
        let folder = stage.folder(format!("/run/chrony{name}"))?;
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o750))?;
        let others = stage.folder("/run/chronyd")?;
        let file = others.join(format!("{name}.conf"));
        let socket = folder.join("chronyd.sock");
        let text = format!(
            "pidfile {0}/{name}.pid\nlogdir {0}\ncmdport 0\nbindcmdaddress {1}\n{configuration}",
            others.display(),
            socket.display(),
        );
        std::fs::write(&file, text)?;
        // -x: it never sets the clock. -d: in the foreground.
        let mut command = Command::new("chronyd");
        command.args(["-x", "-d", "-u", "root", "-f"]).arg(&file);
        let running = command.stdin(Stdio::null()).spawn().map(Running)?;
        wait_until("chronyd listens", || Ok(socket.exists()))?;
        Ok(Self { _running: running })
    }
}
