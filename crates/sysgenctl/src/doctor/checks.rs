// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is looked at, in the order in which things need each other.

use std::path::{Path, PathBuf};

use sysgenid::{Access, Error, Orchestrator, PATH_VARIABLE, PATHS, Tracking};

use super::{Check, Diagnosis, Verdict};
use crate::front_end::FrontEnd;
use crate::machine::{GenerationDevice, KernelConfig, Machine, Module, Setting, Vmclock};
use crate::permission::group_for;
use crate::place::Place;
use crate::status::{Backend, Report, backends_of_module};

/// The oldest kernels for the daemon and for the module.
const FOR_DAEMON: (u32, u32) = (6, 9);
const FOR_MODULE: (u32, u32) = (7, 3);

/// Where the daemon may be installed.
const DAEMON_PATHS: [&str; 4] = [
    "/usr/sbin/sysgenidd",
    "/usr/bin/sysgenidd",
    "/usr/local/sbin/sysgenidd",
    "/usr/local/bin/sysgenidd",
];

/// Where the daemon serves the host's own node, whether or not it is published.
const NODE_OF_DAEMON: &str = "/run/sysgenid/host/sysgenid";

/// Looks at everything.
pub(super) fn examine(machine: &Machine, place: &Place) -> Diagnosis {
    let node = Node::of(place);
    let kernel = Kernel::of(machine);
    let devices = machine.generation_devices();
    let vmclocks = machine.vmclocks();
    let served_by_daemon = matches!(node.front_end, Some(FrontEnd::Daemon { .. }));
    let backends = backends(machine, &node);
    let notices = backends
        .as_ref()
        .is_some_and(|backends| backends.iter().any(notices_restores));
    Diagnosis {
        told: node.is_readable() && notices,
        checks: vec![
            check_kernel(&kernel, &node),
            check_module(machine, &kernel, served_by_daemon),
            check_daemon(machine, &kernel, &node, served_by_daemon),
            check_node(machine, &kernel, &node),
            check_reading(&node),
            check_acknowledging(&node),
            check_hypervisor_device(&devices, &vmclocks, notices),
            check_driver(machine, &kernel, &devices),
            check_vmclock(&vmclocks),
            check_backends(machine, backends.as_deref(), &node),
        ],
    }
}

/// The node, as this user finds it.
struct Node {
    name: String,
    /// What has named it, if it is not the machine's own.
    named_by: Option<&'static str>,
    readable: Result<PathBuf, Error>,
    writable: Result<(), Error>,
    front_end: Option<FrontEnd>,
}

impl Node {
    fn of(place: &Place) -> Self {
        let readable = place.orchestrator().map(|opened| opened.path().to_owned());
        let path = match &readable {
            Ok(path) | Err(Error::NoPermission { path, .. }) => Some(path.as_path()),
            Err(_) => None,
        };
        Self {
            name: place.name(),
            named_by: place.named_by(),
            front_end: path.and_then(|path| FrontEnd::of(path).ok()),
            writable: place.watcher(Tracking::Tracked).map(drop),
            readable,
        }
    }

    fn is_readable(&self) -> bool {
        self.readable.is_ok()
    }

    /// Whether whoever served it has gone, and left it behind.
    fn is_dead(&self) -> bool {
        self.readable.as_ref().is_err_and(Error::is_gone)
    }

    /// Whether something serves it, whoever may open it.
    fn exists(&self) -> bool {
        matches!(self.readable, Ok(_) | Err(Error::NoPermission { .. }))
    }
}

struct Kernel {
    release: String,
    version: Option<(u32, u32)>,
    config: Option<KernelConfig>,
}

impl Kernel {
    fn of(machine: &Machine) -> Self {
        let release = machine.kernel_release();
        Self {
            version: version(&release),
            config: machine.kernel_config(),
            release,
        }
    }

    /// A release that says nothing is not held against it.
    fn is_at_least(&self, oldest: (u32, u32)) -> bool {
        self.version.is_none_or(|version| version >= oldest)
    }

    fn setting(&self, option: &str) -> Option<Setting> {
        Some(self.config.as_ref()?.setting(option))
    }

