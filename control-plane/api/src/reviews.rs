//! `kubectl auth can-i` and `whoami`: what one may, and who one is, answered from the rule the door itself applies.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::answer;
use crate::may;
use crate::status::Failure;
use crate::verbs::{Answer, Asked};
use crate::who::Who;

/// A question about oneself. Nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    Access,
    Rules,
    Oneself,
}

/// Group, plural, kind and question; every version is `v1`.
pub(crate) const REVIEWS: [(&str, &str, &str, Review); 3] = [
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", Review::Oneself),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview", Review::Access),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview", Review::Rules),
];

/// Answers a question. Everybody who is known may ask.
pub(crate) fn answer_to(who: &Who, review: Review, asked: &Asked) -> Answer {
    if !who.is_known() {
        may::check(who, "create", "a review", None)?;
    }
    if asked.method != Method::POST {
        return Err(Failure::method());
    }
    let (mut object, _) = asked.tree()?;
    let Some((group, _, kind, _)) = REVIEWS.iter().find(|(_, _, _, of)| *of == review) else {
        return Err(Failure::no_such_path());
    };
    if !object.is_object() {
        return Err(Failure::bad_request("the body is not an object"));
    }
    object["apiVersion"] = json!(format!("{group}/v1"));
    object["kind"] = json!(kind);
    object["status"] = status(who, review, &object["spec"]["resourceAttributes"]);
    Ok(answer::json(StatusCode::CREATED, &object))
}

fn status(who: &Who, review: Review, about: &Value) -> Value {
    let all = may::all(who);
    let node = may::node(who);
    let of_a_node = |name: &str| {
        let verb = about["verb"].as_str().unwrap_or_default();
        let own = about["resource"] == "nodes"
            && about["name"] == name
            && about["subresource"].as_str().unwrap_or_default().is_empty();
        own && about["group"].as_str().unwrap_or_default().is_empty() && may::OF_A_NODE.contains(&verb)
    };
    match review {
        Review::Access if all || node.is_some_and(of_a_node) => json!({"allowed": true}),
        Review::Access => json!({"allowed": false, "reason": "only members of system:masters may"}),
        Review::Oneself => json!({"userInfo": {"username": who.user, "groups": who.groups}}),
        Review::Rules => {
            let every = json!(["*"]);
            let (resources, others) = if all {
                (
                    json!([{"verbs": every, "apiGroups": every, "resources": every}]),
                    json!([{"verbs": every, "nonResourceURLs": every}]),
                )
            } else if let Some(node) = node {
                let rule = json!({"verbs": may::OF_A_NODE, "apiGroups": [""], "resources": ["nodes"], "resourceNames": [node]});
                (json!([rule]), json!([]))
            } else {
                (json!([]), json!([]))
            };
            json!({"resourceRules": resources, "nonResourceRules": others, "incomplete": false})
        }
    }
}
