//! How many placements a second: `cargo run --release -p coracle-scheduler --example placements [NODES] [PODS]`.

use std::collections::BTreeMap;
use std::time::Instant;

use coracle_scheduler::{Amounts, Effect, NodeState, PodRequest, Taint, plan};

/// A small generator of numbers that repeat from run to run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|word| word.parse::<usize>().ok());
    let (count, pods) = (arguments.next().unwrap_or(5_000), arguments.next().unwrap_or(50_000));
    let mut numbers = Numbers(42);
    let nodes: Vec<NodeState> = (0..count).map(|index| node(index, &mut numbers)).collect();
    for replicas in [1, 15] {
        let pods = requests(pods, replicas, &mut numbers);
        let start = Instant::now();
        let planned = plan(&nodes, &pods);
        let seconds = start.elapsed().as_secs_f64();
        let (placed, waiting) = (planned.bindings.len(), planned.unschedulable.len());
        #[allow(clippy::print_stdout)]
        {
            println!(
                "nodes={count} pods={} replicas={replicas} placed={placed} waiting={waiting} seconds={seconds:.3} placements/s={:.0}",
                pods.len(),
                placed as f64 / seconds
            );
        }
    }
}

fn node(index: usize, numbers: &mut Numbers) -> NodeState {
    let cores = [4, 8, 16, 32][numbers.below(4) as usize];
    let mut taints = Vec::new();
    if numbers.below(20) == 0 {
        taints.push(Taint { key: "dedicated".into(), value: "db".into(), effect: Effect::NoSchedule });
    }
    NodeState {
        name: format!("node-{index:05}"),
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", numbers.below(3)))]),
        taints,
        ready: true,
        allocatable: Amounts {
            cpu_milli: cores * 1000,
            memory_bytes: cores * (4 << 30),
            ephemeral_bytes: u64::MAX,
            pods: 250,
        },
        ..NodeState::default()
    }
}

/// Applications of so many replicas; a fifth of them wants a zone.
fn requests(count: usize, replicas: usize, numbers: &mut Numbers) -> Vec<PodRequest> {
    let mut pods = Vec::with_capacity(count);
    while pods.len() < count {
        let zone = (numbers.below(5) == 0).then(|| ("zone".to_owned(), format!("z{}", numbers.below(3))));
        let request = PodRequest {
            amounts: Amounts {
                cpu_milli: 50 + 50 * numbers.below(20),
                memory_bytes: (64 + 64 * numbers.below(30)) << 20,
                ephemeral_bytes: 0,
                pods: 1,
            },
            node_selector: zone.into_iter().collect(),
            owner: Some(format!("application-{}", pods.len()).into()),
            ..PodRequest::default()
        };
        pods.extend(std::iter::repeat_n(request, replicas.min(count - pods.len())));
    }
    pods
}
