//! The coracle program: every verb.

fn main() {}
