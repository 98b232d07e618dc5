//! Random histories of services and endpoints against maps as the kernel has them: an element that is there cannot be
//! added, one that is not cannot be removed, and after each transaction every service finds an endpoint at every slot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use coracle_net_model::nft::{Batch, RawElement, element_infos, frames};
use coracle_net_model::rules::{self, EP, HAIRPIN, LOCAL, SVC, VIPS};
use coracle_net_model::tables::rebuild;
use coracle_net_model::{Desired, Layout, Observed, Protocol, ServiceEntry, Tables};
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
        let (mut svc, mut vips, mut hairpin) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut endpoints = 0;
        for service in desired.services.iter().filter(|s| !desired.local_vips.contains(&s.vip)) {
            vips.insert(service.vip.octets().to_vec());
            let distinct: BTreeSet<_> = service.backends.iter().copied().collect();
            for (address, _) in distinct.iter().filter(|(address, _)| layout().node_cidr.contains(*address)) {
                hairpin.insert([address.octets(), address.octets()].concat());
            }
            let mut key = service.vip.octets().to_vec();
            key.extend([service.proto.number(), 0, 0, 0]);
            key.extend(service.port.to_be_bytes());
            key.extend([0, 0]);
            let found: BTreeSet<_> = (0..distinct.len() as u32)
                .map(|slot| {
                    let slot_key = [&key[..], &slot.to_ne_bytes()].concat();
                    let element = self.sets[EP.name].get(&slot_key).expect("every slot has an endpoint");
                    let address: [u8; 4] = element.value[..4].try_into().unwrap();
                    (Ipv4Addr::from(address), u16::from_be_bytes([element.value[4], element.value[5]]))
                })
                .collect();
            assert_eq!(found, distinct);
            endpoints += distinct.len();
            if !distinct.is_empty() {
                svc.insert(key, rules::spread_chain(distinct.len() as u32));
            }
        }
        let found = self.sets.get(SVC.name).cloned().unwrap_or_default();
        assert_eq!(found.into_iter().map(|(k, e)| (k, e.chain.unwrap())).collect::<BTreeMap<_, _>>(), svc);
        assert_eq!(self.keys(EP.name).len(), endpoints, "no endpoint is left over");
        assert_eq!(self.keys(VIPS.name), vips);
        assert_eq!(self.keys(HAIRPIN.name), hairpin);
        let local: BTreeSet<_> = desired.local_vips.iter().map(|a| a.octets().to_vec()).collect();
        assert_eq!(self.keys(LOCAL.name), local);
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
    let backend =
        (0u8..6, 0u8..2, 0u16..3).prop_map(|(last, node, port)| (Ipv4Addr::new(10, 42, node, last), 8000 + port));
    let service = (0u8..5, any::<bool>(), 0u16..2, prop::collection::vec(backend, 0..9)).prop_map(
        |(last, tcp, port, backends)| ServiceEntry {
            vip: Ipv4Addr::new(10, 43, 0, last),
            port: 80 + port,
            proto: if tcp { Protocol::Tcp } else { Protocol::Udp },
            backends,
        },
    );
    (prop::collection::vec(service, 0..12), any::<bool>()).prop_map(|(mut services, local)| {
        services.sort_by_key(ServiceEntry::key);
        services.dedup_by_key(|service| service.key());
        Desired { services, local_vips: local.then(|| Ipv4Addr::new(10, 43, 0, 1)).into_iter().collect() }
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
            services: vec![ServiceEntry { vip: Ipv4Addr::new(10, 43, 0, 1), port: 80, proto: Protocol::Tcp, backends }],
            local_vips: Vec::new(),
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
    let service = ServiceEntry { vip: Ipv4Addr::new(10, 43, 0, 1), port: 80, proto: Protocol::Tcp, backends };
    let delta = tables.diff(&Desired { services: vec![service], local_vips: Vec::new() }, &layout);
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
