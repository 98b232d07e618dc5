//! The plan against a reference that does everything the slow and obvious way, and the words for what does not fit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coracle_scheduler::{
    Affinity, Amounts, Binding, Effect, HostPort, NodeState, NodeTest, NodeWhat, PodRequest, Taint, Term, Toleration,
    TolerationOperator, Unschedulable, plan,
};
use proptest::prelude::*;

fn node(name: &str, cpu: u64, memory: u64) -> NodeState {
    NodeState {
        name: name.to_owned(),
        labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
        ready: true,
        allocatable: Amounts { cpu_milli: cpu, memory_bytes: memory, ephemeral_bytes: u64::MAX, pods: 110 },
        ..NodeState::default()
    }
}

fn pod(cpu: u64, memory: u64) -> PodRequest {
    PodRequest {
        amounts: Amounts { cpu_milli: cpu, memory_bytes: memory, ephemeral_bytes: 0, pods: 1 },
        ..PodRequest::default()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn why(nodes: &[NodeState], pod: PodRequest) -> String {
    let plan = plan(nodes, &[pod]);
    assert!(plan.bindings.is_empty(), "{plan:?}");
    plan.unschedulable[0].explain.to_string()
}

const GI: u64 = 1 << 30;

#[test]
fn the_words_count_each_node_once_and_each_lacking_resource() {
    let mut tainted = node("n3", 8000, 8 * GI);
    tainted.taints = vec![Taint { key: "dedicated".into(), value: "db".into(), effect: Effect::NoSchedule }];
    let mut cordoned = node("n4", 8000, 8 * GI);
    cordoned.unschedulable = true;
    let mut away = node("n5", 8000, 8 * GI);
    away.ready = false;
    let nodes = [node("n1", 500, GI), node("n2", 1500, 8 * GI), tainted, cordoned, away];
    assert_eq!(
        why(&nodes, pod(2000, 2 * GI)),
        "0/5 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: db}, 1 node(s) were \
         not ready, 1 node(s) were unschedulable, 2 Insufficient cpu. hint: it asks for 2 cpu, the most that is free is \
         1500m on node n2"
    );
    assert_eq!(why(&[], pod(1, 1)), "no nodes available to schedule pods. hint: no node has joined the cluster yet");
}

#[test]
fn a_port_of_the_node_is_one_pod_s() {
    let web = |address: Option<&str>, port: u16| PodRequest {
        host_ports: vec![HostPort { address: address.map(Arc::from), protocol: "TCP".into(), port }],
        ..pod(1, 1)
    };
    let nodes = [node("n1", 8000, 8 * GI), node("n2", 8000, 8 * GI)];
    let three = plan(&nodes, &[web(None, 80), web(None, 80), web(None, 80), web(None, 81)]);
    assert_eq!((three.bindings.len(), three.unschedulable.len()), (3, 1));
    assert_eq!(
        three.unschedulable[0].explain.to_string(),
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports. hint: node n1 would take it, \
         but another pod there has its hostPort 80/TCP; a Service needs none"
    );
    // Addresses of one node each have their ports; all of them together have each.
    let one = &nodes[..1];
    assert_eq!(plan(one, &[web(Some("a"), 80), web(Some("b"), 80)]).bindings.len(), 2);
    assert_eq!(plan(one, &[web(Some("a"), 80), web(None, 80)]).bindings.len(), 1);
}

#[test]
fn a_label_that_was_misspelt_is_named() {
    let mut fast = node("fast", 8000, 8 * GI);
    fast.labels.insert("disk".into(), "ssd".into());
    let nodes = [node("slow", 8000, 8 * GI), fast];
    let with = |pairs: &[(&str, &str)]| PodRequest { node_selector: labels(pairs), ..pod(1, 1) };
    let hint = |text: String| text.split_once("hint: ").unwrap().1.to_owned();
    assert_eq!(hint(why(&nodes, with(&[("disk", "sdd")]))), "no node has disk=sdd; node fast has disk=ssd");
    assert_eq!(hint(why(&nodes, with(&[("disc", "ssd")]))), "no node has the label disc; did you mean disk?");
    assert_eq!(
        hint(why(&nodes, with(&[("zone", "eu")]))),
        "no node has the label zone; `kubectl label node NAME zone=eu` gives it one"
    );
    assert_eq!(
        hint(why(&nodes, with(&[("disk", "ssd"), ("kubernetes.io/hostname", "slow")]))),
        "no node has all the labels of the nodeSelector at once"
    );
}

#[test]
fn what_closes_the_only_node_is_named() {
    let hint = |node: NodeState, pod: PodRequest| why(&[node], pod).split_once("hint: ").unwrap().1.to_owned();
    let mut cordoned = node("a", 1000, GI);
    cordoned.unschedulable = true;
    assert_eq!(hint(cordoned, pod(1, 1)), "node a is cordoned; `kubectl uncordon a` opens it");
    let mut full = node("a", 1000, GI);
    full.used.pods = 110;
    assert_eq!(hint(full, pod(1, 1)), "every node holds as many pods as it may");
    assert_eq!(
        hint(node("a", 1000, GI), pod(1, 3 * GI / 2)),
        "it asks for 1.5Gi memory, the most that is free is 1.0Gi on node a"
    );
    let both = [node("a", 4000, GI), node("b", 500, 4 * GI)];
    assert_eq!(
        why(&both, pod(1000, 2 * GI)).split_once("hint: ").unwrap().1,
        "no node has enough of everything at once: node a has the most cpu free (4), and 1.0Gi memory"
    );
}

#[test]
fn tolerations_are_upstreams() {
    let taint = |effect| Taint { key: "k".into(), value: "v".into(), effect };
    let toleration = |key: &str, operator, value: &str, effect| Toleration {
        key: key.into(),
        operator,
        value: value.into(),
        effect,
    };
    use Effect::{NoExecute, NoSchedule};
    use TolerationOperator::{Equal, Exists};
    for (toleration, taint, expected) in [
        (toleration("k", Equal, "v", None), taint(NoSchedule), true),
        (toleration("k", Equal, "w", None), taint(NoSchedule), false),
        (toleration("k", Exists, "", None), taint(NoExecute), true),
        (toleration("", Exists, "", None), taint(NoExecute), true),
        (toleration("", Equal, "v", None), taint(NoSchedule), false),
        (toleration("k", Exists, "", Some(NoExecute)), taint(NoSchedule), false),
        (toleration("k", Equal, "v", Some(NoSchedule)), taint(NoSchedule), true),
    ] {
        assert_eq!(toleration.tolerates(&taint), expected, "{toleration:?} {taint:?}");
    }
}

#[test]
fn replicas_spread_and_pods_prefer_untainted_nodes() {
    let mut nodes = [node("a", 4000, 8 * GI), node("b", 4000, 8 * GI), node("c", 4000, 8 * GI)];
    nodes[2].taints = vec![Taint { key: "old".into(), value: String::new(), effect: Effect::PreferNoSchedule }];
    let web = PodRequest { owner: Some("web".into()), ..pod(1000, GI) };
    let on =
        |plan: &coracle_scheduler::Plan| -> Vec<usize> { plan.bindings.iter().map(|binding| binding.node).collect() };
    let placed = plan(&nodes, &vec![web.clone(); 9]);
    assert_eq!(on(&placed), [0, 1, 0, 1, 0, 1, 0, 1, 2], "the unloved node is the last resort");
    nodes[0].owners.insert("web".into(), 2);
    nodes[0].used = Amounts { cpu_milli: 100, ..Amounts::default() };
    assert_eq!(on(&plan(&nodes, &[web])), [1], "replicas that are there count");
    // Pods that ask for nothing still do not pile up.
    let idle: Vec<PodRequest> =
        ["x", "y", "z", "u"].iter().map(|owner| PodRequest { owner: Some((*owner).into()), ..pod(0, 0) }).collect();
    assert_eq!(on(&plan(&[node("a", 4000, GI), node("b", 4000, GI)], &idle)), [0, 1, 0, 1]);
}

/// What stands for a cordoned node.
fn cordon() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: Effect::NoSchedule }
}

