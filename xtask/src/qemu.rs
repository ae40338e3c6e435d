// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual machines: boots them, stops them into a snapshot, and restores that as often as one likes.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

use crate::agent::Agent;
use crate::agent::Outcome;
use crate::arch::Arch;
use crate::debugger::Debugger;
use crate::device_tree;
use crate::progress;
use crate::qmp::EventTime;
use crate::qmp::Qmp;
use crate::tree::Tree;
use crate::vmclock::Vmclock;
use sysgenid_guest::protocol::PORT_NAME;

/// How long an ordinary step in a guest may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a guest may take to boot: emulated, on a busy machine, with a kernel that looks for bugs.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the agent of one that may have resumed from its disk takes to answer, before it is connected to anew.
const AGENT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long QEMU may take until its sockets are there.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a guest may take to go down by itself.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a guest may take to write its memory to its disk.
const HIBERNATION_TIMEOUT: Duration = Duration::from_secs(120);

/// How many processors a machine has.
const PROCESSORS: &str = "2";

/// The longest path that a Unix socket may have.
const LONGEST_SOCKET_PATH: usize = 107;

/// What a machine is made of. A restored machine must be made of the same, but for its GUID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor.
    #[serde(default)]
    pub(crate) arch: Arch,
    /// The kernel's image.
    pub(crate) kernel: PathBuf,
    /// The file system that it boots into.
    pub(crate) initramfs: PathBuf,
    /// What is added to the kernel's command line.
    pub(crate) append: Vec<String>,
    /// Memory, in MiB.
    pub(crate) memory_mib: u32,
    /// The VM generation ID; `None`: the machine has no such device.
    pub(crate) guid: Option<String>,
    /// Compiled ACPI tables to add to the firmware's.
    pub(crate) acpi_tables: Vec<PathBuf>,
    /// A disk, as a file; `None`: the machine has none.
    pub(crate) disk: Option<PathBuf>,
    /// The vmclock device; `None`: the machine has none.
    pub(crate) vmclock: Option<Vmclock>,
}

impl Machine {
    /// The VM generation ID of a machine without a device for it, see [`device_tree`].
    fn guid_in_memory(&self) -> Option<&str> {
        self.guid.as_deref().filter(|_| self.arch == Arch::Arm64)
    }
}

/// A running machine. It is killed when this value goes away, unless it is left running.
pub(crate) struct Vm {
    /// QEMU's control socket.
    pub(crate) qmp: Qmp,
    /// The guest's agent.
    pub(crate) agent: Agent,
    folder: PathBuf,
    child: Child,
    keep: bool,
}

/// How to start a machine.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// From its kernel.
    Boot,
    /// From a snapshot; it stands still until it is resumed.
    Restore(&'a Path),
}

impl Vm {
    /// Boots a machine and waits until its agent answers. Its files go to `folder`.
    pub(crate) fn boot(tree: &Tree, machine: &Machine, folder: &Path) -> Result<Self> {
        let mut vm = Self::start(tree, machine, folder, Start::Boot, false)?;
        if machine.disk.is_some() {
            vm.wait_until_resumed()?;
        } else {
            vm.wait_until_booted()?;
        }
        Ok(vm)
    }

    /// Restores a machine from a snapshot and lets it run on.
    pub(crate) fn restore(
        tree: &Tree,
        machine: &Machine,
        folder: &Path,
        snapshot: &Path,
    ) -> Result<Self> {
        let mut vm = Self::start(tree, machine, folder, Start::Restore(snapshot), false)?;
        // A machine must never run with the generation that it had.
        match (machine.vmclock, machine.guid_in_memory()) {
            (Some(clock), _) => clock.write(&mut vm)?,
            (None, Some(guid)) => device_tree::resume(&mut vm, machine.memory_mib, guid)?,
            (None, None) => vm.qmp.resume().map(drop)?,
        }
        Ok(vm)
    }

