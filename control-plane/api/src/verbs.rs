//! From a request to an answer: the route decides, the verb does.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::answer::{self, Body};
use crate::path::{Place, Query, Route, route};
use crate::serve::Door;
use crate::status::Failure;
use crate::who::Who;
use crate::{delete, discovery, list, logs, openapi, watch, write};

/// The largest body of a request: an object is at most 1.5 MB, its JSON may be escaped.
const MAX_BODY: usize = 3 << 20;

/// A request whose body has been read.
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) query: Query,
    pub(crate) accept: String,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) warnings: Vec<String>,
}

pub(crate) type Answer = Result<Response<Body>, Failure>;

/// Answers one request.
pub(crate) async fn handle(door: Arc<Door>, who: Arc<Who>, request: Request<Incoming>) -> Response<Body> {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let route = route(parts.uri.path());
    let (verb, resource) = labels(&parts, &route);
    let outcome = answer_to(&door, &who, &parts, body, route).await;
    let response = outcome.unwrap_or_else(|failure| answer::failure(&failure));
    door.config.metrics.count(verb, resource, response.status().as_u16(), begun.elapsed());
    tracing::debug!(user = who.user, method = %parts.method, path = parts.uri.path(), code = response.status().as_u16(), "answered");
    response
}

fn labels(parts: &Parts, route: &Route) -> (&'static str, &'static str) {
    let Route::Resource(place) = route else { return ("get", "meta") };
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

async fn answer_to(door: &Arc<Door>, who: &Who, parts: &Parts, body: Incoming, route: Route) -> Answer {
    match &route {
        Route::Version => return Ok(answer::json(StatusCode::OK, &discovery::version())),
        Route::Health => return Ok(answer::text("ok")),
        _ => {}
    }
    if !who.may() {
        return Err(who.refusal());
    }
    let header = |name: header::HeaderName| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let body = read_body(body).await?;
    let mut asked = Asked {
        method: parts.method.clone(),
        query: Query::parse(parts.uri.query()),
        accept: header(header::ACCEPT),
        content_type: header(header::CONTENT_TYPE),
        body,
        warnings: Vec::new(),
    };
    if let Route::Resource(place) = route {
        let mut response = on_resource(door, &place, &mut asked).await?;
        answer::warn(&mut response, &asked.warnings);
        return Ok(response);
    }
    if asked.method == Method::POST {
        return review(who, &route, &asked);
    }
    if asked.method != Method::GET {
        return Err(Failure::method());
    }
    Ok(match route {
        Route::Core | Route::Groups => {
            let core = route == Route::Core;
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
        Route::Group(name) => answer::json(StatusCode::OK, &discovery::group(&name).ok_or_else(Failure::no_such_path)?),
        Route::GroupVersion { group, version } => {
            answer::json(StatusCode::OK, &discovery::resources(&group, &version).ok_or_else(Failure::no_such_path)?)
        }
        Route::OpenApi2 if asked.accept.contains("protobuf") => answer::bytes(
            StatusCode::OK,
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            openapi::V2_PROTOBUF,
        ),
        Route::OpenApi2 => answer::json(StatusCode::OK, &openapi::v2()),
        Route::OpenApi3 => answer::json(StatusCode::OK, &openapi::v3_index()),
        Route::OpenApi3Group { group, version } => {
            answer::json(StatusCode::OK, &openapi::v3(&group, &version).ok_or_else(Failure::no_such_path)?)
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

/// `kubectl auth can-i` and `whoami`, answered from the rule that `who` applies.
fn review(who: &Who, route: &Route, asked: &Asked) -> Answer {
    let mut object: Value = serde_json::from_slice(&asked.body).map_err(|_| {
        Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", "the body must be JSON")
    })?;
    match route {
        Route::AccessReview => object["status"] = json!({"allowed": who.may()}),
        Route::SelfReview => object["status"] = json!({"userInfo": {"username": who.user, "groups": who.groups}}),
        _ => return Err(Failure::method()),
    }
    Ok(answer::json(StatusCode::CREATED, &object))
}

async fn on_resource(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    if let Some(sub) = &place.sub {
        return match sub.as_str() {
            "log" if place.kind.kind == "Pod" && asked.method == Method::GET => logs::logs(door, place, asked).await,
            "binding" if place.kind.kind == "Pod" && asked.method == Method::POST => {
                write::bind(door, place, asked).await
            }
            "status" | "scale" | "finalize" => write::subresource(door, place, asked, sub).await,
            _ => Err(Failure::no_such_path()),
        };
    }
    match (&asked.method, place.name.is_some()) {
        (&Method::GET, true) => list::get(door, place, asked).await,
        (&Method::GET, false) if asked.query.flag("watch") => watch::watch(door, place, asked).await,
        (&Method::GET, false) => list::list(door, place, asked).await,
        (&Method::POST, false) => write::create(door, place, asked).await,
        (&Method::PUT, true) => write::update(door, place, asked).await,
        (&Method::PATCH, true) => write::patch(door, place, asked).await,
        (&Method::DELETE, true) => delete::delete(door, place, asked).await,
        (&Method::DELETE, false) => delete::collection(door, place, asked).await,
        _ => Err(Failure::method()),
    }
}
