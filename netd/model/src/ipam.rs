//! Pod addresses of one node. The truth is the list of live pods, so a lost or stale file can never leak an address.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv4Addr;

use coracle_base::Millis;

use crate::Cidr;

/// How long a freed address rests while others are free, so that a stale name answer (TTL 5 s) or connection-tracking
/// entry of the old pod cannot hit a new one.
pub const REST_MS: Millis = 60_000;

/// The addresses of a node's block and who has them.
#[derive(Debug, Clone)]
pub struct Ipam {
    block: Cidr,
    by_address: BTreeMap<Ipv4Addr, String>,
    by_pod: HashMap<String, Ipv4Addr>,
    /// Freed addresses, the longest rested first.
    resting: VecDeque<(Ipv4Addr, Millis)>,
    /// Offset in the block where the search for a never-used address goes on.
    next: u64,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every usable address of the block belongs to a live pod.
    #[error("no free address in {block}: all {used} belong to live pods (hint: raise --max-pods for a larger block)")]
    Exhausted {
        /// The node's block.
        block: Cidr,
        /// Addresses in use.
        used: usize,
    },
    /// The address is outside the block, or its network, gateway or broadcast address.
    #[error("{address} of pod {pod} is not a pod address of {block}")]
    Foreign {
        /// The pod that claims it.
        pod: String,
        /// The claimed address.
        address: Ipv4Addr,
        /// The node's block.
        block: Cidr,
    },
    /// Two live pods claim one address.
    #[error("{address} is claimed by pod {pod} but belongs to pod {owner}")]
    Taken {
        /// The pod that claims it.
        pod: String,
        /// The claimed address.
        address: Ipv4Addr,
        /// The pod that has it.
        owner: String,
    },
}

impl Ipam {
    /// All addresses of `block` free. The network, gateway and broadcast addresses are never handed out.
    pub fn new(block: Cidr) -> Ipam {
        Ipam { block, by_address: BTreeMap::new(), by_pod: HashMap::new(), resting: VecDeque::new(), next: 2 }
    }

    /// Takes note of a live pod found at start (or adopted later). The same claim twice is fine.
    pub fn claim(&mut self, pod: &str, address: Ipv4Addr) -> Result<(), IpamError> {
        if !self.usable(address) {
            return Err(IpamError::Foreign { pod: pod.to_owned(), address, block: self.block });
        }
        match self.by_address.get(&address) {
            Some(owner) if owner == pod => return Ok(()),
            Some(owner) => return Err(IpamError::Taken { pod: pod.to_owned(), address, owner: owner.clone() }),
            None => {}
        }
        if let Some(&before) = self.by_pod.get(pod) {
            self.by_address.remove(&before);
        }
        self.resting.retain(|(resting, _)| *resting != address);
        self.by_address.insert(address, pod.to_owned());
        self.by_pod.insert(pod.to_owned(), address);
        Ok(())
    }

    /// The address of `pod`, a new one if it has none. Prefers one that has rested for [`REST_MS`], then one
    /// never used since start; a rest is cut short only when nothing else is free.
    pub fn allocate(&mut self, pod: &str, now_ms: Millis) -> Result<Ipv4Addr, IpamError> {
        if let Some(&address) = self.by_pod.get(pod) {
            return Ok(address);
        }
        let rested = self.resting.front().is_some_and(|(_, freed)| now_ms.saturating_sub(*freed) >= REST_MS);
        let address = match rested {
            true => self.resting.pop_front().map(|(address, _)| address),
            false => self.fresh().or_else(|| self.resting.pop_front().map(|(address, _)| address)),
        }
        .ok_or(IpamError::Exhausted { block: self.block, used: self.by_address.len() })?;
        self.by_address.insert(address, pod.to_owned());
        self.by_pod.insert(pod.to_owned(), address);
        Ok(address)
    }

    /// Frees the pod's address and says which it was.
    pub fn release(&mut self, pod: &str, now_ms: Millis) -> Option<Ipv4Addr> {
        let address = self.by_pod.remove(pod)?;
        self.by_address.remove(&address);
        self.resting.push_back((address, now_ms));
        Some(address)
    }

    /// The pod's address, if it has one.
    pub fn get(&self, pod: &str) -> Option<Ipv4Addr> {
        self.by_pod.get(pod).copied()
    }

