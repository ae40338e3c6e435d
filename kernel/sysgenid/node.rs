// SPDX-License-Identifier: GPL-2.0-only

//! The files `/dev/vmgenid` and `/dev/sysgenid`: system calls in, results out.
//!
//! What a call means is decided by [`Registry`](crate::sysgenid_core::Registry).

use crate::{
    capability,
    instance::Instance,
    miscdevice::{
        self,
        Borrowed, //
    },
    restarted_wait::{
        self,
        WaitKey, //
    },
    sysgenid_core::{
        abi,
        Access,
        Epoch,
        Error,
        Ioctl,
        Mapping,
        Node,
        Patience,
        Read,
        Registry,
        Timeout,
        Wait,
        Wake,
        Watcher, //
    },
    timed_wait_queue::Ended,
    user_copy::{
        Destination,
        Source, //
    },
    vma::Area,
    word_page::WordPage, //
};
use kernel::{
    bindings,
    fs::{
        file::flags,
        File,
        LocalFile, //
    },
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        poll::PollTable,
        Arc,
        LockedBy, //
    }, //
};

/// Which node an opener opened, and of which instance.
pub(crate) struct NodeData {
    /// The node.
    pub(crate) node: Node,
    /// The instance that it belongs to.
    pub(crate) instance: Arc<Instance>,
}

/// A node of an instance: how it is named under `/dev`, and who may open it. It sends no uevents, and
/// nothing happens after a hibernation.
pub(crate) fn options(node: Node, instance: Arc<Instance>) -> miscdevice::Options<Description> {
    let name = match node {
        Node::Vmgenid => c"vmgenid",
        Node::Sysgenid => c"sysgenid",
    };
    miscdevice::Options {
        name,
        mode: node.default_mode(),
        data: NodeData { node, instance },
        events: None,
        resumed: None,
    }
}

/// An open file description of a node: a watcher.
pub(crate) struct Description {
    instance: Arc<Instance>,
    watcher: LockedBy<Watcher, Registry>,
    /// A copy of the epoch that the watcher acknowledged, written under the lock and read without.
    acknowledged: Atomic<u64>,
}

impl Description {
    /// Changes the accounts and this watcher under the lock, for the last time.
    fn close(&self) -> Wake {
        let mut registry = self.instance.registry.lock();
        let mut watcher = self.watcher.access(&registry).clone();
        let counts = watcher.is_tracked();
        let wake = registry.close(&mut watcher);
        if counts {
            self.instance.glance.set_outdated_watchers(&registry);
        }
        wake
    }

    /// Changes the accounts and this watcher under the lock.
    fn update<R>(&self, change: impl FnOnce(&mut Registry, &mut Watcher) -> R) -> R {
        let mut registry = self.instance.registry.lock();
        // The lock lends out either the registry or the watcher, so the watcher is changed in a copy.
        let mut watcher = self.watcher.access(&registry).clone();
        let counted = watcher.is_tracked();
        let result = change(&mut registry, &mut watcher);
        // Who never counts does not change how many do.
        let counts = counted || watcher.is_tracked();
        self.acknowledged
            .store(watcher.acknowledged_epoch().get(), Relaxed);
        *self.watcher.access_mut(&mut registry) = watcher;
        if counts {
            self.instance.glance.set_outdated_watchers(&registry);
        }
        result
    }

    /// Whether the watcher has yet to acknowledge the current generation, without the lock if that can
    /// be. Somebody may acknowledge or change it at the same time, which is then before this or after.
    fn is_outdated(&self) -> bool {
        match self.instance.glance.epoch() {
            Some(epoch) => Epoch::new(self.acknowledged.load(Relaxed)) != epoch,
            None => {
                let registry = self.instance.registry.lock();
                registry.is_outdated(self.watcher.access(&registry))
            }
        }
    }

    /// Asks, at this moment, what a wait for all tracked watchers does.
    fn attempt_wait(&self, patience: Patience) -> Result<Wait, Error> {
        let registry = self.instance.registry.lock();
        registry.wait(self.watcher.access(&registry), patience)
    }