    /// Starts QEMU and connects to its sockets. One that is to be left running must be `lasting`, the
    /// others are killed even if this program is.
    pub(crate) fn start(
        tree: &Tree,
        machine: &Machine,
        folder: &Path,
        start: Start<'_>,
        lasting: bool,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let longest = socket(&folder, "console");
        if longest.as_os_str().len() > LONGEST_SOCKET_PATH {
            bail!(
                "{} is too long for a socket; set XDG_CACHE_HOME to a shorter path",
                longest.display()
            );
        }
        for name in ["qmp", "agent", "console", "gdb"] {
            let _ = std::fs::remove_file(socket(&folder, name));
        }
        let mut command = if lasting {
            tree.lasting_command(machine.arch.qemu())
        } else {
            tree.command(machine.arch.qemu())
        };
        add_arguments(&mut command, machine, &folder);
        if let Some(guid) = machine.guid_in_memory() {
            add_device_tree(&mut command, tree, machine.memory_mib, guid, &folder)?;
        }
        if matches!(start, Start::Restore(_)) {
            command.args(["-S", "-incoming", "defer"]);
        }
        let log = folder.join("qemu.log");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start QEMU")?;
        std::fs::write(folder.join("pid"), child.id().to_string())?;

        let mut connect = |name| connect(&socket(&folder, name), &mut child, &log);
        let connected = connect("qmp").and_then(|qmp| Ok((qmp, connect("agent")?)));
        let (qmp, agent) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut vm = Self {
            qmp: Qmp::new(qmp)?,
            agent: Agent::new(agent),
            folder,
            child,
            keep: false,
        };
        if let Start::Restore(snapshot) = start {
            let uri = format!("file:{}", snapshot.display());
            vm.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
            vm.qmp
                .wait_for_migration()
                .with_context(|| format!("cannot restore {}", snapshot.display()))?;
        }
        Ok(vm)
    }

    /// Waits until the agent of a booting guest answers.
    pub(crate) fn wait_until_booted(&mut self) -> Result<()> {
        let ready = self.agent.wait_until_ready(BOOT_TIMEOUT);
        ready.with_context(|| progress::last_lines(&self.console_log()))
    }

    /// The same for a guest that may resume from its disk: it may have missed then that somebody had connected.
    fn wait_until_resumed(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while self.agent.wait_until_ready(AGENT_TIMEOUT).is_err() {
            if Instant::now() > deadline {
                return self.wait_until_booted();
            }
            self.agent.disconnect();
            self.agent = Agent::new(UnixStream::connect(socket(&self.folder, "agent"))?);
        }
        Ok(())
    }

    /// Runs a command in the guest and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it does not exit with status 0.
    pub(crate) fn run(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let Outcome { status, output } = self.outcome(command, timeout)?;
        if status != 0 {
            bail!("in the guest, `{command}` ended with status {status}: {output}");
        }
        Ok(output)
    }

    /// Runs a command in the guest, whatever its exit status.
    pub(crate) fn outcome(&mut self, command: &str, timeout: Duration) -> Result<Outcome> {
        let outcome = self.agent.outcome(command, timeout);
        outcome.with_context(|| progress::last_lines(&self.console_log()))
    }

