//! From a request to an answer: the route decides, the verb does.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use coracle_manifests::{Problem, decode};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::answer::{self, Body};
use crate::guests::Standing;
use crate::path::{Place, Query, Route, route};
use crate::serve::Door;
use crate::status::Failure;
use crate::who::Who;
use crate::{change, delete, discovery, list, logs, may, openapi, reviews, servers, watch, who, wire, write};

/// The largest body of a request: an object is at most 1.5 MB, its JSON may be escaped.
const MAX_BODY: usize = 3 << 20;

/// What a machine that joins has to say.
const MAX_JOIN: usize = 64 << 10;

/// A request whose body has been read.
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) query: Query,
    pub(crate) accept: String,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) warnings: Vec<String>,
}

impl Asked {
    /// The media type of the body, without its parameters.
    pub(crate) fn media_type(&self) -> &str {
        self.content_type.split(';').next().unwrap_or_default().trim()
    }

    /// The body as a tree, and the keys it gives twice.
    pub(crate) fn tree(&self) -> Result<(Value, Vec<Problem>), Failure> {
        let media = self.media_type();
        if media.contains("protobuf") {
            let tree = wire::decode(&self.body).map_err(Failure::bad_request)?;
            return Ok((tree, Vec::new()));
        }
        if media.contains("cbor") {
            return Err(Failure::media_type(format!("bodies of {media} are not supported; send application/json")));
        }
        if media.contains("yaml") {
            let text = std::str::from_utf8(&self.body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
            let all = |problems: Vec<Problem>| {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Failure::bad_request(lines.join("\n"))
            };
            let mut documents = decode::yaml(text).map_err(all)?;
            if documents.len() != 1 {
                return Err(Failure::bad_request("the body must be one document"));
            }
            return Ok((documents.remove(0).value, Vec::new()));
        }
        let decoded = decode::json(&self.body).map_err(|problem| Failure::bad_request(problem.to_string()))?;
        Ok((decoded.value, decoded.problems))
    }
}

pub(crate) type Answer = Result<Response<Body>, Failure>;

/// Answers one request that came over a connection of this standing, held by the one that `shown` tells.
pub(crate) async fn handle(
    door: Arc<Door>,
    shown: Arc<Who>,
    standing: Arc<Standing>,
    request: Request<Incoming>,
) -> Response<Body> {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let route = route(parts.uri.path());
    let (verb, resource) = labels(&parts, &route);
    let outcome = match open_route(&door, &route) {
        Some(answer) => answer,
        None if matches!(route, Route::Join) => join(&door, &parts, body).await,
        None => match who::of_request(&*door.cluster, &shown, &parts.headers).await {
            Ok(who) => {
                if who.is_known() && !standing.promote() {
                    Err(too_many_members())
                } else {
                    answer_to(&door, &who, &parts, body, route, (verb, resource)).await
                }
            }
            Err(failure) => Err(failure),
        },
    };
    let mut response = outcome.unwrap_or_else(|failure| answer::failure(&failure));
    if parts.method == Method::HEAD {
        *response.body_mut() = answer::empty();
    }
    door.config.metrics.count(verb, resource, response.status().as_u16(), begun.elapsed());
    tracing::debug!(user = shown.user, method = %parts.method, path = parts.uri.path(), code = response.status().as_u16(), "answered");
    response
}

/// What everybody may see.
fn open_route(door: &Door, route: &Route) -> Option<Answer> {
    match route {
        Route::Version => Some(Ok(answer::json(StatusCode::OK, &discovery::version()))),
        Route::Health => Some(Ok(answer::text("ok"))),
        Route::Authority => {
            Some(door.cluster.authority().map_or_else(|| Err(Failure::no_such_path()), |pem| Ok(answer::text(pem))))
        }
        _ => None,
    }
}

/// A machine that joins has shown nothing yet: what it holds is in the body, which is small.
async fn join(door: &Door, parts: &Parts, body: Incoming) -> Answer {
    if parts.method != Method::POST {
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "joining takes a POST"));
    }
    let read = Limited::new(body, MAX_JOIN).collect();
    let body = match tokio::time::timeout(door.patience.body, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return Err(Failure::bad_request("the body did not come whole, or is too large")),
    };
    match door.cluster.join(&body).await {
        Ok(answer) => Ok(answer::bytes(StatusCode::OK, "application/json", answer)),
        Err((code, words)) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(Failure::new(code, "JoinRefused", words))
        }
    }
}

fn too_many_members() -> Failure {
    let mut failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many connections are open");
    failure.retry_after = Some(1);
    failure
}

