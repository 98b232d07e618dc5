//! The verbs over HTTP: what they answer, what they keep, what they refuse and in which words.

mod support;

use coracle_api::{Memory as _, ProposeError};
use coracle_store::{Expect, Key, Op};
use serde_json::{Value, json};
use support::World;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

fn deployment(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}},
        },
    })
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}})
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let world = World::open().await;
    let admin = world.admin();
    let created = admin.post(MAPS, &map("a")).await;
    assert_eq!(created.code, 201);
    let object = created.json();
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(object["metadata"][field].is_string(), "{field}");
    }
    assert_eq!(admin.post(MAPS, &map("a")).await.status().1, "AlreadyExists");

    // A whole update with the version it was read at, and a late one.
    let mut newer = object.clone();
    newer["data"]["k"] = json!("w");
    let updated = admin.put(&format!("{MAPS}/a"), &newer).await;
    assert_eq!(updated.code, 200);
    assert_ne!(updated.json()["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"]);
    let (code, reason, message) = admin.put(&format!("{MAPS}/a"), &newer).await.status();
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // One that names no version wins, and what did not change takes no new version.
    let same = updated.json();
    let again = admin.put(&format!("{MAPS}/a"), &json!({"metadata": {"name": "a"}, "data": {"k": "w"}})).await.json();
    assert_eq!(again["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"]);
    let other = json!({"metadata": {"name": "a", "uid": "11111111-1111-1111-1111-111111111111"}});
    assert!(admin.put(&format!("{MAPS}/a"), &other).await.status().2.contains("Precondition failed: UID"));
    assert_eq!(admin.put(&format!("{MAPS}/b"), &map("a")).await.status().1, "BadRequest");
    assert_eq!(admin.put(&format!("{MAPS}/b"), &map("b")).await.status().1, "NotFound");

    let gone = admin.delete(&format!("{MAPS}/a")).await;
    assert_eq!((gone.json()["status"].clone(), gone.json()["details"]["name"].clone()), (json!("Success"), json!("a")));
    let (code, reason, message) = admin.get(&format!("{MAPS}/a")).await.status();
    assert_eq!((code, reason.as_str(), message.as_str()), (404, "NotFound", "configmaps \"a\" not found"));
    let counted = world.metrics.requests();
    let creates = counted.iter().find(|of| (of.verb, of.resource, of.code) == ("create", "configmaps", 201)).unwrap();
    assert_eq!((creates.count, creates.classes.iter().sum::<u64>()), (1, 1));
}

#[tokio::test]
async fn yaml_is_taken_and_names_are_generated() {
    let world = World::open().await;
    let admin = world.admin();
    let text = "metadata:\n  generateName: web-\ndata: {a: b}\n";
    let mut names = Vec::new();
    for _ in 0..3 {
        let created = admin.ask("POST", MAPS, "application/yaml", text).await;
        assert_eq!(created.code, 201, "{:?}", created.body);
        names.push(created.json()["metadata"]["name"].as_str().unwrap().to_owned());
    }
    names.sort();
    names.dedup();
    assert!(names.len() == 3 && names.iter().all(|name| name.starts_with("web-") && name.len() == 9), "{names:?}");
    let bad = admin.ask("POST", MAPS, "application/yaml", "a: [").await;
    assert_eq!(bad.status().1, "BadRequest");
}

