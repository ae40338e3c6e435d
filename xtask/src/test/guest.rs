// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest for a test: boots with a backend, and ends with a look at the kernel's log.

use std::ops::Deref;
use std::ops::DerefMut;
use std::path::PathBuf;

use anyhow::Result;
use anyhow::bail;
use tempfile::TempDir;

use crate::environment::Environment;
use crate::guid;
use crate::qemu::Machine;
use crate::qemu::PATIENCE;
use crate::qemu::Vm;
use crate::test::Context;
use crate::vmclock::Vmclock;

/// Keeps the kernel's own driver from the device, so that it is free for ours. The kernel has the
/// name misspelt like this.
pub(crate) const WITHOUT_STOCK_DRIVER: &str = "initcall_blacklist=vmgenid_plaform_driver_init";

/// What in a kernel's log says that something is wrong.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "general protection",
    "Unable to handle",
    "Kernel panic",
    "refcount_t",
    "UBSAN",
    "KFENCE",
    "leaked",
    "INFO: task",
    "rcu: INFO",
    "possible recursive locking",
    "possible circular locking",
    "sleeping function called",
    "scheduling while atomic",
    "inconsistent lock state",
    "Invalid wait context",
    "suspicious RCU usage",
    "ODEBUG",
    "panicked at",
    "list_del corruption",
    "list_add corruption",
    "suspected memory leaks",
    "page allocation failure",
    "nobody cared",
    // Our own modules' complaints; where one is expected, the test looks for it itself.
    "cannot reseed",
    "no uevent",
    "there is no /dev/sysgenid",
    "cannot listen",
];

/// What a vmclock counts from: not 0, which is what a page without a counter has there.
const FIRST_COUNTER: u64 = 1000;

/// Which module notices the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The kernel's driver has the device, and ours hears from it.
    Vmfork,
    /// Our own driver has the device.
    Acpi,
}

impl Backend {
    /// What its module is called.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Vmfork => "sysgenid_vmfork",
            Self::Acpi => "sysgenid_acpi",
        }
    }

    /// What loads it.
    pub(crate) fn load(self) -> &'static str {
        match self {
            Self::Vmfork => "modprobe sysgenid && modprobe sysgenid_vmfork",
            Self::Acpi => "modprobe sysgenid && modprobe sysgenid_acpi",
        }
    }
}

/// A running guest, with its folder.
pub(crate) struct Guest<'a> {
    environment: &'a Environment,
    folder: TempDir,
    machine: Machine,
    vm: Vm,
    restores: u32,
}

impl<'a> Guest<'a> {
    /// Boots a guest with a generation ID and loads a backend.
    pub(crate) fn boot(
        context: &'a Context<'_>,
        backend: Backend,
        append: &[&str],
    ) -> Result<Self> {
        let mut append = append.to_vec();
        if backend == Backend::Acpi {
            append.push(WITHOUT_STOCK_DRIVER);
        }
        let mut guest = Self::boot_bare(context, &append)?;
        guest.run(backend.load(), PATIENCE)?;
        Ok(guest)
    }

    /// Boots a guest with a generation ID and loads nothing.
    pub(crate) fn boot_bare(context: &'a Context<'_>, append: &[&str]) -> Result<Self> {
        let machine = context.environment()?.machine_with_guid()?;
        Self::boot_machine(
            context,
            Machine {
                append: append.iter().map(ToString::to_string).collect(),
                ..machine
            },
        )
    }

    /// Boots any machine and loads nothing.
    pub(crate) fn boot_machine(context: &'a Context<'_>, machine: Machine) -> Result<Self> {
        Self::boot_in(context, context.environment()?, machine)
    }

    /// Boots a machine of any environment, and loads nothing.
    pub(crate) fn boot_in(
        context: &Context<'_>,
        environment: &'a Environment,
        machine: Machine,
    ) -> Result<Self> {
        let folder = context.cache.temporary_folder()?;
        let vm = Vm::boot(&environment.tree, &machine, &folder.path().join("0"))?;
        Ok(Self {
            environment,
            folder,
            machine,
            vm,
            restores: 0,
        })
    }

    /// Has the machine's vmclock count generations, from some number on.
    pub(crate) fn count_generations(&mut self) -> Result<()> {
        let clock = Vmclock::Counting(FIRST_COUNTER);
        self.machine.vmclock = Some(clock);
        clock.write(&mut self.vm)
    }

    /// Stops the guest into a snapshot.
    pub(crate) fn snapshot(self) -> Result<Snapshot<'a>> {
        let Self {
            environment,
            folder,
            machine,
            vm,
            restores,
        } = self;
        let log = std::fs::read_to_string(vm.console_log())?;
        check_log(&log)?;
        let path = folder.path().join(format!("snapshot-{restores}"));
        vm.snapshot(&path)?;
        Ok(Snapshot {
            environment,
            folder,
            machine,
            path,
            restores,
        })
    }

    /// Has the guest hibernate to its disk, and checks the kernel's log.
    pub(crate) fn hibernate(self) -> Result<()> {
        let path = self.vm.console_log();
        self.vm.hibernate()?;
        check_log(&std::fs::read_to_string(path)?)
    }

    /// Checks the kernel's log and lets the guest go down.
    pub(crate) fn finish(self) -> Result<()> {
        let path = self.vm.console_log();
        self.vm.power_off()?;
        check_log(&std::fs::read_to_string(path)?)
    }
}

