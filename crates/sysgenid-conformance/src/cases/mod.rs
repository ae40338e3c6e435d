// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cases. The name of each is the sentence that it proves.
//!
//! Whether a call blocks is seen from outside (see [`crate::call`]); no case sleeps where it could wait
//! for an event. All are written relative to the current generation, and hold near its wrap.

mod capability;
mod coherence;
mod count;
mod fdinfo;
mod interruptions;
mod ioctl;
mod lifetime;
mod mmap;
mod nodes;
mod open;
mod poll;
mod read;
mod stress;
mod tracking;
mod trigger;
mod uevent;
mod wait;
mod wrap;
mod write;

pub(crate) use lifetime::HOLD;

use crate::node::Node;
use crate::outcome::Outcome;

/// Something to examine.
#[derive(Debug)]
pub(crate) struct Case {
    /// The sentence that it proves, in kebab case.
    pub(crate) name: &'static str,
    /// The clauses of `docs/sysgenid.rst` that it proves, or a part of.
    pub(crate) proves: &'static [&'static str],
    /// Examines it.
    pub(crate) run: fn(&Node) -> Outcome,
}

/// A line of a table of cases.
const fn case(
    name: &'static str,
    proves: &'static [&'static str],
    run: fn(&Node) -> Outcome,
) -> Case {
    Case { name, proves, run }
}

/// All of them, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        // It looks at a node that nobody has changed.
        open::CASES,
        read::CASES,
        write::CASES,
        poll::CASES,
        mmap::CASES,
        ioctl::CASES,
        count::CASES,
        tracking::CASES,
        wait::CASES,
        interruptions::CASES,
        trigger::CASES,
        capability::CASES,
        lifetime::CASES,
        nodes::CASES,
        fdinfo::CASES,
        uevent::CASES,
        coherence::CASES,
        stress::CASES,
        // It uses up the numbers of the generation.
        wrap::CASES,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CONTRACT: &str = include_str!("../../../../docs/sysgenid.rst");

    /// A clause is a field of a field list: `:name: text`.
    fn clauses() -> BTreeSet<&'static str> {
        let mut clauses = BTreeSet::new();
        for line in CONTRACT.lines() {
            let Some((name, _)) = line
                .strip_prefix(':')
                .and_then(|rest| rest.split_once(": "))
            else {
                continue;
            };
            let of_a_name =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if name.bytes().all(of_a_name) {
                assert!(clauses.insert(name), "the clause {name} is there twice");
            }
        }
        clauses
    }

    #[test]
    fn each_clause_of_the_contract_has_a_case() {
        let proved: BTreeSet<_> = all().flat_map(|case| case.proves).copied().collect();
        let clauses = clauses();
        assert!(clauses.len() > 50, "the contract is not read as it should");
        let unproved: Vec<_> = clauses.difference(&proved).collect();
        assert!(unproved.is_empty(), "no case proves {unproved:?}");
    }

    #[test]
    fn each_case_names_clauses_of_the_contract() {
        let clauses = clauses();
        for case in all() {
            assert!(!case.proves.is_empty(), "{} proves nothing", case.name);
            for clause in case.proves {
                let known = clauses.contains(clause);
                assert!(known, "{} names {clause}, which does not exist", case.name);
            }
        }
    }

    #[test]
    fn each_case_has_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for case in all() {
            assert!(names.insert(case.name), "{} is there twice", case.name);
            let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            assert!(case.name.bytes().all(of_a_name), "{}", case.name);
        }
    }
}
