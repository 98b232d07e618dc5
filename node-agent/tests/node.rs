//! The whole agent on this kernel: runtime, images, network, names, with a server that says what the test tells it to.

mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use coracle_protocol::v1::LogRequest;
use serde_json::{Value, json};
use support::{Lab, Told, container, in_own_network, pod, sh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn ready(told: &Told, pod: &str) -> bool {
    told.statuses.get(pod).is_some_and(|status| {
        status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

fn state<'a>(told: &'a Told, pod: &str) -> &'a Value {
    told.statuses.get(pod).map_or(&Value::Null, |status| &status["containerStatuses"][0])
}

async fn get(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let connect = tokio::net::TcpStream::connect((address, port));
    let mut stream = tokio::time::timeout(Duration::from_secs(5), connect).await??;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn slice(service: &str, ips: &[String], ready: bool) -> Value {
    let endpoints: Vec<Value> = ips
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": ready, "serving": true, "terminating": !ready}}))
        .collect();
    json!({
        "metadata": {"name": format!("{service}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

#[test]
fn a_web_server_runs_answers_by_name_and_leaves_nothing() {
    in_own_network(async || {
        let lab = Lab::new().await;
        let server = lab.server.clone();
        server.until("a session", |told| told.hellos == 1).await;
        server.told(|told| assert_eq!(told.node["status"]["addresses"][0]["address"], "192.0.2.10"));
        server.put(
            "configmaps",
            json!({"metadata": {"name": "page", "namespace": "default"}, "data": {"index.html": "hello from a file"}}),
        );
        server.put("secrets", json!({"metadata": {"name": "key", "namespace": "default"}, "data": {"pw": "c2VjcmV0"}}));
        let web = container(json!({
            "command": ["sh", "-c", "echo started as $(id -u) with $PW on $POD_IP; exec httpd -f -v -p 8080 -h /www"],
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
            "env": [
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "key", "key": "pw"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "volumeMounts": [{"name": "www", "mountPath": "/www"}],
            "securityContext": {"runAsUser": 1234},
        }));
        let began = Instant::now();
        server.put(
            "pods",
            pod("web", json!([web]), json!({"volumes": [{"name": "www", "configMap": {"name": "page"}}]})),
        );
        server.until("ready", |told| ready(told, "web")).await;
        println!("pod ready after {:?}", began.elapsed());
        let ip = server.told(|told| told.statuses["web"]["podIP"].as_str().unwrap().to_owned());
        assert!(get(ip.parse().unwrap(), 8080).await.unwrap().ends_with("hello from a file"));
        let log = server.log_text("web", "c").await.unwrap();
        assert_eq!(log.lines().next(), Some(format!("started as 1234 with secret on {ip}").as_str()));

        // A Service: by its address from the node, by its name from a pod.
        server.put(
            "services",
            json!({
                "metadata": {"name": "front", "namespace": "default"},
                "spec": {"clusterIP": "10.43.0.80", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
            }),
        );
        server.put("endpointslices.discovery.k8s.io", slice("front", std::slice::from_ref(&ip), true));
        let script = "nslookup front.default.svc.cluster.local; wget -q -O - http://10.43.0.80/; echo; echo $FRONT_SERVICE_HOST; cat /etc/resolv.conf; hostname";
        server.put("pods", pod("client", json!([sh(script)]), json!({"restartPolicy": "Never"})));
        server
            .until("done", |told| told.statuses.get("client").is_some_and(|status| status["phase"] == "Succeeded"))
            .await;
        let log = server.log_text("client", "c").await.unwrap();
        for wanted in [
            "10.43.0.80\n",
            "hello from a file\n",
            "search default.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.42.7.1\n",
            "client\n",
        ] {
            assert!(log.contains(wanted), "{wanted} in:\n{log}");
        }

        // Deleted: the server hears of it only when nothing is left.
        server.delete("web", 5);
        server.put("endpointslices.discovery.k8s.io", slice("front", &[ip], false));
        server.until("gone", |told| told.gone.contains(&"web".to_owned())).await;
        let links = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert_eq!(
            links.lines().filter(|line| !line.contains(": lo:") && !line.contains("coracle0:")).count(),
            0,
            "{links}"
        );
        server.remove("pods", "web");
        lab.end().await;
    });
}

#[test]
fn what_goes_wrong_is_said_in_words() {
    in_own_network(async || {
        let lab = Lab::new().await;
        let server = lab.server.clone();
        let limits = json!({"limits": {"memory": "24Mi"}, "requests": {"memory": "24Mi"}});
        let eater = container(
            json!({"command": ["sh", "-c", "echo eating > /dev/termination-log; dd if=/dev/zero of=/dev/null bs=64M count=1"], "resources": limits}),
        );
        let never = json!({"restartPolicy": "Never"});
        server.put("pods", pod("eater", json!([eater]), never.clone()));
        server.put("pods", pod("missing", json!([container(json!({"command": ["/no/such/program"]}))]), json!({})));
        server.put("pods", pod("exits", json!([sh("echo last words; exit 3")]), never.clone()));
        server.put(
            "pods",
            pod(
                "noimage",
                json!([container(json!({"image": "test/absent:1", "imagePullPolicy": "Never"}))]),
                json!({}),
            ),
        );
        server.put("pods", pod("noname", json!([container(json!({"image": "UPPER/case::x"}))]), json!({})));
        let root = container(json!({"command": ["true"], "securityContext": {"runAsNonRoot": true}}));
        server.put("pods", pod("root", json!([root]), json!({})));
        let readonly = container(
            json!({"command": ["sh", "-c", "touch /file; echo $?; touch /tmp/x"], "securityContext": {"readOnlyRootFilesystem": true}, "volumeMounts": [{"name": "t", "mountPath": "/tmp"}]}),
        );
        server.put(
            "pods",
            pod(
                "readonly",
                json!([readonly]),
                json!({"restartPolicy": "Never", "volumes": [{"name": "t", "emptyDir": {}}]}),
            ),
        );

        server.until("killed", |told| state(told, "eater")["state"]["terminated"]["reason"] == "OOMKilled").await;
        server.told(|told| {
            let terminated = &state(told, "eater")["state"]["terminated"];
            assert_eq!(terminated["message"], "eating");
            assert!(
                told.events.iter().any(|event| event.starts_with("eater Warning OOMKilling")),
                "{:#?}",
                told.events
            );
        });
        server
            .until("refused", |told| state(told, "missing")["state"]["waiting"]["reason"] == "RunContainerError")
            .await;
        server.told(|told| {
            let words = state(told, "missing")["state"]["waiting"]["message"].as_str().unwrap().to_owned();
            assert!(words.starts_with("exec: \"/no/such/program\": executable file not found in the image"), "{words}");
            assert_eq!(state(told, "missing")["lastState"]["terminated"]["exitCode"], 127);
        });
        server
            .until("failed", |told| told.statuses.get("exits").is_some_and(|status| status["phase"] == "Failed"))
            .await;
        server.told(|told| assert_eq!(state(told, "exits")["state"]["terminated"]["exitCode"], 3));
        assert_eq!(server.log_text("exits", "c").await.unwrap(), "last words\n");
        let waits = |reason: &'static str| {
            move |told: &Told, pod: &str| state(told, pod)["state"]["waiting"]["reason"] == reason
        };
        for (pod, reason) in
            [("noimage", "ErrImageNeverPull"), ("noname", "InvalidImageName"), ("root", "CreateContainerConfigError")]
        {
            server.until(reason, |told| waits(reason)(told, pod)).await;
        }
        server
            .until("done", |told| told.statuses.get("readonly").is_some_and(|status| status["phase"] == "Succeeded"))
            .await;
        // Standard output and error are two pipes: their lines may change places.
        let said = server.log_text("readonly", "c").await.unwrap();
        assert!(said.lines().any(|line| line == "1") && said.contains("Read-only file system"), "{said}");
        let words = server.log_text("noimage", "c").await.unwrap_err();
        assert!(words.contains("is waiting to start"), "{words}");
        lab.end().await;
    });
}

#[test]
fn a_restart_of_the_agent_stops_nothing_and_loses_nothing() {
    in_own_network(async || {
        let lab = Lab::new().await;
        let server = lab.server.clone();
        server.put("pods", pod("stays", json!([sh("echo up; while true; do sleep 0.1; echo tick; done")]), json!({})));
        server.put(
            "pods",
            pod("ends", json!([sh("nc -l -p 9000 < /dev/null; exit 5")]), json!({"restartPolicy": "Never"})),
        );
        server.put("services", json!({
            "metadata": {"name": "s", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.90", "ports": [{"name": "http", "port": 80}]},
        }));
        server.until("running", |told| ready(told, "stays") && ready(told, "ends")).await;
        let started = server.told(|told| state(told, "stays")["state"]["running"]["startedAt"].clone());
        let ip = server.told(|told| told.statuses["ends"]["podIP"].as_str().unwrap().to_owned());
        // The server is gone too: the next agent has its ledger only.
        lab.server_end.cancel();
        let lab = lab
            .restart(async |_| {
                let mut stream = tokio::net::TcpStream::connect((ip.parse::<Ipv4Addr>().unwrap(), 9000)).await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            })
            .await;
        let mut status = lab.agent.status();
        status
            .wait_for(|status| status.pods.iter().any(|pod| pod.name == "ends" && pod.phase == "Failed"))
            .await
            .unwrap();
        let seen = lab.agent.status().borrow().clone();
        assert!(
            !seen.connected && seen.pods.iter().any(|pod| pod.name == "stays" && pod.ready && pod.restarts == 0),
            "{seen:?}"
        );
        // Names are answered though no server was ever reached.
        let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01s\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
        socket.send_to(question, (Ipv4Addr::new(10, 42, 7, 1), 53)).await.unwrap();
        let mut answer = [0; 512];
        let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut answer)).await.unwrap().unwrap();
        assert!(answer[..length].windows(4).any(|window| window == [10, 43, 0, 90]), "{:?}", &answer[..length]);
        // The server comes back and hears everything.
        lab.server.serve(&lab.pki, lab.address.port(), tokio_util::sync::CancellationToken::new()).await;
        server.until("told", |told| state(told, "ends")["state"]["terminated"]["exitCode"] == 5).await;
        server.told(|told| {
            assert_eq!(state(told, "stays")["restartCount"], 0);
            assert_eq!(state(told, "stays")["state"]["running"]["startedAt"], started);
        });
        // Its output was never interrupted, and can be followed.
        let request = LogRequest {
            namespace: "default".into(),
            pod: "stays".into(),
            uid: "uid-stays".into(),
            container: "c".into(),
            follow: true,
            tail_lines: 1,
            ..LogRequest::default()
        };
        let mut chunks = server.logs(request).await.unwrap();
        // Lines may come one by one or together.
        let mut followed = Vec::new();
        while followed.len() < 3 * b"tick\n".len() {
            followed.extend(chunks.recv().await.unwrap().unwrap());
        }
        assert!(followed.chunks(5).all(|line| line == b"tick\n"), "{followed:?}");
        drop(chunks);
        lab.end().await;
    });
}

#[test]
fn a_sidecar_an_init_container_a_memory_volume_and_shared_memory() {
    in_own_network(async || {
        let lab = Lab::new().await;
        let server = lab.server.clone();
        let mount = json!([{"name": "m", "mountPath": "/m"}, {"name": "m", "mountPath": "/sub", "subPath": "deep/er"}]);
        let init = json!([
            {"name": "side", "image": "test/busybox:1", "restartPolicy": "Always", "command": ["sh", "-c", "trap 'echo bye; exit 0' TERM; echo side; while true; do sleep 0.05; done"]},
            {"name": "first", "image": "test/busybox:1", "command": ["sh", "-c", "echo made > /sub/file; echo shared > /dev/shm/x; stat -c %a:%g /m"], "volumeMounts": mount},
        ]);
        let app = container(
            json!({"command": ["sh", "-c", "cat /m/deep/er/file /dev/shm/x; grep ' /m ' /proc/mounts; id -G"], "volumeMounts": mount}),
        );
        let extra = json!({
            "restartPolicy": "Never", "initContainers": init, "securityContext": {"fsGroup": 4321},
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        });
        server.put("pods", pod("p", json!([app]), extra));
        server.until("done", |told| told.statuses.get("p").is_some_and(|status| status["phase"] == "Succeeded")).await;
        let log = server.log_text("p", "c").await.unwrap();
        assert!(
            log.starts_with("made\nshared\n")
                && log.contains("tmpfs")
                && log.contains("size=1024k")
                && log.contains("4321"),
            "{log}"
        );
        assert_eq!(server.log_text("p", "first").await.unwrap(), "2777:4321\n");
        assert_eq!(server.log_text("p", "side").await.unwrap(), "side\nbye\n");
        lab.end().await;
    });
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn fifty_pods_come_and_go_and_leave_nothing() {
    in_own_network(async || {
        let lab = Lab::new().await;
        let server = lab.server.clone();
        let mut before = None;
        for round in 0..3 {
            let names: Vec<String> = (0..50).map(|index| format!("p{round}x{index}")).collect();
            let began = Instant::now();
            for name in &names {
                server.put(
                    "pods",
                    pod(name, json!([sh("trap 'exit 0' TERM; while true; do sleep 0.05; done")]), json!({})),
                );
            }
            server.until("all ready", |told| names.iter().all(|name| ready(told, name))).await;
            println!("50 pods ready after {:?}", began.elapsed());
            let began = Instant::now();
            for name in &names {
                server.delete(name, 5);
            }
            server.until("all gone", |told| names.iter().all(|name| told.gone.contains(name))).await;
            println!("50 pods gone after {:?}", began.elapsed());
            for name in &names {
                server.remove("pods", name);
            }
            let mut status = lab.agent.status();
            status.wait_for(|status| status.pods.is_empty()).await.unwrap();
            // The first round may open what stays open.
            // Other tests of this process run beside: theirs come and go, ours would stay.
            let patience = Instant::now() + Duration::from_secs(30);
            let mut open = descriptors();
            while before.is_some_and(|before| open > before + 3) {
                assert!(Instant::now() < patience, "{before:?} -> {open} descriptors");
                tokio::time::sleep(Duration::from_millis(20)).await; // poll
                open = descriptors();
            }
            before = Some(open);
        }
        lab.end().await;
    });
}
