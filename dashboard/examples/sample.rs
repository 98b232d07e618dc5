//! The status page over a made-up cluster, to look at: `cargo run -p coracle-dashboard --example sample [ADDRESS] [calm]`.

use std::sync::Arc;

use coracle_base::Generation;
use coracle_daemon::Drain;
use coracle_dashboard::{Cluster, Server, Snapshot, Source, Trees, serve};
use serde_json::{Value, json};
use tokio::sync::watch;

struct Sample {
    calm: bool,
    changes: watch::Sender<Generation>,
}

impl Source for Sample {
    fn snapshot(&self) -> Snapshot {
        sample(self.calm, self.changes.borrow().revision)
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.changes.subscribe()
    }

    fn metrics(&self) -> String {
        "# TYPE coracle_sample gauge\ncoracle_sample 1\n".to_owned()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:6490".to_owned()).parse()?;
    let source = Arc::new(Sample { calm: arguments.next().is_some(), changes: watch::Sender::default() });
    let drain = Drain::new();
    let handle = serve(address, source.clone(), drain.watch()).await?;
    #[allow(clippy::print_stdout)]
    {
        println!("http://{}/", handle.address);
    }
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(2));
    loop {
        tick.tick().await;
        source.changes.send_modify(|generation| generation.revision += 1);
    }
}

/// A time some seconds ago, counted from a fixed moment so that pictures repeat.
fn ago(seconds: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    coracle_manifests::time::rfc3339((now.saturating_sub(seconds.unsigned_abs())) * 1000)
}

fn node(name: &str, address: &str, ready: &str, cores: u64, gib: u64) -> Value {
    json!({
        "metadata": {"name": name, "creationTimestamp": ago(400_000)},
        "spec": if ready == "True" { json!({}) } else {
            json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]})
        },
        "status": {
            "allocatable": {"cpu": cores.to_string(), "memory": format!("{gib}Gi"), "pods": "250"},
            "addresses": [{"type": "InternalIP", "address": address}],
            "nodeInfo": {"kubeletVersion": "v0.1.0", "operatingSystem": "linux", "architecture": "amd64", "kernelVersion": "6.1.0-31-amd64"},
            "conditions": [{"type": "Ready", "status": ready, "reason": "NodeStatusUnknown", "message": "The agent of the node has stopped sending beats."}],
        },
    })
}

fn deployment(namespace: &str, name: &str, image: &str, desired: u64, updated: u64, ready: u64) -> Value {
    json!({
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": ago(9_000)},
        "spec": {"replicas": desired, "template": {"spec": {"containers": [{"image": image}]}}},
        "status": {"replicas": desired, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready},
    })
}

fn pod(namespace: &str, name: &str, node: &str, ip: &str, cpu: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": ago(5_400)},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "640Mi"}}}]},
        "status": {
            "phase": "Running", "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}],
        },
    })
}

fn service(namespace: &str, name: &str, ip: &str, port: u64, target: Value) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": ago(9_000)},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "ports": [{"port": port, "targetPort": target, "protocol": "TCP"}]},
    })
}

fn slice(namespace: &str, name: &str, pods: &[(&str, &str, bool)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}, "targetRef": {"name": pod}}))
        .collect();
    json!({
        "metadata": {"namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": endpoints,
    })
}

fn event(about: &str, kind: &str, reason: &str, message: &str, seconds: i64) -> Value {
    json!({
        "metadata": {"namespace": "shop"}, "involvedObject": {"kind": "Pod", "name": about}, "type": kind, "reason": reason,
        "message": message, "count": if kind == "Warning" { 7 } else { 1 }, "lastTimestamp": ago(seconds),
    })
}

