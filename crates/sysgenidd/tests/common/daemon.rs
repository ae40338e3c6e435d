// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon under test.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;
use sysgenidd::keeping::supervisor;
use tempfile::TempDir;

use super::{PATIENCE, eventually, process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sysgenidd");

/// What the daemon logs once it serves.
const READY: &str = " ready ";

/// What its supervisor logs when it ended.
pub(crate) const RESTART: &str = "starting it again";

/// The name of the test that is [`supervise_by_script`], and where it finds what to do.
const PART: &str = "part_supervisor";
const PART_FOLDER: &str = "SYSGENIDD_TEST_FOLDER";
const PART_LIMIT: &str = "SYSGENIDD_TEST_LIMIT";

/// Who starts the daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Supervision<'a> {
    /// The test.
    None,
    /// `--supervise`; it starts the daemon again so often within ten seconds.
    Supervised { limit: usize },
    /// The same, and the first processes die each at its own point; 0 is none.
    Script { points: &'a [u64], limit: usize },
}

/// What is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) supervision: Supervision<'a>,
    pub(crate) passthrough: bool,
    /// Whether `/dev` has links to the nodes. It then is one of the test's own.
    pub(crate) published: bool,
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A daemon that ends with the test.
#[derive(Debug)]
pub(crate) struct Daemon {
    folder: TempDir,
    command: Command,
    child: Child,
    log: Arc<Log>,
    ended: bool,
}

impl Daemon {
    /// Starts it in a new mount namespace, in which the calling thread is from then on too, and those
    /// threads and processes that it starts.
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        Self::start_with(setup, "", &[])
    }

    /// The same, with more configuration and more arguments.
    pub(crate) fn start_with(setup: &Setup<'_>, sections: &str, options: &[&str]) -> Self {
        // The backends of the machine would change the generation as well.
        let text = format!(
            "passthrough = {}\n[backends]\nuse = []\n[instances.follower]\n[instances.stranger]\nparent = \
             \"none\"\n{sections}",
            setup.passthrough
        );
        Self::start_configured(setup, &text, options)
    }

    /// The same, with a configuration of the test's own.
    pub(crate) fn start_configured(setup: &Setup<'_>, config: &str, options: &[&str]) -> Self {
        enter_mount_namespace();
        // Any user may come to the nodes, whose own modes decide.
        let folder = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        if setup.published || options.iter().any(|option| option.starts_with("--publish")) {
            replace_devices(&folder.path().join("devices"));
        }
        std::fs::write(configuration(folder.path()), config).unwrap();
        let mut arguments: Vec<OsString> = vec!["--foreground".into(), "--config".into()];
        arguments.push(configuration(folder.path()).into());
        arguments.push("--directory".into());
        arguments.push(directory(folder.path()).into());
        if setup.published {
            arguments.push("--publish=always".into());
        }
        arguments.extend(options.iter().map(OsString::from));
        let mut command = match setup.supervision {
            Supervision::None => Command::new(PROGRAM),
            Supervision::Supervised { limit } => {
                let mut command = Command::new(PROGRAM);
                command.args(["--supervise", "--restart-limit", &limit.to_string()]);
                command
            }
            Supervision::Script { points, limit } => {
                write_script(folder.path(), points, &arguments);
                arguments.clear();
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args(["--exact", PART, "--ignored", "--nocapture", "-q"])
                    .env(PART_FOLDER, folder.path())
                    .env(PART_LIMIT, limit.to_string());
                command
            }
        };
        command
            .args(arguments)
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("NOTIFY_SOCKET")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (child, log) = launch(&mut command);
        Self {
            folder,
            command,
            child,
            log,
            ended: false,
        }
    }

    /// Starts another one as this was started, in the place of this, which has [ended](Self::end).
    pub(crate) fn start_again(&mut self) {
        assert!(self.ended, "the daemon runs");
        (self.child, self.log) = launch(&mut self.command);
        self.ended = false;
    }

    /// Gives it another configuration, which it has not read yet.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(configuration(self.folder.path()), text).unwrap();
    }

    /// Asks it for something by its own command line.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.request(arguments).output().unwrap()
    }

    /// The same, for something that it must do. Returns what was printed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, for something that it must refuse. Returns the reason.
    pub(crate) fn must_refuse(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(!output.status.success(), "{arguments:?} was done");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What asks it for something, to be started.
    pub(crate) fn request(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .arg("--directory")
            .arg(self.directory());
        command
    }

    /// Where the instances are.
    pub(crate) fn directory(&self) -> PathBuf {
        directory(self.folder.path())
    }

    /// A file of the host's own instance.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory().join("host").join(name)
    }

    /// A node of any instance.
    pub(crate) fn node(&self, instance: &str) -> PathBuf {
        self.directory().join(instance).join("sysgenid")
    }

    /// A folder of the test's own, which any user can come to.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process that serves, where a supervisor has started it.
    pub(crate) fn server(&self) -> Pid {
        eventually("the supervisor has started a daemon", || {
            process::child_of(self.id()).ok_or_else(|| self.log.tail())
        })
    }

    /// The process that the test started, and those that it started.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it logs.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Lets this and every later process of the daemon die at its first points.
    pub(crate) fn set_points(&self, points: &[u64]) {
        write_points(self.folder.path(), points);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(&self.child, signal);
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.ended = true;
        process::wait(&mut self.child, "the daemon")
    }

    /// Stops it, and checks that nothing leads to it any more.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::INT);
        let status = self.end();
        assert!(status.success(), "{status}; its log:\n{}", self.log.tail());
        self.assert_nothing_leads_to_it();
        // The pages stay, for those who map them.
        let left: Vec<_> = std::fs::read_dir(self.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".keep"]);
    }

    /// Checks that no mount and no link is left.
    pub(crate) fn assert_nothing_leads_to_it(&self) {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let directory = self.directory();
        let ours = directory.to_str().unwrap();
        assert!(!mounts.contains(ours), "still mounted:\n{mounts}");
        for link in ["/dev/sysgenid", "/dev/vmgenid"] {
            if let Ok(target) = std::fs::read_link(link) {
                assert!(!target.starts_with(&directory), "{link} is left");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A test has failed: whoever of it is stuck gets an error.
        eprintln!("the daemon logged at last:\n{}", self.log.tail());
        self.signal(Signal::INT);
        let until = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < until {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory(folder: &Path) -> PathBuf {
    folder.join("run")
}

fn configuration(folder: &Path) -> PathBuf {
    folder.join("sysgenidd.toml")
}

/// Starts the daemon, and waits until it serves.
fn launch(command: &mut Command) -> (Child, Arc<Log>) {
    let mut child = command.spawn().unwrap();
    let log = Arc::new(Log::default());
    let (writer, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
    thread::spawn(move || writer.fill(BufReader::new(stderr)));
    log.wait(READY, 1);
    (child, log)
}

/// What a process logs, line by line.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    /// Nobody is left who could say more.
    complete: bool,
}

impl Log {
    fn fill(&self, from: impl BufRead) {
        for line in from.lines() {
            let Ok(line) = line else { break };
            self.lines().lines.push(line);
            self.grown.notify_all();
        }
        self.lines().complete = true;
        self.grown.notify_all();
    }

    /// How many lines say `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().count(text)
    }

    /// Waits until `number` lines say `text`.
    pub(crate) fn wait(&self, text: &str, number: usize) {
        let too_few = |lines: &mut Lines| !lines.complete && lines.count(text) < number;
        let (lines, _) = self
            .grown
            .wait_timeout_while(self.lines(), PATIENCE, too_few)
            .unwrap_or_else(PoisonError::into_inner);
        let found = lines.count(text);
        drop(lines);
        assert!(
            found >= number,
            "the daemon has not logged {text:?} {number} times, but:\n{}",
            self.tail()
        );
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let lines = &self.lines().lines;
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn count(&self, text: &str) -> usize {
        let says = |line: &&String| line.contains(text);
        self.lines.iter().filter(says).count()
    }
}

/// Says why nothing can be tested, if so. A second daemon is where the first is.
fn enter_mount_namespace() {
    thread_local! {
        static IS_IN_ONE: Cell<bool> = const { Cell::new(false) };
    }
    if IS_IN_ONE.replace(true) {
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test runs the daemon, which needs root: run it as root"
    );
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect(
            "this test runs the daemon, which needs /dev/fuse: load the module (modprobe fuse)",
        );
    // SAFETY: the flag does not unshare descriptors, the only thing that is unsafe here.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .expect("this test needs a mount namespace of its own, and so CAP_SYS_ADMIN");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Makes a `/dev` with nothing but the devices that are needed.
pub(crate) fn replace_devices(at: &Path) {
    std::fs::create_dir(at).unwrap();
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
    for device in ["fuse", "null", "random", "urandom"] {
        let path = at.join(device);
        std::fs::write(&path, "").unwrap();
        rustix::mount::mount_bind(Path::new("/dev").join(device), &path).unwrap();
    }
    rustix::mount::mount_bind_recursive(at, "/dev").unwrap();
}

fn script(folder: &Path) -> PathBuf {
    folder.join("daemon.sh")
}

fn write_points(folder: &Path, points: &[u64]) {
    let mut text: Vec<String> = points.iter().map(u64::to_string).collect();
    text.push("\n".to_owned());
    std::fs::write(folder.join("points"), text.join(" ")).unwrap();
}

/// Each process takes the next point of the list.
fn write_script(folder: &Path, points: &[u64], arguments: &[OsString]) {
    write_points(folder, points);
    let list = folder.join("points");
    let list = list.display();
    let arguments: Vec<_> = arguments.iter().map(|one| one.to_str().unwrap()).collect();
    let text = format!(
        "#!/bin/sh\n\
         read -r next rest < {list}\n\
         echo \"$rest\" > {list}\n\
         export SYSGENIDD_DIE_AT=\"$next\"\n\
         exec {PROGRAM} {}\n",
        arguments.join(" ")
    );
    let path = script(folder);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Supervises the script instead of this very program. It does nothing unless a test starts it.
pub(crate) fn supervise_by_script() {
    let Some(folder) = std::env::var_os(PART_FOLDER).map(PathBuf::from) else {
        return;
    };
    sysgenidd::service::init_tracing(true, tracing::Level::INFO);
    let limit = std::env::var(PART_LIMIT).unwrap();
    let outcome = supervisor::run(&supervisor::Options {
        program: script(&folder),
        arguments: Vec::new(),
        directory: directory(&folder),
        devices: PathBuf::from("/dev"),
        restart_limit: limit.parse().unwrap(),
        watchdog: Some(supervisor::WATCHDOG),
    });
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}
