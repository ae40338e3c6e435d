// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine that systemd has booted: a container in all but its files, which are those of the stage.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;

use crate::Stage;
use crate::built::Built;
use crate::built::COMMAND_LINE;
use crate::built::DAEMON;
use crate::conversation::Conversation;
use crate::conversation::Running;
use crate::patience::PATIENCE;
use crate::patience::wait_until;
use crate::tool;
use crate::tool::DBUS_DAEMON;
use crate::tool::Tool;

/// The first process of a Debian system. Its images for containers have it not.
const SYSTEMD: Tool = Tool {
    program: "systemctl",
    package: "systemd",
};

/// Where the daemon is installed.
const DAEMON_PATH: &str = "/usr/sbin/sysgenidd";

/// Where the command line is installed.
pub const COMMAND_LINE_PATH: &str = "/usr/bin/sysgenctl";

/// The daemon's configuration.
const CONFIGURATION: &str = "/etc/sysgenid/sysgenidd.toml";

/// All units that the machine has, and the only ones: those of the system would set up the host.
const UNITS: &str = "/run/units";

/// The units that this project brings.
pub const PACKAGED: &[&str] = &[
    "sysgenid-hooks.service",
    "sysgenid-settled.service",
    "sysgenid-settled.target",
    "sysgenidd-clean.service",
    "sysgenidd.service",
];

/// The units of the system that any other needs, without what they would pull in.
const BASE: &[&str] = &[
    "basic.target",
    "shutdown.target",
    "sysinit.target",
    "modprobe@.service",
];

/// The units of the system.
const SYSTEM_UNITS: &str = "/usr/lib/systemd/system";

/// The bus of the system, but that everybody may do everything, and that it starts services itself.
const BUS: &str = r#"
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <servicedir>/run/bus-services</servicedir>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// What is started when it is asked for. For the second, a message waits until the unit that runs has its name.
const BUS_SERVICES: [(&str, &str); 2] = [
    (
        "org.freedesktop.hostname1",
        "/usr/lib/systemd/systemd-hostnamed",
    ),
    ("org.freedesktop.network1", "/usr/bin/true"),
];

/// Where services write, because no journal runs.
const LOG: &str = "/run/services.log";

/// The control groups of this and other tests.
const GROUPS: &str = "/sys/fs/cgroup";

/// A unit that runs until it is stopped.
pub const SLEEPER: &str = "[Service]\nExecStart=sleep infinity\n";

/// Enters the machine's control group, then makes its namespaces. What is mounted later is seen on the stage.
const ENTER: &str = r#"
echo $$ >"$GROUP/cgroup.procs"
exec unshare --pid --mount --propagation unchanged --cgroup --uts --ipc --net --fork --kill-child \
    sh -ec "$BOOT"
"#;

/// Mounts what belongs to the namespaces, then runs systemd, which must not touch the kernel's settings.
const BOOT: &str = r#"
mount --make-rprivate /proc
mount --make-rprivate /sys
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind "$GROUP" /sys/fs/cgroup
exec /usr/lib/systemd/systemd --system --unit=basic.target --log-target=null --show-status=false
"#;

/// A machine with the daemon's units, of which none runs yet.
#[derive(Debug)]
pub struct Machine {
    group: Group,
    /// Who made the namespaces, and waits for systemd, outside of its process namespace.
    creator: Running,
}

