//! One machine, end to end, with the real program: YAML in, a running, resolvable, visible application out.

use coracle_cluster_tests::machine::Machine;
use serde_json::Value;

fn address(machine: &Machine, service: &str) -> String {
    let service = machine.get(&[service]);
    format!("{}:{}", service["spec"]["clusterIP"].as_str().unwrap_or_default(), service["spec"]["ports"][0]["port"])
}

#[test]
fn hello_from_yaml_to_a_name_and_down_again() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let first = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    assert!(first.contains("deployment.apps/hello created") && first.contains("service/hello created"), "{first}");
    machine.wait_ready("hello", 3);
    let second = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    assert!(!second.contains("configured") && second.matches("unchanged").count() == first.lines().count(), "{second}");

    let hello = address(&machine, "svc/hello");
    let mut answer = String::new();
    machine.wait("one replica to call another by its DNS name", |machine| {
        answer = machine.http(&hello, "/ask?host=hello").unwrap_or_default();
        answer.contains("hello from")
    });
    let wide = machine.coracle(&["get", "pods", "-o", "wide"]);
    assert_eq!(wide.matches("1/1").count(), 3, "{wide}");
    let described = machine.coracle(&["describe", "deploy/hello"]);
    assert!(described.contains("3 wanted, 3 there, 3 updated, 3 ready, 3 available"), "{described}");
    let logs = machine.coracle(&["logs", "deploy/hello"]);
    assert!(logs.contains(" | "), "{logs}");

    let _ = machine.coracle(&["scale", "deploy/hello", "--replicas", "1"]);
    machine.wait_ready("hello", 1);
    machine.wait("the other pods to be gone", |machine| {
        machine.get(&["pods"])["items"].as_array().is_some_and(|pods| pods.len() == 1)
    });
    let gone = machine.coracle(&["delete", "-f", "examples/hello.yaml"]);
    assert!(gone.contains("deployment.apps/hello deleted"), "{gone}");
    machine
        .wait("the pods to be gone", |machine| machine.get(&["pods"])["items"].as_array().is_some_and(Vec::is_empty));
    machine.down();
}

#[test]
fn files_of_several_sources_follow_them() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let first = machine.coracle(&["apply", "-f", "examples/files.yaml"]);
    let second = machine.coracle(&["apply", "-f", "examples/files.yaml"]);
    assert_eq!(second.matches("unchanged").count(), first.lines().count(), "{second}");
    let address = |machine: &Machine| {
        let pod = machine.get(&["pod/files"]);
        format!("{}:8080", pod["status"]["podIP"].as_str().unwrap_or_default())
    };
    let file = |machine: &Machine, path: &str| machine.http(&address(machine), &format!("/file?path={path}"));
    machine.wait("the pod to answer", |machine| machine.http(&address(machine), "/ready").is_some());
    for (path, text) in [
        ("/etc/all/words/greeting", "good morning"),
        ("/etc/all/password", "open sesame"),
        ("/etc/all/labels", "app=\"files\"\nmood=\"fresh\""),
        ("/etc/all/memory", "64"),
        ("/etc/note/text", "of no importance"),
        ("/all-work/of", "files\n"),
        ("/work", ""),
    ] {
        assert_eq!(file(&machine, path).as_deref(), Some(text), "{path}");
    }
    assert_eq!(file(&machine, "/etc/all/unused"), None);
    // A label of the running pod, a key of its settings, and an object that comes later.
    let yaml =
        std::fs::read_to_string(coracle_cluster_tests::machine::workspace().join("examples/files.yaml")).unwrap();
    machine.apply(&yaml.replace("mood: fresh", "mood: tired").replace("good morning", "good night"));
    machine.wait("the files to say so", |machine| {
        file(machine, "/etc/all/labels").as_deref() == Some("app=\"files\"\nmood=\"tired\"")
            && file(machine, "/etc/all/words/greeting").as_deref() == Some("good night")
    });
    let late = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: files-of-the-future}\ndata: {late: better}\n";
    machine.apply(late);
    machine.wait("the late one to be there", |machine| file(machine, "/etc/all/late").as_deref() == Some("better"));
    assert_eq!(machine.get(&["pod/files"])["status"]["containerStatuses"][0]["restartCount"], 0);
    machine.down();
}

#[test]
fn a_killed_agent_and_server_keep_pods_and_writes() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let _ = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    machine.wait_ready("hello", 3);
    let before = machine.container_ids();
    for round in 0..3 {
        machine.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c{round}\ndata: {{a: b}}\n"));
        machine.kill();
        machine.up();
        for earlier in 0..=round {
            assert_ne!(machine.get(&[&format!("cm/c{earlier}")]), Value::Null, "an acknowledged write is gone");
        }
        machine.wait_ready("hello", 3);
        assert_eq!(machine.container_ids(), before, "containers were restarted or replaced");
    }
    let hello = address(&machine, "svc/hello");
    machine.wait("the service to answer", |machine| machine.http(&hello, "/ask?host=hello").is_some());
    machine.down();
}

#[test]
fn mistakes_are_shown_where_they_stand() {
    let mut machine = Machine::new();
    machine.up();
    let said = machine.try_apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: x\nspec:\n  replcias: 3\n  selector: {}\n  template:\n    spec:\n      hostPID: true\n",
    );
    assert_eq!(said.code, 4, "{said:?}");
    for expected in ["-:6:3: spec.replcias", "did you mean `replicas`?", "-:10:7: spec.template.spec.hostPID"] {
        assert!(said.err.contains(expected), "{expected} is missing in {}", said.err);
    }
    let said = machine.try_coracle(&["get", "deploymnets"]);
    assert!(said.code == 2 && said.err.contains("did you mean `deployments`?"), "{said:?}");
    assert_eq!(machine.try_coracle(&["get", "pod/none"]).code, 3);
    machine.down();
}

#[test]
fn a_second_up_on_the_same_data_is_refused() {
    let mut machine = Machine::new();
    machine.up();
    let pid = machine.pid();
    let run = machine.run().display().to_string();
    let said = machine.try_coracle(&[
        "up",
        "--run-dir",
        &run,
        "--api-listen",
        "127.0.0.1:7443",
        "--peer-listen",
        "127.0.0.1:7444",
    ]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("is in use by process") && said.err.contains(&pid.to_string()), "{said:?}");
    machine.down();
}

#[test]
fn down_gives_pods_the_time_to_end_by_themselves() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let _ = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    machine.wait_ready("hello", 3);
    // The app goes on for a second after the signal; its logs go with the pods.
    let began = std::time::Instant::now();
    machine.down();
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "they were killed after {:?}", began.elapsed());
}
