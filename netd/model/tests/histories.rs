//! Random histories of services and endpoints against maps as the kernel has them: an element that is there cannot be
//! added, one that is not cannot be removed, and after each transaction every service finds an endpoint at every slot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use coracle_net_model::nft::{Batch, RawElement, element_infos, frames};
use coracle_net_model::rules::{ALLOWED, Chosen, EP, GUARDED, HAIRPIN, INNER, KEEP, LOCAL, OUTSIDE, SHUT, SVC, VIPS};
use coracle_net_model::tables::rebuild;
use coracle_net_model::{Clients, Desired, Layout, Observed, Protocol, ServiceEntry, Tables};
use proptest::prelude::*;

const NEWCHAIN: u16 = 10 << 8 | 3;
const NEWRULE: u16 = 10 << 8 | 6;
const NEWELEM: u16 = 10 << 8 | 12;
const DELELEM: u16 = 10 << 8 | 14;

fn layout() -> Layout {
    Layout {
        table: "coracle".to_owned(),
        bridge: "cor0".to_owned(),
        node_cidr: "10.42.0.0/24".parse().unwrap(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
    }
}

/// The kernel's sets and chains, changed only by message bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Kernel {
    sets: BTreeMap<String, BTreeMap<Vec<u8>, RawElement>>,
    chains: BTreeMap<String, usize>,
}

impl Kernel {
    fn receive(&mut self, batch: Batch) {
        let (bytes, _) = batch.finish();
        for frame in frames(&bytes) {
            match frame.kind {
                NEWCHAIN => drop(self.chains.insert(name(frame.body, 3), 0)),
                NEWRULE => *self.chains.get_mut(&name(frame.body, 2)).expect("a rule's chain exists") += 1,
                NEWELEM | DELELEM => {
                    let set = self.sets.entry(name(frame.body, 2)).or_default();
                    for element in element_infos(frame.body) {
                        if frame.kind == DELELEM {
                            assert!(set.remove(&element.key).is_some(), "removed what is not there");
                            continue;
                        }
                        if let Some(chain) = &element.chain {
                            assert!(self.chains.contains_key(chain), "goes to {chain}, which does not exist");
                        }
                        assert!(set.insert(element.key.clone(), element).is_none(), "added what is there");
                    }
                }
                _ => {}
            }
        }
    }

    fn observed(&self) -> Observed {
        let elements = self.sets.iter().map(|(set, found)| (set.clone(), found.values().cloned().collect()));
        Observed { elements: elements.collect(), chains: self.chains.clone() }
    }

