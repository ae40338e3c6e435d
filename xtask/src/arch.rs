// SPDX-License-Identifier: MIT OR Apache-2.0

//! The processors that guests have, and what differs between them.

use serde::Deserialize;
use serde::Serialize;

/// A processor, by Debian's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arch {
    /// That of this machine.
    #[default]
    Amd64,
    /// One that is emulated, and that programs are cross-built for.
    Arm64,
}

impl Arch {
    /// The one that a kernel is for, which Debian's releases say at their ends.
    pub(crate) fn of_release(release: &str) -> Self {
        if release.ends_with(Self::Arm64.debian()) {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    /// What Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// What `rustc` calls it, with Debian's C library.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What the kernel's `make` must be told of it.
    pub(crate) fn make_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &[
                "CROSS_COMPILE=x86_64-linux-gnu-",
                "CC=x86_64-linux-gnu-gcc-14",
            ],
            Self::Arm64 => &[
                "ARCH=arm64",
                "CROSS_COMPILE=aarch64-linux-gnu-",
                "CC=aarch64-linux-gnu-gcc-14",
                // For what it maps into 32-bit programs.
                "CROSS_COMPILE_COMPAT=arm-linux-gnueabihf-",
                "CC_COMPAT=arm-linux-gnueabihf-gcc-14",
            ],
        }
    }

    /// The program that emulates it.
    pub(crate) fn qemu(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// The machine around it, as arguments of that program.
    pub(crate) fn machine(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &["-machine", "q35", "-accel", "tcg", "-cpu", "max"],
            // To authenticate pointers as a real one does takes an emulated one most of its time.
            Self::Arm64 => &[
                "-machine",
                "virt",
                "-accel",
                "tcg",
                "-cpu",
                "max,pauth-impdef=on",
            ],
        }
    }

    /// The device that a kernel calls the machine's first serial line.
    pub(crate) fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }

    /// What else its kernels are told.
    pub(crate) fn kernel_parameters(self) -> &'static str {
        match self {
            // The clocks of an emulated machine are good enough, whatever the kernel thinks of them.
            Self::Amd64 => "tsc=reliable no_timer_check panic=-1 random.trust_cpu=on",
            Self::Arm64 => "panic=-1 random.trust_cpu=on",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_says_what_processor_it_is_for() {
        assert_eq!(Arch::of_release("7.3.4+deb13-cloud-arm64"), Arch::Arm64);
        for release in ["7.3.4+deb13-cloud-amd64", "7.3.4"] {
            assert_eq!(Arch::of_release(release), Arch::Amd64);
        }
    }
}
