// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tells container runtimes of the instances, by the Container Device Interface.

use std::path::Path;

use serde_json::json;

use crate::config::InstanceName;

use super::NODES;

/// The kind of our devices, for `--device sysgenid/instance=NAME`.
///
/// A kind is a vendor and a class. The vendor may be a domain, but no domain belongs to this
/// contract, which any program may serve; so it is the name of the node.
pub const KIND: &str = "sysgenid/instance";

/// The first version in which the name of a device may begin with a digit, as that of an instance.
const VERSION: &str = "0.5.0";

/// What a container runtime needs to know to give an instance's nodes to a container: a file for
/// `/etc/cdi` of the Container Device Interface.
#[must_use]
pub fn file(directory: &Path, names: &[InstanceName]) -> serde_json::Value {
    let mount = |name: &InstanceName, node: &str| {
        json!({
            "hostPath": directory.join(name.as_str()).join(node),
            "containerPath": Path::new("/dev").join(node),
            "options": ["bind", "rw", "nosuid", "nodev", "noexec"],
        })
    };
    let device = |name: &InstanceName| {
        json!({
            "name": name,
            "containerEdits": { "mounts": NODES.map(|node| mount(name, node)) },
        })
    };
    json!({
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": names.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_package_is_what_the_command_prints() {
        let example = include_str!("../../../../packaging/cdi/sysgenid.json");
        let example: serde_json::Value = serde_json::from_str(example).unwrap();
        let names = ["host", "web"].map(|name| name.parse().unwrap());
        assert_eq!(example, file(Path::new("/run/sysgenid"), &names));
    }
}