#[allow(clippy::too_many_lines)] // data
fn sample(calm: bool, revision: u64) -> Snapshot {
    let mut nodes = vec![node("harbour-1", "10.0.0.11", "True", 4, 8), node("harbour-2", "10.0.0.12", "True", 8, 16)];
    let mut deployments = vec![
        deployment("shop", "web", "registry.example/shop/web:2.4.1", 4, 4, 4),
        deployment("shop", "cart", "registry.example/shop/cart:1.9.0", 3, 2, 3),
        deployment("infra", "redis", "docker.io/library/redis:7.2", 1, 1, 1),
    ];
    let mut pods = vec![
        pod("infra", "redis-59f7bdc7c-w2x8v", "harbour-2", "10.42.1.4", "500m"),
        pod("shop", "cart-7d4b9c6f5d-2mzkq", "harbour-1", "10.42.0.7", "400m"),
        pod("shop", "cart-7d4b9c6f5d-x9rwl", "harbour-2", "10.42.1.7", "400m"),
        pod("shop", "web-6bb84d75f8-4nq2p", "harbour-1", "10.42.0.5", "1"),
        pod("shop", "web-6bb84d75f8-9xkzt", "harbour-2", "10.42.1.5", "1"),
        pod("shop", "web-6bb84d75f8-c5h7d", "harbour-1", "10.42.0.6", "1"),
        pod("shop", "web-6bb84d75f8-zz4vb", "harbour-2", "10.42.1.6", "1"),
    ];
    if !calm {
        nodes.push(node("harbour-3", "10.0.0.13", "Unknown", 4, 8));
        let mut stuck = deployment("shop", "mailer", "registry.example/shop/mailer:0.3", 2, 1, 0);
        stuck["status"]["conditions"] = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
            "message": "ReplicaSet \"mailer-5d8f9\" has timed out progressing."}]);
        deployments.push(stuck);
        let mut broken = pod("shop", "mailer-5d8f9b7c4-kx2tt", "harbour-1", "10.42.0.9", "100m");
        broken["status"]["conditions"] = json!([]);
        broken["status"]["containerStatuses"] = json!([{"ready": false, "restartCount": 14, "state": {"waiting": {
            "reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container c (exit code 1)"}}}]);
        pods.push(broken);
        let mut waiting = pod("shop", "mailer-5d8f9b7c4-q8d2n", "", "", "12");
        waiting["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 1 node(s) were not ready, 2 Insufficient cpu. hint: it asks for 12 cpu, the most that is free is 5.1 on node harbour-2"}]});
        pods.push(waiting);
        let mut starting = pod("shop", "cart-7d4b9c6f5d-n6v5g", "harbour-2", "", "400m");
        starting["status"] = json!({"phase": "Pending", "containerStatuses": [{"ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]});
        pods.push(starting);
    }
    let services = [
        service("default", "kubernetes", "10.43.0.1", 443, json!(6443)),
        service("infra", "redis", "10.43.12.80", 6379, json!("redis")),
        service("shop", "cart", "10.43.201.7", 80, json!(8080)),
        service("shop", "mailer", "None", 25, json!(25)),
        service("shop", "web", "10.43.88.14", 80, json!("http")),
    ];
    let slices = [
        slice("default", "kubernetes", &[("", "10.0.0.11", true)]),
        slice("infra", "redis", &[("redis-59f7bdc7c-w2x8v", "10.42.1.4", true)]),
        slice(
            "shop",
            "cart",
            &[("cart-7d4b9c6f5d-2mzkq", "10.42.0.7", true), ("cart-7d4b9c6f5d-x9rwl", "10.42.1.7", true)],
        ),
        slice("shop", "mailer", &[("mailer-5d8f9b7c4-kx2tt", "10.42.0.9", calm)]),
        slice(
            "shop",
            "web",
            &[("a", "10.42.0.5", true), ("b", "10.42.1.5", true), ("c", "10.42.0.6", true), ("d", "10.42.1.6", true)],
        ),
    ];
    let mut events = vec![
        event("web-6bb84d75f8-zz4vb", "Normal", "Started", "Started container web", 42),
        event(
            "web-6bb84d75f8-zz4vb",
            "Normal",
            "Pulled",
            "Image registry.example/shop/web:2.4.1 is present on the node",
            44,
        ),
        event(
            "web-6bb84d75f8-zz4vb",
            "Normal",
            "Scheduled",
            "Successfully assigned shop/web-6bb84d75f8-zz4vb to harbour-2",
            45,
        ),
    ];
    if !calm {
        events.push(event(
            "mailer-5d8f9b7c4-kx2tt",
            "Warning",
            "BackOff",
            "Back-off restarting failed container c in pod mailer-5d8f9b7c4-kx2tt: exit code 1",
            12,
        ));
        events.push(event("mailer-5d8f9b7c4-q8d2n", "Warning", "FailedScheduling", "0/3 nodes are available: 1 node(s) were not ready, 2 Insufficient cpu. hint: it asks for 12 cpu, the most that is free is 5.1 on node harbour-2", 20));
    }
    let all: [Vec<&Value>; 6] = [
        nodes.iter().collect(),
        deployments.iter().collect(),
        pods.iter().collect(),
        services.iter().collect(),
        slices.iter().collect(),
        events.iter().collect(),
    ];
    let trees = Trees {
        nodes: &all[0],
        workloads: &all[1],
        pods: &all[2],
        services: &all[3],
        slices: &all[4],
        events: &all[5],
    };
    Snapshot {
        cluster: Cluster {
            name: "harbour".into(),
            version: "0.1.0".into(),
            this_node: "harbour-1".into(),
            api: "https://10.0.0.11:6443".into(),
            revision,
            level: Some(2),
        },
        servers: vec![Server {
            name: "harbour-1".into(),
            address: "10.0.0.11:6444".into(),
            leader: true,
            reachable: true,
            ..Server::default()
        }],
        ..Snapshot::default()
    }
    .with(trees)
}
