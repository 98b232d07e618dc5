//! Reading: one object, or a page of many.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use coracle_manifests::selector::{Fields, Labels};
use coracle_store::{Key, Object, View};
use http::StatusCode;
use serde_json::{Value, json};

use crate::answer;
use crate::path::{Place, Query};
use crate::serve::Door;
use crate::status::Failure;
use crate::table;
use crate::verbs::{Answer, Asked};

/// How the client wants to see objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    Table,
    Partial,
}

impl Shape {
    /// The first of the client's choices that we serve.
    pub(crate) fn of(accept: &str) -> Result<Self, Failure> {
        let mut only_protobuf = false;
        for part in accept.split(',').map(str::trim) {
            if part.contains("as=Table") {
                return Ok(Self::Table);
            }
            if part.contains("as=PartialObjectMetadata") {
                return Ok(Self::Partial);
            }
            if part.is_empty()
                || part.starts_with("application/json")
                || part.starts_with("*/*")
                || part.starts_with("application/*")
            {
                return Ok(Self::Whole);
            }
            only_protobuf |= part.contains("protobuf");
        }
        if only_protobuf {
            return Err(Failure::new(
                StatusCode::NOT_ACCEPTABLE,
                "NotAcceptable",
                "protobuf is not supported yet; ask for application/json",
            ));
        }
        Ok(Self::Whole)
    }
}

/// The selectors of a query.
pub(crate) struct Filter {
    labels: Labels,
    fields: Fields,
}

impl Filter {
    pub(crate) fn of(place: &Place, query: &Query) -> Result<Self, Failure> {
        let bad = |error: &dyn std::fmt::Display| Failure::bad_request(error.to_string());
        Ok(Self {
            labels: Labels::parse(query.get("labelSelector").unwrap_or_default()).map_err(|error| bad(&error))?,
            fields: Fields::parse(place.kind, query.get("fieldSelector").unwrap_or_default())
                .map_err(|error| bad(&error))?,
        })
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        (self.labels.is_everything() || self.labels.matches(&object.tree()["metadata"]["labels"]))
            && self.fields.matches(object.tree())
    }
}

/// The key of an object's place.
pub(crate) fn key_of(place: &Place) -> Key {
    let namespace = place.namespace.as_deref().unwrap_or_default();
    Key::new(place.kind.resource, namespace, place.name.as_deref().unwrap_or_default())
}

/// A view for a read: `resourceVersion=0` is content with the local one.
async fn view_for(door: &Door, query: &Query) -> Result<View, Failure> {
    if query.get("resourceVersion") == Some("0") {
        return Ok(door.cluster.view());
    }
    door.cluster.read_barrier().await.map_err(|error| {
        let mut failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string());
        failure.retry_after = Some(1);
        failure
    })
}

pub(crate) async fn get(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let shape = Shape::of(&asked.accept)?;
    let view = view_for(door, &asked.query).await?;
    let key = key_of(place);
    let object = view.get(&key).ok_or_else(|| Failure::not_found(place.kind, &key.name))?;
    Ok(match shape {
        Shape::Whole => answer::bytes(StatusCode::OK, "application/json", object.json.clone()),
        Shape::Partial => answer::json(StatusCode::OK, &table::partial(object.tree())),
        Shape::Table => {
            let meta = json!({"resourceVersion": object.revision.to_string()});
            let include = asked.query.get("includeObject");
            answer::json(StatusCode::OK, &table::table(place.kind, &[object.tree()], &meta, include, door.now_ms()))
        }
    })
}

/// Where the next page begins: the revision of the list, and the namespace and name after which to go on.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    revision: u64,
    after: (String, String),
}

impl Token {
    fn write(&self) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(json!({"rv": self.revision, "namespace": self.after.0, "name": self.after.1}).to_string())
    }

    fn read(text: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let own = |field: &str| value[field].as_str().map(ToOwned::to_owned);
        Some(Self { revision: value["rv"].as_u64()?, after: (own("namespace")?, own("name")?) })
    }
}