    /// Whether the module could be built for it, as far as can be known.
    fn is_for_module(&self) -> bool {
        self.is_at_least(FOR_MODULE) && self.setting("CONFIG_RUST") != Some(Setting::Off)
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn check_kernel(kernel: &Kernel, node: &Node) -> Check {
    let subject = "kernel";
    let rust = match &kernel.config {
        None => "; whether it has CONFIG_RUST cannot be seen".to_owned(),
        Some(config) => {
            let with = match config.setting("CONFIG_RUST") {
                Setting::Off => "without",
                _ => "with",
            };
            format!(", {with} CONFIG_RUST by {}", config.path.display())
        }
    };
    let release = format!("Linux {}{rust}", kernel.release);
    if kernel.is_for_module() {
        let found = format!("{release}: new enough for the module and for the daemon");
        return ok(subject, found);
    }
    if kernel.is_at_least(FOR_DAEMON) {
        let found = format!(
            "{release}: new enough for the daemon (the module takes {}.{} and CONFIG_RUST)",
            FOR_MODULE.0, FOR_MODULE.1
        );
        return ok(subject, found);
    }
    let found = format!("{release}: too old for the module and for the daemon");
    if node.exists() {
        // Whatever it is, it works.
        return ok(subject, found);
    }
    let advice = format!(
        "boot Linux {}.{} or newer for the daemon, {}.{} or newer with CONFIG_RUST for the module",
        FOR_DAEMON.0, FOR_DAEMON.1, FOR_MODULE.0, FOR_MODULE.1
    );
    missing(subject, found, advice)
}

fn check_module(machine: &Machine, kernel: &Kernel, served_by_daemon: bool) -> Check {
    let subject = "kernel module";
    match machine.module("sysgenid") {
        Module::Loaded => ok(subject, "sysgenid is loaded"),
        Module::BuiltIn => ok(subject, "sysgenid is built into the kernel"),
        _ if served_by_daemon => ok(subject, "not needed: the daemon serves the node"),
        Module::Available => warn(
            subject,
            format!(
                "sysgenid is installed for {} and not loaded",
                kernel.release
            ),
            "load it, with what notices restores: modprobe sysgenid_vmfork (sysgenid_acpi where the kernel has no \
             CONFIG_VMGENID); packaging/modules-load.d has it loaded at boot",
        ),
        Module::Absent if kernel.is_for_module() => warn(
            subject,
            format!("sysgenid is not installed for {}", kernel.release),
            "build and install it for this kernel as README.md shows, or take the daemon",
        ),
        Module::Absent if !kernel.is_at_least(FOR_DAEMON) => ok(subject, "not for this kernel"),
        Module::Absent => {
            let reason = if kernel.is_at_least(FOR_MODULE) {
                "it is built without CONFIG_RUST".to_owned()
            } else {
                format!(
                    "the module takes {}.{} and CONFIG_RUST",
                    FOR_MODULE.0, FOR_MODULE.1
                )
            };
            let found = format!("not to be had for this kernel ({reason}): take the daemon");
            ok(subject, found)
        }
    }
}

fn check_daemon(machine: &Machine, kernel: &Kernel, node: &Node, served_by_daemon: bool) -> Check {
    let subject = "daemon";
    if served_by_daemon {
        return ok(subject, "sysgenidd serves the node");
    }
    if node.front_end == Some(FrontEnd::Module) {
        return ok(subject, "not needed: the module serves the node");
    }
    let of_daemon = Orchestrator::open_at(machine.path(NODE_OF_DAEMON)).map(drop);
    if node.is_dead() || of_daemon.as_ref().is_err_and(Error::is_gone) {
        return missing(
            subject,
            "sysgenidd has ended and left its nodes behind: it crashed, or was killed",
            "restart it: systemctl restart sysgenidd, or under another init as it was started before (journalctl -u \
             sysgenidd says why it ended; sysgenidd clean removes what it has left)",
        );
    }
    if machine.module("sysgenid").is_there() {
        return ok(subject, "not needed: the module is there");
    }
    if !of_daemon.is_err_and(|error| error.is_absent()) {
        if node.named_by.is_some() {
            return ok(
                subject,
                format!("sysgenidd runs, and serves {NODE_OF_DAEMON}"),
            );
        }
        return warn(
            subject,
            "sysgenidd runs, but does not serve this node",
            "have it make /dev/sysgenid as well: publish = true in /etc/sysgenid/sysgenidd.toml, or sysgenidd \
             --publish. It does so only where something notices restores; where whoever restores calls the trigger, \
             say \"always\"",
        );
    }
    if !kernel.is_at_least(FOR_DAEMON) {
        return ok(subject, "not for this kernel");
    }
    if !machine.exists("/dev/fuse") {
        return warn(
            subject,
            "sysgenidd does not run, and cannot: there is no /dev/fuse",
            "for the daemon: modprobe fuse, or give the container /dev/fuse",
        );
    }
    match DAEMON_PATHS.iter().find(|path| machine.exists(path)) {
        Some(path) => warn(
            subject,
            format!("{path} is installed and does not serve the node"),
            "start it: systemctl enable --now sysgenidd, or under another init sysgenidd --supervise --publish",
        ),
        None => {
            let advice = "install and start it as docs/sysgenidd.md shows";
            let advice = if kernel.is_for_module() {
                format!("{advice}, unless the module is to serve the node")
            } else {
                advice.to_owned()
            };
            warn(subject, "sysgenidd is not installed", advice)
        }
    }
}

fn check_node(machine: &Machine, kernel: &Kernel, node: &Node) -> Check {
    let subject = "node";
    match (&node.readable, &node.front_end) {
        (Ok(path), Some(front_end)) => ok(
            subject,
            format!("{}, served by the {}", path.display(), front_end.name()),
        ),
        (Ok(path) | Err(Error::NoPermission { path, .. }), _) => {
            ok(subject, path.display().to_string())
        }
        (Err(Error::Gone { path }), _) => {
            let found = format!("{}, whose server has gone", path.display());
            // The daemon is to be restarted, which is said there.
            check(subject, Verdict::Missing, found, None)
        }
        (Err(error), _) => {
            let (found, advice) = no_node(machine, kernel, node, error);
            missing(subject, found, advice)
        }
    }
}

/// What is in the place of the node, and what to do about it.
fn no_node(machine: &Machine, kernel: &Kernel, node: &Node, error: &Error) -> (String, String) {
    let found = match error {
        Error::NotANode { path } => format!("{} is something else", path.display()),
        error if error.is_absent() => format!("there is no {}", node.name),
        error => error.to_string(),
    };
    if let Some(name) = node.named_by {
        let found = format!("{found}, which {name} names");
        let leave_out = if name == PATH_VARIABLE {
            "unset"
        } else {
            "leave out"
        };
        let advice = format!(
            "correct {name}, or {leave_out} it for {}; or have a node served there",
            PATHS.join(" or else ")
        );
        return (found, advice);
    }
    let advice = if matches!(error, Error::NotANode { .. }) {
        "find out what has made that file, and remove it"
    } else if machine.module("sysgenid").is_there() {
        "the module is loaded but there is no node: is this a container, or /dev not a devtmpfs? Have the node handed in"
    } else if kernel.is_for_module() {
        "load the module or start the daemon, as above"
    } else if kernel.is_at_least(FOR_DAEMON) {
        "start the daemon, as above"
    } else {
        "boot a newer kernel first, as above"
    };
    (found, advice.to_owned())
}

fn check_reading(node: &Node) -> Check {
    let subject = "to be told";
    match &node.readable {
        Ok(_) => ok(subject, "this user may read the node"),
        Err(Error::NoPermission { path, .. }) => missing(
            subject,
            format!("this user may not read {}", path.display()),
            match group_for(path, Access::Read) {
                Some(group) => format!(
                    "make the users of the programs in question members of the group {group}, which may read it; it \
                     counts from their next login or start"
                ),
                None => "run this as the user of the programs in question; to let everybody read is chmod a+r for the \
                         module, sysgenid-mode in the daemon's configuration"
                    .to_owned(),
            },
        ),
        Err(_) => nothing_to_see(subject),
    }
}

fn check_acknowledging(node: &Node) -> Check {
    let subject = "to acknowledge";
    match &node.writable {
        Ok(()) => ok(subject, "this user may write to the node"),
        Err(Error::NoPermission { path, .. }) => warn(
            subject,
            "this user may not write to the node, so nobody can wait for its programs",
            match (group_for(path, Access::ReadWrite), &node.front_end) {
                (Some(group), _) => format!(
                    "make those users members of the group {group}, which may write to it, whose programs others \
                     shall wait for; it counts from their next login or start"
                ),
                (None, Some(FrontEnd::Module)) => {
                    "no group may write to it: install packaging/sysusers.d and packaging/udev/60-sysgenid.rules, and \
                     make those users members of the group sysgenid whose programs others shall wait for"
                        .to_owned()
                }
                (None, _) => {
                    "no group may write to it: name one in the daemon's configuration, or make the group sysgenid, and \
                     run sysgenidd reload; then make those users members of it whose programs others shall wait for"
                        .to_owned()
                }
            },
        ),
        Err(_) => nothing_to_see(subject),
    }
}

fn check_hypervisor_device(
    devices: &[GenerationDevice],
    vmclocks: &[Vmclock],
    notices: bool,
) -> Check {
    let subject = "hypervisor device";
    if let Some(device) = devices.first() {
        return ok(subject, format!("generation ID device {}", device.name));
    }
    let found = "no generation ID device, neither of ACPI nor in a device tree";
    if notices || vmclocks.iter().any(|device| device.page.is_ok()) {
        return ok(subject, format!("{found}; restores are noticed otherwise"));
    }
    warn(
        subject,
        found,
        "have the hypervisor give the machine one (QEMU: -device vmgenid,guid=auto; others have it by default, or a \
         setting). Without one whoever restores the machine must call sysgenctl trigger",
    )
}

fn check_driver(machine: &Machine, kernel: &Kernel, devices: &[GenerationDevice]) -> Check {
    let subject = "driver";
    let Some(device) = devices.first() else {
        return ok(subject, "nothing to drive");
    };
    if let Some(driver) = devices.iter().find_map(|device| device.driver.as_ref()) {
        return ok(subject, format!("{driver} drives {}", device.name));
    }
    let found = format!("no driver has {}", device.name);
    let advice = match (kernel.setting("CONFIG_VMGENID"), machine.module("vmgenid")) {
        (Some(Setting::BuiltIn), _) => {
            "the kernel's driver is built in and did not take it: the kernel's log says why (dmesg | grep -i vmgenid)"
        }
        (Some(Setting::Module), _) | (_, Module::Available) => {
            "load the kernel's driver: modprobe vmgenid"
        }
        (Some(Setting::Off), _) => {
            "this kernel has no CONFIG_VMGENID: load this project's driver, modprobe sysgenid_acpi"
        }
        (None, _) => {
            "load the kernel's driver, modprobe vmgenid, or this project's, modprobe sysgenid_acpi"
        }
    };
    warn(subject, found, advice)
}

fn check_vmclock(vmclocks: &[Vmclock]) -> Check {
    let subject = "vmclock";
    let counting = vmclocks.iter().find_map(|device| {
        let page = device.page.as_ref().ok()?;
        Some((device, page))
    });
    if let Some((device, page)) = counting {
        let notifies = if page.notifies {
            ", and the hypervisor notifies"
        } else {
            ""
        };
        let path = device.path.display();
        return ok(subject, format!("{path} counts restores{notifies}"));
    }
    match vmclocks.first() {
        None => ok(subject, "no such device; few hypervisors have it"),
        Some(Vmclock {
            path,
            page: Err(error),
        }) => warn(
            subject,
            format!("{}: {error}", path.display()),
            "nothing is lost where another backend works: the hypervisor would have to count restores, and this \
             user to be allowed to read the device",
        ),
        Some(_) => nothing_to_see(subject),
    }
}

fn check_backends(machine: &Machine, backends: Option<&[Backend]>, node: &Node) -> Check {
    let subject = "noticed by";
    let Some(backends) = backends else {
        if node.exists() {
            return warn(
                subject,
                "the daemon's reports cannot be seen from here, so what notices restores is not known",
                "run sysgenctl doctor where the daemon runs",
            );
        }
        return nothing_to_see(subject);
    };
    let works: Vec<_> = backends
        .iter()
        .filter(|backend| notices_restores(backend))
        .map(|backend| backend.name.as_str())
        .collect();
    if !works.is_empty() {
        return ok(subject, works.join(", "));
    }
    let advice = if node.front_end == Some(FrontEnd::Module) {
        if machine.module("sysgenid_vmfork") == Module::Available {
            "load what notices restores: modprobe sysgenid_vmfork (sysgenid_acpi where the kernel has no \
             CONFIG_VMGENID)"
        } else {
            "install and load sysgenid_vmfork or sysgenid_acpi, and see to the hypervisor's device as above; or have \
             whoever restores the machine call sysgenctl trigger"
        }
    } else {
        "see to the hypervisor's device and its driver as above; or have whoever restores the machine call sysgenctl \
         trigger"
    };
    missing(
        subject,
        "nothing: only software changes the generation",
        advice,
    )
}

/// What notices restores for this node, if that can be known.
fn backends(machine: &Machine, node: &Node) -> Option<Vec<Backend>> {
    match node.front_end.as_ref()? {
        FrontEnd::Module => Some(backends_of_module(machine)),
        FrontEnd::Daemon { folder } => {
            let folder: &Path = folder.as_ref()?;
            let text = std::fs::read_to_string(folder.join("status")).ok()?;
            Some(Report::parse(&text).backends)
        }
    }
}

/// Software does not notice: it has to be called.
fn notices_restores(backend: &Backend) -> bool {
    backend.works && backend.name != "software"
}

fn ok(subject: &'static str, found: impl Into<String>) -> Check {
    check(subject, Verdict::Ok, found.into(), None)
}

fn warn(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    check(subject, Verdict::Warn, found.into(), Some(advice.into()))
}

fn missing(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    check(subject, Verdict::Missing, found.into(), Some(advice.into()))
}

/// What cannot be judged before something else is there.
fn nothing_to_see(subject: &'static str) -> Check {
    check(
        subject,
        Verdict::Missing,
        "not to be seen without a node".to_owned(),
        None,
    )
}

fn check(subject: &'static str, verdict: Verdict, found: String, advice: Option<String>) -> Check {
    Check {
        subject,
        verdict,
        found,
        advice,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A machine with these files, and no node.
    fn diagnosis(files: &[(&str, &str)]) -> Diagnosis {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let place = Place::new(Some(folder.path().join("dev/sysgenid")));
        examine(&Machine::at(folder.path()), &place)
    }

    fn of<'a>(diagnosis: &'a Diagnosis, subject: &str) -> &'a Check {
        let found = diagnosis
            .checks
            .iter()
            .find(|check| check.subject == subject);
        found.unwrap_or_else(|| panic!("{subject}: {diagnosis:?}"))
    }

    const RELEASE: &str = "proc/sys/kernel/osrelease";

    #[test]
    fn an_old_kernel_is_the_first_thing_to_change() {
        let diagnosis = diagnosis(&[(RELEASE, "6.1.0-49-amd64\n")]);
        assert!(!diagnosis.told);
        assert_eq!(of(&diagnosis, "kernel").verdict, Verdict::Missing);
        let first = diagnosis
            .checks
            .iter()
            .find_map(|check| check.advice.as_ref());
        assert!(first.unwrap().starts_with("boot Linux 6.9"), "{first:?}");
        assert_eq!(of(&diagnosis, "daemon").advice, None);
    }

    #[test]
    fn a_kernel_without_rust_is_for_the_daemon() {
        let diagnosis = diagnosis(&[
            (RELEASE, "7.3.4\n"),
            ("boot/config-7.3.4", "CONFIG_VMGENID=y\n"),
            ("dev/fuse", ""),
        ]);
        assert_eq!(of(&diagnosis, "kernel").verdict, Verdict::Ok);
        assert_eq!(of(&diagnosis, "kernel module").advice, None);
        let daemon = of(&diagnosis, "daemon");
        assert_eq!(daemon.verdict, Verdict::Warn);
        assert!(daemon.found.contains("not installed"), "{daemon:?}");
    }

    #[test]
    fn why_the_module_is_not_to_be_had_is_said() {
        for (release, config, reason) in [
            ("7.3.4", "CONFIG_VMGENID=y\n", "built without CONFIG_RUST"),
            ("6.12.1", "CONFIG_RUST=y\n", "takes 7.3"),
        ] {
            let config = (format!("boot/config-{release}"), config);
            let diagnosis = diagnosis(&[(RELEASE, release), (&config.0, config.1)]);
            let module = of(&diagnosis, "kernel module");
            assert!(module.found.contains(reason), "{module:?}");
            assert!(module.found.contains("take the daemon"), "{module:?}");
            let advice = of(&diagnosis, "daemon").advice.as_ref().unwrap();
            assert!(!advice.contains("module"), "{advice}");
        }
        let too_old = diagnosis(&[(RELEASE, "6.1.0\n")]);
        let module = of(&too_old, "kernel module");
        assert!(!module.found.contains("take the daemon"), "{module:?}");
    }

    #[test]
    fn a_node_that_was_named_in_error_is_to_be_named_otherwise() {
        let there = [
            (RELEASE, "7.3.4\n"),
            ("run/sysgenid/host/sysgenid", ""),
            ("dev/sysgenid", "text"),
        ];
        for (files, found) in [(&there[..2], "there is no"), (&there, "something else")] {
            let diagnosis = diagnosis(files);
            let node = of(&diagnosis, "node");
            assert!(node.found.contains(found), "{node:?}");
            assert!(node.found.contains("--node names"), "{node:?}");
            let advice = node.advice.as_ref().unwrap();
            assert!(advice.starts_with("correct --node"), "{advice}");
            assert!(!advice.contains("remove"), "{advice}");
            // The daemon that runs serves another, and need not serve this one.
            assert_eq!(of(&diagnosis, "daemon").verdict, Verdict::Ok);
        }
    }

    #[test]
    fn where_the_module_is_loaded_no_daemon_is_to_be_installed() {
        let diagnosis = diagnosis(&[(RELEASE, "7.3.4\n"), ("sys/module/sysgenid/refcnt", "1")]);
        assert_eq!(of(&diagnosis, "daemon").advice, None);
    }

    #[test]
    fn a_module_that_is_installed_is_to_be_loaded() {
        let diagnosis = diagnosis(&[
            (RELEASE, "7.3.4\n"),
            ("lib/modules/7.3.4/modules.dep", "updates/sysgenid.ko:\n"),
        ]);
        let advice = of(&diagnosis, "kernel module").advice.as_ref().unwrap();
        assert!(advice.contains("modprobe sysgenid_vmfork"), "{advice}");
        assert_eq!(of(&diagnosis, "node").verdict, Verdict::Missing);
    }

    #[test]
    fn a_daemon_without_fuse_cannot_run() {
        let diagnosis = diagnosis(&[(RELEASE, "6.12.1\n"), ("usr/sbin/sysgenidd", "")]);
        assert!(of(&diagnosis, "daemon").found.contains("/dev/fuse"));
    }

    #[test]
    fn a_device_that_nothing_drives_wants_the_driver_that_the_kernel_has() {
        let device = ("sys/bus/acpi/devices/VMGENCTR:00/hid", "VMGENCTR\n");
        for (config, advice) in [
            ("CONFIG_VMGENID=m\n", "modprobe vmgenid"),
            ("CONFIG_VMGENID=y\n", "dmesg"),
            ("# CONFIG_VMGENID is not set\n", "modprobe sysgenid_acpi"),
        ] {
            let files = [(RELEASE, "7.3.4\n"), ("boot/config-7.3.4", config), device];
            let diagnosis = diagnosis(&files);
            assert_eq!(of(&diagnosis, "hypervisor device").verdict, Verdict::Ok);
            let found = of(&diagnosis, "driver").advice.as_ref().unwrap();
            assert!(found.contains(advice), "{config}: {found}");
        }
    }

    #[test]
    fn what_software_does_is_not_noticing() {
        let backend = |name: &str, works| Backend {
            name: name.to_owned(),
            works,
            description: String::new(),
        };
        assert!(!notices_restores(&backend("software", true)));
        assert!(!notices_restores(&backend("kmsg", false)));
        assert!(notices_restores(&backend("kmsg", true)));
    }

    #[test]
    fn a_release_is_read_up_to_its_second_number() {
        assert_eq!(version("6.12.107+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("7.3-rc1"), Some((7, 3)));
        assert_eq!(version("unknown"), None);
    }
}