    /// A connection to the debugging stub, which stops the machine.
    pub(crate) fn debugger(&self) -> Result<Debugger> {
        let path = socket(&self.folder, "gdb");
        let stream = UnixStream::connect(&path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        Debugger::new(stream)
    }

    /// Stops the machine, writes a snapshot, and ends QEMU. Says when the machine stood still.
    pub(crate) fn snapshot(mut self, snapshot: &Path) -> Result<EventTime> {
        let stopped = write_snapshot(&mut self.qmp, snapshot)?;
        self.child.wait()?;
        Ok(stopped)
    }

    /// Lets the guest go down by itself.
    pub(crate) fn power_off(mut self) -> Result<()> {
        self.agent.outcome("poweroff", POWER_OFF_TIMEOUT)?;
        self.wait_until_down()
    }

    /// Has the guest write its memory to its disk, and go down.
    pub(crate) fn hibernate(mut self) -> Result<()> {
        let order = "echo disk > /sys/power/state";
        // Only one that goes on answers.
        if let Ok(outcome) = self.agent.outcome(order, HIBERNATION_TIMEOUT) {
            bail!(
                "the guest did not hibernate: {}; {}",
                outcome.output.trim(),
                progress::last_lines(&self.console_log())
            );
        }
        self.wait_until_down()
    }

    fn wait_until_down(&mut self) -> Result<()> {
        let deadline = Instant::now() + POWER_OFF_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!(
                    "the guest did not go down; {}",
                    progress::last_lines(&self.console_log())
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// All that the kernel and the console printed.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// Leaves the machine running when this program ends.
    pub(crate) fn leave_running(mut self) -> PathBuf {
        self.keep = true;
        self.folder.clone()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.keep {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Stops a machine, writes a snapshot and has QEMU end. Says when the machine stood still.
pub(crate) fn write_snapshot(qmp: &mut Qmp, snapshot: &Path) -> Result<EventTime> {
    let stopped = qmp.stop()?;
    let uri = format!("file:{}", snapshot.display());
    qmp.execute("migrate", json!({ "uri": uri }))?;
    qmp.wait_for_migration()
        .with_context(|| format!("cannot write the snapshot {}", snapshot.display()))?;
    // QEMU may close its socket before it answers.
    let _ = qmp.execute("quit", json!({}));
    Ok(stopped)
}

/// A socket of the machine in `folder`.
pub(crate) fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

fn add_arguments(command: &mut Command, machine: &Machine, folder: &Path) {
    let arch = machine.arch;
    let append = [
        &format!("console={}", arch.console()),
        arch.kernel_parameters(),
    ]
    .into_iter()
    .chain(machine.append.iter().map(String::as_str))
    .collect::<Vec<&str>>()
    .join(" ");
    command
        .args(arch.machine())
        .args(["-smp", PROCESSORS])
        .args(["-m", &format!("{}M", machine.memory_mib)])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&machine.kernel)
        .arg("-initrd")
        .arg(&machine.initramfs)
        .args(["-append", &append])
        .args([
            "-qmp",
            &format!(
                "unix:{},server=on,wait=off",
                socket(folder, "qmp").display()
            ),
        ])
        .arg("-chardev")
        .arg(format!(
            "{},logfile={},logappend=on",
            chardev(folder, "console"),
            folder.join("console.log").display()
        ))
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-chardev", &chardev(folder, "agent")])
        .args([
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        ]);
    if let Some(guid) = &machine.guid
        && machine.guid_in_memory().is_none()
    {
        command.args(["-device", &format!("vmgenid,guid={guid}")]);
    }
    if machine.vmclock.is_some() {
        command.args(["-device", "vmclock"]);
        add_debugger(command, folder);
    }
    for table in &machine.acpi_tables {
        command.args(["-acpitable", &format!("file={}", table.display())]);
    }
    if let Some(disk) = &machine.disk {
        // Nothing of it is needed any more when this machine crashes.
        let drive = format!("if=virtio,format=raw,cache=unsafe,file={}", disk.display());
        command.args(["-drive", &drive]);
    }
}

/// Gives a machine a tree with a generation ID. Its memory has the ID from the start on.
fn add_device_tree(
    command: &mut Command,
    tree: &Tree,
    memory_mib: u32,
    guid: &str,
    folder: &Path,
) -> Result<()> {
    let file = folder.join("generation-id");
    std::fs::write(&file, device_tree::bytes(guid)?)?;
    command
        .arg("-dtb")
        .arg(device_tree::make(tree, folder, PROCESSORS, memory_mib)?)
        .arg("-device")
        .arg(format!(
            "loader,file={},addr={:#x},force-raw=on",
            file.display(),
            device_tree::address(memory_mib)
        ));
    add_debugger(command, folder);
    Ok(())
}

fn add_debugger(command: &mut Command, folder: &Path) {
    command
        .args(["-chardev", &chardev(folder, "gdb")])
        .args(["-gdb", "chardev:gdb"]);
}

/// A socket of the machine in `folder`, as an argument.
fn chardev(folder: &Path, name: &str) -> String {
    let socket = socket(folder, name);
    format!(
        "socket,id={name},path={},server=on,wait=off",
        socket.display()
    )
}

/// Connects to a socket of a QEMU that is starting.
fn connect(socket: &Path, child: &mut Child, log: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended with {status}; {}", progress::last_lines(log));
        }
        if Instant::now() > deadline {
            bail!("QEMU made no socket {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
