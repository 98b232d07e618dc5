//! `coracle doctor`: what on this machine, and between it and the others, stands in the cluster's way.

use std::path::Path;

use clap::Args;
use coracle_manifests::view::list;
use coracle_node_agent::preflight::missing;
use serde_json::{Value, json};

use crate::config::Settings;
use crate::failure::Failure;
use crate::output::{self, text};

/// Look for what stands in the cluster's way, and say what to do
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle doctor\n\nLooks at this machine's kernel, the node's network and that to other nodes (firewalls, MTU, ports, routes), its session with a\nserver and, on a server, its log and the other servers. Run it on both machines that do not find each other.\n\nExit codes: 0 nothing found, 1 it cannot be told, 5 something stands in the way"
)]
pub struct Doctor {
    /// `json`: what was found, as a list
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// Something was found (code 5), or nobody can be asked.
pub async fn run(data_dir: &Path, doctor: &Doctor) -> Result<(), Failure> {
    let settings = Settings::load(data_dir)?;
    let (cgroup, bridge) =
        settings.map_or_else(|| ("coracle".to_owned(), "coracle0".to_owned()), |known| (known.cgroup, known.bridge));
    let mut found: Vec<Value> = missing(&cgroup, &bridge)
        .into_iter()
        .map(|finding| json!({"problem": finding.problem, "hint": finding.hint}))
        .collect();
    let asked = super::status::fetch(data_dir, "/doctor.json").await;
    if let Ok(answer) = &asked {
        found.extend(list(answer).iter().cloned());
    }
    if doctor.output == output::Format::Json {
        output::line(&output::json(&json!(found)));
    } else {
        for finding in &found {
            output::line(&format!("{}\n  hint: {}", text(&finding["problem"]), text(&finding["hint"])));
        }
    }
    asked?;
    if found.is_empty() {
        if doctor.output != output::Format::Json {
            output::line("nothing stands in the way");
        }
        return Ok(());
    }
    Err(Failure { code: 5, message: String::new() })
}
