//! `coracle rotate-keys`: a new key for what this server stores.

use std::path::Path;

use clap::Args;
use coracle_control_plane::pki::STORAGE_KEYS;
use coracle_control_plane::storage;
use serde_json::json;

use crate::failure::Failure;
use crate::{output, preflight};

/// Make a new key for what this server writes to its disk
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle rotate-keys\n\nRun it on the server itself; each server has keys of its own. A server that runs seals its next log segment and its next snapshot\nwith the new key; the old one stays in the key file as long as anything is sealed with it, and goes at a later start.\n\nExit codes: 0 made, 1 failed"
)]
pub struct RotateKeys {
    /// `json`: the key's name, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// No server has worked in the folder, or the key file cannot be written.
pub fn run(data_dir: &Path, verb: &RotateKeys) -> Result<(), Failure> {
    preflight::root("sudo coracle rotate-keys")?;
    let file = data_dir.join("pki").join(STORAGE_KEYS);
    if !file.exists() {
        return Err(Failure::failed(format!(
            "there is no key file at {}: no server of a cluster works in this data folder\nhint: run it where the server runs, with its --data-dir",
            file.display()
        )));
    }
    let (id, count) = storage::rotate(&file).map_err(|error| Failure::from_error(&error))?;
    if verb.output == output::Format::Json {
        output::line(&output::json(&json!({"key": format!("{id:016x}"), "keys": count, "file": file})));
        return Ok(());
    }
    output::line(&format!("new storage key {id:016x}; {count} in {}", file.display()));
    output::note(
        "the server uses it from its next log segment and snapshot on; older keys go when nothing is sealed with them",
    );
    Ok(())
}
