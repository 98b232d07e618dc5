//! `coracle scale`: how many replicas.

use clap::Args;
use http::Method;
use serde_json::json;

use super::get::Scope;
use crate::client::{Client, JSON};
use crate::failure::Failure;
use crate::{output, resource};

/// Set the number of replicas
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle scale deploy/hello --replicas 5\n\nExit codes: 0 set, 1 failed, 2 wrong usage, 3 not found"
)]
pub struct Scale {
    /// TYPE/NAME... of deployments, statefulsets, replicasets or replicationcontrollers
    #[arg(required = true)]
    what: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// How many
    #[arg(long)]
    replicas: u32,
    /// `json`: print the Scale objects
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, scale: &Scale) -> Result<(), Failure> {
    for target in resource::targets(&scale.what, "scale")? {
        let name = target.name.ok_or_else(|| Failure::usage("say which: `coracle scale deploy/NAME --replicas N`"))?;
        if !target.kind.subresources.contains(&coracle_manifests::kinds::Subresource::Scale) {
            return Err(Failure::usage(format!("a {} has no replicas to scale", target.kind.kind)));
        }
        let path = format!("{}/scale", resource::path(target.kind, Some(&scale.scope.namespace), Some(name)));
        let patch = json!({"spec": {"replicas": scale.replicas}});
        let answer = client.json(Method::PATCH, &path, JSON, Some(("application/merge-patch+json", &patch))).await?;
        match scale.output {
            output::Format::Json => output::line(&output::json(&answer)),
            output::Format::Yaml => output::line(output::yaml(&answer).trim_end()),
            _ => output::line(&format!("{} scaled to {}", resource::shown(target.kind, name), scale.replicas)),
        }
    }
    Ok(())
}
