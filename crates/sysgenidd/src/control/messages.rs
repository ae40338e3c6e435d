// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is said over the control connection: a line of JSON each way.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::clock;
use crate::config::Attributes;
use crate::config::InstanceName;

use super::Error;
use super::Token;

/// A request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Message {
    /// What is asked for.
    pub request: Request,
    /// Until when, in nanoseconds of the machine's monotonic clock. Who asked has given up then, and has told
    /// somebody that it was not done.
    pub until: u64,
}

/// What the command line asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Serve another instance, until it is removed or the daemon is stopped.
    Add {
        /// Its name.
        name: InstanceName,
        /// What a configuration file would say of it.
        #[serde(deserialize_with = "Attributes::written")]
        attributes: Attributes,
        /// The generation that its programs have seen, of a snapshot: it begins above.
        generation: Option<u32>,
        /// The process that it ends with, as the daemon's pid namespace counts.
        pid: Option<u32>,
    },
    /// Serve an instance no longer.
    Remove {
        /// Its name.
        name: InstanceName,
        /// What was answered when it was added: only that one is meant.
        token: Option<Token>,
    },
    /// Tell of every instance.
    List,
    /// End cleanly.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// It is done, or for [`Request::Stop`], begun.
    Done,
    /// The instance is there.
    Added(Added),
    /// Every instance, by name.
    Instances(Vec<InstanceReport>),
    /// It is not done.
    Refused {
        /// What a person should read.
        reason: String,
    },
}

/// What whoever has added an instance needs to know; `sysgenidd instance add --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Added {
    /// The folder of its nodes.
    pub path: PathBuf,
    /// What it is removed by, and no other of its name.
    pub token: Token,
    /// The generation that it begins with.
    pub generation: u32,
}

/// One instance, as `sysgenidd instance list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstanceReport {
    /// Its name.
    pub name: InstanceName,
    /// The instance that bumps it.
    pub parent: Option<InstanceName>,
    /// Its generation.
    pub generation: u32,
    /// How many watchers it has.
    pub watchers: u64,
    /// How many of them are tracked.
    pub tracked: u64,
    /// How many of those are outdated.
    pub outdated: u64,
    /// The inode of the user namespace in which the capability is judged, as `lsns` shows it.
    pub user_namespace: u64,
    /// The folder of its nodes.
    pub path: PathBuf,
    /// Who defined it.
    pub origin: Origin,
    /// The process that it ends with.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// Who defined an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file, whose reload changes or removes it.
    Configuration,
    /// A request.
    Runtime,
}

impl Message {
    /// Whether nobody waits for it any more.
    #[must_use]
    pub fn is_late(&self) -> bool {
        clock::now() > self.until
    }
}

/// Understands a message, without its end of line.
///
/// # Errors
///
/// [`Error::Malformed`].
pub fn parse(line: &[u8]) -> Result<Message, Error> {
    serde_json::from_slice(line).map_err(|error| Error::Malformed(format!("the request: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_field_that_is_not_known_is_not_passed_over() {
        for line in [
            r#"{"request":{"remove":{"name":"web","colour":"green"}},"until":1}"#,
            r#"{"request":{"add":{"name":"web","attributes":{"colour":"green"}}},"until":1}"#,
            r#"{"request":"list","until":1,"colour":"green"}"#,
        ] {
            let error = parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("colour"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_an_error(line in any::<Vec<u8>>()) {
            let _ = parse(&line);
        }

        #[test]
        fn requests_survive_their_line(
            which in 0..5,
            web in "[a-z0-9]{1,64}",
            token in proptest::option::of("[0-9a-f]{32}"),
            number in proptest::option::of(any::<u32>()),
            until in any::<u64>(),
        ) {
            let name = web.parse().unwrap();
            let request = match which {
                0 => Request::Add {
                    name,
                    attributes: Attributes::default(),
                    generation: number,
                    pid: number,
                },
                1 => Request::Remove { name, token: token.map(Token::from) },
                2 => Request::List,
                3 => Request::Stop,
                _ => Request::Reload,
            };
            let message = Message { request, until };
            let line = serde_json::to_vec(&message).unwrap();
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(parse(&line).unwrap(), message);
        }
    }
}
