// SPDX-License-Identifier: GPL-2.0-only

//! A module that serves misc devices which can be polled and mapped, and which carry data.
//!
//! [`kernel::miscdevice`] has no `poll`, no `read` and `write` but those for I/O vectors, no way to reach
//! the driver's state from `open`, no permission bits, no uevents and nothing to do after a hibernation.
//! This adds them on top of its table of file operations.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/pm_domain.h`](srctree/include/linux/pm_domain.h)

use crate::{
    uevent::DeviceEvents,
    user_copy::{
        Destination,
        Source, //
    },
    vma::{
        self,
        Area, //
    },
    word_page::WordPage, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    container_of,
    device::Device as DriverDevice,
    error::to_result,
    ffi::{
        c_char,
        c_int, //
    },
    fs::{
        File,
        Kiocb,
        LocalFile, //
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
    sync::poll::PollTable,
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

// Without lockdep some structs of the kernel's locks are empty.
#[allow(improper_ctypes)]
extern "C" {
    #[cfg(CONFIG_PM)]
    fn dev_pm_domain_set(device: *mut bindings::device, domain: *mut bindings::dev_pm_domain);
}

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
    fn read(
        opened: Borrowed<'_, Self>,
        file: &LocalFile,
        to: &mut impl Destination,
    ) -> Result<usize>;

    /// Writes to an open file.
    fn write(opened: Borrowed<'_, Self>, from: &mut impl Source) -> Result<usize>;

    /// Registers with a wait queue through `table`, then returns the `EPOLL…` events that are pending.
    fn poll(opened: Borrowed<'_, Self>, file: &File, table: PollTable<'_>) -> u32;

    /// Whether this part of an open file may be mapped.
    fn may_map(area: &Area) -> Result;

    /// The page that mappings of an open file show.
    fn page<'a>(opened: Borrowed<'a, Self>) -> &'a WordPage;

    /// Carries out an ioctl whose argument is passed by value; for 32-bit callers, too, whose
    /// argument is then zero-extended.
    fn ioctl(opened: Borrowed<'_, Self>, command: u32, argument: usize) -> Result<isize>;

    /// Prints to `/proc/PID/fdinfo/FD`.
    fn show_fdinfo(opened: Borrowed<'_, Self>, to: &SeqFile);
}

/// A module that serves misc devices.
pub(crate) trait Serve: Send + Sync + Sized + 'static {
    /// What the devices do.
    type Device: Device;

    /// Called when the module is loaded. What it returns is dropped first when it is unloaded, while the
    /// devices are still there.
    fn start() -> Result<Self>;

    /// The devices, to be registered in this order.
    fn devices(&mut self) -> impl IntoIterator<Item = Options<Self::Device>>;
}

/// A misc device to register.
pub(crate) struct Options<T: Device> {
    /// The file name under `/dev`.
    pub(crate) name: &'static CStr,
    /// The permission bits that devtmpfs gives the file.
    pub(crate) mode: u16,
    /// The state that all openers of the device share.
    pub(crate) data: T::Data,
    /// What sends events of this device.
    pub(crate) events: Option<DeviceEvents>,
    /// Called when the machine has resumed from hibernation: as a copy of what was saved, maybe of many.
    /// No program has run since. May sleep.
    ///
    /// The kernel calls it in other cases, too: where a hibernation was given up after devices were
    /// stopped, and where Xen has saved, restored or migrated the machine.
    pub(crate) resumed: Option<fn(&T::Data)>,
}

/// A module with registered misc devices.
///
/// It is meant to be what a module *is*, the type that `module!` names: there the kernel drops it before
/// the code of the devices goes, which nobody can keep it from, as one who owned it could.
pub(crate) struct MiscModule<S: Serve> {
    // The order is that of unloading.
    _served: S,
    _registrations: KVec<Pin<KBox<Registration<S::Device>>>>,
}

impl<S: Serve> kernel::Module for MiscModule<S> {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut served = S::start()?;
        let mut registrations: KVec<Pin<KBox<Registration<S::Device>>>> = KVec::new();
        for options in served.devices() {
            let name = options.name;
            // The room comes first: once a device is registered, somebody may have it open.
            let registered = registrations
                .reserve(1, GFP_KERNEL)
                .map_err(Error::from)
                .and_then(|()| KBox::pin_init(Registration::new(options), GFP_KERNEL));
            match registered {
                Ok(registration) => {
                    let pushed = registrations.push_within_capacity(registration);
                    debug_assert!(pushed.is_ok());
                }
                Err(error) if registrations.is_empty() => return Err(error),
                // For the same reason this must not fail any more.
                Err(error) => pr_err!("there is no /dev/{name}: {error:?}\n"),
            }
        }
        Ok(Self {
            _served: served,
            _registrations: registrations,
        })
    }
}

/// A registered misc device.
///
/// # Invariants
///
/// `misc` is registered, and stands first, so that a pointer to it is a pointer to the whole. `events`, if
/// there are any, are of it, and stop before it is deregistered. `pm_domain` is that of its device.
#[repr(C)]
#[pin_data(PinnedDrop)]
struct Registration<T: Device> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    #[pin]
    pm_domain: Opaque<bindings::dev_pm_domain>,
    resumed: Option<fn(&T::Data)>,
    events: Option<DeviceEvents>,
    data: T::Data,
}