impl Machine {
    /// Boots the machine.
    pub fn boot(stage: &Stage) -> Result<Self> {
        SYSTEMD.require()?;
        stage.lay_over("/etc")?;
        stage.lay_over("/usr/sbin")?;
        stage.folder(
            Path::new(CONFIGURATION)
                .parent()
                .context("it is in a folder")?,
        )?;
        install(stage, DAEMON, DAEMON_PATH)?;
        install_units(stage)?;
        let socket = stage.folder("/run/booted")?.join("socket");
        let notices = UnixDatagram::bind(&socket)?;
        let group = Group::create()?;
        let creator = Command::new("sh")
            .args(["-ec", ENTER])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("BOOT", BOOT)
            .env("GROUP", &group.0)
            .env("NOTIFY_SOCKET", &socket)
            .env("SYSTEMD_UNIT_PATH", UNITS)
            .env("SYSTEMD_GENERATOR_PATH", "/nowhere")
            .env("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", "/nowhere")
            // It leaves more alone in a container.
            .env("container", "sysgenid-interop")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Running)
            .context("cannot run sh")?;
        let machine = Self { group, creator };
        wait_until_booted(&notices)?;
        Ok(machine)
    }

    /// Writes the daemon's configuration.
    pub fn configure(&self, configuration: &str) -> Result<()> {
        std::fs::write(CONFIGURATION, configuration)
            .with_context(|| format!("cannot write {CONFIGURATION}"))
    }

    /// Removes the daemon's configuration. Who waits for it goes on to wait.
    pub fn remove_configuration(&self) -> Result<()> {
        std::fs::remove_file(CONFIGURATION)
            .with_context(|| format!("cannot remove {CONFIGURATION}"))
    }

    /// Gives the machine one more unit, or a file for one, such as `web.service.d/limits.conf`.
    pub fn add_unit(&self, name: &str, text: &str) -> Result<()> {
        let path = Path::new(UNITS).join(name);
        let folder = path.parent().context("it is in a folder")?;
        std::fs::create_dir_all(folder)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    /// Gives the machine one more unit, which is the system's.
    pub fn add_unit_of_system(&self, name: &str) -> Result<()> {
        let path = Path::new(UNITS).join(name);
        symlink(Path::new(SYSTEM_UNITS).join(name), &path)
            .with_context(|| format!("cannot link {}", path.display()))?;
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    /// Starts a bus, by which `hostnamectl` and `networkctl` ask.
    pub fn start_bus(&self, stage: &Stage) -> Result<()> {
        DBUS_DAEMON.require()?;
        stage.folder("/run/dbus")?;
        let services = stage.folder("/run/bus-services")?;
        for (name, program) in BUS_SERVICES {
            let text = format!("[D-BUS Service]\nName={name}\nExec={program}\n");
            std::fs::write(services.join(format!("{name}.service")), text)?;
        }
        std::fs::write("/run/bus.conf", BUS)?;
        let start = "dbus-daemon --nofork --nopidfile --config-file=/run/bus.conf";
        self.add_unit("bus.service", &format!("[Service]\nExecStart={start}\n"))?;
        self.systemctl(&["start", "bus.service"])?;
        self.wait_until("the bus listens", || {
            Ok(Path::new("/run/dbus/system_bus_socket").exists())
        })
    }

    /// Has each daemon that starts from now on wait until it is [configured](Self::configure).
    pub fn delay_starts(&self) -> Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, CONFIGURATION, FileType::Fifo, mode, 0)
            .with_context(|| format!("cannot make a pipe as {CONFIGURATION}"))
    }

    /// Asks systemd for something.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.run(Path::new("systemctl"), arguments)
            .with_context(|| format!("the services said:\n{}", said()))
    }

    /// A property of a unit.
    pub fn property<T: FromStr<Err: Display>>(&self, unit: &str, property: &str) -> Result<T> {
        let value = self.systemctl(&["show", "--value", "--property", property, unit])?;
        value
            .parse()
            .map_err(|error| anyhow::anyhow!("{property} of {unit} is {value:?}: {error}"))
    }

    /// How a unit is: `active`, for one.
    pub fn state(&self, unit: &str) -> Result<String> {
        self.property(unit, "ActiveState")
    }

    /// Waits until it is so.
    pub fn wait_for_state(&self, unit: &str, wanted: &str) -> Result<()> {
        self.wait_until(&format!("{unit} is {wanted}"), || {
            Ok(self.state(unit)? == wanted)
        })
    }

    /// The process of a service, or 0.
    pub fn main_process(&self, service: &str) -> Result<u32> {
        self.property(service, "MainPID")
    }

    /// What tells one run of a unit from the next, of several.
    pub fn invocations(&self, units: &[&str]) -> Result<BTreeMap<String, String>> {
        units
            .iter()
            .map(|unit| Ok(((*unit).to_owned(), self.property(unit, "InvocationID")?)))
            .collect()
    }

    /// Kills the process of a service, and waits until systemd has started it again, or given it up.
    pub fn crash(&self, service: &str) -> Result<()> {
        self.signal(service, "KILL")
    }

    /// The same with another signal, after which the process ends, or is ended by systemd.
    pub fn signal(&self, service: &str, signal: &str) -> Result<()> {
        let old = self.main_process(service)?;
        let signal = format!("--signal={signal}");
        self.systemctl(&["kill", "--kill-who=main", &signal, service])?;
        self.wait_until(&format!("{service} runs again, or is given up"), || {
            // In this order: what is active then is the new one.
            let is_new = ![0, old].contains(&self.main_process(service)?);
            let state = self.state(service)?;
            Ok(state == "failed" || is_new && state == "active")
        })
    }

    /// Waits until something is as it should be, which is found by asking systemd again and again.
    pub fn wait_until(&self, what: &str, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(|| format!("{what}; the services said:\n{}", said()), is_so)
    }

    /// Starts a program in the machine, to talk with.
    pub fn start(&self, program: &Path, arguments: &[&str]) -> Result<(Conversation, Running)> {
        Conversation::start(self.command(program).args(arguments))
    }

    /// Runs a program in the machine to its end.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        tool::run(self.command(program).args(arguments))
    }

    /// The same, if a failure is an answer as well.
    pub fn output(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        command
            .output()
            .with_context(|| format!("cannot run {}", program.display()))
    }

    /// The lines of the list of mounts that are about the daemon's.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let list = self.run(Path::new("cat"), &["/proc/self/mountinfo"])?;
        let ours = list.lines().filter(|line| line.contains("fuse.sysgenid"));
        Ok(ours.map(str::to_owned).collect())
    }

    fn command(&self, program: &Path) -> Command {
        let creator = self.creator.0.id();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &creator.to_string()])
            .args(["--mount", "--cgroup", "--uts", "--ipc", "--net"])
            .arg(format!("--pid=/proc/{creator}/ns/pid_for_children"))
            .arg(program);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing is left to fail for but the test, which has succeeded or failed by now.
        if let Err(error) = self.group.kill() {
            eprintln!("{} is left: {error:#}", self.group.0.display());
        }
    }
}

