// SPDX-License-Identifier: MIT OR Apache-2.0

//! Evidence that nothing happened, independent of the kernel's log.
//!
//! The hypervisor speaks of a restore by an interrupt: ACPI's own (of a GPE or of the generic event device), or
//! one that the device tree gives to the device. The kernel counts them. A count that has not moved since
//! before the last look at which the log was complete says that no notice was among the records that were
//! lost since; one that has moved says nothing. Where there is no count, there is no evidence.
//!
//! Any stranger may overrun the log, but none of them makes these interrupts.

use std::fs;
use std::path::PathBuf;

/// How long after its interrupt the kernel may take to write the notice, in nanoseconds, and how often the
/// counts are read at most: one second.
const SETTLE: u64 = 1_000_000_000;

/// Where the counts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Files that begin with a count.
    pub files: Vec<PathBuf>,
    /// The list of all interrupts.
    pub interrupts: PathBuf,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            files: vec![
                PathBuf::from("/sys/firmware/acpi/interrupts/gpe_all"),
                PathBuf::from("/sys/firmware/acpi/interrupts/sci"),
            ],
            interrupts: PathBuf::from("/proc/interrupts"),
        }
    }
}

impl Counters {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            files: Vec::new(),
            interrupts: PathBuf::from("/nonexistent"),
        }
    }

    /// All counts, each with its name. None at all: the machine has no such interrupt, or hides it.
    fn read(&self) -> Option<Vec<(String, u64)>> {
        let of_file = |path: &PathBuf| {
            let text = fs::read_to_string(path).ok()?;
            let count = text.split_whitespace().next()?.parse().ok()?;
            Some((path.display().to_string(), count))
        };
        let mut counts: Vec<_> = self.files.iter().filter_map(of_file).collect();
        let interrupts = fs::read_to_string(&self.interrupts).unwrap_or_default();
        counts.extend(interrupts.lines().filter_map(count_in));
        (!counts.is_empty()).then_some(counts)
    }
}

/// The sum over all CPUs in a line of `/proc/interrupts`, if it is about one that may be the hypervisor's word.
fn count_in(line: &str) -> Option<(String, u64)> {
    let (number, rest) = line.split_once(':')?;
    let words: Vec<_> = rest.split_whitespace().collect();
    let counts = words.iter().map_while(|word| word.parse::<u64>().ok());
    let names = &words[counts.clone().count()..];
    // A shared interrupt names all its users, with commas between.
    let is_ours = names.iter().any(|name| {
        let name = name.to_ascii_lowercase();
        name.starts_with("acpi") || name.contains("vmgenid")
    });
    is_ours.then(|| (number.trim().to_owned(), counts.sum()))
}

/// What is known of the counts.
#[derive(Debug)]
pub struct Evidence {
    counters: Counters,
    counts: Option<Vec<(String, u64)>>,
    /// When they were first read as they are.
    since: u64,
    /// When they were read last.
    read_at: Option<u64>,
    /// Whether the log was complete once they had been as they are for [`SETTLE`].
    settled: bool,
}

impl Evidence {
    /// Nothing is known yet.
    pub fn new(counters: Counters) -> Self {
        Self {
            counters,
            counts: None,
            since: 0,
            read_at: None,
            settled: false,
        }
    }

    /// To be called before the log is read. An interrupt that comes while it is read then shows the next time.
    pub fn about_to_look(&mut self, now: u64) {
        // Older counts prove more, not less.
        if self
            .read_at
            .is_none_or(|at| now.saturating_sub(at) >= SETTLE)
        {
            self.read(now);
        }
    }

    /// A look that began then read a log without a gap.
    pub fn looked(&mut self, began: u64) {
        self.settled |= began.saturating_sub(self.since) >= SETTLE;
    }

    /// Whether no notice can have been written since the last look without a gap.
    pub fn nothing_happened(&mut self, now: u64) -> bool {
        self.read(now);
        self.settled && self.counts.is_some()
    }