    /// Whether all tracked watchers and this one have acknowledged, without the lock; `false` if only the
    /// lock can tell.
    fn is_settled(&self) -> bool {
        let acknowledged = Some(Epoch::new(self.acknowledged.load(Relaxed)));
        let glance = &self.instance.glance;
        // The second look tells that both are true at once.
        glance.epoch() == acknowledged
            && glance.outdated_watchers() == Some(0)
            && glance.epoch() == acknowledged
    }

    /// Sleeps until all tracked watchers have acknowledged.
    fn wait(&self, timeout: Timeout) -> Result {
        if self.is_settled() {
            restarted_wait::forget();
            return Ok(());
        }
        let limit = match timeout.nanoseconds() {
            Some(nanoseconds) => {
                let key = WaitKey::new(self, nanoseconds);
                Some((key, restarted_wait::deadline(key)))
            }
            None => {
                restarted_wait::forget();
                None
            }
        };
        let attempt = || match self.attempt_wait(Patience::Sleep) {
            Ok(Wait::Sleep) => None,
            answer => Some(answer),
        };
        let deadline = limit.map(|(_, deadline)| deadline);
        let answer = match self.instance.settled.wait(deadline, attempt) {
            Ok(answer) => answer,
            Err(Ended::TimeOut) => self.attempt_wait(Patience::TimeOut),
            Err(Ended::Signal) => match attempt() {
                Some(answer) => answer,
                None => return Err(restarted_wait::interrupt(limit)),
            },
        };
        answer.map(|_| ()).map_err(errno)
    }
}

impl miscdevice::Device for Description {
    type Data = NodeData;
    type Ptr = KBox<Self>;

    fn open(file: &File, data: &NodeData) -> Result<KBox<Self>> {
        restarted_wait::forget();
        data.instance.prepare();
        // Everything that can fail comes before the watcher counts.
        let memory = KBox::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let instance = data.instance.clone();
        let watcher = instance.registry.lock().open(data.node, access(file));
        let acknowledged = Atomic::new(watcher.acknowledged_epoch().get());
        let watcher = LockedBy::new(&instance.registry, watcher);
        Ok(KBox::write(
            memory,
            Self {
                instance,
                watcher,
                acknowledged,
            },
        ))
    }

    fn release(description: KBox<Self>) {
        let wake = description.close();
        description.instance.wake(wake);
    }

    fn read(description: &Self, file: &LocalFile, to: &mut impl Destination) -> Result<usize> {
        restarted_wait::forget();
        let attempt = |patience| {
            let mut registry = description.instance.registry.lock();
            // As in `update`, but here it is the accounts that do not change.
            let accounts = registry.clone();
            let watcher = description.watcher.access_mut(&mut registry);
            accounts.read(watcher, to.room(), patience)
        };
        let answer = if file.flags() & flags::O_NONBLOCK != 0 {
            // Most of those who ask and do not sleep find nothing.
            if to.room() >= abi::GENERATION_SIZE && !description.is_outdated() {
                return Err(errno(Error::WouldBlock));
            }
            attempt(Patience::None)
        } else {
            let try_to_read = || match attempt(Patience::Sleep) {
                Ok(Read::Sleep) => None,
                answer => Some(answer),
            };
            match description.instance.readers.wait(None, try_to_read) {
                Ok(answer) => answer,
                Err(_) => attempt(Patience::Signal),
            }
        };
        match answer.map_err(errno)? {
            Read::Empty => Ok(0),
            Read::Generation(generation) => {
                to.put(&generation.to_ne_bytes())?;
                Ok(abi::GENERATION_SIZE)
            }
            // Nobody is told so who does not sleep.
            Read::Sleep => Err(errno(Error::WouldBlock)),
        }
    }

    fn write(description: &Self, from: &mut impl Source) -> Result<usize> {
        restarted_wait::forget();
        if from.left() != abi::GENERATION_SIZE {
            return Err(errno(Error::Invalid));
        }
        let bytes: [u8; abi::GENERATION_SIZE] = from.take()?;
        let wake = description
            .update(|registry, watcher| registry.write(watcher, &bytes))
            .map_err(errno)?;
        description.instance.wake(wake);
        Ok(bytes.len())
    }

