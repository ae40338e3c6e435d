// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sysgenctl doctor`: whether programs here would be told of a restore, and what to do if not.

mod checks;

use std::process::ExitCode;

use serde::Serialize;

use crate::FAILURE;
use crate::machine::Machine;
use crate::output::{self, BAD, DOUBTFUL, GOOD, STRONG};
use crate::place::Place;

/// What is wrong with a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Nothing.
    Ok,
    /// It could be better.
    Warn,
    /// Programs need it and it is not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) subject: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    /// What to do.
    pub(crate) advice: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Diagnosis {
    /// Whether programs here would be told of a restore.
    pub(crate) told: bool,
    /// In the order in which things are to be mended.
    pub(crate) checks: Vec<Check>,
}

pub(crate) fn run(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let diagnosis = checks::examine(&Machine::this(), place);
    if json {
        output::json(&diagnosis)?;
    } else {
        print(&diagnosis)?;
    }
    Ok(if diagnosis.told {
        ExitCode::SUCCESS
    } else {
        FAILURE
    })
}

fn print(diagnosis: &Diagnosis) -> anyhow::Result<()> {
    for check in &diagnosis.checks {
        let (style, word) = match check.verdict {
            Verdict::Ok => (GOOD, "ok"),
            Verdict::Warn => (DOUBTFUL, "warn"),
            Verdict::Missing => (BAD, "missing"),
        };
        let word = output::styled(style, &format!("{word:<8}"));
        let subject = output::styled(STRONG, &format!("{:<18}", check.subject));
        output::line(&format!("{word}{subject}{}", check.found))?;
    }
    output::line("")?;
    let (style, answer) = if diagnosis.told {
        (GOOD, "Programs here would be told of a restore.")
    } else {
        (BAD, "Programs here would not be told of a restore.")
    };
    output::line(&output::styled(style, answer))?;
    let advice: Vec<_> = diagnosis
        .checks
        .iter()
        .filter_map(|check| check.advice.as_deref())
        .collect();
    if !advice.is_empty() {
        let heading = if diagnosis.told {
            "What could be better:"
        } else {
            "What to do, in this order:"
        };
        output::line("")?;
        output::line(heading)?;
    }
    for (number, text) in (1..).zip(advice) {
        output::line(&format!("  {number}. {text}"))?;
    }
    Ok(())
}
