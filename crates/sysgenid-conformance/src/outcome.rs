// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a case comes to, and the checks that it is made of.

use std::fmt::Debug;
use std::panic::Location;

use rustix::io::Errno;

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The node breaks the contract.
    Fail(String),
    /// The case cannot be examined here.
    Skip(String),
}

impl From<Errno> for Failure {
    #[track_caller]
    fn from(errno: Errno) -> Self {
        Failure::Fail(format!(
            "a call that must succeed failed with {} (at {})",
            name_of(errno),
            Location::caller()
        ))
    }
}

impl From<std::io::Error> for Failure {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        Failure::Fail(format!("{error} (at {})", Location::caller()))
    }
}

/// Fails with this text.
pub(crate) fn fail<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Failure::Fail(why.into()))
}

/// Leaves the case unexamined for this reason.
pub(crate) fn skip<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Failure::Skip(why.into()))
}

/// `claim` holds.
pub(crate) fn holds(claim: &str, true_or_not: bool) -> Outcome {
    if true_or_not {
        Ok(())
    } else {
        fail(format!("this does not hold: {claim}"))
    }
}

/// `what` is what it must be.
pub(crate) fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        Ok(())
    } else {
        fail(format!("{what}: found {found:?}, expected {expected:?}"))
    }
}

/// `what` fails with `expected` and nothing else.
pub(crate) fn fails<T: Debug>(what: &str, result: Result<T, Errno>, expected: Errno) -> Outcome {
    match result {
        Err(errno) if errno == expected => Ok(()),
        Err(errno) => fail(format!(
            "{what}: failed with {}, expected {}",
            name_of(errno),
            name_of(expected)
        )),
        Ok(value) => fail(format!(
            "{what}: succeeded with {value:?}, expected {}",
            name_of(expected)
        )),
    }
}

/// `what` succeeds with `expected`.
pub(crate) fn gives<T: PartialEq + Debug>(
    what: &str,
    result: Result<T, Errno>,
    expected: T,
) -> Outcome {
    match result {
        Ok(value) => same(what, value, expected),
        Err(errno) => fail(format!(
            "{what}: failed with {}, expected {expected:?}",
            name_of(errno)
        )),
    }
}

/// The name of the errnos that the contract knows, else the number and what the system calls it.
pub(crate) fn name_of(errno: Errno) -> String {
    let name = match errno {
        Errno::ACCESS => "EACCES",
        Errno::AGAIN => "EAGAIN",
        Errno::BADF => "EBADF",
        Errno::FAULT => "EFAULT",
        Errno::INTR => "EINTR",
        Errno::INVAL => "EINVAL",
        Errno::MFILE => "EMFILE",
        Errno::NODEV => "ENODEV",
        Errno::NOENT => "ENOENT",
        Errno::NOSYS => "ENOSYS",
        Errno::NOTTY => "ENOTTY",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::PERM => "EPERM",
        Errno::TIME => "ETIME",
        Errno::TIMEDOUT => "ETIMEDOUT",
        _ => return format!("errno {} ({errno})", errno.raw_os_error()),
    };
    name.to_owned()
}

/// The outcome as bytes, to hand it from one process to another. The last byte is 0, so that the
/// reader knows when it has all of it.
pub(crate) fn encode(outcome: &Outcome) -> Vec<u8> {
    let text = match outcome {
        Ok(()) => "pass\n".to_owned(),
        Err(Failure::Fail(why)) => format!("fail\n{why}"),
        Err(Failure::Skip(why)) => format!("skip\n{why}"),
    };
    let mut bytes = text.replace('\0', "\\0").into_bytes();
    bytes.push(0);
    bytes
}

/// Reads what [`encode`] wrote; `None` for anything else.
pub(crate) fn decode(bytes: &[u8]) -> Option<Outcome> {
    let text = std::str::from_utf8(bytes.strip_suffix(&[0])?).ok()?;
    match text.split_once('\n')? {
        ("pass", "") => Some(Ok(())),
        ("fail", why) => Some(fail(why)),
        ("skip", why) => Some(skip(why)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_survives_the_way_between_processes() {
        for outcome in [Ok(()), fail("two\nlines"), skip("no root"), fail("")] {
            assert_eq!(decode(&encode(&outcome)), Some(outcome));
        }
    }

    #[test]
    fn a_process_that_died_has_no_outcome() {
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"pas"), None);
        assert_eq!(decode(b"pass\n"), None);
    }

    #[test]
    fn an_unexpected_errno_says_where() {
        fn check() -> Outcome {
            Err(Errno::PERM)?;
            Ok(())
        }
        let Err(Failure::Fail(why)) = check() else {
            panic!("it must fail");
        };
        assert!(why.contains("EPERM") && why.contains("outcome.rs"), "{why}");
    }
}
