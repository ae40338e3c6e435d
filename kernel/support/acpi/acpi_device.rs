// SPDX-License-Identifier: GPL-2.0-only

//! Methods and notifications of an ACPI device.
//!
//! C header: [`include/acpi/acpixf.h`](srctree/include/acpi/acpixf.h)

use core::slice;
use kernel::{
    bindings,
    container_of,
    device::{
        Bound,
        Device, //
    },
    devres,
    ffi::c_void,
    fmt,
    prelude::*,
    str::CStr, //
};

/// The ACPI companion of a bound device.
#[derive(Clone, Copy)]
pub(crate) struct AcpiDevice<'bound> {
    handle: bindings::acpi_handle,
    device: &'bound Device<Bound>,
}

// SAFETY: An ACPI handle may be used from any thread.
unsafe impl Send for AcpiDevice<'_> {}
// SAFETY: As above.
unsafe impl Sync for AcpiDevice<'_> {}

/// Why evaluating a method did not give what it should.
pub(crate) enum EvaluateError {
    /// The interpreter failed, for example because there is no such method.
    Failed(bindings::acpi_status),
    /// The result is no package but an object of this type, or nothing (0).
    NotAPackage(u32),
    /// The package has this number of elements.
    Count(u32),
    /// The element at this index is no integer but an object of this type.
    NotAnInteger(usize, u32),
}

impl fmt::Display for EvaluateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvaluateError::Failed(status) => {
                f.write_fmt(fmt!("evaluation failed with {}", status_name(*status)))
            }
            EvaluateError::NotAPackage(kind) => {
                write!(f, "expected a package, found an object of type {kind}")
            }
            EvaluateError::Count(count) => write!(f, "the package has {count} elements"),
            EvaluateError::NotAnInteger(index, kind) => {
                write!(
                    f,
                    "element {index} is no integer but an object of type {kind}"
                )
            }
        }
    }
}

/// The name of a status of the interpreter, such as `AE_NOT_FOUND`.
fn status_name(status: bindings::acpi_status) -> &'static CStr {
    // SAFETY: The function returns a static string for any status.
    unsafe { CStr::from_char_ptr(bindings::acpi_format_exception(status)) }
}

impl<'bound> AcpiDevice<'bound> {
    /// The ACPI companion of a device, if it has one.
    pub(crate) fn of(device: &'bound Device<Bound>) -> Option<Self> {
        // `Device` is a transparent wrapper of `struct device`.
        let raw = core::ptr::from_ref(device).cast::<bindings::device>();
        // SAFETY: The device is valid, and its firmware node does not change while it is bound.
        let node = unsafe { (*raw).fwnode };
        // SAFETY: The function takes null and any valid node.
        if !unsafe { bindings::is_acpi_device_node(node) } {
            return None;
        }
        // SAFETY: The node was just seen to be that of a `struct acpi_device`.
        let companion = unsafe { container_of!(node, bindings::acpi_device, fwnode) };
        Some(Self {
            // SAFETY: The companion is valid while the device is bound.
            handle: unsafe { (*companion).handle },
            device,
        })
    }

    /// Evaluates a method without arguments that returns a package of `N` integers.
    pub(crate) fn evaluate_integers<const N: usize>(
        &self,
        method: &CStr,
    ) -> Result<[u64; N], EvaluateError> {
        let object = self.evaluate(method)?;
        // SAFETY: The type is valid in every kind of object.
        let kind = unsafe { object.as_ref().map_or(0, |object| object.type_) };
        if kind != bindings::ACPI_TYPE_PACKAGE {
            return Err(EvaluateError::NotAPackage(kind));
        }
        // SAFETY: The object is a package, and not null for its type is not 0.
        let package = unsafe { (*object.0).package };
        if package.count as usize != N {
            return Err(EvaluateError::Count(package.count));
        }
        let elements: &[bindings::acpi_object] = if N == 0 {
            &[]
        } else {
            // SAFETY: A package that is not empty has `count` elements, which live as long as it.
            unsafe { slice::from_raw_parts(package.elements, N) }
        };
        let mut integers = [0; N];
        for (index, (integer, element)) in integers.iter_mut().zip(elements).enumerate() {
            // SAFETY: The type is valid in every kind of object.
            let kind = unsafe { element.type_ };
            if kind != bindings::ACPI_TYPE_INTEGER {
                return Err(EvaluateError::NotAnInteger(index, kind));
            }
            // SAFETY: The element is an integer.
            *integer = unsafe { element.integer.value };
        }
        Ok(integers)
    }

