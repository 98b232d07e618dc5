//! `coracle version`.

use clap::Args;
use coracle_base::level::{LEVEL, LEVELS};

use crate::failure::Failure;
use crate::output;

/// Print the version, and the level of what it says to other servers and agents
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coracle version -o json")]
pub struct Version {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// None.
pub fn run(version: &Version) -> Result<(), Failure> {
    let number = env!("CARGO_PKG_VERSION");
    if version.output == output::Format::Json {
        let value = serde_json::json!({
            "version": number,
            "protocol": coracle_control_plane::PROTOCOL,
            "level": LEVEL,
            "levels": LEVELS,
        });
        output::line(&output::json(&value));
    } else {
        output::line(&format!("coracle {number} (level {LEVEL})"));
    }
    Ok(())
}