    /// Live pods in order of address.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.by_address.iter().map(|(address, pod)| (pod.as_str(), *address))
    }

    /// Number of addresses in use.
    pub fn used(&self) -> usize {
        self.by_address.len()
    }

    /// Number of pods the block has room for.
    pub fn capacity(&self) -> u64 {
        self.block.size().saturating_sub(3)
    }

    fn usable(&self, address: Ipv4Addr) -> bool {
        self.block.contains(address)
            && address != self.block.network()
            && address != self.block.gateway()
            && address != self.block.last()
    }

    /// The next address that was never handed out since start.
    fn fresh(&mut self) -> Option<Ipv4Addr> {
        while let Some(address) = self.block.nth(self.next).filter(|address| *address != self.block.last()) {
            self.next += 1;
            let seen = self.by_address.contains_key(&address) || self.resting.iter().any(|(a, _)| *a == address);
            if !seen {
                return Some(address);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(block: &str) -> Ipam {
        Ipam::new(block.parse().unwrap())
    }

    #[test]
    fn hands_out_each_usable_address_once_then_says_exhausted() {
        let mut ipam = ipam("10.42.0.0/29");
        let mut got: Vec<_> = (0..5).map(|i| ipam.allocate(&format!("p{i}"), 0).unwrap()).collect();
        got.dedup();
        assert_eq!(got.len() as u64, ipam.capacity());
        assert_eq!((got[0], got[4]), (Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(10, 42, 0, 6)));
        let error = ipam.allocate("p5", 0).unwrap_err();
        assert!(matches!(error, IpamError::Exhausted { used: 5, .. }), "{error}");
    }

    #[test]
    fn the_same_pod_keeps_its_address() {
        let mut ipam = ipam("10.42.0.0/24");
        assert_eq!(ipam.allocate("a", 0).unwrap(), ipam.allocate("a", 9).unwrap());
        assert_eq!(ipam.used(), 1);
    }

    #[test]
    fn a_freed_address_rests_while_others_are_free() {
        let mut ipam = ipam("10.42.0.0/29");
        let first = ipam.allocate("a", 0).unwrap();
        ipam.release("a", 1_000);
        for pod in ["b", "c", "d", "e"] {
            assert_ne!(ipam.allocate(pod, 2_000).unwrap(), first);
        }
        assert_eq!(ipam.allocate("f", 2_000).unwrap(), first, "a preference, never a refusal");
    }

    #[test]
    fn a_rested_address_is_used_again() {
        let mut ipam = ipam("10.42.0.0/24");
        let first = ipam.allocate("a", 0).unwrap();
        ipam.release("a", 1_000);
        assert_ne!(ipam.allocate("b", 1_000 + REST_MS - 1).unwrap(), first);
        assert_eq!(ipam.allocate("c", 1_000 + REST_MS).unwrap(), first);
    }

    #[test]
    fn live_pods_are_the_truth() {
        let mut ipam = ipam("10.42.0.0/24");
        let address = Ipv4Addr::new(10, 42, 0, 2);
        ipam.claim("old", address).unwrap();
        ipam.claim("old", address).unwrap();
        assert_ne!(ipam.allocate("new", 0).unwrap(), address);
        assert!(matches!(ipam.claim("thief", address), Err(IpamError::Taken { .. })));
        assert!(matches!(ipam.claim("x", Ipv4Addr::new(10, 42, 0, 1)), Err(IpamError::Foreign { .. })));
        assert!(matches!(ipam.claim("x", Ipv4Addr::new(10, 43, 0, 9)), Err(IpamError::Foreign { .. })));
        ipam.claim("old", Ipv4Addr::new(10, 42, 0, 9)).unwrap();
        assert_eq!(ipam.iter().filter(|(pod, _)| *pod == "old").count(), 1, "a moved pod leaves no address behind");
    }

    proptest::proptest! {
        #[test]
        fn no_two_live_pods_share_an_address(steps in proptest::collection::vec((0u8..12, proptest::bool::ANY), 0..200)) {
            let mut ipam = ipam("10.42.0.0/28");
            let mut model: HashMap<String, Ipv4Addr> = HashMap::new();
            for (now, (pod, up)) in steps.into_iter().enumerate() {
                let pod = format!("p{pod}");
                if up {
                    let address = ipam.allocate(&pod, now as u64 * 7_000).unwrap();
                    model.insert(pod, address);
                } else {
                    proptest::prop_assert_eq!(ipam.release(&pod, now as u64 * 7_000), model.remove(&pod));
                }
                let distinct: std::collections::HashSet<_> = model.values().collect();
                proptest::prop_assert_eq!(distinct.len(), model.len());
                proptest::prop_assert_eq!(ipam.used(), model.len());
            }
        }
    }
}
