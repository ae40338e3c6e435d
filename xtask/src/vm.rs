// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask vm`: machines for a developer's hands. They go on running between commands.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::termios::OptionalActions;
use rustix::termios::Termios;

use crate::agent::Agent;
use crate::cache;
use crate::cache::Cache;
use crate::environment::Environment;
use crate::front_end::FrontEnd;
use crate::guid;
use crate::kernel::Choice;
use crate::programs::Programs;
use crate::progress::Step;
use crate::qemu;
use crate::qemu::Machine;
use crate::qemu::Start;
use crate::qemu::Vm;

/// What ends a session on the console: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// How long QEMU may take to end after it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build, boot a guest and load the modules; it goes on running until `vm stop`
    Boot(Boot),
    /// Attach to the console of a running guest (Ctrl-] to leave)
    Shell(Name),
    /// Run a command in a running guest
    Run {
        #[command(flatten)]
        name: Name,
        /// When to give up, in seconds
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// The command, for the guest's shell
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Stop a running guest into a snapshot
    Snapshot(Name),
    /// Restore the snapshot with a new GUID (takes the snapshot first if the guest is running)
    Restore {
        #[command(flatten)]
        name: Name,
        /// The GUID instead of a new random one
        #[arg(long)]
        guid: Option<String>,
        /// Attach to the console then
        #[arg(long)]
        shell: bool,
    },
    /// End a running guest
    Stop(Name),
    /// List the guests
    List,
}

#[derive(Args)]
pub(crate) struct Name {
    /// The guest
    #[arg(long, default_value = "default")]
    name: String,
}

#[derive(Args)]
pub(crate) struct Boot {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    choice: Choice,
    /// Leave the modules out of the guest, which then needs no kernel with Rust
    #[arg(long)]
    no_driver: bool,
    /// Load no module: they are there for `modprobe`
    #[arg(long)]
    no_load: bool,
    /// Added to the kernel's command line
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    append: Vec<String>,
    /// The VM generation ID
    #[arg(long)]
    guid: Option<String>,
    /// Memory in MiB
    #[arg(long, default_value_t = 384)]
    memory: u32,
    /// Attach to the console then (Ctrl-] to leave)
    #[arg(long)]
    shell: bool,
}

/// Carries out one action.
pub(crate) fn run(cache: &Cache, action: Action) -> Result<()> {
    match action {
        Action::Boot(boot) => self::boot(cache, &boot),
        Action::Shell(name) => attach(cache, &name.name),
        Action::Run {
            name,
            timeout,
            command,
        } => run_command(cache, &name.name, &command.join(" "), timeout),
        Action::Snapshot(name) => snapshot(cache, &name.name),
        Action::Restore { name, guid, shell } => restore(cache, &name.name, guid, shell),
        Action::Stop(name) => stop(cache, &name.name),
        Action::List => list(cache),
    }
}

fn boot(cache: &Cache, arguments: &Boot) -> Result<()> {
    let name = &arguments.name.name;
    refuse_if_running(cache, name)?;
    let programs = Programs::build(cache)?;
    let environment = if arguments.no_driver {
        Environment::without_driver(cache, &arguments.choice, &programs)?
    } else {
        Environment::with_driver_on_some_kernel(cache, &arguments.choice, &programs)?
    };
    let machine = Machine {
        append: arguments.append.clone(),
        memory_mib: arguments.memory,
        guid: Some(arguments.guid.clone().map_or_else(guid::random, Ok)?),
        ..environment.machine()
    };
    let folder = folder(cache, name);
    cache::empty_folder(&folder)?;
    cache::write_stamp(&folder.join("machine"), &machine)?;

    let step = Step::start("boot the guest");
    let mut vm = Vm::start(&environment.tree, &machine, &folder, Start::Boot, true)?;
    vm.wait_until_booted()?;
    if !arguments.no_driver && !arguments.no_load {
        FrontEnd::Module.start(&mut vm)?;
    }
    vm.leave_running();
    step.done();
    finish(cache, name, arguments.shell)
}

fn snapshot(cache: &Cache, name: &str) -> Result<()> {
    let folder = folder(cache, name);
    let step = Step::start("take a snapshot");
    let mut qmp = crate::qmp::Qmp::new(connect(cache, name, "qmp")?)?;
    let path = folder.join("snapshot");
    qemu::write_snapshot(&mut qmp, &path)?;
    wait_until_ended(cache, name)?;
    step.done();
    eprintln!("snapshot: {}", path.display());
    Ok(())
}

fn stop(cache: &Cache, name: &str) -> Result<()> {
    let pid = pid(cache, name).with_context(|| format!("the guest {name} is not running"))?;
    rustix::process::kill_process(pid, Signal::TERM)?;
    wait_until_ended(cache, name)
}

