//! The cluster's servers, which are no objects: who they are, and that one goes for good. For administrators only.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::answer;
use crate::facility::ServerEntry;
use crate::serve::Door;
use crate::status::Failure;
use crate::verbs::{Answer, Asked};

/// Digits of a server's number.
const DIGITS: usize = 16;

/// `{"servers": [{"id": 16 hexadecimal digits, "name", "address", "api", "leader", "voter", "here"}]}`
pub(crate) fn list(door: &Door, asked: &Asked) -> Answer {
    if asked.method != Method::GET {
        return Err(Failure::method());
    }
    let servers: Vec<Value> = door.cluster.servers().iter().map(shown).collect();
    Ok(answer::json(StatusCode::OK, &json!({"servers": servers})))
}

fn shown(server: &ServerEntry) -> Value {
    json!({
        "id": format!("{:016x}", server.id),
        "name": server.name,
        "address": server.address,
        "api": server.api,
        "leader": server.leader,
        "voter": server.voter,
        "here": server.here,
    })
}

/// Takes a server out: `{"removed": ID}` once it belongs to the cluster no more.
pub(crate) async fn remove(door: &Door, id: &str, asked: &Asked) -> Answer {
    if asked.method != Method::POST {
        return Err(Failure::method());
    }
    let number = (id.len() == DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(id, 16).ok())
        .flatten()
        .ok_or_else(|| {
            Failure::bad_request(format!("`{id}` is no server's number: it has {DIGITS} hexadecimal digits"))
        })?;
    match door.cluster.remove_server(number).await {
        Ok(()) => {
            tracing::info!(server = id, "a server was taken out of the cluster");
            Ok(answer::json(StatusCode::OK, &json!({"removed": id})))
        }
        Err((code, words)) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let reason = match code {
                StatusCode::NOT_FOUND => "NotFound",
                StatusCode::CONFLICT => "Conflict",
                StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
                _ => "InternalError",
            };
            Err(Failure::new(code, reason, words))
        }
    }
}
