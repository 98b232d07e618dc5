//! A StatefulSet with real pods: they come in order, answer to names that stay, and are replaced one after the other.

use coracle_cluster_tests::machine::{Machine, workspace};
use coracle_cluster_tests::site::Site;
use serde_json::Value;

const PEERS: &str = "examples/peers.yaml";

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn pods(machine: &Machine) -> Vec<Value> {
    machine.get(&["pods"])["items"].as_array().cloned().unwrap_or_default()
}

fn names(pods: &[Value]) -> Vec<&str> {
    pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect()
}

/// When a pod was made, and since when it is ready; both RFC 3339, so that later is larger.
fn made_and_ready(pod: &Value) -> (String, String) {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|one| one["type"] == "Ready");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&pod["metadata"]["creationTimestamp"]), ready.map(|one| text(&one["lastTransitionTime"])).unwrap_or_default())
}

fn is_rolled_out(machine: &Machine, replicas: u64) -> bool {
    let set = machine.get(&["sts/peers"]);
    let status = &set["status"];
    let is = |field: &str| status[field].as_u64().unwrap_or(0) == replicas;
    status["observedGeneration"] == set["metadata"]["generation"]
        && status["currentRevision"] == status["updateRevision"]
        && ["replicas", "readyReplicas", "updatedReplicas", "currentReplicas"].into_iter().all(is)
}

/// Each asks the next one by its own name, over the network of the pods.
fn all_answer_to_their_names(machine: &mut Machine) {
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let mut answer = String::new();
        machine.wait(&format!("peers-{to} to answer peers-{from} by its name"), |machine| {
            let pod = machine.get(&[&format!("pod/peers-{from}")]);
            let address = format!("{}:8080", pod["status"]["podIP"].as_str().unwrap_or_default());
            answer = machine.http(&address, &format!("/ask?host=peers-{to}.peers&port=8080")).unwrap_or_default();
            answer.contains(&format!("hello from peers-{to}"))
        });
    }
}

#[test]
fn three_peers_have_names_that_stay_and_are_replaced_in_order() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let first = machine.coracle(&["apply", "-f", PEERS]);
    assert!(first.contains("statefulset.apps/peers created"), "{first}");
    machine.wait("three peers", |machine| is_rolled_out(machine, 3));
    let second = machine.coracle(&["apply", "-f", PEERS]);
    assert!(!second.contains("configured") && second.contains("statefulset.apps/peers unchanged"), "{second}");
    let before = pods(&machine);
    assert_eq!(names(&before), ["peers-0", "peers-1", "peers-2"]);
    for pair in before.windows(2) {
        let ((_, ready), (made, _)) = (made_and_ready(&pair[0]), made_and_ready(&pair[1]));
        assert!(made >= ready, "{:?} was made at {made}, its predecessor was ready at {ready}", names(&pair[1..]));
    }
    all_answer_to_their_names(&mut machine);
    let shown = machine.coracle(&["get", "sts"]);
    assert!(shown.contains("3/3"), "{shown}");
    let described = machine.coracle(&["describe", "sts/peers"]);
    for words in
        ["3 wanted, 3 there, 3 updated, 3 ready", "OrderedReady", "create Pod peers-2 in StatefulSet peers successful"]
    {
        assert!(described.contains(words), "{words} is missing in {described}");
    }

    // Another template: from the top, one at a time, under the same names.
    let yaml = std::fs::read_to_string(workspace().join(PEERS)).expect("the example");
    let changed = yaml.replace("value: \"100\"", "value: \"200\"");
    assert_ne!(changed, yaml, "the example has changed: this test must too");
    let said = machine.apply(&changed);
    assert!(said.contains("statefulset.apps/peers configured"), "{said}");
    let mut least = 3;
    machine.wait("the new template everywhere", |machine| {
        least = least.min(pods(machine).iter().filter(|pod| is_ready(pod)).count());
        is_rolled_out(machine, 3)
    });
    assert!(least >= 2, "only {least} were ready at a time");
    let after = pods(&machine);
    assert_eq!(names(&after), ["peers-0", "peers-1", "peers-2"]);
    for (pair, old) in after.windows(2).zip(&before) {
        let ((made, _), (_, ready)) = (made_and_ready(&pair[0]), made_and_ready(&pair[1]));
        assert!(made >= ready, "{:?} was made at {made}, its successor was ready at {ready}", names(&pair[..1]));
        assert_ne!(old["metadata"]["uid"], pair[0]["metadata"]["uid"]);
    }
    all_answer_to_their_names(&mut machine);
    let revisions = machine.coracle(&["get", "controllerrevisions"]);
    assert_eq!(revisions.matches("statefulset.apps/peers").count(), 2, "{revisions}");

    let said = machine.coracle(&["scale", "sts/peers", "--replicas", "1"]);
    assert!(said.contains("scaled to 1"), "{said}");
    machine.wait("the others to be gone", |machine| names(&pods(machine)) == ["peers-0"]);
    let _ = machine.coracle(&["delete", "-f", PEERS]);
    machine.wait("everything to be gone", |machine| {
        let left = machine.get(&["controllerrevisions"]);
        pods(machine).is_empty() && left["items"].as_array().is_some_and(Vec::is_empty)
    });
    machine.down();
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut machine = Machine::new();
    machine.up();
    let yaml = std::fs::read_to_string(workspace().join(PEERS)).expect("the example");
    let claims = "  serviceName: peers\n  volumeClaimTemplates: [{metadata: {name: data}}]\n  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}\n";
    let said = machine.try_apply(&yaml.replace("  serviceName: peers\n", claims));
    assert_eq!(said.code, 4, "{said:?}");
    for words in ["`volumeClaimTemplates` is not supported yet", "spec.persistentVolumeClaimRetentionPolicy.whenScaled"]
    {
        assert!(said.err.contains(words), "{words} is missing in {}", said.err);
    }
    machine.down();
}

/// The witness of uniqueness is the name: while the node is lost there is no second pod, and none is made elsewhere.
#[test]
fn a_peer_of_a_lost_machine_waits_for_it() {
    let mut site = Site::new(2);
    site.form(1, 1);
    site.all().for_each(Machine::import_hello);
    let yaml = std::fs::read_to_string(workspace().join(PEERS)).expect("the example");
    // On the second machine, which does not have the server.
    let placed = yaml.replace(
        "    spec:\n      termination",
        "    spec:\n      nodeSelector: {kubernetes.io/hostname: m2}\n      termination",
    );
    assert_ne!(placed, yaml, "the example has changed: this test must too");
    site.at(1).apply(&placed.replace("replicas: 3", "replicas: 1"));
    site.wait("the peer to be ready", |site| site.ready_pods(1).contains_key("peers-0"));
    let uid = |site: &Site| site.at(1).get(&["pod/peers-0"])["metadata"]["uid"].clone();
    let before = uid(&site);
    site.cut(2);
    site.wait("the peer to be asked to end", |site| {
        let pod = site.at(1).get(&["pod/peers-0"]);
        assert_eq!(pod["metadata"]["uid"], before, "it was replaced while its machine was away");
        !pod["metadata"]["deletionTimestamp"].is_null()
    });
    site.heal(2);
    site.wait("the machine to confirm its end, and another of its name", |site| {
        uid(site) != before && site.ready_pods(1).get("peers-0").is_some_and(|node| node == "m2")
    });
}
