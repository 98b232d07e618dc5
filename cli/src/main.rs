//! The coracle program: every verb.
#![forbid(unsafe_code)]

fn main() {}