impl Deref for Guest<'_> {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl DerefMut for Guest<'_> {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }
}

/// A guest that was stopped.
pub(crate) struct Snapshot<'a> {
    environment: &'a Environment,
    folder: TempDir,
    machine: Machine,
    path: PathBuf,
    restores: u32,
}

impl<'a> Snapshot<'a> {
    /// Goes on as a new machine, which its devices say as far as it has them.
    pub(crate) fn restore(self) -> Result<Guest<'a>> {
        let machine = self.another_machine()?;
        self.restore_as(machine)
    }

    /// Goes on as the machine that it was.
    pub(crate) fn restore_unchanged(self) -> Result<Guest<'a>> {
        let machine = self.machine.clone();
        self.restore_as(machine)
    }

    fn restore_as(self, machine: Machine) -> Result<Guest<'a>> {
        let vm = self.start(&machine)?;
        Ok(Guest {
            environment: self.environment,
            folder: self.folder,
            machine,
            vm,
            restores: self.restores + 1,
        })
    }

    /// Starts a clone, and keeps the snapshot.
    pub(crate) fn clone_machine(&mut self) -> Result<Vm> {
        let vm = self.start(&self.another_machine()?)?;
        self.restores += 1;
        Ok(vm)
    }

    /// The same machine, with a new generation.
    fn another_machine(&self) -> Result<Machine> {
        let machine = self.machine.clone();
        Ok(Machine {
            guid: machine.guid.map(|_| guid::random()).transpose()?,
            vmclock: machine.vmclock.map(Vmclock::next),
            ..machine
        })
    }

    fn start(&self, machine: &Machine) -> Result<Vm> {
        let folder = self.folder.path().join((self.restores + 1).to_string());
        Vm::restore(&self.environment.tree, machine, &folder, &self.path)
    }
}

/// Fails if the kernel complained.
pub(crate) fn check_log(log: &str) -> Result<()> {
    let lines = without_races_of_others(log);
    for (index, line) in lines.iter().enumerate() {
        if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            let end = (index + 30).min(lines.len());
            bail!(
                "the guest's kernel complains:\n    {}",
                lines[index..end].join("\n    ")
            );
        }
    }
    Ok(())
}

/// A log's lines, but for reports of data races that are not ours: the kernel knows of some of its own, also in what we
/// call.
fn without_races_of_others(log: &str) -> Vec<&str> {
    let mut kept = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.contains("BUG: KCSAN: data-race") {
            kept.push(line);
            continue;
        }
        let mut report = vec![line];
        while let Some(line) = lines.next_if(|line| !line.contains(END_OF_RACE)) {
            report.push(line);
        }
        if is_ours(&report) {
            kept.extend(report);
        }
    }
    kept
}

/// Whether one of the two who race is ours: it is the innermost function of ours, or what that calls for an access.
fn is_ours(report: &[&str]) -> bool {
    report.iter().enumerate().any(|(index, line)| {
        let is_access = line.contains(" bytes by ");
        let innermost = report.iter().skip(index + 1).take(2);
        is_access
            && innermost
                .into_iter()
                .any(|line| line.contains("[sysgenid") || line.contains("[defects"))
    })
}

/// What stands before and after the report of a data race.
const END_OF_RACE: &str = "=========================";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found() {
        for line in [
            "[    1.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1",
            "[    1.0] BUG: kernel NULL pointer dereference",
            "[    1.0] BUG kmalloc-64 (Tainted): Object already free",
        ] {
            assert!(check_log(line).is_err(), "{line}");
        }
        assert!(check_log("[    1.0] sysgenid: loading out-of-tree module taints kernel.").is_ok());
    }

    #[test]
    fn races_of_others_are_no_complaint() {
        let race = |reader: &[&str]| {
            let frames: String = reader
                .iter()
                .map(|frame| format!("[ 1.0]  {frame}+0x1/0x2\n"))
                .collect();
            format!(
                "[ 1.0] ==============================\n\
                 [ 1.0] BUG: KCSAN: data-race in {first} / advance\n\
                 [ 1.0] \n\
                 [ 1.0] write to 0xffffffff81dd4388 of 320 bytes by interrupt on cpu 1:\n\
                 [ 1.0]  advance+0x24f/0x490\n\
                 [ 1.0] \n\
                 [ 1.0] read to 0xffffffff81dd43c8 of 8 bytes by task 69 on cpu 1:\n\
                 {frames}\
                 [ 1.0] \n\
                 [ 1.0] CPU: 0 Comm: sysgenid-guest\n\
                 [ 1.0] ==============================\n",
                first = reader[0],
            )
        };
        let others = race(&["tick", "ktime_get", "sysgenid_reseed [sysgenid]"]);
        assert!(check_log(&others).is_ok());
        let ours = [
            race(&["bump [sysgenid]", "x"]),
            race(&["rust_helper_atomic64_read", "bump [sysgenid]"]),
        ];
        for ours in ours {
            assert!(check_log(&ours).is_err(), "{ours}");
        }
        let both = others + "[ 1.1] WARNING: x\n";
        assert!(check_log(&both).is_err());
    }
}
