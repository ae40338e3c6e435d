// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guest kernel's own record of what it does after a restore, by its tracing.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::qemu::Vm;

/// Sets the probes. A function that a kernel does not have is left out.
///
/// They are in a group of their own, and only these are taken away: a daemon in the guest has one, too.
///
/// Functions written in Rust cannot be probed: the compiler leaves no room for it. So our module is seen
/// by who calls it: the notifier chain of forks, in which it is the first.
///
/// The clock is the one that programs report by. `fed` is when the generator's reseed *returns*: what
/// comes later draws from the new seed.
const SET_UP: &str = r#"
set -e
cd /sys/kernel/tracing
echo 0 > tracing_on
echo mono > trace_clock
echo 0 > events/ours/enable 2>/dev/null || true
for name in interrupt notified fed bump wireguard; do
    echo "-:ours/$name" >> kprobe_events 2>/dev/null || true
done
for probe in 'p:ours/interrupt acpi_irq' 'p:ours/notified add_vmfork_randomness' \
        'r:ours/fed crng_reseed' 'p:ours/bump blocking_notifier_call_chain chain=$arg1:x64' \
        'p:ours/wireguard wireguard:wg_vm_notification'; do
    echo "$probe" >> kprobe_events 2>/dev/null || true
done
chain=$(sed -n 's/ . vmfork_chain$//p' /proc/kallsyms)
{ echo "chain == 0x$chain" > events/ours/bump/filter; } 2>/dev/null ||
    echo '-:ours/bump' >> kprobe_events 2>/dev/null || true
echo 1 > events/ours/enable
echo 1 > events/sched/sched_waking/enable
echo > trace
echo 1 > tracing_on
"#;

/// Who asks for the reseeds that the kernel makes from time to time, whatever happens.
const PERIODIC: &str = "(process_one_work+";

/// One thing that the kernel did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TraceEvent {
    /// The probe: `interrupt`, `notified`, `fed`, `bump` (our backend is told), `wireguard` (it is told,
    /// too), or `waking NAME` of a program.
    pub(crate) what: String,
    /// When, on the guest's `CLOCK_MONOTONIC`, in nanoseconds; the resolution is a microsecond.
    pub(crate) monotonic_ns: u64,
}

/// Starts to record.
pub(crate) fn start(vm: &mut Vm) -> Result<()> {
    vm.run(SET_UP, Duration::from_secs(30)).map(drop)
}

/// Stops to record and returns what was recorded, in order.
pub(crate) fn stop(vm: &mut Vm) -> Result<Vec<TraceEvent>> {
    let text = vm.run(
        "cd /sys/kernel/tracing; echo 0 > tracing_on; \
         grep -E ' (interrupt|notified|fed|bump|wireguard|sched_waking): ' trace || true",
        Duration::from_secs(60),
    )?;
    let mut events: Vec<_> = text.lines().filter_map(parse).collect();
    events.sort_by_key(|event| event.monotonic_ns);
    Ok(events)
}

/// Reads one line of the kernel's `trace` file.
fn parse(line: &str) -> Option<TraceEvent> {
    let mut words = line.split_whitespace();
    let monotonic_ns = words.find_map(|word| {
        let (seconds, microseconds) = word.strip_suffix(':')?.split_once('.')?;
        let seconds: u64 = seconds.parse().ok()?;
        let microseconds: u64 = microseconds.parse().ok()?;
        Some((seconds * 1_000_000 + microseconds) * 1000)
    })?;
    let what = match words.next()?.strip_suffix(':')? {
        "sched_waking" => {
            let program = words.next()?.strip_prefix("comm=")?;
            format!("waking {program}")
        }
        "fed" if words.next()?.starts_with(PERIODIC) => return None,
        probe => probe.to_owned(),
    };
    Some(TraceEvent { what, monotonic_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_trace_are_read() {
        let cases = [
            (
                "     kworker/0:1-12      [000] d..1.    25.123456: fed: (x+0x1/0x2 <- crng_reseed)",
                Some(("fed", 25_123_456_000)),
            ),
            (
                " a name-7  [001] dNh4.  3.000001: sched_waking: comm=watchdog pid=9 prio=120",
                Some(("waking watchdog", 3_000_001_000)),
            ),
            (
                " kworker-1 [000] ... 2.000000: bump: (blocking_notifier_call_chain+0x0/0x60) chain=0xff",
                Some(("bump", 2_000_000_000)),
            ),
            (
                " kworker-1 [000] ... 2.000000: fed: (process_one_work+0x1cd/0x3c0 <- crng_reseed)",
                None,
            ),
            ("# tracer: nop", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(what, monotonic_ns)| TraceEvent {
                what: what.to_owned(),
                monotonic_ns,
            });
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
