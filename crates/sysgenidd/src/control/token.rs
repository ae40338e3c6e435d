// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which instance is meant, where another may have its name by now.

use std::fmt;
use std::io;

use rustix::rand::GetRandomFlags;
use serde::Deserialize;
use serde::Serialize;

use crate::config::InstanceName;

use super::Origin;

/// What an instance is told by from any other of its name: drawn when it is added, and known to who added it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// One that no other instance has.
    ///
    /// # Errors
    ///
    /// What the kernel says instead of random bytes.
    pub fn draw() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // As few bytes as these come whole or not at all.
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()))?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a request may remove an instance: with a token the very one that was added with it, and never one of
/// the configuration; without one any but the host's own, for a person knows what he does.
///
/// # Errors
///
/// Why not, and what to do.
pub fn check_removal(
    name: &InstanceName,
    origin: Origin,
    token: Option<&Token>,
    given: Option<&Token>,
) -> Result<(), String> {
    if name.is_host() {
        return Err(
            "the host's own instance cannot be removed: stop the daemon instead".to_owned(),
        );
    }
    match given {
        Some(_) if origin == Origin::Configuration => Err(format!(
            "instance {name} is one of the configuration: change the configuration and reload"
        )),
        Some(_) if given != token => Err(format!(
            "instance {name} is not the one that this token was given for, which has gone: leave it alone"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_alike() {
        let token = Token::draw().unwrap();
        assert_ne!(token, Token::draw().unwrap());
        let text = token.to_string();
        assert_eq!(text.len(), 32);
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
        assert_eq!(Token::from(text), token);
    }

    #[test]
    fn a_token_removes_the_instance_that_has_it_and_no_other() {
        let name = |text: &str| text.parse::<InstanceName>().unwrap();
        let [mine, other] = ["1", "2"].map(|text| Token::from(text.to_owned()));
        let check = |name: &str, origin, given: Option<&Token>| {
            check_removal(&name.parse().unwrap(), origin, Some(&mine), given)
        };
        assert_eq!(check("web", Origin::Runtime, Some(&mine)), Ok(()));
        assert_eq!(check("web", Origin::Runtime, None), Ok(()));
        assert_eq!(check("web", Origin::Configuration, None), Ok(()));
        let refused = check("web", Origin::Runtime, Some(&other)).unwrap_err();
        assert!(refused.contains("token"), "{refused}");
        let refused = check("web", Origin::Configuration, Some(&mine)).unwrap_err();
        assert!(
            refused.contains("change the configuration and reload"),
            "{refused}"
        );
        assert!(check("host", Origin::Configuration, None).is_err());
        assert!(check("host", Origin::Runtime, Some(&mine)).is_err());
        // One that a daemon has left that drew none.
        assert!(check_removal(&name("web"), Origin::Runtime, None, Some(&mine)).is_err());
    }
}