/// Waits until QEMU is gone: until then it keeps its sockets' names, and the guest cannot start again.
fn wait_until_ended(cache: &Cache, name: &str) -> Result<()> {
    let deadline = Instant::now() + END_TIMEOUT;
    while let Some(pid) = pid(cache, name) {
        if Instant::now() > deadline {
            bail!("the guest {name} was told to end, but QEMU (process {pid}) still runs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Fails if a guest of this name runs: to start another would empty the folder under it.
pub(crate) fn refuse_if_running(cache: &Cache, name: &str) -> Result<()> {
    if pid(cache, name).is_some() {
        bail!("the guest {name} is running already; end it: cargo xtask vm stop --name {name}");
    }
    Ok(())
}

fn restore(cache: &Cache, name: &str, guid: Option<String>, shell: bool) -> Result<()> {
    if pid(cache, name).is_some() {
        snapshot(cache, name)?;
    }
    let folder = folder(cache, name);
    let path = folder.join("snapshot");
    if !path.exists() {
        bail!("the guest {name} has no snapshot; boot it first: cargo xtask vm boot");
    }
    let mut machine: Machine = cache::read_stamp(&folder.join("machine"))
        .with_context(|| format!("{} does not say what it is made of", folder.display()))?;
    machine.guid = Some(guid.map_or_else(guid::random, Ok)?);
    let tree = crate::tree::Tree::prepare(cache)?;
    let step = Step::start("restore the snapshot");
    let mut vm = Vm::start(&tree, &machine, &folder, Start::Restore(&path), true)?;
    vm.qmp.resume()?;
    vm.agent.wait_until_ready(Duration::from_secs(30))?;
    vm.leave_running();
    step.done();
    finish(cache, name, shell)
}

/// Attaches, or says how to.
fn finish(cache: &Cache, name: &str, shell: bool) -> Result<()> {
    if shell {
        return attach(cache, name);
    }
    let option = if name == "default" {
        String::new()
    } else {
        format!(" --name {name}")
    };
    eprintln!(
        "the guest {name} is running; its console's log: {}\n\
         \x20 cargo xtask vm shell{option}          a shell on its console\n\
         \x20 cargo xtask vm run{option} COMMAND    run a command in it\n\
         \x20 cargo xtask vm restore{option}        snapshot it, restore it with a new GUID\n\
         \x20 cargo xtask vm stop{option}           end it",
        folder(cache, name).join("console.log").display()
    );
    Ok(())
}

fn run_command(cache: &Cache, name: &str, command: &str, timeout: u64) -> Result<()> {
    let mut agent = Agent::new(connect(cache, name, "agent")?);
    let status = agent.stream(command, Duration::from_secs(timeout), &mut |text| {
        print!("{text}");
        let _ = std::io::stdout().flush();
    })?;
    if status != 0 {
        std::process::exit(status);
    }
    Ok(())
}

fn list(cache: &Cache) -> Result<()> {
    for entry in std::fs::read_dir(all(cache)).into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let state = match pid(cache, &name) {
            Some(pid) => format!("running (process {pid})"),
            None if folder(cache, &name).join("snapshot").exists() => "snapshot".to_owned(),
            None => "ended".to_owned(),
        };
        println!("{name}\t{state}");
    }
    Ok(())
}

/// Connects the terminal to the console of a guest.
pub(crate) fn attach(cache: &Cache, name: &str) -> Result<()> {
    let mut console = connect(cache, name, "console")?;
    eprintln!("console of {name}; Ctrl-] leaves it, the guest runs on");
    let raw = RawTerminal::enter();
    let mut from_guest = console.try_clone()?;
    let printer = std::thread::spawn(move || {
        std::io::copy(&mut from_guest, &mut Unbuffered(std::io::stdout()))
    });
    console.write_all(b"\n")?;
    let mut keys = [0; 256];
    loop {
        let length = std::io::stdin().read(&mut keys)?;
        let keys = &keys[..length];
        let escape = keys.iter().position(|&key| key == ESCAPE);
        if console
            .write_all(&keys[..escape.unwrap_or(length)])
            .is_err()
            || escape.is_some()
            || length == 0
        {
            break;
        }
    }
    let _ = console.shutdown(Shutdown::Both);
    let _ = printer.join();
    drop(raw);
    eprintln!();
    Ok(())
}

/// Standard output without waiting for the end of a line.
struct Unbuffered(std::io::Stdout);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(bytes)?;
        self.0.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Standard input hands on each key as it is, until this goes away.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The folder of all guests.
fn all(cache: &Cache) -> PathBuf {
    cache.root().join("guests")
}

/// The folder of one guest.
pub(crate) fn folder(cache: &Cache, name: &str) -> PathBuf {
    all(cache).join(name)
}

/// The process of a guest that runs.
fn pid(cache: &Cache, name: &str) -> Option<Pid> {
    let folder = folder(cache, name);
    let text = std::fs::read_to_string(folder.join("pid")).ok()?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw)?;
    // The number may have gone to another program since, or to the QEMU of another guest.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command);
    let socket = qemu::socket(&folder, "qmp");
    let is_ours = command.contains("qemu-system") && command.contains(socket.to_str()?);
    is_ours.then_some(pid)
}

fn connect(cache: &Cache, name: &str, socket: &str) -> Result<UnixStream> {
    let path = qemu::socket(&folder(cache, name), socket);
    UnixStream::connect(&path).with_context(|| {
        format!(
            "the guest {name} is not running (no {}); start it: cargo xtask vm boot",
            path.display()
        )
    })
}