fn labels(parts: &Parts, route: &Route) -> (&'static str, &'static str) {
    let place = match route {
        Route::Resource(place) => place,
        Route::Servers => return ("list", "servers"),
        Route::RemoveServer(_) => return ("remove", "servers"),
        _ => return ("get", "meta"),
    };
    let watch = Query::parse(parts.uri.query()).flag("watch");
    let verb = match (&parts.method, place.name.is_some()) {
        (&Method::GET, _) if watch => "watch",
        (&Method::GET, true) => "get",
        (&Method::GET, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "other",
    };
    (verb, place.kind.resource)
}

async fn answer_to(
    door: &Arc<Door>,
    who: &Who,
    parts: &Parts,
    body: Incoming,
    route: Route,
    (verb, resource): (&str, &str),
) -> Answer {
    // What one may do is checked before a byte of the body is read; about oneself everybody may ask.
    if !matches!(route, Route::Review(_)) || !who.is_known() {
        let place = if let Route::Resource(place) = &route { Some(place) } else { None };
        may::check(who, verb, resource, place)?;
    }
    let header = |name: header::HeaderName| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let body = match tokio::time::timeout(door.patience.body, read_body(body)).await {
        Ok(body) => body?,
        Err(_) => {
            let words = format!("the request's body did not come within {} s", door.patience.body.as_secs());
            return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "Timeout", words));
        }
    };
    let mut asked = Asked {
        method: parts.method.clone(),
        query: Query::parse(parts.uri.query()),
        accept: header(header::ACCEPT),
        content_type: header(header::CONTENT_TYPE),
        body,
        warnings: Vec::new(),
    };
    match route {
        Route::Resource(place) => {
            may::check_patch(who, &asked)?;
            let mut response = on_resource(door, &place, &mut asked).await?;
            answer::warn(&mut response, &asked.warnings);
            Ok(response)
        }
        Route::Review(review) => reviews::answer_to(who, review, &asked),
        Route::Servers => servers::list(door, &asked),
        Route::RemoveServer(id) => servers::remove(door, &id, &asked).await,
        Route::Backup => backup(door, who).await,
        Route::Unknown => Err(Failure::no_such_path()),
        _ if asked.method != Method::GET => Err(Failure::method()),
        route => document(&route, &asked),
    }
}

/// Everything there is, Secrets and the authority's key with it: for administrators only.
async fn backup(door: &Door, who: &Who) -> Answer {
    if !may::all(who) {
        return Err(Failure::forbidden(
            "a backup holds every Secret and the key of the authority: only administrators get one",
        ));
    }
    let internal = |words: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", words);
    let mut chunks = door.cluster.backup().await.map_err(internal)?;
    let (sink, out) = tokio::sync::mpsc::channel(16);
    let drain = door.drain.clone();
    tokio::spawn(async move {
        let copy = async {
            // One that breaks off is not whole, which its reader finds out by its length.
            while let Some(Ok(bytes)) = chunks.recv().await {
                if sink.send(bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = copy => {}
            () = drain.cancelled() => {}
        }
    });
    Ok(answer::stream("application/octet-stream", out))
}

/// Discovery and OpenAPI.
fn document(route: &Route, asked: &Asked) -> Answer {
    let found = |document: Option<Value>| document.ok_or_else(Failure::no_such_path);
    Ok(match route {
        Route::Core | Route::Groups => {
            let core = *route == Route::Core;
            match discovery::wants_aggregated(&asked.accept) {
                Some(version) => {
                    let value = discovery::aggregated(core, version);
                    let content_type = if version == "v2" {
                        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
                    } else {
                        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
                    };
                    let mut response = answer::bytes(StatusCode::OK, content_type, value.to_string());
                    response.headers_mut().insert(header::VARY, http::HeaderValue::from_static("Accept"));
                    response
                }
                None => answer::json(StatusCode::OK, &if core { discovery::core() } else { discovery::group_list() }),
            }
        }
        Route::Group(name) => answer::json(StatusCode::OK, &found(discovery::group(name))?),
        Route::GroupVersion { group, version } => {
            answer::json(StatusCode::OK, &found(discovery::resources(group, version))?)
        }
        Route::OpenApi2 if asked.accept.contains("protobuf") => answer::bytes(
            StatusCode::OK,
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            openapi::v2_protobuf(),
        ),
        Route::OpenApi2 => answer::json(StatusCode::OK, &openapi::v2()),
        Route::OpenApi3 => answer::json(StatusCode::OK, &openapi::v3_index()),
        Route::OpenApi3Group { group, version } => {
            let text = openapi::v3(group, version).ok_or_else(Failure::no_such_path)?;
            answer::bytes(StatusCode::OK, "application/json", text)
        }
        _ => return Err(Failure::no_such_path()),
    })
}

async fn read_body(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("the request is larger than {MAX_BODY} bytes"),
        )),
        Err(error) => Err(Failure::bad_request(format!("the request's body broke off: {error}"))),
    }
}

async fn on_resource(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    if let Some(sub) = &place.sub {
        return match sub.as_str() {
            "log" if place.kind.kind == "Pod" && asked.method == Method::GET => logs::logs(door, place, asked).await,
            "binding" if place.kind.kind == "Pod" && asked.method == Method::POST => {
                change::bind(door, place, asked).await
            }
            "status" | "scale" | "finalize" => change::subresource(door, place, asked, sub).await,
            "exec" | "attach" | "portforward" | "proxy" | "eviction" | "ephemeralcontainers" | "resize" | "token" => {
                let words = format!("{}/{sub} is not supported yet", place.kind.plural);
                Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", words))
            }
            _ => Err(Failure::no_such_path()),
        };
    }
    match (&asked.method, place.name.is_some()) {
        (&Method::GET, true) => list::get(door, place, asked).await,
        (&Method::GET, false) if asked.query.flag("watch") => watch::watch(door, place, asked).await,
        (&Method::GET, false) => list::list(door, place, asked).await,
        (&Method::POST, false) => write::create(door, place, asked).await,
        (&Method::PUT, true) => change::update(door, place, asked).await,
        (&Method::PATCH, true) => change::patch(door, place, asked).await,
        (&Method::DELETE, true) => delete::delete(door, place, asked).await,
        (&Method::DELETE, false) => delete::collection(door, place, asked).await,
        _ => Err(Failure::method()),
    }
}
