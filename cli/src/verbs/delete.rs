//! `coracle delete`: by file or by name, and waits until the objects are gone.

use std::time::{Duration, Instant};

use clap::Args;
use coracle_manifests::kinds::Kind;
use http::Method;
use serde_json::json;

use super::get::Scope;
use crate::client::{Client, JSON};
use crate::failure::Failure;
use crate::{output, resource, source};

/// Delete objects
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle delete -f app.yaml\n  coracle delete deploy/hello svc/hello\n\nExit codes: 0 gone, 1 failed, 2 wrong usage, 3 not found, 4 invalid file"
)]
pub struct Delete {
    /// TYPE NAME... or TYPE/NAME...
    #[arg(required_unless_present = "file")]
    what: Vec<String>,
    /// Delete what these files hold: a file, a folder, or `-`
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "what")]
    file: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// Seconds a pod gets to end by itself; 0 ends it at once
    #[arg(long)]
    grace_period: Option<u32>,
    /// Return before the objects are gone
    #[arg(long)]
    no_wait: bool,
    /// Do not complain about objects that are not there
    #[arg(long)]
    ignore_not_found: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, delete: &Delete) -> Result<(), Failure> {
    let mut objects: Vec<(&'static Kind, String, String)> = Vec::new();
    if delete.file.is_empty() {
        for target in resource::targets(&delete.what, "delete")? {
            let name = target.name.ok_or_else(|| {
                Failure::usage(format!(
                    "say which {} to delete: `coracle delete {}/NAME`",
                    target.kind.plural, target.kind.singular
                ))
            })?;
            objects.push((target.kind, delete.scope.namespace.clone(), name.to_owned()));
        }
    } else {
        for document in source::load(&delete.file)? {
            let namespace = document.namespace().unwrap_or(&delete.scope.namespace).to_owned();
            objects.push((document.kind, namespace, document.name().to_owned()));
        }
        // What was made first goes last: a namespace after what is in it.
        objects.reverse();
    }
    let mut worst: Option<Failure> = None;
    let mut waiting = Vec::new();
    for (kind, namespace, name) in &objects {
        let path = resource::path(kind, Some(namespace), Some(name));
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(grace) = delete.grace_period {
            options["gracePeriodSeconds"] = json!(grace);
        }
        match client.json(Method::DELETE, &path, JSON, Some((JSON, &options))).await {
            Ok(answer) => {
                output::line(&format!("{} deleted", resource::shown(kind, name)));
                let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
                waiting.push((path, uid.unwrap_or_default().to_owned(), resource::shown(kind, name)));
            }
            Err(error) if error.is_not_found() && delete.ignore_not_found => {}
            Err(error) => {
                let failure = Failure::from(error);
                output::error(&failure.message);
                worst = Some(Failure { message: String::new(), ..failure });
            }
        }
    }
    if !delete.no_wait {
        let until = Instant::now() + Duration::from_secs(delete.timeout);
        for (path, uid, shown) in waiting {
            gone(client, &path, &uid, &shown, until).await?;
        }
    }
    worst.map_or(Ok(()), Err)
}

async fn gone(client: &Client, path: &str, uid: &str, shown: &str, until: Instant) -> Result<(), Failure> {
    let mut pause = Duration::from_millis(20);
    loop {
        match client.get(path).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(object) if object["metadata"]["uid"] != uid && !uid.is_empty() => return Ok(()),
            Ok(object) if Instant::now() > until => {
                let finalizers = &object["metadata"]["finalizers"];
                let why =
                    if finalizers.is_null() { String::new() } else { format!("; its finalizers are {finalizers}") };
                return Err(Failure::failed(format!(
                    "{shown} is still there{why}\nhint: `coracle describe` says what it waits for"
                )));
            }
            Ok(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
