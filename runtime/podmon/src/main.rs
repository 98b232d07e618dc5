//! The small static program that holds a pod: it runs launch plans, waits, keeps logs and exit codes.

fn main() {}
