// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random calls to the module's nodes, from several threads at once.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use clap::Args;

use crate::qemu::Vm;
use crate::test::Test;
use crate::test::guest::Backend;
use crate::test::guest::Guest;
use crate::test::module::conformance::BUG_FINDERS;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "random calls leave the accounts right and the kernel without complaint",
    |context| {
        let mut guest = Guest::boot(context, Backend::Vmfork, BUG_FINDERS)?;
        random_calls(&context.random_calls, SOME, &mut guest)?;
        guest.finish()
    },
)];

/// How many calls are made every day: each takes an emulated machine half a millisecond and more.
const SOME: u32 = 100_000;

/// How many are made where it matters.
pub(crate) const MANY: u32 = 1_000_000;

/// How long so many calls may take, and what must be for some.
const PATIENCE_A_MILLION: Duration = Duration::from_secs(1800);

/// Which random calls are made.
#[derive(Args, Clone, Debug)]
pub(crate) struct RandomCalls {
    /// How many random calls are made to the nodes, instead of the usual number
    #[arg(long, value_name = "NUMBER")]
    random_calls: Option<u32>,
    /// Which ones: a test that fails says its seed
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

/// Makes random calls to both nodes, and then unloads the modules: nobody may have kept them.
pub(crate) fn random_calls(calls: &RandomCalls, usual: u32, guest: &mut Vm) -> Result<()> {
    let seed = match calls.seed {
        Some(seed) => seed,
        None => new_seed()?,
    };
    let number = calls.random_calls.unwrap_or(usual);
    let patience = PATIENCE_A_MILLION * number.div_ceil(1_000_000);
    guest
        .run(
            &format!(
                "sysgenid-guest fuzz /dev/vmgenid /dev/sysgenid --calls {number} --seed {seed}"
            ),
            patience,
        )
        .with_context(|| format!("the same calls are made by --seed {seed}"))?;
    guest
        .run("rmmod sysgenid_vmfork sysgenid", patience)
        .map(drop)
}

fn new_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}
