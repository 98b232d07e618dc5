//! `coracle kubeconfig`: where kubectl's file is, or the file itself.

use std::path::Path;

use clap::Args;

use crate::failure::Failure;
use crate::output;

/// Print the path of the administrator's kubeconfig
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  export KUBECONFIG=$(coracle kubeconfig)\n  coracle kubeconfig --raw > ~/.kube/config\n\nExit codes: 0 printed, 1 there is none yet"
)]
pub struct Kubeconfig {
    /// Print the file instead of its path
    #[arg(long)]
    raw: bool,
    /// `json`: as an object with `path`
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// There is no kubeconfig in the data folder.
pub fn run(data_dir: &Path, kubeconfig: &Kubeconfig) -> Result<(), Failure> {
    let path = data_dir.join("admin.kubeconfig");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::failed(format!(
            "cannot read {}: {error}\nhint: `coracle up` writes it at its first start",
            path.display()
        ))
    })?;
    if kubeconfig.raw {
        output::raw(text.as_bytes());
    } else if kubeconfig.output == output::Format::Json {
        output::line(&output::json(&serde_json::json!({"path": path})));
    } else {
        output::line(&path.display().to_string());
    }
    Ok(())
}
