// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose process it is: the unit of the service manager, or the container.

use std::fmt;

use serde::Serialize;

/// What the control groups of a process say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Owner {
    /// The innermost service or scope of systemd, unless it only stands for a container.
    pub(crate) unit: Option<String>,
    /// The container or virtual machine.
    pub(crate) container: Option<Container>,
}

/// A container, by whoever runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Container {
    /// The engine.
    pub(crate) engine: &'static str,
    /// Its identifier, or for systemd-nspawn its name.
    pub(crate) id: String,
}

/// What engines call the scope of a container, before its identifier.
const SCOPES: [(&str, &str); 4] = [
    ("docker-", "docker"),
    ("libpod-", "podman"),
    ("crio-", "cri-o"),
    ("cri-containerd-", "containerd"),
];

/// What they call the folder of all containers, where systemd does not manage the control groups.
const FOLDERS: [(&str, &str); 4] = [
    ("docker", "docker"),
    ("libpod_parent", "podman"),
    ("crio", "cri-o"),
    ("containerd", "containerd"),
];

/// How many characters of an identifier people use.
const SHORT: usize = 12;

impl Owner {
    /// Reads `/proc/PID/cgroup`.
    pub(crate) fn parse(cgroup: &str) -> Self {
        // Of version 1 the hierarchy of systemd is asked; of version 2 there is but one.
        let path = cgroup
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                Some((controllers, path))
            })
            .max_by_key(|(controllers, path)| match *controllers {
                _ if *path == "/" => 0,
                "" => 2,
                "name=systemd" => 3,
                _ => 1,
            })
            .map_or("", |(_, path)| path);
        Self::of_path(path)
    }

    fn of_path(path: &str) -> Self {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let innermost = (0..parts.len())
            .rev()
            .find_map(|index| Some((index, container(&parts, index)?)));
        let (inside, container) = match innermost {
            Some((index, container)) => (index + 1, Some(container)),
            None => (0, None),
        };
        // Of a container that runs an init of its own the unit is worth more than the container's scope.
        let unit = parts[inside..]
            .iter()
            .rev()
            .find(|part| part.ends_with(".service") || part.ends_with(".scope"))
            // Where the manager of a container puts itself, which is no unit.
            .filter(|part| **part != "init.scope" || container.is_none())
            .map(|part| unescape(part));
        Self { unit, container }
    }
}

/// The container that a part of a path stands for.
fn container(parts: &[&str], index: usize) -> Option<Container> {
    let part = parts[index];
    let of = |engine, id: &str| {
        Some(Container {
            engine,
            id: id.to_owned(),
        })
    };
    if let Some(name) = part.strip_suffix(".scope") {
        for (prefix, engine) in SCOPES {
            if let Some(id) = name.strip_prefix(prefix) {
                // Of Podman the process beside the container.
                return (!id.starts_with("conmon-") && is_identifier(id))
                    .then(|| of(engine, id))
                    .flatten();
            }
        }
        if let Some(id) = name.strip_prefix("machine-") {
            // systemd-machined escapes what is not allowed in the name of a unit.
            return of("machine", &unescape(id));
        }
    }
    if let Some(name) = part
        .strip_prefix("systemd-nspawn@")
        .and_then(|name| name.strip_suffix(".service"))
    {
        return of("systemd-nspawn", &unescape(name));
    }
    // Kubernetes without systemd: /kubepods/burstable/pod<uid>/<id>.
    let above = parts.get(index.checked_sub(1)?)?;
    if !is_identifier(part) {
        return None;
    }
    if above.starts_with("pod") && parts[0].starts_with("kubepods") {
        return of("kubernetes", part);
    }
    if let Some(id) = part.strip_prefix("libpod-") {
        return of("podman", id);
    }
    FOLDERS
        .iter()
        .find(|(folder, _)| folder == above)
        .and_then(|(_, engine)| of(engine, part))
}