    fn read(&mut self, now: u64) {
        self.read_at = Some(now);
        let counts = self.counters.read();
        if counts != self.counts {
            self.counts = counts;
            self.since = now;
            self.settled = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A list of interrupts in which ACPI's came so often.
    fn machine() -> (TempDir, Evidence) {
        let folder = tempfile::tempdir().unwrap();
        let counters = Counters {
            files: vec![folder.path().join("gpe_all")],
            interrupts: folder.path().join("interrupts"),
        };
        (folder, Evidence::new(counters))
    }

    fn set(folder: &TempDir, gpe: u64, acpi: u64, disk: u64) {
        fs::write(folder.path().join("gpe_all"), format!("{gpe:8}\n")).unwrap();
        let text = format!(
            "            CPU0       CPU1\n\
             \x20  9:          1          {acpi}   IO-APIC   9-fasteoi   acpi\n\
             \x20 24:       {disk}         11   PCI-MSI 0-edge      virtio0\n\
             \x20NMI:          0          0   Non-maskable interrupts\n"
        );
        fs::write(folder.path().join("interrupts"), text).unwrap();
    }

    #[test]
    fn counts_that_stand_still_since_before_a_complete_look_are_evidence() {
        let (folder, mut evidence) = machine();
        set(&folder, 3, 4, 5);
        evidence.about_to_look(10);
        evidence.looked(10);
        // The notice of the last interrupt may not have been written by then.
        assert!(!evidence.nothing_happened(20));
        evidence.about_to_look(10 + SETTLE);
        evidence.looked(10 + SETTLE);
        set(&folder, 3, 4, 6);
        assert!(evidence.nothing_happened(20 + SETTLE));
        assert!(evidence.nothing_happened(30 + SETTLE));
    }

    #[test]
    fn a_count_that_moved_is_none_and_so_is_what_follows_at_once() {
        for (gpe, acpi) in [(4, 4), (3, 5)] {
            let (folder, mut evidence) = machine();
            set(&folder, 3, 4, 5);
            evidence.about_to_look(10);
            evidence.looked(10 + SETTLE);
            set(&folder, gpe, acpi, 5);
            assert!(!evidence.nothing_happened(20 + SETTLE));
            assert!(!evidence.nothing_happened(30 + SETTLE));
            evidence.looked(30 + SETTLE);
            assert!(!evidence.nothing_happened(40 + SETTLE));
            evidence.looked(20 + 2 * SETTLE);
            assert!(evidence.nothing_happened(21 + 2 * SETTLE));
        }
    }

    #[test]
    fn an_interrupt_while_the_log_is_read_is_seen_the_next_time() {
        let (folder, mut evidence) = machine();
        set(&folder, 3, 4, 5);
        evidence.about_to_look(10);
        set(&folder, 4, 5, 5);
        evidence.looked(10 + SETTLE);
        assert!(!evidence.nothing_happened(20 + SETTLE));
    }

    #[test]
    fn where_nothing_is_counted_there_is_no_evidence() {
        let mut evidence = Evidence::new(Counters::none());
        evidence.about_to_look(10);
        evidence.looked(10 + SETTLE);
        assert!(!evidence.nothing_happened(20 + SETTLE));
    }

    #[test]
    fn only_interrupts_that_may_be_the_hypervisors_word_are_counted() {
        let count = |line: &str| count_in(line).map(|(_, count)| count);
        assert_eq!(count("  9:   2   3   IO-APIC   9-fasteoi   acpi"), Some(5));
        assert_eq!(count(" 27:   7   GICv3  35 Edge      ACPI:Ged"), Some(7));
        assert_eq!(count(" 28:   8   GICv3  36 Edge      vmgenid"), Some(8));
        assert_eq!(count(" 16:  1  IO-APIC  16-fasteoi   ehci, acpi"), Some(1));
        assert_eq!(count(" 24:   9   PCI-MSI 0-edge  virtio0"), None);
        assert_eq!(count("ERR:   0"), None);
        assert_eq!(count("            CPU0       CPU1"), None);
    }
}
