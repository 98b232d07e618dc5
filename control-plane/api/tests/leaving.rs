//! What a node may do with its own Node, and who may see servers and take them out.

mod support;

use serde_json::{Value, json};
use support::{Client, World};

const M1: &str = "/api/v1/nodes/m1";
const SERVERS: &str = "/coracle.dev/v1/servers";

async fn world_with_nodes() -> World {
    let world = World::open().await;
    for name in ["m1", "m2"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        assert_eq!(world.admin().post("/api/v1/nodes", &node).await.code, 201);
    }
    world
}

fn node(world: &World, name: &str, groups: &[&str]) -> Client {
    Client::new(world, Some(&world.authority.client(&format!("system:node:{name}"), groups)))
}

#[tokio::test]
async fn a_node_closes_and_deletes_itself_and_nothing_else() {
    let world = world_with_nodes().await;
    let m1 = node(&world, "m1", &["system:nodes"]);
    let cordon = json!({"spec": {"unschedulable": true}});
    assert_eq!(m1.merge(M1, &cordon).await.json()["spec"]["unschedulable"], true);
    assert_eq!(m1.merge(M1, &json!({"spec": {"unschedulable": null}})).await.code, 200);

    for patch in [
        json!({"spec": {"unschedulable": true, "taints": []}}),
        json!({"spec": {"unschedulable": true}, "metadata": {"labels": {"a": "b"}}}),
        json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
        json!({"spec": {"unschedulable": {"a": 1}}}),
        json!({"spec": {}}),
        json!({}),
    ] {
        assert_eq!(m1.merge(M1, &patch).await.code, 403, "{patch}");
    }
    let json_patch = json!([{"op": "add", "path": "/spec/unschedulable", "value": true}]);
    assert_eq!(m1.ask("PATCH", M1, "application/json-patch+json", json_patch.to_string()).await.code, 403);
    assert_eq!(m1.merge("/api/v1/nodes/m1/status", &cordon).await.code, 403);
    assert_eq!(m1.merge("/api/v1/nodes/m2", &cordon).await.code, 403);
    for path in [M1, "/api/v1/nodes", "/api/v1/pods", "/api/v1/namespaces/default/secrets", SERVERS] {
        assert_eq!(m1.get(path).await.code, 403, "{path}");
    }
    for path in ["/api/v1/nodes/m2", "/api/v1/nodes", "/api/v1/namespaces/m1", "/api/v1/namespaces/default/pods/m1"] {
        assert_eq!(m1.delete(path).await.code, 403, "{path}");
    }
    assert_eq!(m1.put(M1, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m1"}})).await.code, 403);
    // The name alone is worth nothing, nor is the group.
    assert_eq!(node(&world, "m1", &["team"]).delete(M1).await.code, 403);
    assert_eq!(node(&world, "", &["system:nodes"]).delete(M1).await.code, 403);

    let may = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (verb, name, allowed) in [("delete", "m1", true), ("delete", "m2", false), ("get", "m1", false)] {
        let question =
            json!({"spec": {"resourceAttributes": {"verb": verb, "resource": "nodes", "group": "", "name": name}}});
        assert_eq!(m1.post(may, &question).await.json()["status"]["allowed"], allowed, "{verb} {name}");
    }
    assert_eq!(m1.delete(M1).await.code, 200);
    assert_eq!(m1.delete(M1).await.code, 404);
}

#[tokio::test]
async fn only_administrators_see_servers_and_take_them_out() {
    let world = world_with_nodes().await;
    let admin = world.admin();
    assert_eq!(admin.get(SERVERS).await.json(), json!({"servers": []}));
    let remove = |id: &str| format!("{SERVERS}/{id}/remove");
    let (code, reason, words) = admin.post(&remove("00000000000000ff"), &Value::Null).await.status();
    assert_eq!((code, reason.as_str()), (404, "NotFound"));
    assert!(words.contains("00000000000000ff"), "{words}");
    for id in ["ff", "00000000000000fg", "+0000000000000ff", "00000000000000ff00"] {
        assert_eq!(admin.post(&remove(id), &Value::Null).await.code, 400, "{id}");
    }
    assert_eq!(admin.get(&remove("00000000000000ff")).await.code, 405);
    assert_eq!(admin.post(SERVERS, &Value::Null).await.code, 405);
    let m1 = node(&world, "m1", &["system:nodes"]);
    assert_eq!(m1.post(&remove("00000000000000ff"), &Value::Null).await.code, 403);
    assert_eq!(world.stranger().get(SERVERS).await.code, 401);
    assert_eq!(world.stranger().post(&remove("00000000000000ff"), &Value::Null).await.code, 401);
}