    fn evaluate(&self, method: &CStr) -> Result<Object, EvaluateError> {
        let mut buffer = bindings::acpi_buffer {
            // `ACPI_ALLOCATE_BUFFER`
            length: bindings::acpi_size::MAX,
            pointer: core::ptr::null_mut(),
        };
        // SAFETY: The handle is valid while the device is bound. The path is only read, and the
        // buffer asks the interpreter to allocate.
        let status = unsafe {
            bindings::acpi_evaluate_object(
                self.handle,
                method.as_char_ptr().cast_mut(),
                core::ptr::null_mut(),
                &mut buffer,
            )
        };
        if status != 0 {
            return Err(EvaluateError::Failed(status));
        }
        Ok(Object(buffer.pointer.cast()))
    }

    /// Has `target` called for each notification of the device until it is unbound, and once at once, for
    /// what happened before.
    ///
    /// What listens belongs to the device, so nobody can keep it beyond its time.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the interpreter refuses, or what making the target fails with.
    pub(crate) fn listen<T: Notify>(&self, target: impl PinInit<T, Error>) -> Result {
        devres::register(self.device, Handler::new(self.handle, target), GFP_KERNEL)
    }
}

/// What a method returned.
///
/// # Invariants
///
/// The pointer is null or owns an object that the interpreter allocated.
struct Object(*mut bindings::acpi_object);

impl Object {
    /// The object, if the method returned one.
    fn as_ref(&self) -> Option<&bindings::acpi_object> {
        // SAFETY: By the type invariants the pointer is null or valid.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this owns the allocation, which `ACPI_FREE` frees so.
        unsafe { bindings::kfree(self.0.cast()) };
    }
}

/// What to do about the notifications of a device.
pub(crate) trait Notify: Send + Sync + 'static {
    /// Called in process context for each notification. Calls may overlap.
    fn notify(&self);
}

/// A handler of the notifications of a device.
///
/// # Invariants
///
/// `notify_callback::<T>` is installed for the device with this handle, with a pointer to `target`. The
/// handle is valid.
#[pin_data(PinnedDrop)]
struct Handler<T: Notify> {
    handle: bindings::acpi_handle,
    #[pin]
    target: T,
}

// SAFETY: An ACPI handle may be used from any thread, and `T` is `Send`.
unsafe impl<T: Notify> Send for Handler<T> {}

impl<T: Notify> Handler<T> {
    fn new(
        handle: bindings::acpi_handle,
        target: impl PinInit<T, Error>,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: The handler is installed last, and an error of that ends the initialisation. The
        // device that the handle is of outlives this, for `listen` gives this to that device.
        try_pin_init!(Self {
            handle,
            target <- target,
            _: {
                // SAFETY: The target is pinned, and the destructor removes the handler before the
                // target is dropped.
                let status = unsafe {
                    bindings::acpi_install_notify_handler(
                        *handle,
                        bindings::ACPI_DEVICE_NOTIFY,
                        Some(notify_callback::<T>),
                        core::ptr::from_ref::<T>(&target).cast_mut().cast(),
                    )
                };
                if status != 0 {
                    pr_err!("cannot listen to the device: {}\n", status_name(status));
                    return Err(ENODEV);
                }
            },
        })
        .pin_chain(|handler| {
            handler.target.notify();
            Ok(())
        })
    }
}

#[pinned_drop]
impl<T: Notify> PinnedDrop for Handler<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the handler is installed. When this returns, no call of it
        // is running or to come.
        unsafe {
            bindings::acpi_remove_notify_handler(
                self.handle,
                bindings::ACPI_DEVICE_NOTIFY,
                Some(notify_callback::<T>),
            )
        };
    }
}

/// # Safety
///
/// `target` must point to a `T` that outlives the call.
unsafe extern "C" fn notify_callback<T: Notify>(
    _device: bindings::acpi_handle,
    _event: u32,
    target: *mut c_void,
) {
    // SAFETY: The caller passes a valid target, which is only ever shared.
    unsafe { &*target.cast::<T>() }.notify();
}
