//! Builds the kernel modules and proves them in virtual machines.
fn main() {}
