// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this machine has: its kernel, modules, and the devices by which a hypervisor tells of restores.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use rustix::fs::{Mode, OFlags};
use sysgenid_vmclock::{Malformed, Page};

/// The identifiers of the ACPI device: Microsoft's, that of the specification, and what hypervisors call theirs.
const ACPI_IDS: [&str; 3] = ["VM_GEN_COUNTER", "VMGENCTR", "QEMUVGID"];

/// What the device tree calls the device.
const DEVICE_TREE_ID: &str = "microsoft,vmgenid";

/// How many vmclock devices are looked for.
const MOST_VMCLOCKS: u32 = 8;

/// A machine, by its file systems.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
}

/// A value of the kernel's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    BuiltIn,
    Module,
    Off,
}

/// The configuration of the running kernel.
#[derive(Debug)]
pub(crate) struct KernelConfig {
    pub(crate) path: PathBuf,
    text: String,
}

/// A device through which the hypervisor publishes a generation ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationDevice {
    /// Its name on its bus.
    pub(crate) name: String,
    /// The driver that has it.
    pub(crate) driver: Option<String>,
}

/// A device with the hypervisor's page.
#[derive(Debug)]
pub(crate) struct Vmclock {
    pub(crate) path: PathBuf,
    pub(crate) page: Result<Page, VmclockError>,
}

/// Why a page is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmclockError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// Where a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    Loaded,
    BuiltIn,
    /// It is installed for the running kernel and not loaded.
    Available,
    Absent,
}

impl Machine {
    /// The one that this runs on.
    pub(crate) fn this() -> Self {
        Self { root: "/".into() }
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names in a folder, in order.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// As `uname -r` prints it.
    pub(crate) fn kernel_release(&self) -> String {
        let release = self.read("/proc/sys/kernel/osrelease");
        release.unwrap_or_default().trim().to_owned()
    }

    /// How the kernel was configured, if that is written anywhere.
    pub(crate) fn kernel_config(&self) -> Option<KernelConfig> {
        let release = self.kernel_release();
        let packed = PathBuf::from("/proc/config.gz");
        if let Ok(file) = fs::File::open(self.path("/proc/config.gz")) {
            let mut text = String::new();
            if GzDecoder::new(file).read_to_string(&mut text).is_ok() {
                return Some(KernelConfig { path: packed, text });
            }
        }
        [
            format!("/boot/config-{release}"),
            format!("/lib/modules/{release}/config"),
            format!("/lib/modules/{release}/build/.config"),
        ]
        .into_iter()
        .find_map(|path| {
            let text = self.read(&path)?;
            let path = path.into();
            Some(KernelConfig { path, text })
        })
    }

    /// Where a module is.
    pub(crate) fn module(&self, name: &str) -> Module {
        let folder = format!("/lib/modules/{}", self.kernel_release());
        let is_in = |list: &str| {
            self.read(&format!("{folder}/{list}"))
                .is_some_and(|text| names_module(&text, name))
        };
        if is_in("modules.builtin") {
            Module::BuiltIn
        } else if self.exists(&format!("/sys/module/{name}")) {
            Module::Loaded
        } else if is_in("modules.dep") {
            Module::Available
        } else {
            Module::Absent
        }
    }

    /// The devices with a generation ID, of ACPI and of a device tree.
    pub(crate) fn generation_devices(&self) -> Vec<GenerationDevice> {
        let acpi = "/sys/bus/acpi/devices";
        let of_acpi = self.list(acpi).into_iter().filter_map(|name| {
            let device = format!("{acpi}/{name}");
            let ids = ["hid", "modalias"]
                .into_iter()
                .filter_map(|file| self.read(&format!("{device}/{file}")));
            // Firmware is not of one mind about their case.
            let matches = |text: String| {
                let text = text.to_ascii_uppercase();
                ACPI_IDS.iter().any(|id| text.contains(id))
            };
            if !ids.into_iter().any(matches) {
                return None;
            }
            let driver = ["physical_node/driver", "driver"]
                .into_iter()
                .find_map(|link| self.target_name(&format!("{device}/{link}")));
            Some(GenerationDevice { name, driver })
        });
        let platform = "/sys/bus/platform/devices";
        let of_device_tree = self.list(platform).into_iter().filter_map(|name| {
            let device = format!("{platform}/{name}");
            let alias = self.read(&format!("{device}/modalias"))?;
            if !alias.contains(DEVICE_TREE_ID) {
                return None;
            }
            let driver = self.target_name(&format!("{device}/driver"));
            Some(GenerationDevice { name, driver })
        });
        of_acpi.chain(of_device_tree).collect()
    }

    /// The devices with the hypervisor's page.
    pub(crate) fn vmclocks(&self) -> Vec<Vmclock> {
        (0..MOST_VMCLOCKS)
            .map(|number| format!("/dev/vmclock{number}"))
            .filter(|path| self.exists(path))
            .map(|path| Vmclock {
                page: read_vmclock(&self.path(&path)),
                path: path.into(),
            })
            .collect()
    }

    fn target_name(&self, link: &str) -> Option<String> {
        let target = fs::read_link(self.path(link)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }
}

impl KernelConfig {
    /// What an option is set to.
    pub(crate) fn setting(&self, option: &str) -> Setting {
        let value = self.text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name == option).then_some(value)
        });
        match value {
            Some("y") => Setting::BuiltIn,
            Some("m") => Setting::Module,
            _ => Setting::Off,
        }
    }
}