pub(crate) async fn list(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let shape = Shape::of(&asked.accept)?;
    let filter = Filter::of(place, &asked.query)?;
    let token = match asked.query.get("continue") {
        Some(text) => Some(Token::read(text).ok_or_else(|| Failure::bad_request("the continue token cannot be read"))?),
        None => None,
    };
    let view = match &token {
        Some(token) => door.pages.get(token.revision, Instant::now()).ok_or_else(|| {
            Failure::expired("the list that this continue token belongs to is no longer held; begin again without it")
        })?,
        None => view_for(door, &asked.query).await?,
    };
    let limit = match asked.query.get("limit") {
        Some(text) => text.parse::<usize>().map_err(|_| Failure::bad_request("`limit` is not a number"))?,
        None => 0,
    };
    let after = token.map(|token| token.after);
    let after = after.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
    let mut page: Vec<Arc<Object>> = Vec::new();
    let mut next = None;
    for object in view.list(place.kind.resource, place.namespace.as_deref()) {
        // In the store's order: by namespace, then by name.
        let at = (&*object.key.namespace, &*object.key.name);
        if after.is_some_and(|after| at <= after) || !filter.matches(object) {
            continue;
        }
        if limit > 0 && page.len() == limit {
            let last = &page[limit - 1].key;
            next =
                Some(Token { revision: view.revision(), after: (last.namespace.to_string(), last.name.to_string()) });
            break;
        }
        page.push(object.clone());
    }
    let mut meta = json!({"resourceVersion": view.revision().to_string()});
    if let Some(next) = next {
        meta["continue"] = json!(next.write());
        door.pages.hold(view, Instant::now());
    }
    Ok(render(door, place, asked, shape, &page, &meta))
}

fn render(
    door: &Door,
    place: &Place,
    asked: &Asked,
    shape: Shape,
    page: &[Arc<Object>],
    meta: &Value,
) -> http::Response<answer::Body> {
    let trees = || -> Vec<&Value> { page.iter().map(|object| &**object.tree()).collect() };
    match shape {
        Shape::Table => {
            let include = asked.query.get("includeObject");
            answer::json(StatusCode::OK, &table::table(place.kind, &trees(), meta, include, door.now_ms()))
        }
        Shape::Partial => {
            let items: Vec<Value> = trees().into_iter().map(table::partial).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items});
            answer::json(StatusCode::OK, &list)
        }
        Shape::Whole => {
            // The objects' own bytes, put together: nothing is parsed or printed again.
            let head = json!({"kind": format!("{}List", place.kind.kind), "apiVersion": place.kind.api_version(), "metadata": meta}).to_string();
            let mut bytes =
                Vec::with_capacity(head.len() + 16 + page.iter().map(|object| object.json.len() + 1).sum::<usize>());
            bytes.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
            bytes.extend_from_slice(b",\"items\":[");
            for (index, object) in page.iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                bytes.extend_from_slice(&object.json);
            }
            bytes.extend_from_slice(b"]}");
            answer::bytes(StatusCode::OK, "application/json", bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_nonsense_does_not() {
        let token = Token { revision: 7, after: ("a/b".into(), "c".into()) };
        assert_eq!(Token::read(&token.write()).unwrap(), token);
        for bad in ["", "x", "e30", "bnVsbA", "////"] {
            assert_eq!(Token::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_form_that_we_serve_is_chosen() {
        for (accept, shape) in [
            ("", Shape::Whole),
            ("*/*", Shape::Whole),
            ("application/vnd.kubernetes.protobuf,application/json", Shape::Whole),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Shape::Table),
            ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", Shape::Partial),
            ("application/json, application/json;as=Table;v=v1;g=meta.k8s.io", Shape::Whole),
        ] {
            assert_eq!(Shape::of(accept).unwrap(), shape, "{accept}");
        }
        assert_eq!(Shape::of("application/vnd.kubernetes.protobuf").unwrap_err().code, StatusCode::NOT_ACCEPTABLE);
    }
}