/// What engines call containers: many hexadecimal digits.
fn is_identifier(text: &str) -> bool {
    let text = text.strip_prefix("libpod-").unwrap_or(text);
    text.len() >= SHORT && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Undoes how systemd writes characters that the name of a unit must not have: `\x2d` for `-`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        let code = rest
            .get(at + 2..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(code) = code else { break };
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        bytes.push(code);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.container, &self.unit) {
            (None, None) => formatter.write_str("-"),
            (None, Some(unit)) => formatter.write_str(unit),
            (Some(container), None) => container.fmt(formatter),
            (Some(container), Some(unit)) => write!(formatter, "{container}: {unit}"),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = if is_identifier(&self.id) {
            &self.id[..SHORT]
        } else {
            &self.id
        };
        write!(formatter, "{} {id}", self.engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn owner(path: &str) -> Owner {
        Owner::parse(&format!("0::{path}\n"))
    }

    #[test]
    fn the_innermost_unit_of_systemd_is_the_owner() {
        let units = [
            ("/system.slice/nginx.service", "nginx.service"),
            ("/system.slice/nginx.service/worker", "nginx.service"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-bash.scope",
                "app-bash.scope",
            ),
            (
                "/user.slice/user-0.slice/session-3.scope",
                "session-3.scope",
            ),
            ("/init.scope", "init.scope"),
            (
                "/system.slice/system-sshd.slice/sshd@1\\x2d2.service",
                "sshd@1-2.service",
            ),
        ];
        for (path, unit) in units {
            let owner = owner(path);
            assert_eq!(owner.unit.as_deref(), Some(unit), "{path}");
            assert_eq!(owner.container, None, "{path}");
        }
    }

    #[test]
    fn who_has_no_group_has_no_owner() {
        for cgroup in [
            "",
            "0::/\n",
            "0::/user.slice\n",
            "nonsense",
            "1:cpu:/\n0::/\n",
        ] {
            assert_eq!(Owner::parse(cgroup), Owner::default(), "{cgroup}");
        }
        assert_eq!(Owner::default().to_string(), "-");
    }

    #[test]
    fn each_engine_is_known_by_how_it_names_groups() {
        let containers = [
            (format!("/system.slice/docker-{ID}.scope"), "docker"),
            (format!("/docker/{ID}"), "docker"),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                "podman",
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"
                ),
                "podman",
            ),
            (format!("/libpod_parent/libpod-{ID}"), "podman"),
            (
                format!("/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope"),
                "cri-o",
            ),
            (
                format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
                "containerd",
            ),
            (format!("/kubepods/burstable/pod12-34/{ID}"), "kubernetes"),
        ];
        for (path, engine) in containers {
            let owner = owner(&path);
            let container = owner.container.unwrap_or_else(|| panic!("{path}"));
            assert_eq!(
                (container.engine, container.id.as_str()),
                (engine, ID),
                "{path}"
            );
            assert_eq!(owner.unit, None, "{path}");
            assert_eq!(container.to_string(), format!("{engine} 0123456789ab"));
        }
    }

    #[test]
    fn a_machine_of_systemd_is_known_by_its_name() {
        let machine = owner("/machine.slice/machine-web\\x2d1.scope");
        assert_eq!(machine.to_string(), "machine web-1");
        let nspawn = owner("/machine.slice/systemd-nspawn@web.service/payload");
        assert_eq!(nspawn.to_string(), "systemd-nspawn web");
    }

    #[test]
    fn a_unit_in_a_container_is_named_with_it() {
        let path = format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service");
        assert_eq!(
            owner(&path).to_string(),
            "docker 0123456789ab: nginx.service"
        );
        let path = format!("/system.slice/docker-{ID}.scope/init.scope");
        assert_eq!(owner(&path).to_string(), "docker 0123456789ab");
    }

    #[test]
    fn what_watches_over_a_container_is_not_in_it() {
        let owner = owner(&format!("/machine.slice/libpod-conmon-{ID}.scope"));
        assert_eq!(owner.container, None);
        assert!(owner.unit.is_some());
    }

    #[test]
    fn of_version_1_the_hierarchy_of_systemd_is_asked() {
        let cgroup = "5:cpu,cpuacct:/other\n1:name=systemd:/system.slice/a.service\n0::/\n";
        assert_eq!(Owner::parse(cgroup).unit.as_deref(), Some("a.service"));
    }
}
