//! Watches: every change once and in order, from any revision that is still known, whatever the reader's pace.

mod support;

use coracle_api::Memory as _;
use serde_json::{Value, json};
use support::{Fake, World};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, color: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": {"color": color}},
    })
}

fn paint(world: &World, name: &str, color: &str) {
    world.cluster.edit("configmaps", "default", name, |map| map["metadata"]["labels"]["color"] = json!(color));
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn changes_come_in_order_from_the_revision_that_was_named() {
    let world = World::open().await;
    world.cluster.put(map("a", "red"));
    let from = world.admin().get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    world.cluster.put(map("b", "red"));
    paint(&world, "a", "blue");
    world.cluster.remove("configmaps", "default", "b");
    let mut lines = world.admin().watch(&format!("{MAPS}?watch=true&resourceVersion={from}")).await;
    assert_eq!(lines.event().await, pair("ADDED", "b"));
    let modified = lines.next().await.unwrap();
    assert_eq!(
        (&modified["type"], &modified["object"]["metadata"]["labels"]["color"]),
        (&json!("MODIFIED"), &json!("blue"))
    );
    let deleted = lines.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["kind"]), (&json!("DELETED"), &json!("ConfigMap")));
    // A deletion has a revision of its own, to resume from.
    let at = |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(at(&deleted) > at(&modified));
    world.cluster.put(map("c", "red"));
    assert_eq!(lines.event().await, pair("ADDED", "c"));
    // Resumed in the middle, nothing is missing and nothing comes twice.
    let mut again = world.admin().watch(&format!("{MAPS}?watch=1&resourceVersion={}", at(&modified))).await;
    assert_eq!(again.event().await, pair("DELETED", "b"));
    assert_eq!(again.event().await, pair("ADDED", "c"));
}

#[tokio::test]
async fn a_selector_sees_objects_come_and_go() {
    let world = World::open().await;
    world.cluster.put(map("a", "blue"));
    let mut lines = world.admin().watch(&format!("{MAPS}?watch=true&labelSelector=color%3Dred")).await;
    paint(&world, "a", "red");
    assert_eq!(lines.event().await, pair("ADDED", "a"));
    world.cluster.edit("configmaps", "default", "a", |map| map["data"] = json!({"k": "v"}));
    assert_eq!(lines.event().await, pair("MODIFIED", "a"));
    paint(&world, "a", "green");
    assert_eq!(lines.event().await, pair("DELETED", "a"));
    paint(&world, "a", "blue");
    world.cluster.remove("configmaps", "default", "a");
    world.cluster.put(map("b", "red"));
    assert_eq!(lines.event().await, pair("ADDED", "b"));
    let mut one = world.admin().watch(&format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dc")).await;
    world.cluster.put(map("d", "red"));
    world.cluster.put(map("c", "red"));
    assert_eq!(one.event().await, pair("ADDED", "c"));
}

#[tokio::test]
async fn a_new_watch_may_begin_with_what_is_there() {
    let world = World::open().await;
    for name in ["a", "b"] {
        world.cluster.put(map(name, "red"));
    }
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut lines = world.admin().watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(lines.event().await, pair("ADDED", "a"));
    assert_eq!(lines.event().await, pair("ADDED", "b"));
    let bookmark = lines.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], world.cluster.view().revision().to_string());
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    world.cluster.put(map("c", "red"));
    assert_eq!(lines.event().await, pair("ADDED", "c"));
}

#[tokio::test]
async fn rows_are_sent_to_those_who_print_them() {
    let world = World::open().await;
    let table = world.admin().with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let mut lines = table.watch(&format!("{MAPS}?watch=true")).await;
    world.cluster.put(map("a", "red"));
    let event = lines.next().await.unwrap();
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let partial = world.admin().with("accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
    let mut lines = partial.watch(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    let event = lines.next().await.unwrap();
    assert_eq!(
        (&event["object"]["kind"], &event["object"]["metadata"]["name"]),
        (&json!("PartialObjectMetadata"), &json!("a"))
    );
}

#[tokio::test]
async fn what_is_no_longer_known_is_gone() {
    let world = World::with(Fake::new(20_000)).await;
    world.cluster.put(map("a", "red"));
    let old = world.cluster.view().revision();
    for round in 0..200 {
        paint(&world, "a", &format!("color-{round}"));
    }
    let mut lines = world.admin().watch(&format!("{MAPS}?watch=true&resourceVersion={old}")).await;
    let event = lines.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(lines.next().await.is_none(), "the stream ends after an error");
    let now = world.cluster.view().revision();
    let mut lines = world.admin().watch(&format!("{MAPS}?watch=true&resourceVersion={now}")).await;
    paint(&world, "a", "last");
    assert_eq!(lines.event().await, pair("MODIFIED", "a"));
    assert_eq!(world.admin().get(&format!("{MAPS}?watch=true&resourceVersion=x")).await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing_and_holds_nobody_up() {
    let world = World::open().await;
    let from = world.cluster.view().revision();
    let mut slow = world.admin().watch(&format!("{MAPS}?watch=true&resourceVersion={from}")).await;
    let mut fast = world.admin().watch(&format!("{MAPS}?watch=true&resourceVersion={from}")).await;
    world.cluster.put(map("a", "0"));
    let filler = "x".repeat(2_000);
    // Far more than any buffer on the way to the reader holds.
    for round in 1..=1500 {
        world.cluster.edit("configmaps", "default", "a", |map| {
            map["metadata"]["labels"]["color"] = json!(round.to_string());
            map["data"] = json!({"filler": filler});
        });
    }
    for lines in [&mut fast, &mut slow] {
        for round in 0..=1500 {
            let event = lines.next().await.unwrap();
            assert_eq!(event["object"]["metadata"]["labels"]["color"], round.to_string());
        }
    }
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over_or_the_door_closes() {
    let world = World::open().await;
    let mut short = world.admin().watch(&format!("{MAPS}?watch=true&timeoutSeconds=1")).await;
    assert!(short.next().await.is_none());
    let mut long = world.admin().watch(&format!("{MAPS}?watch=true")).await;
    world.cluster.put(map("a", "red"));
    assert_eq!(long.event().await, pair("ADDED", "a"));
    world.drain.cancel();
    assert!(long.next().await.is_none());
}
