//! What one agent should hold: the pods bound to it, what they mount and read, and the tables that services and names are
//! made of. Recomputed from the memory on every change that can matter, sent as a difference to what was sent before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_manifests::view::list;
use coracle_protocol::v1::{Feed, FromServer, Generation, Item, Ref, from_server};
use coracle_store::{Key, Object, View};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::Status;

use coracle_api::Memory;

/// One part of a feed stays well below the largest message.
const PART_BYTES: usize = 4 << 20;
/// Tables every agent holds whole: services, their endpoints, and the nodes.
const TABLES: [&str; 3] = ["services", "endpointslices.discovery.k8s.io", "nodes"];

/// Feeds one agent until it goes away.
pub(super) async fn run(memory: Arc<dyn Memory>, node: String, down: mpsc::Sender<Result<FromServer, Status>>) {
    let mut changes = memory.changes();
    let mut sent: BTreeMap<Key, u64> = BTreeMap::new();
    let mut seen = None;
    loop {
        changes.borrow_and_update();
        let view = memory.view();
        if seen.is_none_or(|seen| matters(&*memory, &node, seen, &view)) {
            for feed in difference(&wanted(&view, &node), &mut sent, &view, seen.is_none()) {
                let message = FromServer { message: Some(from_server::Message::Feed(feed)) };
                if down.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
        seen = Some(view.generation());
        tokio::select! {
            // Cancel safe: the generation stays marked as unseen.
            changed = changes.changed() => if changed.is_err() { return },
            () = down.closed() => return,
        }
    }
}

/// Whether anything after `seen` can change what the node holds. History that no longer reaches back, or a new epoch, can.
fn matters(memory: &dyn Memory, node: &str, seen: coracle_base::Generation, view: &View) -> bool {
    if view.epoch() != seen.epoch {
        return true;
    }
    let Some(events) = memory.events_after(seen.revision, None) else { return true };
    events.iter().any(|event| match &*event.object.key.resource {
        "pods" => on_node(&event.object, node) || event.prior.as_ref().is_some_and(|prior| on_node(prior, node)),
        "configmaps" | "secrets" => true,
        resource => TABLES.contains(&resource),
    })
}

fn on_node(pod: &Object, node: &str) -> bool {
    pod.tree()["spec"]["nodeName"] == node
}

/// Every object the node should hold.
fn wanted<'a>(view: &'a View, node: &'a str) -> BTreeMap<Key, &'a Arc<Object>> {
    let mut wanted = BTreeMap::new();
    for table in TABLES {
        wanted.extend(view.list(table, None).map(|object| (object.key.clone(), object)));
    }
    for pod in view.pods_on(node) {
        wanted.insert(pod.key.clone(), pod);
        for (resource, name) in references(pod.tree()) {
            let key = Key::new(resource, pod.key.namespace.clone(), name);
            if let Some(object) = view.get(&key) {
                wanted.insert(key, object);
            }
        }
    }
    wanted
}

/// The ConfigMaps and Secrets a pod names, in volumes and environment.
fn references(pod: &Value) -> BTreeSet<(&'static str, String)> {
    let mut found = BTreeSet::new();
    let mut add = |resource, name: &Value| {
        if let Some(name) = name.as_str() {
            found.insert((resource, name.to_owned()));
        }
    };
    let spec = &pod["spec"];
    for volume in list(&spec["volumes"]) {
        add("configmaps", &volume["configMap"]["name"]);
        add("secrets", &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add("configmaps", &source["configMap"]["name"]);
            add("secrets", &source["secret"]["name"]);
        }
    }
    for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
        for entry in list(&container["envFrom"]) {
            add("configmaps", &entry["configMapRef"]["name"]);
            add("secrets", &entry["secretRef"]["name"]);
        }
        for entry in list(&container["env"]) {
            add("configmaps", &entry["valueFrom"]["configMapKeyRef"]["name"]);
            add("secrets", &entry["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    found
}

/// The feeds that turn what was sent into what is wanted: none when nothing differs.
fn difference(
    wanted: &BTreeMap<Key, &Arc<Object>>,
    sent: &mut BTreeMap<Key, u64>,
    view: &View,
    full: bool,
) -> Vec<Feed> {
    let generation = Generation { epoch: view.epoch(), revision: view.revision() };
    let removed: Vec<Key> = sent.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
    let changed: Vec<&Arc<Object>> =
        wanted.values().filter(|object| sent.get(&object.key) != Some(&object.revision)).copied().collect();
    if !full && removed.is_empty() && changed.is_empty() {
        return Vec::new();
    }
    for key in &removed {
        sent.remove(key);
    }
    let mut feeds = vec![Feed {
        generation: Some(generation),
        full,
        removed: removed.iter().map(reference).collect(),
        ..Feed::default()
    }];
    let mut bytes = 0;
    for object in changed {
        sent.insert(object.key.clone(), object.revision);
        if bytes > 0 && bytes + object.json.len() > PART_BYTES {
            bytes = 0;
            feeds.push(Feed { generation: Some(generation), ..Feed::default() });
        }
        bytes += object.json.len();
        if let Some(feed) = feeds.last_mut() {
            feed.items.push(item(object));
        }
    }
    let last = feeds.len() - 1;
    for feed in &mut feeds[..last] {
        feed.more = true;
    }
    feeds
}

fn reference(key: &Key) -> Ref {
    Ref { resource: key.resource.to_string(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn item(object: &Object) -> Item {
    Item {
        resource: object.key.resource.to_string(),
        namespace: object.key.namespace.to_string(),
        name: object.key.name.to_string(),
        uid: object.uid.to_string(),
        revision: object.revision,
        object: object.json.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_brings_what_it_reads_and_nothing_else() {
        let pod = json!({"spec": {
            "volumes": [{"name": "a", "configMap": {"name": "conf"}}, {"name": "b", "secret": {"secretName": "key"}}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "boot"}}]}],
            "containers": [{"env": [{"name": "X", "value": "1"}, {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "y"}}}]}],
        }});
        let expected = [("configmaps", "conf"), ("configmaps", "env"), ("secrets", "boot"), ("secrets", "key")];
        assert_eq!(references(&pod).into_iter().collect::<Vec<_>>(), expected.map(|(a, b)| (a, b.to_owned())));
    }

    #[test]
    fn a_large_feed_goes_out_in_parts_and_only_the_last_has_no_more() {
        let objects: Vec<Arc<Object>> = (0..5)
            .map(|index| {
                let key = Key::new("services", "default", format!("s{index}"));
                Arc::new(Object::new(key, "u".into(), index + 1, vec![b' '; PART_BYTES / 2].into()))
            })
            .collect();
        let wanted = objects.iter().map(|object| (object.key.clone(), object)).collect();
        let mut sent = BTreeMap::new();
        let feeds = difference(&wanted, &mut sent, &View::default(), true);
        assert_eq!(
            feeds.iter().map(|feed| (feed.full, feed.more, feed.items.len())).collect::<Vec<_>>(),
            [(true, true, 2), (false, true, 2), (false, false, 1)]
        );
        assert!(difference(&wanted, &mut sent, &View::default(), false).is_empty());
        let gone = difference(&BTreeMap::new(), &mut sent, &View::default(), false);
        assert_eq!(gone[0].removed.len(), 5);
    }
}
