// SPDX-License-Identifier: MIT OR Apache-2.0

//! The watchers of the daemon, by its own list, `watchers` beside the node.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process;
use crate::front_end::Identity;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no permission to read {}: run as root or in the group that may write to the node",
        path.display()
    )]
    NoPermission { path: PathBuf },
    #[error(
        "the daemon's list of watchers is not visible from here, only its node: ask where the daemon runs, with \
         --node /run/sysgenid/<instance>/sysgenid"
    )]
    NotHere,
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has a line that is not understood: {line:?}; is the daemon of another version?", path.display())]
    Line { path: PathBuf, line: String },
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The process that opened the node, as the daemon sees it. Nothing if it does not see it.
    pub(crate) pid: Option<u32>,
    pub(crate) tracked: bool,
    pub(crate) acknowledged: u32,
    /// For how long it has been outdated, if it is.
    pub(crate) outdated: Option<Duration>,
    pub(crate) node: &'static str,
    pub(crate) command: String,
}

/// Reads the list in the daemon's folder.
pub(crate) fn rows(folder: &Path) -> Result<Vec<Row>, Error> {
    let path = folder.join("watchers");
    let text = fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NoPermission { path: path.clone() },
        _ => Error::Io {
            path: path.clone(),
            source,
        },
    })?;
    String::from_utf8_lossy(&text)
        .lines()
        .skip(1)
        .map(|line| {
            row(line).ok_or_else(|| Error::Line {
                path: path.clone(),
                line: line.to_owned(),
            })
        })
        .collect()
}

/// `pid tracked acknowledged outdated node command`, where the command may have any character.
fn row(line: &str) -> Option<Row> {
    let mut rest = line;
    let mut word = || {
        let text = rest.trim_start();
        let (word, left) = text.split_once(' ').unwrap_or((text, ""));
        rest = left;
        (!word.is_empty()).then_some(word)
    };
    let pid = match word()? {
        "-" => None,
        pid => Some(pid.parse().ok()?),
    };
    let tracked = match word()? {
        "yes" => true,
        "no" => false,
        _ => return None,
    };
    let acknowledged = word()?.parse().ok()?;
    let outdated = match word()? {
        "-" => None,
        age => Some(seconds(age)?),
    };
    let node = match word()? {
        "sysgenid" => "sysgenid",
        "vmgenid" => "vmgenid",
        _ => return None,
    };
    Some(Row {
        pid,
        tracked,
        acknowledged,
        outdated,
        node,
        command: rest.trim().to_owned(),
    })
}

/// `1.500s`.
pub(crate) fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// The descriptors that processes have of the nodes in a folder, by process and node.
pub(crate) fn descriptors(
    folder: &Path,
    pids: impl IntoIterator<Item = u32>,
) -> HashMap<(u32, &'static str), Vec<u32>> {
    let nodes: Vec<_> = ["sysgenid", "vmgenid"]
        .into_iter()
        .filter_map(|name| Some((Identity::of(&folder.join(name)).ok()?, name)))
        .collect();
    let mut found: HashMap<_, Vec<u32>> = HashMap::new();
    for pid in pids {
        for (fd, node) in process::descriptors(pid, &nodes) {
            found.entry((pid, node)).or_default().push(fd);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_daemon_is_read() {
        let line = "4711       yes      3            12.500s      sysgenid  my worker: 1 of 2";
        let expected = Row {
            pid: Some(4711),
            tracked: true,
            acknowledged: 3,
            outdated: Some(Duration::from_millis(12_500)),
            node: "sysgenid",
            command: "my worker: 1 of 2".to_owned(),
        };
        assert_eq!(row(line), Some(expected));
    }

    #[test]
    fn a_process_that_the_daemon_does_not_see_has_no_number_and_may_have_no_name() {
        let read = row("-          no       0            -            vmgenid   ").unwrap();
        assert_eq!((read.pid, read.tracked, read.outdated), (None, false, None));
        assert_eq!((read.node, read.command.as_str()), ("vmgenid", ""));
        assert_eq!(
            row("-          no       0            -            vmgenid"),
            Some(read)
        );
    }

    #[test]
    fn a_number_that_fills_its_column_does_not_swallow_the_next() {
        let read = row("4194304000 no       4294967295   9999999.123s sysgenid  a").unwrap();
        assert_eq!(read.pid, Some(4_194_304_000));
        assert_eq!(read.acknowledged, u32::MAX);
    }

    #[test]
    fn a_line_of_another_form_is_not_guessed_at() {
        for line in [
            "",
            "pid        tracked  acknowledged outdated     node      command",
            "1 maybe 0 - sysgenid a",
            "1 yes -1 - sysgenid a",
            "1 yes 0 5 sysgenid a",
            "1 yes 0 - other a",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
    }

    #[test]
    fn the_header_is_no_watcher() {
        let folder = tempfile::tempdir().unwrap();
        let text = "pid        tracked  acknowledged outdated     node      command\n\
                    1          no       0            -            vmgenid   init\n";
        std::fs::write(folder.path().join("watchers"), text).unwrap();
        assert_eq!(rows(folder.path()).unwrap().len(), 1);
        std::fs::write(folder.path().join("watchers"), format!("{text}nonsense\n")).unwrap();
        assert!(matches!(rows(folder.path()), Err(Error::Line { .. })));
    }
}
