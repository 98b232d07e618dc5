//! Errors as `Status` objects, with the reasons and codes that clients act on.

use coracle_manifests::kinds::Kind;
use coracle_manifests::{Problem, Reason};
use coracle_store::Rejection;
use http::StatusCode;
use serde_json::{Value, json};

use crate::facility::ProposeError;

/// A request that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
    pub(crate) retry_after: Option<u32>,
}

impl Failure {
    pub(crate) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, retry_after: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn not_found(kind: &Kind, name: &str) -> Self {
        let mut failure =
            Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} \"{name}\" not found", kind.resource));
        failure.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        failure
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(crate) fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 403 to a create in a namespace that is going.
    pub(crate) fn terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let mut failure = Self::forbidden(format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            kind.resource
        ));
        failure.details = json!({
            "name": name, "group": kind.group, "kind": kind.plural,
            "causes": [{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }],
        });
        failure
    }

    pub(crate) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 400 as upstream words it, all unknown and duplicate fields in one.
    pub(crate) fn strict(kind: &Kind, problems: &[Problem]) -> Self {
        let parts: Vec<String> = problems
            .iter()
            .map(|problem| {
                let what = if problem.reason == Reason::Duplicate { "duplicate" } else { "unknown" };
                let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{what} field \"{}\"{hint}", problem.path)
            })
            .collect();
        let message = format!(
            "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            parts.join(", ")
        );
        Self::bad_request(message)
    }

    /// 422 with every problem as a cause.
    pub(crate) fn invalid(kind: &Kind, name: &str, problems: &[Problem]) -> Self {
        let causes: Vec<Value> = problems
            .iter()
            .map(|problem| {
                let reason = match problem.reason {
                    Reason::Required => "FieldValueRequired",
                    Reason::Duplicate => "FieldValueDuplicate",
                    Reason::NotSupported => "FieldValueNotSupported",
                    Reason::Unsupported | Reason::Forbidden => "FieldValueForbidden",
                    Reason::TooLong => "FieldValueTooLong",
                    Reason::Type => "FieldValueTypeInvalid",
                    _ => "FieldValueInvalid",
                };
                let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                json!({"reason": reason, "message": format!("{}{hint}", problem.message), "field": problem.path})
            })
            .collect();
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let list = if all.len() == 1 { all[0].clone() } else { format!("[{}]", all.join(", ")) };
        let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
        let mut failure = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{}{group} \"{name}\" is invalid: {list}", kind.kind),
        );
        failure.details = json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes});
        failure
    }

    pub(crate) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource);
        let mut failure = Self::new(StatusCode::CONFLICT, "Conflict", message);
        failure.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        failure
    }

    pub(crate) fn exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.resource);
        let mut failure = Self::new(StatusCode::CONFLICT, "AlreadyExists", message);
        failure.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        failure
    }

    /// What became of a proposal, in the API's words.
    pub(crate) fn proposal(kind: &Kind, name: &str, error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected { rejection, .. } => match rejection {
                Rejection::Exists(_) => Self::exists(kind, name),
                Rejection::Missing(_) => Self::not_found(kind, name),
                Rejection::Conflict { .. } => Self::conflict(
                    kind,
                    name,
                    "the object has been modified; please apply your changes to the latest version and try again",
                ),
                other => Self::conflict(kind, name, &other.to_string()),
            },
            ProposeError::Busy => {
                let mut failure = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", error.to_string());
                failure.retry_after = Some(1);
                failure
            }
            ProposeError::DiskFull => Self::new(StatusCode::INSUFFICIENT_STORAGE, "InternalError", error.to_string()),
            // Not to be tried again by itself: a second create would find the first.
            ProposeError::Uncertain => Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", error.to_string()),
            // Nothing that a repetition mends: a server must be given a new release first.
            ProposeError::Early(_) => Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", error.to_string()),
            ProposeError::NoLeader | ProposeError::Stopped(_) => {
                let mut failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string());
                failure.retry_after = Some(1);
                failure
            }
        }
    }

    /// The object.
    pub(crate) fn object(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if !self.details.is_null() {
            object["details"] = self.details.clone();
        }
        if let Some(seconds) = self.retry_after {
            object["details"]["retryAfterSeconds"] = json!(seconds);
        }
        object
    }
}

/// The answer to a deletion that is done.
pub(crate) fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "group": kind.group, "kind": kind.plural, "uid": uid},
    })
}