/// The folder of the units that this project brings.
pub fn packaged() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd")
}

/// What the services wrote.
pub fn said() -> String {
    std::fs::read_to_string(LOG).unwrap_or_default()
}

/// Gives the stage the command line of operators, which some units run.
pub fn install_command_line(stage: &Stage) -> Result<()> {
    stage.lay_over("/usr/bin")?;
    install(stage, COMMAND_LINE, COMMAND_LINE_PATH)
}

fn install(stage: &Stage, built: Built, path: &str) -> Result<()> {
    File::create(path)?;
    stage.bind(&built.program()?, Path::new(path))
}

fn install_units(stage: &Stage) -> Result<()> {
    let units = stage.folder(UNITS)?;
    let packaged = packaged();
    for unit in PACKAGED {
        std::fs::copy(packaged.join(unit), units.join(unit))
            .with_context(|| format!("cannot copy {unit} from {}", packaged.display()))?;
    }
    for unit in BASE {
        symlink(Path::new(SYSTEM_UNITS).join(unit), units.join(unit))?;
    }
    // For all services: the units themselves are what is tested.
    std::fs::write(
        stage.folder(units.join("service.d"))?.join("log.conf"),
        format!("[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n"),
    )?;
    // Whether anything notices restores of the machine that the tests run on is another matter.
    std::fs::write(
        stage
            .folder(units.join("sysgenidd.service.d"))?
            .join("publish.conf"),
        format!("[Service]\nExecStart=\nExecStart={DAEMON_PATH} --publish=always\n"),
    )?;
    Ok(())
}

/// systemd says so to whoever runs it as a container.
fn wait_until_booted(notices: &UnixDatagram) -> Result<()> {
    notices.set_read_timeout(Some(PATIENCE))?;
    let mut notice = [0; 4096];
    loop {
        let length = notices
            .recv(&mut notice)
            .context("systemd has not booted; its own words are above")?;
        let text = String::from_utf8_lossy(&notice[..length]);
        if text.lines().any(|line| line == "READY=1") {
            return Ok(());
        }
    }
}

/// A control group, in which everything of a machine is but for what the test runs in it.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn create() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sysgenid-interop-{}-{number}", std::process::id());
        let path = Path::new(GROUPS).join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Kills everything in it, which ends the process namespace, and removes it.
    fn kill(&self) -> Result<()> {
        std::fs::write(self.0.join("cgroup.kill"), "1")?;
        let path = self.0.join("cgroup.events");
        let events = File::open(&path)?;
        let timeout = Timespec::try_from(PATIENCE)?;
        while !std::fs::read_to_string(&path)?.contains("populated 0") {
            let mut change = [PollFd::new(&events, PollFlags::PRI)];
            if rustix::event::poll(&mut change, Some(&timeout))? == 0 {
                bail!("a process in it does not end");
            }
            // Looks at it, so that the next change is a new one.
            rustix::io::pread(&events, &mut [0; 64], 0)?;
        }
        remove(&self.0)
    }
}

/// Removes a control group and those below it.
fn remove(group: &Path) -> Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(std::fs::remove_dir(group)?)
}
