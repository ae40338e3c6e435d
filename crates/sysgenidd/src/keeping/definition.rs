// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an instance was asked to be, in a file for whoever serves it next.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Account, Attributes, Mode, Parent};
use crate::control::{Origin, Token};
use crate::failure::{Failure, failed};
use crate::judging::process::Tie;
use crate::keeping::folder;
use crate::serving::files::Access;

/// The version of what is stored. One that only adds to it keeps the number.
const VERSION: u32 = 1;

/// What an instance was asked to be, and by whom.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) attributes: Attributes,
    pub(crate) origin: Origin,
    /// Who may open its nodes, by numbers: what its names stand for may be gone later, the process that it
    /// was named by among them.
    pub(crate) access: [Access; 2],
    /// The user namespace that owns it, if it is not the daemon's own.
    pub(crate) owner: Option<OwnedFd>,
    /// What it is removed by, if a request has added it.
    pub(crate) token: Option<Token>,
    /// The process that it ends with.
    pub(crate) tie: Option<Tie>,
}

/// Why a definition cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be written or read.
    #[error(transparent)]
    File(#[from] folder::Error),
    /// It does not say what it should.
    #[error("{} is not understood: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::File(failure.into())
    }
}

/// A definition in its file. The user namespace is a descriptor, which is in the fd store.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    version: u32,
    /// What the descriptors of the instance are called in the store.
    pub(super) serial: u64,
    #[serde(with = "StoredAttributes")]
    pub(super) attributes: Attributes,
    pub(super) origin: Origin,
    pub(super) access: [Access; 2],
    /// Whether there is a user namespace.
    pub(super) has_owner: bool,
    pub(super) token: Option<Token>,
    pub(super) tie: Option<Tie>,
}

/// The same as [`Attributes`], where people write them; but what another version has added is passed over here,
/// and refused there.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Attributes", rename_all = "kebab-case")]
struct StoredAttributes {
    parent: Option<Parent>,
    user_namespace: Option<PathBuf>,
    user: Option<Account>,
    group: Option<Account>,
    sysgenid_mode: Option<Mode>,
    vmgenid_mode: Option<Mode>,
}

impl Stored {
    pub(super) fn new(serial: u64, definition: &Definition) -> Self {
        Self {
            version: VERSION,
            serial,
            attributes: definition.attributes.clone(),
            origin: definition.origin,
            access: definition.access,
            has_owner: definition.owner.is_some(),
            token: definition.token.clone(),
            tie: definition.tie,
        }
    }

    /// What this file says.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(failed("read", path))?;
        let fault = |reason: String| Error::Content {
            path: path.to_owned(),
            reason,
        };
        let stored: Self =
            serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
        if stored.version != VERSION {
            return Err(fault(format!(
                "it is of version {}, and this program knows version {VERSION}",
                stored.version
            )));
        }
        Ok(stored)
    }

    /// Replaces what this file says, all at once.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec(self).map_err(|error| Error::Content {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(folder::replace(path, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: Access = Access {
        mode: 0o644,
        uid: 7,
        gid: 8,
    };

    fn stored() -> Stored {
        let definition = Definition {
            attributes: Attributes {
                parent: Some(Parent::None),
                group: Some(Account::Name("users".to_owned())),
                ..Attributes::default()
            },
            origin: Origin::Runtime,
            access: [ACCESS; 2],
            owner: None,
            token: None,
            tie: None,
        };
        Stored::new(1 << 40, &definition)
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("definition");
        std::fs::write(&path, "an older one").unwrap();
        stored().write(&path).unwrap();
        let read = Stored::read(&path).unwrap();
        assert_eq!(read.attributes, stored().attributes);
        assert_eq!((read.serial, read.origin), (1 << 40, Origin::Runtime));
        assert_eq!(read.access, [ACCESS; 2]);
        assert!(!read.has_owner);
    }

    #[test]
    fn what_another_version_has_added_is_passed_over_and_what_it_has_changed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("definition");
        let mut text = serde_json::to_value(stored()).unwrap();
        text["colour"] = "blue".into();
        text["attributes"]["colour"] = "blue".into();
        text["access"][0]["colour"] = "blue".into();
        text["attributes"].as_object_mut().unwrap().remove("user");
        std::fs::write(&path, text.to_string()).unwrap();
        let read = Stored::read(&path).unwrap();
        assert_eq!(read.attributes, stored().attributes);
        text["version"] = 2.into();
        for bad in [text.to_string().as_str(), "", "{}"] {
            std::fs::write(&path, bad).unwrap();
            let refused = Stored::read(&path).err();
            assert!(matches!(refused, Some(Error::Content { .. })), "{bad}");
        }
    }
}
