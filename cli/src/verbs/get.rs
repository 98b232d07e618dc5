//! `coracle get`: one or many objects, as columns, YAML, JSON or names; `-w` keeps printing changes.

use bytes::Buf as _;
use clap::Args;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::client::{Client, JSON, TABLE};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::resource::{self, Target};

/// Show objects
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle get pods -o wide\n  coracle get deploy/hello -o yaml\n  coracle get pods -A -w\n\nExit codes: 0 shown, 1 failed, 2 wrong usage, 3 not found"
)]
pub struct Get {
    /// TYPE[,TYPE], TYPE NAME..., or TYPE/NAME...
    #[arg(required = true)]
    what: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects whose labels match, such as `app=web,tier!=db`
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only objects whose fields match, such as `spec.nodeName=node1`
    #[arg(long)]
    field_selector: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Leave out the line of column names
    #[arg(long)]
    no_headers: bool,
    /// Go on and print changes
    #[arg(short, long)]
    watch: bool,
}

/// Which namespace a verb works in.
#[derive(Debug, Args)]
pub struct Scope {
    /// The namespace
    #[arg(short, long, default_value = "default", env = "CORACLE_NAMESPACE")]
    pub namespace: String,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, get: &Get) -> Result<(), Failure> {
    let targets = resource::targets(&get.what, "get")?;
    if get.watch && targets.len() != 1 {
        return Err(Failure::usage("`-w` watches one resource type at a time"));
    }
    if let Some(target) = targets.iter().find(|target| target.name.is_some()) {
        if get.all_namespaces && target.kind.namespaced {
            return Err(Failure::usage("a name is looked for in one namespace: leave out `-A`, or the name"));
        }
        if get.selector.is_some() || get.field_selector.is_some() {
            return Err(Failure::usage("a selector chooses among all objects: leave it out, or the name"));
        }
    }
    let wide = get.output == Format::Wide;
    if matches!(get.output, Format::Table | Format::Wide) && !get.watch {
        let many = targets.iter().map(|target| target.kind.plural).collect::<std::collections::BTreeSet<_>>().len() > 1;
        let mut missing = None;
        let mut printed = 0;
        for target in &targets {
            match list(client, get, target, TABLE).await {
                Ok(answer) if answer["rows"].as_array().is_none_or(Vec::is_empty) => {}
                Ok(answer) => {
                    if many && printed > 0 {
                        output::line("");
                    }
                    printed += 1;
                    let text =
                        output::table(&answer, wide, get.all_namespaces && target.kind.namespaced, !get.no_headers);
                    output::raw(text.as_bytes());
                }
                Err(failure) => missing = Some(failure),
            }
        }
        if printed == 0 && missing.is_none() {
            output::note(&nothing(get));
        }
        return missing.map_or(Ok(()), Err);
    }
    if get.watch {
        return watch(client, get, &targets[0]).await;
    }
    let mut items = Vec::new();
    let single = targets.len() == 1 && targets[0].name.is_some();
    for target in &targets {
        let answer = list(client, get, target, JSON).await?;
        if target.name.is_some() {
            items.push(answer);
        } else {
            let (api_version, kind) = (json!(target.kind.api_version()), json!(target.kind.kind));
            for item in answer["items"].as_array().into_iter().flatten() {
                // Items of a list carry no type of their own; alone they need one.
                let mut item = item.clone();
                item["apiVersion"] = api_version.clone();
                item["kind"] = kind.clone();
                items.push(item);
            }
        }
    }
    match get.output {
        Format::Name => {
            for item in &items {
                output::line(&name_of(item));
            }
        }
        format => {
            let value =
                if single { items.remove(0) } else { json!({"apiVersion": "v1", "kind": "List", "items": items}) };
            output::raw(
                if format == Format::Json { output::json(&value) + "\n" } else { output::yaml(&value) }.as_bytes(),
            );
        }
    }
    Ok(())
}

