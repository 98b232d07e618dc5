//! `cargo xtask demo`.

pub fn run(_arguments: &[String]) -> Result<(), String> {
    Err("not yet".into())
}