#[test]
fn a_pod_of_one_node_goes_there_or_waits_for_it() {
    let mut nodes = [node("a", 4000, 8 * GI), node("b", 4000, 8 * GI), node("c", 4000, 8 * GI)];
    let to = |name: &str| PodRequest { affinity: Some(Affinity::to_node(name)), ..pod(1000, GI) };
    let placed = plan(&nodes, &[to("c"), to("a")]);
    assert_eq!(placed.bindings.iter().map(|binding| binding.node).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(
        why(&nodes, to("d")),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. hint: it is for the node d, which is \
         not there or lacks a label it asks for"
    );
    // What the other nodes are like is of no interest.
    nodes[0].ready = false;
    let full = PodRequest { affinity: Some(Affinity::to_node("b")), ..pod(5000, GI) };
    assert_eq!(
        why(&nodes, full),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. hint: it asks for 5 \
         cpu, the most that is free is 4 on node b"
    );
    nodes[1].unschedulable = true;
    assert!(why(&nodes, to("b")).contains("1 node(s) were unschedulable"), "{}", why(&nodes, to("b")));
    let exists = Toleration { operator: TolerationOperator::Exists, key: cordon().key, ..Toleration::default() };
    let patient = PodRequest { tolerations: vec![exists], ..to("b") };
    assert_eq!(plan(&nodes, &[patient]).bindings[0].node, 1, "cordoned, and it comes all the same");
}

/// The same decisions, pod by pod, node by node, with nothing remembered.
fn reference(nodes: &[NodeState], pods: &[PodRequest]) -> (Vec<Binding>, Vec<usize>) {
    let mut nodes = nodes.to_vec();
    let mut order: Vec<usize> = (0..pods.len()).collect();
    // Equal pods take their turn with the first of them.
    order.sort_by_key(|index| pods.iter().position(|pod| *pod == pods[*index]).unwrap());
    let (mut bindings, mut waiting) = (Vec::new(), Vec::new());
    for pod in order {
        let asked = &pods[pod];
        let mut best: Option<((u64, u64, u64), usize)> = None;
        for index in 0..nodes.len() {
            let node = &nodes[index];
            let free = node.allocatable.minus(node.used);
            let tolerated = |taint: &&Taint| !asked.tolerations.iter().any(|toleration| toleration.tolerates(taint));
            let untolerated: Vec<&Taint> = node.taints.iter().filter(tolerated).collect();
            let open = node.ready
                && (!node.unschedulable || asked.tolerations.iter().any(|toleration| toleration.tolerates(&cordon())))
                && asked.affinity.as_ref().is_none_or(|affinity| affinity.selects(&node.name, &node.labels))
                && untolerated.iter().all(|taint| taint.effect == Effect::PreferNoSchedule)
                && asked.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
                && asked.amounts.cpu_milli <= free.cpu_milli
                && asked.amounts.memory_bytes <= free.memory_bytes
                && asked.amounts.ephemeral_bytes <= free.ephemeral_bytes
                && asked.amounts.pods <= free.pods
                && !asked.host_ports.iter().any(|wanted| node.host_ports.iter().any(|held| held.clashes(wanted)));
            if !open {
                continue;
            }
            let replicas = asked.owner.as_ref().and_then(|owner| node.owners.get(owner)).copied().unwrap_or(0);
            // Thousandths of the node that stay free, and how evenly.
            let part = |free: u64, asked: u64, whole: u64| {
                let unit = if whole == 0 { 0.0 } else { 1000.0 / whole as f64 };
                free as f64 * unit - asked as f64 * unit
            };
            let (want, room) = (asked.amounts, node.allocatable);
            let cpu = part(free.cpu_milli, want.cpu_milli, room.cpu_milli);
            let memory = part(free.memory_bytes, want.memory_bytes, room.memory_bytes);
            let count = part(free.pods, want.pods, room.pods);
            let score = (cpu + memory + count + 1000.0 - (cpu - memory).abs()) as u64;
            let key = (untolerated.len() as u64, u64::from(replicas), 4000 - score);
            let better = best.is_none_or(|(other, at)| (key, &node.name) < (other, &nodes[at].name));
            if better {
                best = Some((key, index));
            }
        }
        match best {
            None => waiting.push(pod),
            Some((_, index)) => {
                nodes[index].used = nodes[index].used.plus(asked.amounts);
                nodes[index].host_ports.extend(asked.host_ports.iter().cloned());
                if let Some(owner) = &asked.owner {
                    *nodes[index].owners.entry(owner.clone()).or_default() += 1;
                }
                bindings.push(Binding { pod, node: index });
            }
        }
    }
    (bindings, waiting)
}

fn some_taint() -> impl Strategy<Value = Taint> {
    let effect = prop_oneof![Just(Effect::NoSchedule), Just(Effect::PreferNoSchedule), Just(Effect::NoExecute)];
    ("[ab]", "[xy]?", effect).prop_map(|(key, value, effect)| Taint { key, value, effect })
}

fn some_toleration() -> impl Strategy<Value = Toleration> {
    let operator = prop_oneof![Just(TolerationOperator::Equal), Just(TolerationOperator::Exists)];
    let effect = proptest::option::of(prop_oneof![Just(Effect::NoSchedule), Just(Effect::NoExecute)]);
    ("[ab]?", operator, "[xy]?", effect).prop_map(|(key, operator, value, effect)| Toleration {
        key,
        operator,
        value,
        effect,
    })
}

fn some_owner() -> impl Strategy<Value = Arc<str>> {
    "[pqr]".prop_map(Arc::from)
}

fn some_ports() -> impl Strategy<Value = Vec<HostPort>> {
    let address = proptest::option::of("[12]".prop_map(Arc::from));
    let port = (address, prop::sample::select(vec!["TCP", "UDP"]), 80..82_u16);
    let port = port.prop_map(|(address, protocol, port)| HostPort { address, protocol: protocol.into(), port });
    prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(port, 1..3)]
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[st]", "[12]", 0..2)
}