fn nothing(get: &Get) -> String {
    if get.all_namespaces {
        "No resources found".to_owned()
    } else {
        format!("No resources found in namespace {}.", get.scope.namespace)
    }
}

fn name_of(item: &Value) -> String {
    let name = item["metadata"]["name"].as_str().unwrap_or_default();
    let api_version = item["apiVersion"].as_str().unwrap_or_default();
    coracle_manifests::kinds::by_name(api_version, item["kind"].as_str().unwrap_or_default())
        .map_or_else(|| name.to_owned(), |kind| resource::shown(kind, name))
}

fn query(get: &Get, target: &Target<'_>) -> String {
    let mut parts = Vec::new();
    if target.name.is_none() {
        if let Some(selector) = &get.selector {
            parts.push(format!("labelSelector={}", resource::encode(selector)));
        }
        if let Some(selector) = &get.field_selector {
            parts.push(format!("fieldSelector={}", resource::encode(selector)));
        }
    }
    parts.join("&")
}

async fn list(client: &Client, get: &Get, target: &Target<'_>, accept: &str) -> Result<Value, Failure> {
    let namespace = (!get.all_namespaces).then_some(get.scope.namespace.as_str());
    let path = resource::path(target.kind, namespace, target.name);
    let query = query(get, target);
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    Ok(client.json(Method::GET, &path, accept, None).await?)
}

async fn watch(client: &Client, get: &Get, target: &Target<'_>) -> Result<(), Failure> {
    let namespace = (!get.all_namespaces).then_some(get.scope.namespace.as_str());
    let path = resource::path(target.kind, namespace, None);
    let mut query = query(get, &Target { name: None, ..*target });
    if let Some(name) = target.name {
        query = format!("fieldSelector={}", resource::encode(&format!("metadata.name={name}")));
    }
    let tables = matches!(get.output, Format::Table | Format::Wide);
    let accept = if tables { TABLE } else { JSON };
    let wide = get.output == Format::Wide;
    let joined =
        |extra: &str| [query.as_str(), extra].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
    let first = client.json(Method::GET, &format!("{path}?{}", joined("")), accept, None).await?;
    let mut header = !get.no_headers;
    let mut print = |answer: &Value| {
        let text = output::table(answer, wide, get.all_namespaces && target.kind.namespaced, header);
        header = false;
        output::raw(text.as_bytes());
    };
    if tables {
        if first["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
            print(&first);
        }
    } else {
        for item in first["items"].as_array().into_iter().flatten() {
            show(get.output, item, target);
        }
    }
    let mut version = first["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    loop {
        let request = format!("{path}?{}", joined(&format!("watch=true&resourceVersion={version}")));
        let mut body = client.stream(Method::GET, &request, accept, None).await?.into_body();
        let mut buffer = bytes::BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            let Some(data) = frame.data_ref() else { continue };
            buffer.extend_from_slice(data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let event: Value = serde_json::from_slice(&buffer[..end]).unwrap_or(Value::Null);
                buffer.advance(end + 1);
                if event["type"] == "ERROR" {
                    return Err(Failure::failed(
                        event["object"]["message"].as_str().unwrap_or("the watch ended").to_owned(),
                    ));
                }
                let object = &event["object"];
                let meta = if tables { &object["rows"][0]["object"]["metadata"] } else { &object["metadata"] };
                if let Some(newer) = meta["resourceVersion"].as_str() {
                    version = newer.to_owned();
                }
                if tables { print(object) } else { show(get.output, object, target) }
            }
        }
    }
}

fn show(format: Format, item: &Value, target: &Target<'_>) {
    match format {
        Format::Name => {
            output::line(&resource::shown(target.kind, item["metadata"]["name"].as_str().unwrap_or_default()))
        }
        Format::Json => output::line(&output::json(item)),
        _ => output::line(&format!("---\n{}", output::yaml(item).trim_end())),
    }
}
