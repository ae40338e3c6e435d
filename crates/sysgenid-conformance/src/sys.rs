// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls that need `unsafe`, each behind a safe function.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// The signal that the suite sends itself.
const SIGNAL: c_int = libc::SIGUSR1;

/// How often [`SIGNAL`] was handled in this process.
static SIGNALS_HANDLED: AtomicU32 = AtomicU32::new(0);

/// An ioctl whose argument is passed by value.
pub(crate) fn ioctl(fd: impl AsFd, request: u32, argument: u64) -> Result<i32, Errno> {
    // `libc::Ioctl` is signed in some C libraries; only the 32 bits matter.
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
    let request = request as libc::Ioctl;
    // A 32-bit machine cannot pass more.
    #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
    let argument = argument as libc::c_ulong;
    // SAFETY: none of the requests that the suite makes lets the kernel touch this process's memory:
    // the argument is a number to all of them, and an unknown request does nothing.
    let returned = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, argument) };
    if returned < 0 {
        Err(last_error())
    } else {
        Ok(returned)
    }
}

/// Forks. Returns `None` in the child.
///
/// The child has only the calling thread. It may allocate, because the C library takes its
/// allocator's locks for the time of the fork, but must not use a lock that another thread may hold.
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the child runs only this crate's code on from here, with what is said above in mind.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => Ok(None),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Ends this process without running destructors or handlers that belong to its parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// Handles [`SIGNAL`] by counting it from now on; interrupted calls are restarted or not.
pub(crate) fn handle_signal(restart: bool) -> Result<(), Errno> {
    extern "C" fn count(_signal: c_int) {
        SIGNALS_HANDLED.fetch_add(1, Ordering::SeqCst);
    }

    let handler: extern "C" fn(c_int) = count;
    // SAFETY: all bytes zero is a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
    // SAFETY: `action` is initialised, and its handler does nothing but an atomic addition, which is
    // allowed in a signal handler.
    let returned = unsafe { libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) };
    if returned == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// How often the signal was handled since the start.
pub(crate) fn signals_handled() -> u32 {
    SIGNALS_HANDLED.load(Ordering::SeqCst)
}

/// Sends the signal to one thread of this process.
pub(crate) fn signal_thread(thread: Pid) -> Result<(), Errno> {
    let process = rustix::process::getpid();
    // SAFETY: `tgkill` takes three numbers, and the signal has a handler wherever this is called.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            process.as_raw_nonzero().get(),
            thread.as_raw_nonzero().get(),
            SIGNAL,
        )
    };
    if returned == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// Attaches to a child as a debugger does, and stops it. The calling thread is its debugger.
pub(crate) fn attach_and_stop(child: Pid) -> Result<(), Errno> {
    trace(libc::PTRACE_SEIZE, child)?;
    trace(libc::PTRACE_INTERRUPT, child)
}

/// Lets a child go on that [`attach_and_stop`] has stopped, and leaves it alone.
pub(crate) fn detach(child: Pid) -> Result<(), Errno> {
    trace(libc::PTRACE_DETACH, child)
}

/// A request of ptrace that needs no more than to know whom it is about.
fn trace(request: libc::c_uint, child: Pid) -> Result<(), Errno> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // The C libraries do not agree on the type of the request.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let request = request as _;
    // SAFETY: none of the requests that are made here touches this process's memory.
    let returned = unsafe { libc::ptrace(request, child.as_raw_nonzero().get(), nothing, nothing) };
    if returned == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// Makes this process, which must have one thread, the user and group `id` and nothing else.
pub(crate) fn become_user(id: u32) -> Result<(), Errno> {
    // SAFETY: with a size of 0 the list is not read; the other calls take numbers only.
    let failed = unsafe {
        libc::setgroups(0, ptr::null()) != 0
            || libc::setresgid(id, id, id) != 0
            || libc::setresuid(id, id, id) != 0
    };
    if failed { Err(last_error()) } else { Ok(()) }
}

/// Moves this process, which must have one thread, into a user namespace of its own.
pub(crate) fn enter_own_user_namespace() -> Result<(), Errno> {
    // SAFETY: the flag does not unshare descriptors, the only thing that is unsafe here.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
}

/// A mapping of a node.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the process, not to a thread, and is only ever read, atomically.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `fd` from `offset`.
    pub(crate) fn new(
        fd: impl AsFd,
        length: usize,
        protection: ProtFlags,
        flags: MapFlags,
        offset: u64,
    ) -> Result<Self, Errno> {
        // SAFETY: the address is the kernel's to choose, so that no other memory is replaced.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, protection, flags, fd, offset)? };
        let start = NonNull::new(start.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { start, length })
    }

    /// The live generation.
    pub(crate) fn generation(&self) -> u32 {
        // SAFETY: the mapping is at least 4 bytes long, aligned to a page, and lives as long as
        // `self`. The kernel changes the word as a whole.
        let word = unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast()) };
        word.load(Ordering::Acquire)
    }

    /// What the first 8 bytes say, in one load.
    ///
    /// # Panics
    ///
    /// If the mapping is shorter than that.
    pub(crate) fn word(&self) -> u64 {
        assert!(self.length >= 8, "the mapping is too short");
        // SAFETY: the mapping is at least 8 bytes long, aligned to a page, and lives as long as
        // `self`. The kernel changes the word as a whole.
        let word = unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) };
        word.load(Ordering::Acquire)
    }

    /// A copy of all the bytes of the mapping.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (0..self.length)
            // SAFETY: `at` is inside of the mapping, which lives as long as `self`. The read is
            // volatile because the kernel may change the byte.
            .map(|at| unsafe { self.start.as_ptr().add(at).read_volatile() })
            .collect()
    }

    /// The address of its first byte.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Asks for another protection.
    pub(crate) fn protect(&self, protection: MprotectFlags) -> Result<(), Errno> {
        // SAFETY: every protection that the suite asks for includes reading, all that it does.
        unsafe { rustix::mm::mprotect(self.start.as_ptr().cast(), self.length, protection) }
    }

    /// Throws its pages out, to be fetched again at the next look.
    pub(crate) fn throw_out(&self) -> Result<(), Errno> {
        // SAFETY: nothing in this program holds what is in the page.
        unsafe {
            rustix::mm::madvise(
                self.start.as_ptr().cast(),
                self.length,
                Advice::LinuxDontNeed,
            )
        }
    }

    /// Asks for another length, the new pages where the kernel likes.
    pub(crate) fn resize(&mut self, length: usize) -> Result<(), Errno> {
        // SAFETY: the old address is not used after a success, and no reference to it is kept.
        let start = unsafe {
            rustix::mm::mremap(
                self.start.as_ptr().cast(),
                self.length,
                length,
                MremapFlags::MAYMOVE,
            )?
        };
        self.start = NonNull::new(start.cast()).ok_or(Errno::FAULT)?;
        self.length = length;
        Ok(())
    }

    /// Asks for the mapping to be part of core dumps.
    pub(crate) fn ask_to_be_dumped(&self) -> Result<(), Errno> {
        // SAFETY: this advice does not change what the memory holds.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.length, Advice::LinuxDoDump) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the memory any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// From now on whatever this process maps for reading is to be executable, as in old 32-bit programs.
pub(crate) fn let_reads_imply_exec() -> Result<(), Errno> {
    // SAFETY: the call reads a number, and what is mapped already stays as it is.
    match unsafe { libc::personality(libc::READ_IMPLIES_EXEC as libc::c_ulong) } {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