fn some_node() -> impl Strategy<Value = NodeState> {
    let amounts = (0..8_u64, 0..8_u64, 0..4_u64, 0..10_u64);
    let used = (0..4_u64, 0..4_u64, 0..3_u64);
    let taints = proptest::collection::vec(some_taint(), 0..3);
    let owners = proptest::collection::btree_map(some_owner(), 1..4_u32, 0..3);
    let flags = (prop::bool::weighted(0.9), prop::bool::weighted(0.1));
    let all = (amounts, used, some_labels(), taints, owners, flags, some_ports());
    all.prop_map(|(room, used, labels, taints, owners, flags, host_ports)| NodeState {
        name: String::new(),
        labels,
        taints,
        unschedulable: flags.1,
        ready: flags.0,
        allocatable: Amounts {
            cpu_milli: room.0 * 500,
            memory_bytes: room.1 * GI,
            ephemeral_bytes: room.2 * GI,
            pods: room.3,
        },
        used: Amounts { cpu_milli: used.0 * 100, memory_bytes: used.1 * GI / 4, ephemeral_bytes: 0, pods: used.2 },
        owners,
        host_ports,
    })
}

fn some_affinity() -> impl Strategy<Value = Affinity> {
    use NodeWhat::{DoesNotExist, Exists, Gt, In, Lt, NotIn};
    let what = prop::sample::select(vec![In, NotIn, Exists, DoesNotExist, Gt, Lt]);
    let values = proptest::collection::vec("[12]", 0..3);
    let test = (what, "[st]", values).prop_map(|(what, key, values)| NodeTest { label: Some(key), what, values });
    let terms = proptest::collection::vec(proptest::collection::vec(test, 0..3).prop_map(Term), 0..3);
    prop_oneof![terms.prop_map(Affinity), "n[0-9]{2}".prop_map(|name| Affinity::to_node(&name))]
}

