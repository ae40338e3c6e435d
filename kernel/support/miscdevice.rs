// SPDX-License-Identifier: GPL-2.0-only

//! A misc device that can be polled and that carries data.
//!
//! [`kernel::miscdevice`] has no `poll`, no way to reach the driver's state from `open`, no permission
//! bits and no uevents. This adds them on top of its table of file operations.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use crate::{
    uevent::Uevents,
    word_page::WordPage, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    device::Device as DriverDevice,
    error::to_result,
    fs::{
        File,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    prelude::*,
    seq_file::SeqFile,
    sync::{
        poll::PollTable,
        Arc, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// Shorthand for the private data of an open file, as the calls below borrow it.
pub(crate) type Borrowed<'a, T> = <<T as Device>::Ptr as ForeignOwnable>::Borrowed<'a>;

/// What a misc device does. Every call runs in process context and may sleep.
pub(crate) trait Device: Sized + 'static {
    /// The state that all openers of the device share.
    type Data: Send + Sync;

    /// The private data of an open file.
    type Ptr: ForeignOwnable + Send + Sync;

    /// Opens the device.
    fn open(file: &File, data: &Self::Data) -> Result<Self::Ptr>;

    /// Called when the last reference to the open file is gone.
    fn release(opened: Self::Ptr);

    /// Reads from an open file.
    fn read(opened: Borrowed<'_, Self>, file: &File, to: &mut IovIterDest<'_>) -> Result<usize>;

    /// Writes to an open file.
    fn write(
        opened: Borrowed<'_, Self>,
        file: &File,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize>;

    /// Registers with a wait queue through `table`, then returns the `EPOLL…` events that are pending.
    fn poll(opened: Borrowed<'_, Self>, file: &File, table: PollTable<'_>) -> u32;

    /// Sets up a mapping of an open file, by [`WordPage::map`] on its [`page`](Self::page).
    fn mmap(opened: Borrowed<'_, Self>, vma: &VmaNew) -> Result;

    /// The page that mappings of an open file show.
    fn page<'a>(opened: Borrowed<'a, Self>) -> &'a WordPage;

    /// Carries out an ioctl whose argument is passed by value; for 32-bit callers, too, whose
    /// argument is then zero-extended.
    fn ioctl(opened: Borrowed<'_, Self>, command: u32, argument: usize) -> Result<isize>;

    /// Prints to `/proc/PID/fdinfo/FD`.
    fn show_fdinfo(opened: Borrowed<'_, Self>, to: &SeqFile);
}

/// The name and permission bits of a misc device.
pub(crate) struct Options {
    /// The file name under `/dev`.
    pub(crate) name: &'static CStr,
    /// The permission bits that devtmpfs gives the file.
    pub(crate) mode: u16,
}

/// A registered misc device.
///
/// # Invariants
///
/// `misc` is registered, and stands first, so that a pointer to it is a pointer to the whole.
/// `uevents` stops sending events of it before it is deregistered.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Device> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    uevents: Option<Arc<Uevents>>,
    data: T::Data,
}

// SAFETY: A misc device may be deregistered on another thread, and `T::Data` is `Send`.
unsafe impl<T: Device> Send for Registration<T> {}
// SAFETY: The kernel changes `misc` under a lock of its own, and `T::Data` is `Sync`.
unsafe impl<T: Device> Sync for Registration<T> {}

impl<T: Device> Registration<T> {
    /// Registers a misc device. While a file of it is open, this module stays loaded.
    pub(crate) fn new(options: Options, data: T::Data) -> impl PinInit<Self, Error> {
        // INVARIANT: `misc` is initialised last, and an error of `misc_register` ends the
        // initialisation.
        try_pin_init!(Self {
            data,
            uevents: None,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let mut misc = MiscDeviceOptions { name: options.name }.into_raw::<Adapter<T>>();
                misc.mode = options.mode;
                misc.fops = &Adapter::<T>::FILE_OPERATIONS;
                // SAFETY: The slot is valid for writes.
                unsafe { slot.write(misc) };
                // SAFETY: The slot holds a complete `miscdevice` that stays in place until the
                // destructor has deregistered it.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }

    /// Has `uevents` send events of this device, until it is deregistered.
    pub(crate) fn start_uevents(self: Pin<&mut Self>, uevents: Arc<Uevents>) {
        // SAFETY: By the type invariants the device is registered, hence `this_device` is valid.
        let device = unsafe { DriverDevice::from_raw((*self.misc.get()).this_device) };
        // SAFETY: As above; the destructor stops the events before it deregisters the device.
        unsafe { uevents.start(device) };
        if let Some(previous) = self.project().uevents.replace(uevents) {
            previous.stop();
        }
    }
}

#[pinned_drop]
impl<T: Device> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(uevents) = &self.uevents {
            uevents.stop();
        }
        // SAFETY: By the type invariants the device is registered.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// Forwards the calls that the kernel crate knows.
///
/// Nothing outside this file can name it, so the only registrations of it are [`Registration`]s.
struct Adapter<T>(PhantomData<T>);

impl<T: Device> Adapter<T> {
    /// The kernel crate's table, with what it lacks.
    const FILE_OPERATIONS: bindings::file_operations = {
        let plain = MiscDeviceOptions { name: c"" }.into_raw::<Self>();
        // SAFETY: `into_raw` sets `fops` to a valid static table.
        let mut operations = unsafe { *plain.fops };
        operations.poll = Some(poll_callback::<T>);
        // The kernel crate does so itself since Linux 7.3.
        #[cfg(before_linux_7_3)]
        {
            operations.owner = crate::THIS_MODULE.as_ptr();
        }
        operations
    };

    /// What the mappings of open files do.
    const MAPPING: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(fault_callback::<T>),
        ..pin_init::zeroed()
    };
}

#[vtable]
impl<T: Device> MiscDevice for Adapter<T> {
    type Ptr = T::Ptr;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<T::Ptr> {
        // SAFETY: Only `Registration::new` registers a device with the table of `Adapter<T>`, and
        // there `misc` stands first in a `Registration<T>` by the type invariants.
        let registration = unsafe { &*misc.as_raw().cast::<Registration<T>>() };
        T::open(file, &registration.data)
    }

    fn release(opened: T::Ptr, _file: &File) {
        T::release(opened);
    }

    fn mmap(opened: Borrowed<'_, T>, _file: &File, vma: &VmaNew) -> Result {
        T::mmap(opened, vma)?;
        // SAFETY: The area is being set up, so nobody else looks at it yet.
        unsafe { (*vma.as_ptr()).vm_ops = &Self::MAPPING };
        Ok(())
    }

    fn read_iter(kiocb: Kiocb<'_, T::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        T::read(kiocb.file(), file_of(&kiocb), to)
    }

    fn write_iter(kiocb: Kiocb<'_, T::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        T::write(kiocb.file(), file_of(&kiocb), from)
    }

    fn ioctl(
        opened: Borrowed<'_, T>,
        _file: &File,
        command: u32,
        argument: usize,
    ) -> Result<isize> {
        T::ioctl(opened, command, argument)
    }

    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        opened: Borrowed<'_, T>,
        _file: &File,
        command: u32,
        argument: usize,
    ) -> Result<isize> {
        // `compat_ptr_ioctl()`, the default, would treat the argument as a pointer.
        T::ioctl(opened, command, argument)
    }

    fn show_fdinfo(opened: Borrowed<'_, T>, to: &SeqFile, _file: &File) {
        T::show_fdinfo(opened, to);
    }
}

/// The file that a kiocb is for.
fn file_of<'a, P: ForeignOwnable>(kiocb: &'a Kiocb<'_, P>) -> &'a File {
    // SAFETY: A valid kiocb refers to a valid file that outlives it, and a read or write through a
    // kiocb of a device file holds no `fdget_pos` position.
    unsafe { File::from_raw_file((*kiocb.as_raw()).ki_filp) }
}

/// # Safety
///
/// `file` must be an open file of a [`Registration<T>`], and `table` null or a valid poll table.
unsafe extern "C" fn poll_callback<T: Device>(
    file: *mut bindings::file,
    table: *mut bindings::poll_table,
) -> bindings::__poll_t {
    // SAFETY: `open` stored a foreign `T::Ptr`, which is not taken back before `release`.
    let opened = unsafe { <T::Ptr as ForeignOwnable>::borrow((*file).private_data) };
    // SAFETY: The caller passes a valid file, and `poll` holds no `fdget_pos` position.
    let file = unsafe { File::from_raw_file(file) };
    // SAFETY: The caller passes null or a valid table.
    let table = unsafe { PollTable::from_raw(table) };
    T::poll(opened, file, table)
}

/// Called when a mapping has lost its page, which `madvise(MADV_DONTNEED)` does.
///
/// # Safety
///
/// `fault` must be a fault in a mapping of an open file of a [`Registration<T>`].
unsafe extern "C" fn fault_callback<T: Device>(
    fault: *mut bindings::vm_fault,
) -> bindings::vm_fault_t {
    // SAFETY: The caller passes a valid fault, and a mapping keeps its file open.
    let private_data = unsafe { (*(*(*fault).__bindgen_anon_1.vma).vm_file).private_data };
    // SAFETY: `open` stored a foreign `T::Ptr`, which is not taken back while the file is open.
    let opened = unsafe { <T::Ptr as ForeignOwnable>::borrow(private_data) };
    // SAFETY: `T::mmap` has set the area up for this page.
    unsafe { T::page(opened).handle_fault(fault) }
}