    fn poll(description: &Self, file: &File, table: PollTable<'_>) -> u32 {
        restarted_wait::forget();
        // Registering comes first: a change after the look then still wakes the poller.
        table.register_wait(file, &description.instance.changed);
        abi::poll_events(description.is_outdated())
    }

    fn may_map(area: &Area) -> Result {
        let mapping = Mapping {
            first_page: area.first_page as u64,
            pages: area.pages as u64,
            writable: area.writable,
            executable: area.executable,
        };
        mapping.check().map_err(errno)
    }

    fn page<'a>(description: Borrowed<'a, Self>) -> &'a WordPage {
        &description.instance.page
    }

    fn ioctl(description: &Self, command: u32, argument: usize) -> Result<isize> {
        let call = Ioctl::decode(command, argument as u64).map_err(errno)?;
        if !matches!(call, Ioctl::WaitWatchers(_)) {
            restarted_wait::forget();
        }
        match call {
            Ioctl::CountOutdatedWatchers => {
                let instance = &description.instance;
                // The copy follows what a watcher acknowledged, so that it may still count one that has. Zero it
                // never says too soon.
                let count = match instance.glance.outdated_watchers() {
                    Some(0) => 0,
                    _ => instance.registry.lock().outdated_watchers(),
                };
                // A system call returns an int.
                return Ok(i32::try_from(count).unwrap_or(i32::MAX) as isize);
            }
            Ioctl::WaitWatchers(timeout) => description.wait(timeout)?,
            Ioctl::SetTracking(tracked) => {
                let wake = description
                    .update(|registry, watcher| registry.set_tracking(watcher, tracked))
                    .map_err(errno)?;
                description.instance.wake(wake);
            }
            Ioctl::Trigger { minimum } => {
                let capable = capability::may_checkpoint_restore();
                let instance = &description.instance;
                instance.trigger(capable, minimum).map_err(errno)?;
            }
        }
        Ok(0)
    }

    fn show_fdinfo(description: &Self, to: &SeqFile) {
        // A copy: printing must not happen under the lock.
        let registry = description.instance.registry.lock();
        let watcher = description.watcher.access(&registry).clone();
        let generation = registry.generation();
        let outdated = registry.is_outdated(&watcher);
        let epoch = registry.epoch();
        let missed = watcher.record().first_missed(epoch);
        let history = description.instance.history.access(&registry);
        let times = [
            history.time(epoch),
            missed.and_then(|missed| history.time(missed)),
        ];
        drop(registry);
        let values = [
            generation.get(),
            watcher.acknowledged().get(),
            u32::from(watcher.is_tracked()),
            u32::from(outdated),
        ];
        for (name, value) in abi::FDINFO_FIELDS.iter().zip(values) {
            seq_print!(to, "{name}:\t{value}\n");
        }
        for (name, time) in abi::FDINFO_TIMES.iter().zip(times) {
            let nanoseconds = time.unwrap_or(0);
            seq_print!(to, "{name}:\t{nanoseconds}\n");
        }
    }
}

/// What the file was opened for. A third access mode, neither reading nor writing but ioctls only,
/// counts as one that cannot write.
fn access(file: &File) -> Access {
    match file.flags() & flags::O_ACCMODE {
        flags::O_WRONLY | flags::O_RDWR => Access::ReadWrite,
        _ => Access::ReadOnly,
    }
}

/// The errno of an error of the contract.
fn errno(error: Error) -> kernel::error::Error {
    match error {
        Error::Invalid => EINVAL,
        Error::WouldBlock => EAGAIN,
        Error::Restart => ERESTARTSYS,
        Error::Interrupted => EINTR,
        // The kernel crate does not name this one before Linux 7.3.
        Error::TimedOut => kernel::error::Error::from_errno(-(bindings::ETIME as i32)),
        Error::NotWritable => EBADF,
        Error::NotCapable => EACCES,
        Error::NotPermitted => EPERM,
        Error::UnknownIoctl => ENOTTY,
    }
}
