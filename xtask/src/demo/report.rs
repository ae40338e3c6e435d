// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo's result, for a person or for a program.

use anyhow::Result;
use serde_json::json;
use sysgenid_guest::event::What;

use crate::cast::TRACKED;
use crate::demo::scene::Clone;
use crate::demo::scene::Scene;
use crate::demo::scene::TokenPair;
use crate::front_end::FrontEnd;
use crate::table;

/// How many pairs of tokens are shown.
const SHOWN_TOKENS: usize = 8;

/// Prints both scenes for a person.
pub(crate) fn print(unprotected: &Scene, protected: &Scene) {
    let front_end = unprotected.front_end;
    println!(
        "\n== Without {front_end} (kernel {}) ==\n",
        unprotected.kernel
    );
    println!(
        "The kernel reseeded its own generator in both clones; rand::rng() in a program did not know."
    );
    print_tokens(&unprotected.token_pairs());

    println!("\n== With {front_end} ==");
    for clone in &protected.clones {
        print_timeline(clone, front_end);
        println!(
            "\nWhat sysgenctl says there:\n\n{}",
            clone.status.trim_end()
        );
    }
    println!("\nThe tokens of both clones:");
    print_tokens(&protected.token_pairs());
    print_window(&protected.token_pairs());
}

/// Prints both scenes for a program.
pub(crate) fn print_json(unprotected: &Scene, protected: &Scene, faults: &[String]) -> Result<()> {
    let clones: Vec<_> = protected
        .clones
        .iter()
        .map(|clone| {
            let timeline: Vec<_> = timeline(clone, protected.front_end)
                .into_iter()
                .map(|(nanoseconds, who, what)| {
                    json!({ "us_after_resume": microseconds(nanoseconds), "who": who, "what": what })
                })
                .collect();
            json!({
                "name": clone.name,
                "resumed": clone.resumed,
                "resumed_by_itself": clone.resumed_by_itself,
                "timeline": timeline,
            })
        })
        .collect();
    let report = json!({
        "kernel": protected.kernel,
        "front_end": protected.front_end,
        "without_driver": { "tokens": unprotected.token_pairs() },
        "with_driver": { "clones": clones, "tokens": protected.token_pairs() },
        "faults": faults,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// Tells how to reach the clones that were left running.
pub(crate) fn print_how_to_attach(scene: &Scene) {
    eprintln!("\nThe clones go on running:");
    for clone in &scene.clones {
        eprintln!(
            "  cargo xtask vm shell --name {0}    (end it: cargo xtask vm stop --name {0})",
            clone.name
        );
    }
}

fn print_timeline(clone: &Clone, front_end: FrontEnd) {
    let apart = signed_difference(clone.resumed_by_itself.guest_ns, clone.resumed.guest_ns);
    println!(
        "\n{}: resumed at {:.6} s of its clock, known to ±{:.0} µs; a second way to measure it \
         differs by {:+.0} µs (±{:.0} µs)",
        clone.name,
        microseconds(i128::from(clone.resumed.guest_ns)) / 1e6,
        microseconds(i128::from(clone.resumed.uncertainty_ns)),
        microseconds(apart),
        microseconds(i128::from(clone.resumed_by_itself.uncertainty_ns)),
    );
    let mut table = table::new(["µs after resume", "µs later", "who", "what"]);
    let mut previous = 0;
    for (time, who, what) in timeline(clone, front_end) {
        table.add_row([
            format!("{:.0}", microseconds(time)),
            format!("+{:.0}", microseconds(time - previous)),
            who,
            what,
        ]);
        previous = time;
    }
    table::align_right(&mut table, [0, 1]);
    println!("{table}");
}

/// Who did what how many nanoseconds after the resume.
fn timeline(clone: &Clone, front_end: FrontEnd) -> Vec<(i128, String, String)> {
    let since = |time: u64| signed_difference(time, clone.resumed.guest_ns);
    let mut lines: Vec<_> = clone
        .events
        .iter()
        .filter_map(|event| {
            let what = match &event.what {
                What::Noticed => "noticed",
                What::Reseeded => "reseeded its generator",
                What::Acknowledged => "acknowledged",
                What::EverybodyDone => "everybody is done",
                _ => return None,
            };
            let line = (
                since(event.monotonic_ns),
                event.program.clone(),
                what.to_owned(),
            );
            Some(line)
        })
        .collect();

    // The kernel's part: the first of each, in this order.
    let mut after = 0;
    let steps = [
        (
            "interrupt",
            "the hypervisor's notice arrives (ACPI interrupt)",
        ),
        (
            "notified",
            "its vmgenid driver read the new GUID (ACPI method, work queue)",
        ),
        ("fed", "its random number generator is reseeded"),
        match front_end {
            FrontEnd::Module => ("bump", "sysgenid is told (the kernel's notifier)"),
            FrontEnd::Daemon => ("waking sysgenidd", "sysgenidd is woken (the kernel's log)"),
        },
    ];
    let waker = match front_end {
        FrontEnd::Module => "kernel",
        FrontEnd::Daemon => "sysgenidd",
    };
    for (probe, what) in steps {
        let first = clone
            .trace
            .iter()
            .find(|event| event.what == probe && event.monotonic_ns >= after);
        if let Some(event) = first {
            after = event.monotonic_ns;
            lines.push((since(after), "kernel".to_owned(), what.to_owned()));
        }
    }
    for program in TRACKED {
        let waking = format!("waking {program}");
        let first = clone
            .trace
            .iter()
            .find(|event| event.what == waking && event.monotonic_ns >= after);
        if let Some(event) = first {
            let what = format!("wakes the {program}");
            lines.push((since(event.monotonic_ns), waker.to_owned(), what));
        }
    }
    lines.sort();
    lines
}

fn print_tokens(pairs: &[TokenPair]) {
    // The last ones that were handed out before the notice, and the first ones after it.
    let fresh = pairs
        .iter()
        .position(|pair| pair.generations.iter().all(|&generation| generation > 0))
        .unwrap_or(0);
    let first = fresh.saturating_sub(SHOWN_TOKENS / 2);
    let mut table = table::new(["token", "clone-a", "clone-b", ""]);
    for pair in pairs.iter().skip(first).take(SHOWN_TOKENS) {
        let is_same = pair.values[0] == pair.values[1];
        table.add_row([
            pair.number.to_string(),
            pair.values[0].clone(),
            pair.values[1].clone(),
            if is_same { "IDENTICAL" } else { "different" }.to_owned(),
        ]);
    }
    println!("{table}");
    let same = pairs
        .iter()
        .filter(|pair| pair.values[0] == pair.values[1])
        .count();
    println!("{same} of {} identical.", pairs.len());
}

/// Tells of the tokens that were handed out before the notice could arrive.
fn print_window(pairs: &[TokenPair]) {
    let early = pairs
        .iter()
        .filter(|pair| pair.generations.contains(&0) && pair.values[0] == pair.values[1])
        .count();
    println!(
        "Handed out between the resume and the notice, when no program can know yet: {early}. All later \
         ones are different."
    );
}

fn signed_difference(later: u64, earlier: u64) -> i128 {
    i128::from(later) - i128::from(earlier)
}

// Nanoseconds of a run fit a float exactly.
#[allow(clippy::cast_precision_loss)]
fn microseconds(nanoseconds: i128) -> f64 {
    nanoseconds as f64 / 1000.0
}
