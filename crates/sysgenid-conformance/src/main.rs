//! Black-box conformance suite for a system generation node.
fn main() {}