#[tokio::test]
async fn every_problem_is_told_at_once() {
    let world = World::open().await;
    let admin = world.admin();
    let mut bad = deployment("web");
    bad["spec"]["replcias"] = json!(3);
    bad["spec"]["template"]["spec"]["containers"][0]["imagee"] = json!("x");
    let (code, reason, message) = admin.post(DEPLOYMENTS, &bad).await.status();
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert!(
        message.starts_with("Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: ")
    );
    for words in [
        "unknown field \"spec.replcias\"",
        "unknown field \"spec.template.spec.containers[0].imagee\"",
        "did you mean `image`?",
    ] {
        assert!(message.contains(words), "{words} is missing in {message}");
    }
    for (mode, warnings) in [("Warn", 2), ("Ignore", 0)] {
        let path = format!("{DEPLOYMENTS}?fieldValidation={mode}&dryRun=All");
        let reply = admin.post(&path, &bad).await;
        assert_eq!((reply.code.as_u16(), reply.headers.get_all("warning").iter().count()), (201, warnings), "{mode}");
        assert!(reply.json()["spec"].get("replcias").is_none());
    }
    assert_eq!(admin.post(&format!("{DEPLOYMENTS}?fieldValidation=Maybe"), &deployment("a")).await.code, 400);
    let double = admin.ask("POST", MAPS, "application/json", r#"{"metadata":{"name":"a","name":"b"}}"#).await;
    assert!(double.status().2.contains("duplicate field \"metadata.name\""), "{:?}", double.body);

    let mut bad = deployment("Web_1");
    bad["spec"]["replicas"] = json!(-1);
    bad["spec"]["template"]["spec"]["containers"][0]["image"] = json!("");
    bad["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    let reply = admin.post(DEPLOYMENTS, &bad).await;
    assert_eq!((reply.status().0, reply.status().1.as_str()), (422, "Invalid"));
    let details = reply.json()["details"].clone();
    let fields: Vec<&str> =
        details["causes"].as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    for field in ["metadata.name", "spec.replicas", "spec.template.spec.containers[0].image"] {
        assert!(fields.contains(&field), "{field} is missing in {fields:?}");
    }
    assert_eq!((&details["kind"], &details["group"]), (&json!("Deployment"), &json!("apps")));
}

#[tokio::test]
async fn what_the_system_sets_cannot_be_forged() {
    let world = World::open().await;
    let admin = world.admin();
    let mut forged = pod("p");
    forged["metadata"]["uid"] = json!("mine");
    forged["metadata"]["creationTimestamp"] = json!("1999-01-01T00:00:00Z");
    forged["metadata"]["deletionTimestamp"] = json!("1999-01-01T00:00:00Z");
    forged["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    forged["status"] = json!({"phase": "Running"});
    let object = admin.post("/api/v1/namespaces/default/pods", &forged).await.json();
    assert_eq!(object["status"]["phase"], "Pending");
    assert_ne!(object["metadata"]["uid"], "mine");
    assert!(object["metadata"]["deletionTimestamp"].is_null() && object["metadata"]["managedFields"].is_null());
    assert_ne!(object["metadata"]["creationTimestamp"], "1999-01-01T00:00:00Z");
    let path = "/api/v1/namespaces/default/pods/p";
    let patched = admin
        .merge(
            path,
            &json!({"status": {"phase": "Failed"}, "metadata": {"creationTimestamp": null, "labels": {"a": "b"}}}),
        )
        .await
        .json();
    assert_eq!((&patched["status"]["phase"], &patched["metadata"]["labels"]["a"]), (&json!("Pending"), &json!("b")));
    assert_eq!(patched["metadata"]["creationTimestamp"], object["metadata"]["creationTimestamp"]);
    // The other way round: the status subresource changes nothing else.
    let status = json!({"metadata": {"labels": {"a": "z"}}, "status": {"phase": "Running", "podIP": "10.42.0.9"}});
    let reply = admin.merge(&format!("{path}/status"), &status).await;
    assert_eq!(reply.code, 200, "{:?}", reply.body);
    let now = reply.json();
    assert_eq!((&now["status"]["podIP"], &now["metadata"]["labels"]["a"]), (&json!("10.42.0.9"), &json!("b")));
    for bad in
        [json!({"status": "nonsense"}), json!({"status": {"phsae": "Running"}}), json!({"status": {"conditions": 3}})]
    {
        let reply = admin.merge(&format!("{path}/status"), &bad).await;
        assert!([400, 422].contains(&reply.code.as_u16()), "{bad}: {:?}", reply.body);
    }
    assert_eq!(admin.get(&format!("{path}/status")).await.json()["status"]["phase"], "Running");
    assert_eq!(admin.get(&format!("{MAPS}/x/status")).await.code, 404);
}

#[tokio::test]
async fn patches_of_each_kind_and_races() {
    let world = World::open().await;
    let admin = world.admin();
    admin.post(DEPLOYMENTS, &deployment("web")).await;
    let path = format!("{DEPLOYMENTS}/web");
    let json_patch = json!([{"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "replace", "path": "/spec/replicas", "value": 2}]);
    let reply = admin.ask("PATCH", &path, "application/json-patch+json", json_patch.to_string()).await;
    assert_eq!(reply.json()["spec"]["replicas"], 2);
    assert_eq!(
        admin.ask("PATCH", &path, "application/json-patch+json", json_patch.to_string()).await.status().1,
        "Invalid"
    );
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "y:1"}]}}}});
    let reply =
        admin.ask("PATCH", &path, "application/strategic-merge-patch+json; charset=utf-8", strategic.to_string()).await;
    assert_eq!(reply.json()["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    let (code, reason, message) = admin
        .ask("PATCH", &format!("{path}?fieldManager=x"), "application/apply-patch+yaml", "spec:\n  replicas: 3\n")
        .await
        .status();
    assert_eq!((code, reason.as_str()), (415, "UnsupportedMediaType"));
    assert!(message.contains("server-side apply is not supported yet"), "{message}");
    assert_eq!(admin.ask("PATCH", &path, "text/plain", "{}").await.code, 415);
    assert_eq!(admin.ask("PATCH", &path, "application/merge-patch+json", "{").await.code, 400);
    assert_eq!(admin.merge(&path, &json!({"spec": {"colour": "red"}})).await.status().1, "BadRequest");
    assert_eq!(admin.merge(&path, &json!({"spec": {"selector": {"matchLabels": {"app": "z"}}}})).await.code, 422);

    // Somebody was faster: what names no version is done again on the newer object, what names one is refused.
    let faster = |label: &str| {
        let view = world.cluster.view();
        let object = view.find("deployments.apps", "default", "web").unwrap();
        let mut value = (**object.tree()).clone();
        value["metadata"]["labels"] = json!({"faster": label});
        let op = Op::Update { key: object.key.clone(), expect: Expect::default(), value: value.into(), claims: None };
        world.cluster.faster.lock().unwrap().push(op.into());
        object.revision.to_string()
    };
    faster("one");
    let reply = admin.merge(&path, &json!({"spec": {"replicas": 7}})).await.json();
    assert_eq!((&reply["spec"]["replicas"], &reply["metadata"]["labels"]["faster"]), (&json!(7), &json!("one")));
    let version = faster("two");
    let reply = admin.merge(&path, &json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": 8}})).await;
    assert_eq!(reply.status().1, "Conflict");
}

#[tokio::test]
async fn scales_are_read_and_written() {
    let world = World::open().await;
    let admin = world.admin();
    admin.post(DEPLOYMENTS, &deployment("web")).await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = admin.get(&path).await.json();
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!("autoscaling/v1"), &json!(1))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = json!(3);
    assert_eq!(admin.put(&path, &scale).await.json()["spec"]["replicas"], 3);
    assert_eq!(admin.put(&path, &scale).await.status().1, "Conflict");
    assert_eq!(
        admin.merge(&format!("{path}?dryRun=All"), &json!({"spec": {"replicas": 9}})).await.json()["spec"]["replicas"],
        9
    );
    for bad in [json!("many"), json!(-1), json!(1.5), json!(3_000_000_000_u64), json!([])] {
        let reply = admin.merge(&path, &json!({"spec": {"replicas": bad}})).await;
        assert_eq!(reply.code, 422, "{bad}");
    }
    assert_eq!(world.cluster.tree("deployments.apps", "default", "web").unwrap()["spec"]["replicas"], 3);
    assert_eq!(admin.get("/api/v1/namespaces/default/pods/p/scale").await.code, 404);
}

#[tokio::test]
async fn lists_come_in_pages_of_one_revision() {
    let world = World::open().await;
    let admin = world.admin();
    // `a-b` sorts before `a/`, but after the namespace `a`.
    for namespace in ["a", "a-b"] {
        admin.post("/api/v1/namespaces", &json!({"metadata": {"name": namespace}})).await;
        for index in 0..3 {
            let path = format!("/api/v1/namespaces/{namespace}/configmaps");
            let labels = json!({"odd": (index % 2 == 1).to_string()});
            assert_eq!(
                admin.post(&path, &json!({"metadata": {"name": format!("m{index}"), "labels": labels}})).await.code,
                201
            );
        }
    }
    let (mut seen, mut next, mut version) = (Vec::new(), String::new(), Value::Null);
    loop {
        let page = admin.get(&format!("/api/v1/configmaps?limit=2&continue={next}")).await.json();
        assert_eq!(page["kind"], "ConfigMapList");
        for item in page["items"].as_array().unwrap() {
            seen.push(format!(
                "{}/{}",
                item["metadata"]["namespace"].as_str().unwrap(),
                item["metadata"]["name"].as_str().unwrap()
            ));
        }
        if version.is_null() {
            version = page["metadata"]["resourceVersion"].clone();
            // What comes after the first page was given is not in the others.
            admin.post("/api/v1/namespaces/a-b/configmaps", &map("m9")).await;
        }
        assert_eq!(page["metadata"]["resourceVersion"], version);
        match page["metadata"]["continue"].as_str() {
            Some(token) => next = token.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["a/m0", "a/m1", "a/m2", "a-b/m0", "a-b/m1", "a-b/m2"]);
    let odd = admin.get("/api/v1/configmaps?labelSelector=odd%3Dtrue").await.json();
    assert_eq!(odd["items"].as_array().unwrap().len(), 2);
    let one = admin.get("/api/v1/configmaps?fieldSelector=metadata.name%3Dm0,metadata.namespace%3Da").await.json();
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    assert_eq!(admin.get("/api/v1/configmaps?continue=nonsense").await.status().1, "BadRequest");
    assert_eq!(admin.get("/api/v1/configmaps?limit=-1").await.code, 400);
    assert_eq!(admin.get("/api/v1/configmaps?fieldSelector=spec.color%3Dred").await.status().1, "BadRequest");
    let old = "eyJydiI6MSwibmFtZXNwYWNlIjoiYSIsIm5hbWUiOiJiIn0";
    let (code, reason, _) = admin.get(&format!("/api/v1/configmaps?limit=2&continue={old}")).await.status();
    assert_eq!((code, reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn objects_are_shown_in_the_form_that_was_asked_for() {
    let world = World::open().await;
    world.admin().post(MAPS, &map("a")).await;
    let table = world.admin().with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let reply = table.get(MAPS).await.json();
    assert_eq!(
        (&reply["kind"], &reply["rows"][0]["cells"][0], &reply["rows"][0]["cells"][1]),
        (&json!("Table"), &json!("a"), &json!(1))
    );
    assert_eq!(reply["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(
        table.get(&format!("{MAPS}/a?includeObject=Object")).await.json()["rows"][0]["object"]["kind"],
        "ConfigMap"
    );
    let partial = world.admin().with("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let reply = partial.get(MAPS).await.json();
    assert_eq!(
        (&reply["kind"], &reply["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a"))
    );
    assert!(reply["items"][0]["data"].is_null());
    let protobuf = world.admin().with("accept", "application/vnd.kubernetes.protobuf");
    assert_eq!(protobuf.get(MAPS).await.code, 406);
    assert_eq!(
        world.admin().ask("POST", MAPS, "application/vnd.kubernetes.protobuf", "{}").await.status().1,
        "BadRequest"
    );
    let raw = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x05\x0a\x03\x0a\x01b";
    let created = world.admin().ask("POST", MAPS, "application/vnd.kubernetes.protobuf", &raw[..]).await;
    assert_eq!(created.json()["metadata"]["name"], "b");
    assert_eq!(world.admin().ask("POST", MAPS, "application/cbor", "x").await.code, 415);
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let world = World::open().await;
    let admin = world.admin();
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| {
        let mut spec = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
        if !ip.is_empty() {
            spec["clusterIP"] = json!(ip);
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let one = admin.post(path, &service("one", "")).await.json();
    let ip = one["spec"]["clusterIP"].as_str().unwrap();
    assert!(ip.starts_with("10.43.") && one["spec"]["clusterIPs"] == json!([ip]), "{ip}");
    let (code, _, message) = admin.post(path, &service("two", ip)).await.status();
    assert!(code == 422 && message.contains("taken by the Service default/one"), "{message}");
    for bad in ["10.44.0.1", "10.43.0.0", "here"] {
        assert_eq!(admin.post(path, &service("two", bad)).await.code, 422, "{bad}");
    }
    assert_eq!(admin.post(path, &service("none", "None")).await.json()["spec"]["clusterIP"], "None");
    // A whole update need not name the address, and cannot change it.
    let updated = admin.put(&format!("{path}/one"), &service("one", "")).await;
    assert_eq!(updated.json()["spec"]["clusterIP"], *ip);
    assert_eq!(admin.put(&format!("{path}/one"), &service("one", "10.43.9.9")).await.code, 422);
    assert_eq!(admin.delete(&format!("{path}/one")).await.code, 200);
    assert_eq!(admin.post(path, &service("two", ip)).await.code, 201);
}

#[tokio::test]
async fn services_are_exposed_and_change_their_types() {
    let world = World::open().await;
    let admin = world.admin();
    let path = "/api/v1/namespaces/default/services";
    // What `kubectl expose --type=NodePort` sends.
    let exposed = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "creationTimestamp": null, "labels": {"app": "web"}},
        "spec": {"ports": [{"protocol": "TCP", "port": 80, "targetPort": 8080}], "selector": {"app": "web"}, "type": "NodePort"},
        "status": {"loadBalancer": {}},
    });
    let made = admin.post(path, &exposed).await.json();
    let number = made["spec"]["ports"][0]["nodePort"].as_u64().expect("a number on the nodes");
    assert!((30_086..=32_767).contains(&number), "{number}");
    let one = format!("{path}/web");
    let again = admin.put(&one, &exposed).await.json();
    assert_eq!(again["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "the same file is no change");
    let ask_for = |name: &str| {
        let mut other = exposed.clone();
        other["metadata"]["name"] = json!(name);
        other["spec"]["ports"][0]["nodePort"] = json!(number);
        other
    };
    let (code, _, message) = admin.post(path, &ask_for("two")).await.status();
    assert_eq!(code, 422);
    let words = format!("spec.ports[0].nodePort: {number}: provided port is already allocated");
    assert!(message.contains(&words) && message.contains("default/web"), "{message}");

    // A patch of the type alone gives back what the new type has not.
    let patch = async |body: Value| admin.ask("PATCH", &one, "application/merge-patch+json", body.to_string()).await;
    let inside = patch(json!({"spec": {"type": "ClusterIP"}})).await.json();
    assert_eq!(inside["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(inside["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(admin.post(path, &ask_for("two")).await.code, 201, "the number is free again");
    let balanced = patch(json!({"spec": {"type": "LoadBalancer"}})).await.json();
    assert!(balanced["spec"]["ports"][0]["nodePort"].as_u64().is_some_and(|other| other != number));
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    let (code, _, message) = patch(json!({"spec": {"healthCheckNodePort": 31_000}})).await.status();
    assert!(code == 422 && message.contains("`healthCheckNodePort` is not supported yet"), "{message}");
    let alias = patch(json!({"spec": {"type": "ExternalName", "externalName": "db.example.com"}})).await.json();
    assert_eq!((alias["spec"].get("clusterIP"), alias["spec"]["ports"][0].get("nodePort")), (None, None));
    let free = json!({"metadata": {"name": "three"}, "spec": {"clusterIP": made["spec"]["clusterIP"], "ports": [{"port": 1}]}});
    assert_eq!(admin.post(path, &free).await.code, 201, "so is the address");
    let back = patch(json!({"spec": {"type": "ClusterIP", "externalName": null, "clusterIP": null}})).await.json();
    assert!(back["spec"]["clusterIP"].as_str().is_some_and(|ip| made["spec"]["clusterIP"] != ip), "{back}");
    assert_eq!(patch(json!({"spec": {"clusterIP": "None"}})).await.code, 422);

    // Somebody else takes a number that was named, between the look and the write.
    let late = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "faster", "namespace": "default", "uid": "f"}, "spec": {}});
    let faster = |claim: &str| {
        let (key, claims) = (Key::new("services", "default", "faster"), vec![claim.to_owned()]);
        Op::Create { key, value: std::sync::Arc::new(late.clone()), claims }.into()
    };
    let mut named = exposed.clone();
    named["metadata"]["name"] = json!("four");
    named["spec"]["ports"][0]["nodePort"] = json!(30_004);
    world.cluster.faster.lock().unwrap().push(faster("nodeport/tcp/30004"));
    let (code, _, message) = admin.post(path, &named).await.status();
    assert!(code == 422 && message.contains("30004: provided port is already allocated"), "{message}");
}

#[tokio::test]
async fn deletions_heed_their_options() {
    let world = World::open().await;
    let admin = world.admin();
    let created = admin.post(DEPLOYMENTS, &deployment("web")).await.json();
    let path = format!("{DEPLOYMENTS}/web");
    let options = |value: Value| value.to_string();
    let ask = async |body: String| admin.ask("DELETE", &path, "application/json", body).await;
    let wrong = ask(options(json!({"preconditions": {"uid": "other"}}))).await;
    assert_eq!(wrong.status().1, "Conflict");
    assert_eq!(ask(options(json!({"preconditions": {"resourceVersion": "1"}}))).await.status().1, "Conflict");
    assert_eq!(ask(options(json!({"propagationPolicy": "Sideways"}))).await.code, 400);
    assert_eq!(ask(options(json!({"gracePeriodSeconds": -1}))).await.code, 400);
    assert_eq!(ask(options(json!({"dryRun": ["All"]}))).await.code, 200);
    assert!(world.cluster.tree("deployments.apps", "default", "web").is_some());
    let right = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": created["metadata"]["uid"]}});
    let going = ask(options(right)).await.json();
    assert_eq!(going["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(
        admin.merge(&path, &json!({"metadata": {"finalizers": ["foregroundDeletion", "a.b/c"]}})).await.code,
        422
    );
    assert_eq!(admin.merge(&path, &json!({"metadata": {"finalizers": []}})).await.code, 200);
    assert_eq!(admin.get(&path).await.code, 404);

    for (name, policy, finalizers) in [("x", "Orphan", json!(["orphan"])), ("y", "Background", Value::Null)] {
        admin.post(DEPLOYMENTS, &deployment(name)).await;
        let reply = admin.delete(&format!("{DEPLOYMENTS}/{name}?propagationPolicy={policy}")).await.json();
        assert_eq!(reply["metadata"]["finalizers"], finalizers, "{policy}");
    }
    for index in 0..3 {
        admin.post(MAPS, &json!({"metadata": {"name": format!("m{index}"), "labels": {"n": index.to_string()}}})).await;
    }
    let gone = admin.delete(&format!("{MAPS}?labelSelector=n%21%3D1")).await.json();
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    assert_eq!(admin.get(MAPS).await.json()["items"][0]["metadata"]["name"], "m1");
    assert_eq!(admin.delete("/api/v1/configmaps").await.code, 405);
}

#[tokio::test]
async fn namespaces_end_when_they_are_empty() {
    let world = World::open().await;
    let admin = world.admin();
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
    let going = admin.delete("/api/v1/namespaces/team").await.json();
    assert_eq!(
        (&going["status"]["phase"], &going["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let reply = admin.post("/api/v1/namespaces/team/configmaps", &map("a")).await;
    assert_eq!(reply.status().1, "Forbidden");
    assert_eq!(reply.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let reply = admin
        .put("/api/v1/namespaces/team/finalize", &json!({"metadata": {"name": "team"}, "spec": {"finalizers": []}}))
        .await;
    assert_eq!(reply.code, 200, "{:?}", reply.body);
    assert_eq!(admin.get("/api/v1/namespaces/team").await.code, 404);
    assert_eq!(admin.delete("/api/v1/namespaces/kube-system").await.code, 403);
    let reply = admin.post("/api/v1/namespaces/nowhere/configmaps", &map("a")).await;
    assert_eq!(reply.status().2, "namespaces \"nowhere\" not found");
    let mut other = map("a");
    other["metadata"]["namespace"] = json!("kube-system");
    assert_eq!(admin.post(MAPS, &other).await.status().1, "BadRequest");
}

#[tokio::test]
async fn pods_are_bound_and_end_gracefully() {
    let world = World::open().await;
    let admin = world.admin();
    world.cluster.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "9"}, "capacity": {"cpu": "4", "memory": "4Gi", "pods": "9"}},
    }));
    let pods = "/api/v1/namespaces/default/pods";
    admin.post(pods, &pod("p")).await;
    let bind = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    assert_eq!(admin.post(&format!("{pods}/p/binding"), &bind("nowhere")).await.status().1, "Conflict");
    assert_eq!(admin.post(&format!("{pods}/p/binding"), &bind("")).await.code, 400);
    let reply = admin.post(&format!("{pods}/p/binding"), &bind("n1")).await;
    assert_eq!(reply.code, 201, "{:?}", reply.body);
    assert_eq!(world.cluster.tree("pods", "default", "p").unwrap()["spec"]["nodeName"], "n1");
    let going = admin.delete(&format!("{pods}/p")).await.json();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let sooner = admin.delete(&format!("{pods}/p?gracePeriodSeconds=5")).await.json();
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    let later = admin.delete(&format!("{pods}/p?gracePeriodSeconds=18446744073709551615")).await.json();
    assert_eq!(later["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(admin.delete(&format!("{pods}/p?gracePeriodSeconds=0")).await.code, 200);
    assert!(world.cluster.tree("pods", "default", "p").is_none());
    for sub in ["exec", "attach", "portforward", "eviction"] {
        let (code, _, message) = admin.post(&format!("{pods}/p/{sub}"), &json!({})).await.status();
        assert!(code == 501 && message.contains(&format!("pods/{sub} is not supported yet")), "{message}");
    }
}

#[tokio::test]
async fn trouble_behind_the_door_is_passed_on() {
    let world = World::open().await;
    let admin = world.admin();
    for (error, code, reason) in [
        (ProposeError::Busy, 429, "TooManyRequests"),
        (ProposeError::NoLeader, 503, "ServiceUnavailable"),
        (ProposeError::DiskFull, 507, "InternalError"),
        (ProposeError::Early("the change needs cluster level 3".into()), 501, "NotImplemented"),
        (ProposeError::Stopped("the log failed".into()), 503, "ServiceUnavailable"),
    ] {
        world.cluster.refusals.lock().unwrap().push(error);
        let reply = admin.post(MAPS, &map("a")).await;
        let (got, why, _) = reply.status();
        assert_eq!((got, why.as_str()), (code, reason));
        assert_eq!(reply.header("retry-after").is_empty(), code == 507 || code == 501);
    }
    // A name that somebody took while a free one was sought.
    let key = Key::new("configmaps", "default", "a");
    world
        .cluster
        .refusals
        .lock()
        .unwrap()
        .push(ProposeError::Rejected { index: 0, rejection: coracle_store::Rejection::Exists(key) });
    let created = admin.post(MAPS, &json!({"metadata": {"generateName": "a-"}})).await;
    assert_eq!(created.code, 201);
}

#[tokio::test]
async fn reading_a_log_needs_a_container_that_has_run() {
    let world = World::open().await;
    let admin = world.admin();
    let mut two = pod("two");
    two["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "b", "image": "x:1"}));
    let pods = "/api/v1/namespaces/default/pods";
    admin.post(pods, &two).await;
    let refused = async |query: &str, words: &str| {
        let (code, reason, message) = admin.get(&format!("{pods}/two/log{query}")).await.status();
        assert_eq!((code, reason.as_str()), (400, "BadRequest"), "{query}");
        assert!(message.contains(words), "{query}: {message}");
    };
    refused("", "a container name must be specified for pod two, choose one of: [a b]").await;
    refused("?container=c", "container c is not valid for pod two").await;
    refused("?container=a", "pod two does not have a host assigned").await;
    refused("?container=a&tailLines=x", "`tailLines` is not a number").await;
    refused("?container=a&sinceTime=yesterday", "not an RFC 3339 time").await;
    world.cluster.edit("pods", "default", "two", |pod| {
        pod["spec"]["nodeName"] = json!("n1");
        pod["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
    });
    refused("?container=a", "container \"a\" in pod \"two\" is waiting to start: ContainerCreating").await;
    world.cluster.edit("pods", "default", "two", |pod| {
        let state =
            |name: &str, state: Value| json!({"name": name, "restartCount": 0, "state": state, "lastState": {}});
        pod["status"]["containerStatuses"] =
            json!([state("a", json!({"waiting": {"reason": "ImagePullBackOff"}})), state("b", json!({"running": {}}))]);
    });
    refused("?container=a", "is waiting to start: ImagePullBackOff").await;
    refused("?container=b&previous=true", "previous terminated container \"b\" in pod \"two\" not found").await;
    let reply = admin.get(&format!("{pods}/two/log?sinceTime=2026-11-26T12:00:00Z")).await;
    assert_eq!((&*reply.body, reply.header("content-type")), (&b"first\nsecond\n"[..], "text/plain"));
    assert_eq!(world.cluster.log_queries.lock().unwrap().pop().unwrap().container, "b");
}

#[tokio::test]
async fn discovery_in_all_its_forms() {
    let world = World::open().await;
    let admin = world.admin();
    assert_eq!(admin.get("/api").await.json()["versions"], json!(["v1"]));
    let groups = admin.get("/apis").await.json();
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "apps"));
    assert_eq!(admin.get("/apis/apps").await.json()["preferredVersion"]["groupVersion"], "apps/v1");
    let resources = admin.get("/apis/apps/v1").await.json();
    let scale = resources["resources"].as_array().unwrap().iter().find(|of| of["name"] == "deployments/scale").unwrap();
    assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
    assert!(
        admin.get("/apis/authorization.k8s.io/v1").await.json()["resources"][0]["name"] == "selfsubjectaccessreviews"
    );
    for version in ["v2", "v2beta1"] {
        let form = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let asks = world.admin().with("accept", format!("{form},application/json"));
        for path in ["/api", "/apis"] {
            let reply = asks.get(path).await;
            assert_eq!((reply.header("content-type"), reply.header("vary")), (form.as_str(), "Accept"));
            assert_eq!(reply.json()["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        }
    }
    for path in
        ["/apis/nothing.io", "/apis/apps/v9", "/api/v2", "/nothing", "/", "/apis/apps/v1/namespaces/default/trees"]
    {
        assert_eq!(admin.get(path).await.status().1, "NotFound", "{path}");
    }
    let index = admin.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = admin.get(url).await.json();
    assert!(document["components"]["schemas"]["io.coracle.Deployment"]["properties"]["spec"].is_object());
    let stub = world.admin().with("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf");
    assert_eq!(
        stub.get("/openapi/v2").await.header("content-type"),
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    assert_eq!(admin.get("/openapi/v2").await.json()["swagger"], "2.0");
    assert_eq!(admin.ask("HEAD", "/api", "", "").await.code, 405);
}