impl Module {
    /// Whether the kernel has it now.
    pub(crate) fn is_there(self) -> bool {
        matches!(self, Self::Loaded | Self::BuiltIn)
    }
}

/// Whether a list of files of modules has one of this name. The file may be compressed.
fn names_module(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let file = line.split(':').next().unwrap_or_default();
        let file = file.rsplit('/').next().unwrap_or_default();
        let Some((found, rest)) = file.split_once('.') else {
            return false;
        };
        (rest == "ko" || rest.starts_with("ko.")) && found.replace('-', "_") == name
    })
}

fn read_vmclock(path: &Path) -> Result<Page, VmclockError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
    let mut start = [0; sysgenid_vmclock::SIZE];
    // The driver waits until the page is whole.
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&device, &mut start, 0))
        .map_err(io::Error::from)?;
    Ok(sysgenid_vmclock::parse(&start[..length])?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with these files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::at(folder.path());
        (folder, machine)
    }

    #[test]
    fn a_module_is_found_loaded_built_in_or_installed() {
        let (_folder, machine) = machine(&[
            ("proc/sys/kernel/osrelease", "7.3.4-test\n"),
            ("sys/module/sysgenid/refcnt", "0"),
            (
                "lib/modules/7.3.4-test/modules.dep",
                "updates/sysgenid/sysgenid.ko.xz:\nupdates/sysgenid-vmfork.ko: updates/sysgenid/sysgenid.ko.xz\n",
            ),
            (
                "lib/modules/7.3.4-test/modules.builtin",
                "kernel/drivers/virt/vmgenid.ko\n",
            ),
        ]);
        assert_eq!(machine.module("sysgenid"), Module::Loaded);
        assert_eq!(machine.module("sysgenid_vmfork"), Module::Available);
        assert_eq!(machine.module("vmgenid"), Module::BuiltIn);
        assert_eq!(machine.module("sysgenid_acpi"), Module::Absent);
        assert_eq!(machine.module("sys"), Module::Absent);
    }

    #[test]
    fn the_configuration_of_the_kernel_is_found_packed_and_plain() {
        let text = "# CONFIG_RUST is not set\nCONFIG_VMGENID=m\nCONFIG_VMGENID_X=y\nCONFIG_MMU=y\n";
        let (folder, machine) = machine(&[
            ("proc/sys/kernel/osrelease", "7.3.4-test\n"),
            ("boot/config-7.3.4-test", text),
        ]);
        let config = machine.kernel_config().unwrap();
        assert_eq!(config.setting("CONFIG_RUST"), Setting::Off);
        assert_eq!(config.setting("CONFIG_VMGENID"), Setting::Module);
        assert_eq!(config.setting("CONFIG_MMU"), Setting::BuiltIn);

        let file = fs::File::create(folder.path().join("proc/config.gz")).unwrap();
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        io::Write::write_all(&mut packed, b"CONFIG_RUST=y\n").unwrap();
        packed.finish().unwrap();
        let config = machine.kernel_config().unwrap();
        assert_eq!(config.setting("CONFIG_RUST"), Setting::BuiltIn);
        assert_eq!(config.path, Path::new("/proc/config.gz"));
    }

    #[test]
    fn the_devices_of_acpi_and_of_a_device_tree_are_found_with_their_drivers() {
        let (folder, machine) = machine(&[
            ("sys/bus/acpi/devices/PNP0A03:00/hid", "PNP0A03\n"),
            ("sys/bus/acpi/devices/QEMUVGID:00/hid", "QEMUVGID\n"),
            (
                "sys/bus/acpi/devices/QEMUVGID:00/modalias",
                "acpi:QEMUVGID:VM_GEN_COUNTER:\n",
            ),
            ("sys/bus/acpi/devices/QEMUVGID:00/physical_node/uevent", ""),
            (
                "sys/bus/acpi/devices/SOMEBODY:00/modalias",
                "acpi:SOMEBODY:VM_Gen_Counter:\n",
            ),
            (
                "sys/bus/platform/devices/vmgenid/modalias",
                "of:NvmgenidT(null)Cmicrosoft,vmgenid\n",
            ),
        ]);
        symlink(
            "../../bus/platform/drivers/vmgenid",
            folder
                .path()
                .join("sys/bus/acpi/devices/QEMUVGID:00/physical_node/driver"),
        )
        .unwrap();
        let device = |name: &str, driver: Option<&str>| GenerationDevice {
            name: name.to_owned(),
            driver: driver.map(str::to_owned),
        };
        assert_eq!(
            machine.generation_devices(),
            [
                device("QEMUVGID:00", Some("vmgenid")),
                device("SOMEBODY:00", None),
                device("vmgenid", None)
            ]
        );
    }

    #[test]
    fn a_page_is_judged_as_the_daemon_judges_it() {
        let (folder, machine) = machine(&[("dev/vmclock1", "short")]);
        fs::write(
            folder.path().join("dev/vmclock0"),
            sysgenid_vmclock::sample(7),
        )
        .unwrap();
        let found = machine.vmclocks();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].page.as_ref().unwrap().generation_counter, 7);
        assert!(matches!(
            found[1].page,
            Err(VmclockError::Malformed(Malformed::Short(5)))
        ));
    }
}
