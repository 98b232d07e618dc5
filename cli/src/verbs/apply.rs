//! `coracle apply`: makes the cluster's objects what the files say. What a file no longer says since the last apply is
//! removed, what others set stays: the same three-way rule and the same annotation as kubectl, so that both can be used on
//! one object.

use clap::Args;
use coracle_manifests::patch;
use http::Method;
use serde_json::{Map, Value, json};

use super::get::Scope;
use crate::client::{Client, JSON};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::resource;
use crate::source::{self, Source};

/// Where kubectl keeps what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Create or change objects so that they are as the files say
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle apply -f app.yaml\n  coracle apply -f folder/\n  cat app.yaml | coracle apply -f -\n\nAll files are checked before anything is changed.\n\nExit codes: 0 applied, 1 failed, 2 wrong usage, 4 a file is not valid"
)]
pub struct Apply {
    /// A file with one or many documents, a folder, or `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    file: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// Let the server check everything, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print: `table` says what was done, a line an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, apply: &Apply) -> Result<(), Failure> {
    let mut sources = source::load(&apply.file)?;
    // Namespaces first: what is in them may stand before them in a folder.
    sources.sort_by_key(|source| source.kind.kind != "Namespace");
    let mut items = Vec::new();
    let mut worst: Option<Failure> = None;
    for source in &sources {
        match one(client, apply, source).await {
            Ok((object, what)) => match apply.output {
                Format::Table | Format::Wide => {
                    let dry = if apply.dry_run { " (dry run)" } else { "" };
                    output::line(&format!("{} {what}{dry}", resource::shown(source.kind, source.name())));
                }
                Format::Name => output::line(&resource::shown(source.kind, source.name())),
                Format::Json | Format::Yaml => items.push(object),
            },
            Err(failure) => {
                output::error(&format!(
                    "{}: {}: {}",
                    source.file,
                    resource::shown(source.kind, source.name()),
                    failure.message
                ));
                worst = Some(Failure { message: String::new(), ..failure });
            }
        }
    }
    if matches!(apply.output, Format::Json | Format::Yaml) {
        let value = if items.len() == 1 {
            items.remove(0)
        } else {
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        };
        output::raw(
            if apply.output == Format::Json { output::json(&value) + "\n" } else { output::yaml(&value) }.as_bytes(),
        );
    }
    worst.map_or(Ok(()), Err)
}

async fn one(client: &Client, apply: &Apply, source: &Source) -> Result<(Value, &'static str), Failure> {
    let namespace = source.namespace().unwrap_or(&apply.scope.namespace).to_owned();
    if source.name().is_empty() {
        return Err(Failure::invalid("`metadata.name` is missing: an object that is applied needs a name"));
    }
    let mut wanted = source.document.value.clone();
    if source.kind.namespaced {
        wanted["metadata"]["namespace"] = json!(namespace);
    }
    let last = without_annotation(&wanted);
    wanted["metadata"]["annotations"][LAST_APPLIED] = json!(last.to_string() + "\n");
    let path = resource::path(source.kind, Some(&namespace), Some(source.name()));
    let dry = if apply.dry_run { "&dryRun=All" } else { "" };
    let query = format!("fieldManager=coracle&fieldValidation=Strict{dry}");
    let live = match client.get(&path).await {
        Ok(live) => live,
        Err(error) if error.is_not_found() => {
            let collection = resource::path(source.kind, Some(&namespace), None);
            let created =
                client.json(Method::POST, &format!("{collection}?{query}"), JSON, Some((JSON, &wanted))).await?;
            return Ok((created, "created"));
        }
        Err(error) => return Err(error.into()),
    };
    let before: Value = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let patch = patch::three_way(source.kind, &before, &wanted, &live);
    if patch == json!({}) {
        return Ok((live, "unchanged"));
    }
    let changed = client.json(Method::PATCH, &format!("{path}?{query}"), JSON, Some((STRATEGIC, &patch))).await?;
    // A patch may say what the defaults say too, and the status changes by itself.
    let wanted = |object: &Value| {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
        }
        object
    };
    let same = wanted(&changed) == wanted(&live);
    Ok((changed, if same { "unchanged" } else { "configured" }))
}

/// What was applied, as the annotation keeps it: without the annotation itself, with `annotations` present as kubectl writes it.
fn without_annotation(wanted: &Value) -> Value {
    let mut copy = wanted.clone();
    match copy["metadata"]["annotations"].as_object_mut() {
        Some(annotations) => {
            annotations.remove(LAST_APPLIED);
        }
        None => copy["metadata"]["annotations"] = Value::Object(Map::new()),
    }
    copy
}