// SAFETY: A misc device may be deregistered on another thread, and `T::Data` is `Send`.
unsafe impl<T: Device> Send for Registration<T> {}
// SAFETY: The kernel changes `misc` under a lock of its own, and `T::Data` is `Sync`.
unsafe impl<T: Device> Sync for Registration<T> {}

impl<T: Device> Registration<T> {
    /// Registers a misc device. While a file of it is open, this module stays loaded.
    fn new(options: Options<T>) -> impl PinInit<Self, Error> {
        let Options {
            name,
            mode,
            data,
            events,
            resumed,
        } = options;
        // INVARIANT: `misc` is initialised last, and an error of its registration ends the initialisation.
        // What comes after that cannot fail.
        try_pin_init!(&this in Self {
            data,
            events,
            resumed,
            pm_domain: Opaque::new(bindings::dev_pm_domain {
                ops: bindings::dev_pm_ops {
                    restore: Some(restore_callback::<T>),
                    ..pin_init::zeroed()
                },
                ..pin_init::zeroed()
            }),
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| -> Result {
                let mut misc = MiscDeviceOptions { name }.into_raw::<Adapter<T>>();
                misc.mode = mode;
                misc.fops = Adapter::<T>::FILE_OPERATIONS;
                // SAFETY: The slot is valid for writes.
                unsafe { slot.write(misc) };
                // SAFETY: The slot holds a complete `miscdevice` that stays in place until the
                // destructor has deregistered it. What `open` looks at is initialised.
                to_result(unsafe { bindings::misc_register(slot) })?;
                // SAFETY: The device is registered.
                let device = unsafe { (*slot).this_device };
                // SAFETY: The field is initialised, and only ever shared.
                if let Some(events) = unsafe { &(*this.as_ptr()).events } {
                    // SAFETY: The device is registered, and the destructor stops the events before it
                    // deregisters it.
                    unsafe { events.start(DriverDevice::from_raw(device)) };
                }
                // SAFETY: The device is registered and no driver is bound to it. The domain is
                // initialised, and the destructor takes it away.
                unsafe { set_pm_domain(device, (*this.as_ptr()).pm_domain.get()) };
                Ok(())
            }),
        })
    }
}

/// # Safety
///
/// The device must be registered and not bound to a driver; the domain null, or valid until another has
/// taken its place.
#[cfg_attr(not(CONFIG_PM), allow(unused_variables))]
unsafe fn set_pm_domain(device: *mut bindings::device, domain: *mut bindings::dev_pm_domain) {
    // SAFETY: The caller promises what the function needs.
    #[cfg(CONFIG_PM)]
    unsafe {
        dev_pm_domain_set(device, domain);
    }
}

/// Called when the machine has resumed from hibernation.
///
/// # Safety
///
/// `device` must be that of a [`Registration<T>`].
unsafe extern "C" fn restore_callback<T: Device>(device: *mut bindings::device) -> c_int {
    // SAFETY: By the type invariants the device of a registration has its domain.
    let domain = Opaque::cast_from(unsafe { (*device).pm_domain });
    // SAFETY: As above.
    let registration = unsafe { container_of!(domain, Registration<T>, pm_domain) };
    // SAFETY: The registration is valid while its device is registered, and neither field changes.
    let (resumed, data) = unsafe { ((*registration).resumed, &(*registration).data) };
    if let Some(resumed) = resumed {
        resumed(data);
    }
    0
}

#[pinned_drop]
impl<T: Device> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(events) = &self.events {
            events.stop();
        }
        let misc = self.misc.get();
        // SAFETY: By the type invariants the device is registered.
        unsafe {
            set_pm_domain((*misc).this_device, core::ptr::null_mut());
            bindings::misc_deregister(misc);
        }
    }
}