    fn keys(&self, set: &str) -> BTreeSet<Vec<u8>> {
        self.sets.get(set).map(|elements| elements.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether the maps say exactly what is desired, slots in any order.
    fn check(&self, desired: &Desired) {
        let (mut maps, mut vips, mut hairpin) = ([BTreeMap::new(), BTreeMap::new()], BTreeSet::new(), BTreeSet::new());
        let (mut shut, mut keep, mut outside) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let (mut guarded, mut allowed) = (BTreeSet::new(), BTreeSet::new());
        let mut endpoints = 0;
        let mut wanted = BTreeMap::new();
        for service in desired.services.iter().chain(&desired.host_ports) {
            if !desired.local_vips.contains(&service.vip) {
                wanted.insert(service.key(), service);
            }
        }
        for service in wanted.into_values() {
            let distinct: BTreeSet<_> = service.backends.iter().copied().collect();
            let mut key = service.vip.octets().to_vec();
            key.extend([service.proto.number(), 0, 0, 0]);
            key.extend(service.port.to_be_bytes());
            key.extend([0, 0]);
            if layout().service_cidr.contains(service.vip) {
                vips.insert(service.vip.octets().to_vec());
            } else if distinct.is_empty() && service.clients == Clients::All {
                shut.insert(key.clone());
            }
            let allowed_here = service.allowed.iter().filter(|_| service.clients == Clients::All);
            for block in allowed_here.flatten() {
                guarded.insert(key.clone());
                // The smallest of the two blocks lies in the largest.
                if service
                    .allowed
                    .as_ref()
                    .is_some_and(|blocks| blocks.iter().all(|other| other.prefix() >= block.prefix()))
                {
                    allowed.insert([&key[..], &block.network().octets()].concat());
                }
            }
            for (address, _) in &distinct {
                if layout().node_cidr.contains(*address) {
                    hairpin.insert([address.octets(), address.octets()].concat());
                } else if !layout().cluster_cidr.contains(*address) {
                    outside.insert(address.octets().to_vec());
                }
            }
            if service.clients == Clients::All {
                keep.extend(service.affinity_s.map(|seconds| (key.clone(), Chosen::Keep(seconds).chain())));
            }
            let (map, first_slot) = if service.clients == Clients::All { (0, 0) } else { (1, 1_u32 << 31) };
            let found: BTreeSet<_> = (0..distinct.len() as u32)
                .map(|slot| {
                    let slot_key = [&key[..], &(first_slot + slot).to_ne_bytes()].concat();
                    let element = self.sets[EP.name].get(&slot_key).expect("every slot has an endpoint");
                    let address: [u8; 4] = element.value[..4].try_into().unwrap();
                    (Ipv4Addr::from(address), u16::from_be_bytes([element.value[4], element.value[5]]))
                })
                .collect();
            assert_eq!(found, distinct);
            endpoints += distinct.len();
            if !distinct.is_empty() {
                maps[map].insert(key, Chosen::Spread(distinct.len() as u32, service.clients).chain());
            }
        }
        let [svc, inner] = maps;
        for (set, map) in [(SVC, svc), (INNER, inner), (KEEP, keep)] {
            let found = self.sets.get(set.name).cloned().unwrap_or_default();
            assert_eq!(found.into_iter().map(|(k, e)| (k, e.chain.unwrap())).collect::<BTreeMap<_, _>>(), map);
        }
        assert_eq!(self.keys(EP.name).len(), endpoints, "no endpoint is left over");
        let local: BTreeSet<_> = desired.local_vips.iter().map(|a| a.octets().to_vec()).collect();
        let sets = [
            (VIPS, vips),
            (HAIRPIN, hairpin),
            (OUTSIDE, outside),
            (SHUT, shut),
            (LOCAL, local),
            (GUARDED, guarded),
            (ALLOWED, allowed),
        ];
        for (set, keys) in sets {
            assert_eq!(self.keys(set.name), keys, "{}", set.name);
        }
    }
}

/// The zero-terminated text of the attribute `kind` (they come first and flat).
fn name(body: &[u8], kind: u16) -> String {
    let mut rest = &body[4..];
    loop {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if u16::from_ne_bytes([rest[2], rest[3]]) == kind {
            return String::from_utf8(rest[4..length - 1].to_vec()).unwrap();
        }
        rest = &rest[(length + 3) & !3..];
    }
}

fn desired() -> impl Strategy<Value = Desired> {
    // Pods here and elsewhere, and an endpoint that is none.
    let backend = (0u8..6, 0u8..3, 0u16..3).prop_map(|(last, node, port)| match node {
        2 => (Ipv4Addr::new(198, 51, 100, last), 8000 + port),
        node => (Ipv4Addr::new(10, 42, node, last), 8000 + port),
    });
    let backends = prop::collection::vec(backend, 0..9);
    let block = |text: &str| text.parse::<coracle_net_model::Cidr>().unwrap();
    let blocks = [vec![block("198.51.100.0/24")], vec![block("198.51.100.128/25"), block("198.51.100.0/24")]];
    let ways = (any::<bool>(), prop::option::of(1u32..3), prop::option::of(prop::sample::select(blocks.to_vec())));
    let service = (0u8..6, any::<bool>(), 0u16..2, backends, ways).prop_map(
        |(last, tcp, port, backends, (inside, affinity_s, allowed))| {
            let vip = if last == 5 { Ipv4Addr::new(192, 0, 2, 1) } else { Ipv4Addr::new(10, 43, 0, last) };
            let proto = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let clients = if inside { Clients::Inside } else { Clients::All };
            ServiceEntry { clients, affinity_s, allowed, ..ServiceEntry::new(vip, 80 + port, proto, backends) }
        },
    );
    let services = prop::collection::vec(service.clone(), 0..12);
    (services, prop::collection::vec(service, 0..3), any::<bool>()).prop_map(|(services, host_ports, local)| {
        let local_vips = local.then(|| Ipv4Addr::new(10, 43, 0, 1)).into_iter().collect();
        Desired { services, host_ports, local_vips }
    })
}

proptest! {
    #[test]
    fn every_history_ends_where_it_should(history in prop::collection::vec(desired(), 1..12)) {
        let layout = layout();
        let (mut kernel, mut tables) = (Kernel::default(), Tables::default());
        kernel.receive(rebuild(&layout, &tables, None));
        for desired in &history {
            let delta = tables.diff(desired, &layout);
            let mut batch = Batch::new(&layout.table, Some(1));
            delta.write(&mut batch);
            kernel.receive(batch);
            tables.commit(delta);
            kernel.check(desired);
            prop_assert!(tables.diff(desired, &layout).is_empty(), "nothing is left to do");
            // A restart at this moment reads the same back.
            prop_assert_eq!(Tables::from_observed(&kernel.observed(), &layout), Some(tables.clone()));
        }
        // Making the table anew gives the same elements.
        let mut fresh = Kernel::default();
        fresh.receive(rebuild(&layout, &tables, None));
        prop_assert_eq!(&fresh.sets, &kernel.sets.into_iter().filter(|(_, set)| !set.is_empty()).collect());
    }

    #[test]
    fn one_endpoint_costs_a_handful_of_elements(size in 1usize..200, gone in 0usize..200) {
        let layout = layout();
        let backends: Vec<_> = (0..size).map(|i| (Ipv4Addr::from(0x0a2a_0100 + i as u32), 80)).collect();
        let service = |backends: Vec<_>| Desired {
            services: vec![ServiceEntry::new(Ipv4Addr::new(10, 43, 0, 1), 80, Protocol::Tcp, backends)],
            ..Desired::default()
        };
        let mut tables = Tables::default();
        let delta = tables.diff(&service(backends.clone()), &layout);
        tables.commit(delta);
        let mut fewer = backends;
        fewer.swap_remove(gone % size);
        let delta = tables.diff(&service(fewer), &layout);
        prop_assert!(delta.added() + delta.removed() <= 5, "{} + {}", delta.added(), delta.removed());
    }

    #[test]
    fn clients_are_sent_on_to_what_is_there(first in desired(), then in desired()) {
        let layout = layout();
        let mut tables = Tables::default();
        let delta = tables.diff(&first, &layout);
        tables.commit(delta);
        // Every client of every port noted every endpoint that this port had.
        let note = |service: &ServiceEntry, (address, port): (Ipv4Addr, u16)| RawElement {
            key: [&service.vip.octets()[..], &[service.proto.number(), 0, 0, 0], &service.port.to_be_bytes(), &[0, 0], &[192, 0, 2, 9]].concat(),
            value: [&address.octets()[..], &port.to_be_bytes(), &[0, 0]].concat(),
            chain: None,
            last: Vec::new(),
        };
        let all = || first.services.iter().chain(&first.host_ports);
        let noted: Vec<RawElement> =
            all().flat_map(|service| service.backends.iter().map(|backend| note(service, *backend))).collect();
        let delta = tables.diff(&then, &layout);
        let (touched, before) = (delta.touches_kept(&tables), tables.stale_clients(&noted, &layout));
        tables.commit(delta);
        let after = tables.stale_clients(&noted, &layout);
        let worse = after.iter().any(|key| !before.contains(key));
        prop_assert!(touched || !worse, "somebody's endpoint is gone and nobody looks");
    }

    #[test]
    fn foreign_bytes_are_no_elements(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for frame in frames(&bytes) {
            prop_assert!(frame.body.len() <= bytes.len());
        }
        prop_assert!(element_infos(&bytes).count() <= bytes.len());
        let _ = coracle_net_model::conntrack::udp_flow(&bytes);
        let _ = coracle_net_model::nft::table_info(&bytes);
        let _ = coracle_net_model::nft::chain_info(&bytes);
    }
}

#[test]
fn elements_that_contradict_each_other_are_not_believed() {
    let layout = layout();
    let mut tables = Tables::default();
    let backends = vec![(Ipv4Addr::new(10, 42, 0, 2), 80), (Ipv4Addr::new(10, 42, 0, 3), 80)];
    let service = ServiceEntry::new(Ipv4Addr::new(10, 43, 0, 1), 80, Protocol::Tcp, backends);
    let delta = tables.diff(&Desired { services: vec![service], ..Desired::default() }, &layout);
    tables.commit(delta);
    let mut kernel = Kernel::default();
    kernel.receive(rebuild(&layout, &tables, None));
    assert!(Tables::from_observed(&kernel.observed(), &layout).is_some());
    let broken = |change: &dyn Fn(&mut Observed)| {
        let mut observed = kernel.observed();
        change(&mut observed);
        Tables::from_observed(&observed, &layout)
    };
    assert_eq!(broken(&|o| drop(o.elements.get_mut("ep").unwrap().pop())), None, "a slot without endpoint");
    assert_eq!(broken(&|o| o.elements.get_mut("svc").unwrap().clear()), None, "endpoints without service");
    assert_eq!(broken(&|o| o.elements.get_mut("svc").unwrap()[0].chain = Some("lb-9".to_owned())), None);
    assert_eq!(broken(&|o| o.elements.get_mut("ep").unwrap()[0].key.truncate(3)), None);
    assert_eq!(broken(&|o| assert!(o.chains.remove("pre").is_some())), None);
    assert_eq!(broken(&|o| *o.chains.get_mut("forward").unwrap() = 1), None, "a rule is missing");
    assert_eq!(broken(&|o| assert!(o.chains.insert("mine".to_owned(), 1).is_none())), None, "somebody's own chain");
}