fn some_pod() -> impl Strategy<Value = PodRequest> {
    let amounts = (0..5_u64, 0..5_u64, 0..2_u64);
    let tolerations = proptest::collection::vec(
        prop_oneof![3 => some_toleration(), 1 => Just(Toleration {
            key: cordon().key,
            operator: TolerationOperator::Exists,
            ..Toleration::default()
        })],
        0..3,
    );
    let asked = (some_labels(), proptest::option::weighted(0.3, some_affinity()));
    (amounts, asked, tolerations, proptest::option::of(some_owner()), some_ports()).prop_map(
        |(amounts, (node_selector, affinity), tolerations, owner, host_ports)| PodRequest {
            amounts: Amounts {
                cpu_milli: amounts.0 * 250,
                memory_bytes: amounts.1 * GI / 2,
                ephemeral_bytes: amounts.2 * GI / 2,
                pods: 1,
            },
            node_selector,
            affinity,
            tolerations,
            host_ports,
            owner,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn it_decides_as_the_reference_and_never_fills_beyond_the_brim(
        mut nodes in proptest::collection::vec(some_node(), 0..12),
        kinds in proptest::collection::vec(some_pod(), 1..5),
        choice in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
        seed in any::<u64>(),
    ) {
        // Names in another order than the list.
        for (index, node) in nodes.iter_mut().enumerate() {
            node.name = format!("n{:02}", (index as u64 * 7 + seed) % 97);
            node.used = Amounts {
                cpu_milli: node.used.cpu_milli.min(node.allocatable.cpu_milli),
                memory_bytes: node.used.memory_bytes.min(node.allocatable.memory_bytes),
                ephemeral_bytes: 0,
                pods: node.used.pods.min(node.allocatable.pods),
            };
        }
        let pods: Vec<PodRequest> = choice.iter().map(|index| index.get(&kinds).clone()).collect();
        let planned = plan(&nodes, &pods);
        let (bindings, mut waiting) = reference(&nodes, &pods);
        prop_assert_eq!(&planned.bindings, &bindings);
        let mut left: Vec<usize> = planned.unschedulable.iter().map(|Unschedulable { pod, .. }| *pod).collect();
        left.sort_unstable();
        waiting.sort_unstable();
        prop_assert_eq!(left, waiting);
        let mut used: HashMap<usize, Amounts> = HashMap::new();
        for binding in &planned.bindings {
            let held = used.entry(binding.node).or_insert(nodes[binding.node].used);
            *held = held.plus(pods[binding.pod].amounts);
        }
        for (node, used) in used {
            prop_assert_eq!(used.minus(nodes[node].allocatable), Amounts::default(), "overcommitted");
        }
        for waiting in &planned.unschedulable {
            prop_assert!(waiting.explain.to_string().starts_with("0/") || nodes.is_empty());
            let most = waiting.explain.reasons.values().copied().max().unwrap_or(0);
            prop_assert!(most <= nodes.len());
            prop_assert!(waiting.explain.hint.is_some());
        }
        // The order of the list decides nothing.
        let mut turned = nodes.clone();
        turned.reverse();
        let names = |nodes: &[NodeState], plan: &coracle_scheduler::Plan| -> Vec<(usize, String)> {
            plan.bindings.iter().map(|binding| (binding.pod, nodes[binding.node].name.clone())).collect()
        };
        prop_assert_eq!(names(&turned, &plan(&turned, &pods)), names(&nodes, &planned));
    }
}