/// Forwards the calls that the kernel crate knows.
///
/// Nothing outside this file can name it, so the only registrations of it are [`Registration`]s.
struct Adapter<T>(PhantomData<T>);

impl<T: Device> Adapter<T> {
    /// The kernel crate's table, with what it lacks.
    const FILE_OPERATIONS: &'static bindings::file_operations = &{
        let plain = MiscDeviceOptions { name: c"" }.into_raw::<Self>();
        // SAFETY: `into_raw` sets `fops` to a valid static table.
        let mut operations = unsafe { *plain.fops };
        operations.poll = Some(poll_callback::<T>);
        // Beside those for I/O vectors, as `/dev/zero` has it: they need not make one.
        operations.read = Some(read_callback::<T>);
        operations.write = Some(write_callback::<T>);
        operations
    };

    /// What the mappings of open files do.
    const MAPPING: &'static bindings::vm_operations_struct = &bindings::vm_operations_struct {
        fault: Some(fault_callback::<T>),
        ..pin_init::zeroed()
    };
}

#[vtable]
impl<T: Device> MiscDevice for Adapter<T> {
    type Ptr = T::Ptr;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<T::Ptr> {
        let registration = misc.as_raw().cast::<Registration<T>>();
        // SAFETY: Only `Registration::new` registers a device with the table of `Adapter<T>`, and
        // there `misc` stands first in a `Registration<T>` by the type invariants. Other fields may
        // still be written to, but this one is complete before the device is registered.
        let data = unsafe { &(*registration).data };
        T::open(file, data)
    }

    fn release(opened: T::Ptr, _file: &File) {
        T::release(opened);
    }

    fn mmap(opened: Borrowed<'_, T>, _file: &File, vma: &VmaNew) -> Result {
        vma::drop_implied_exec(vma);
        T::may_map(&Area::of(vma))?;
        T::page(opened).map(vma)?;
        // SAFETY: The area is being set up, so nobody else looks at it yet.
        unsafe { (*vma.as_ptr()).vm_ops = Self::MAPPING };
        Ok(())
    }

    fn read_iter(kiocb: Kiocb<'_, T::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        T::read(kiocb.file(), file_of(&kiocb), to)
    }

    fn write_iter(kiocb: Kiocb<'_, T::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        T::write(kiocb.file(), from)
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

/// What a call on a file returns to user space.
fn returned(result: Result<usize>) -> isize {
    match result {
        Ok(bytes) => bytes as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// `file` must be an open file of a [`Registration<T>`].
unsafe extern "C" fn read_callback<T: Device>(
    file: *mut bindings::file,
    to: *mut c_char,
    length: usize,
    _position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: `open` stored a foreign `T::Ptr`, which is not taken back before `release`.
    let opened = unsafe { <T::Ptr as ForeignOwnable>::borrow((*file).private_data) };
    // SAFETY: The caller passes a valid file, which is used on the calling thread only.
    let file = unsafe { LocalFile::from_raw_file(file) };
    let to = UserSlice::new(UserPtr::from_ptr(to.cast()), length);
    returned(T::read(opened, file, &mut to.writer()))
}

/// # Safety
///
/// `file` must be an open file of a [`Registration<T>`].
unsafe extern "C" fn write_callback<T: Device>(
    file: *mut bindings::file,
    from: *const c_char,
    length: usize,
    _position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: `open` stored a foreign `T::Ptr`, which is not taken back before `release`.
    let opened = unsafe { <T::Ptr as ForeignOwnable>::borrow((*file).private_data) };
    let from = UserSlice::new(UserPtr::from_ptr(from.cast_mut().cast()), length);
    returned(T::write(opened, &mut from.reader()))
}

/// The file that a kiocb is for.
fn file_of<'a, P: ForeignOwnable>(kiocb: &'a Kiocb<'_, P>) -> &'a LocalFile {
    // SAFETY: A valid kiocb refers to a valid file that outlives it. `read` and `write` hold a position
    // by `fdget_pos`, so this is used on the calling thread only, which `LocalFile` is for.
    unsafe { LocalFile::from_raw_file((*kiocb.as_raw()).ki_filp) }
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
    // SAFETY: Only `Adapter::mmap` gives an area these operations, after `WordPage::map` has set it up.
    unsafe { T::page(opened).handle_fault(fault) }
}
