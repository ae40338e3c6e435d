// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether the usual paths lead to the host's nodes.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;

/// Whether `/dev/sysgenid` and `/dev/vmgenid` lead to the host's nodes.
///
/// A program that finds a node leaves its own precautions out, so a node that nobody changes is worse than none.
/// The order is that of insistence: of two wishes the greater one holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Publish {
    /// They do not.
    #[default]
    Never,
    /// They do while something notices restores of this machine.
    WhereNoticed,
    /// They always do: somebody sees to it that each restore calls the trigger.
    Always,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "false" => Ok(Self::Never),
            "true" => Ok(Self::WhereNoticed),
            "always" => Ok(Self::Always),
            _ => Err(format!(
                "publish is false, true or \"always\", not \"{}\"",
                text.escape_debug()
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Publish;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("false, true or \"always\"")
            }

            fn visit_bool<E: de::Error>(self, wish: bool) -> Result<Publish, E> {
                Ok(if wish {
                    Publish::WhereNoticed
                } else {
                    Publish::Never
                })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Publish, E> {
                match text {
                    "always" => Ok(Publish::Always),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_wishes_the_greater_one_holds() {
        assert_eq!(Publish::default(), Publish::Never);
        assert_eq!(
            Publish::Never.max(Publish::WhereNoticed),
            Publish::WhereNoticed
        );
        assert_eq!(Publish::WhereNoticed.max(Publish::Always), Publish::Always);
    }

    #[test]
    fn the_command_line_has_the_words_of_the_file() {
        assert_eq!("true".parse(), Ok(Publish::WhereNoticed));
        assert_eq!("always".parse(), Ok(Publish::Always));
        assert_eq!("false".parse(), Ok(Publish::Never));
        assert!("maybe".parse::<Publish>().is_err());
    }
}
