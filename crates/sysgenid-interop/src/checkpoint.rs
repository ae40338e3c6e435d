// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that CRIU dumps and restores.

use std::fs::File;
use std::fs::OpenOptions;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::WaitOptions;

use crate::Stage;
use crate::conversation::Conversation;
use crate::conversation::Running;
use crate::tool;

/// Names a Debian tree whose CRIU is used in place of the machine's.
const VARIABLE: &str = "CRIU_TREE";

/// CRIU, found to work with the kernel that runs.
#[derive(Debug)]
pub struct Criu {
    command: Vec<PathBuf>,
}

impl Criu {
    /// Finds CRIU. It has to know the kernel: one of before 2025 cannot read the time pages (vDSO) of
    /// Linux 6.13 and later.
    pub fn find() -> Result<Self> {
        let criu = match std::env::var_os(VARIABLE) {
            Some(tree) => Self::in_tree(Path::new(&tree))?,
            None => {
                tool::CRIU.require()?;
                Self {
                    command: vec![tool::CRIU.program.into()],
                }
            }
        };
        tool::run(&mut criu.action("check")).with_context(|| {
            format!(
                "this CRIU does not work here; name a Debian tree with a newer one (4.1 or later) in \
                 {VARIABLE}"
            )
        })?;
        Ok(criu)
    }

    /// The one in a tree, with the libraries there: it need not be made for the machine's release.
    fn in_tree(tree: &Path) -> Result<Self> {
        let program = tree.join("usr/sbin/criu");
        if !program.exists() {
            bail!(
                "{VARIABLE} is {}, but {} is missing; install criu in the tree",
                tree.display(),
                program.display()
            );
        }
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        Ok(Self {
            command: vec![
                tree.join("usr/lib64/ld-linux-x86-64.so.2"),
                "--library-path".into(),
                tree.join(libraries),
                program,
            ],
        })
    }

    fn action(&self, action: &str) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(action);
        command
    }
}

/// A program that can be dumped: it leads a session, and whatever it has open has a name.
#[derive(Debug)]
pub struct Program<'a> {
    criu: &'a Criu,
    images: PathBuf,
    /// The conversation with it, which goes on after a restore.
    pub conversation: Conversation,
    process: Process,
}

/// Who runs the program.
#[derive(Debug)]
enum Process {
    /// The test itself.
    Started(Running),
    /// CRIU. It left the process to the test.
    Restored(Pid),
    /// Nobody: it is in its images.
    Dumped(Pid),
}

impl<'a> Program<'a> {
    /// Starts a program.
    pub fn start(stage: &Stage, criu: &'a Criu, command: &[&str]) -> Result<Self> {
        let requests = named_pipe(&stage.folder("/run/program")?.join("requests"))?;
        let answers = named_pipe(Path::new("/run/program/answers"))?;
        let running = Command::new("setsid")
            .args(command)
            .stdin(requests.try_clone()?)
            .stdout(answers.try_clone()?)
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map(Running)
            .context("cannot run setsid")?;
        // Whom CRIU restores is this program's to wait for, and no later one has the same id before.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Self {
            criu,
            images: stage.folder("/run/images")?,
            conversation: Conversation::over(requests, answers),
            process: Process::Started(running),
        })
    }

    /// Stops the program and writes its images.
    pub fn dump(&mut self) -> Result<()> {
        let Process::Started(running) = &mut self.process else {
            bail!("only a program that was never dumped can be dumped");
        };
        let pid = Pid::from_child(&running.0);
        self.run("dump", |command| command.arg("--tree").arg(pid.to_string()))?;
        let Process::Started(running) = &mut self.process else {
            unreachable!("it was matched above");
        };
        // Its id must be free for the one that is restored.
        running.0.wait()?;
        self.process = Process::Dumped(pid);
        Ok(())
    }

    /// Restores the program from its images, after the one that was restored before, if any, was killed.
    pub fn restore(&mut self) -> Result<()> {
        self.kill()?;
        let Process::Dumped(pid) = self.process else {
            bail!("only a program that was dumped can be restored");
        };
        self.run("restore", |command| command.arg("--restore-detached"))?;
        self.process = Process::Restored(pid);
        Ok(())
    }

    /// Kills the restored program; its images stay.
    pub fn kill(&mut self) -> Result<()> {
        if let Process::Restored(pid) = self.process {
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            self.process = Process::Dumped(pid);
        }
        Ok(())
    }

    fn run(&self, action: &str, arguments: impl Fn(&mut Command) -> &mut Command) -> Result<()> {
        let mut command = self.criu.action(action);
        command.arg("--images-dir").arg(&self.images);
        command.args(["--log-file", "log", "-v4"]);
        tool::run(arguments(&mut command))
            .map(drop)
            .with_context(|| {
                let log = std::fs::read_to_string(self.images.join("log")).unwrap_or_default();
                let errors: Vec<_> = log.lines().filter(|line| line.contains("Error")).collect();
                format!("CRIU's log of the {action}:\n{}", errors.join("\n"))
            })
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // The test has failed already, or else there is nothing left to fail.
        let _ = self.kill();
    }
}

/// A pipe that CRIU can open again by its name.
fn named_pipe(path: &Path) -> Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0)?;
    // Open for both, so that neither side waits for the other, nor sees an end while CRIU works.
    let pipe = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(pipe)
}
