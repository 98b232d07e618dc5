//! The addresses of Services: chosen at random from their block, or checked when a Service names its own. The store's claims
//! make them unique, whoever else asks at the same time.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use coracle_manifests::view::{list, text};
use coracle_manifests::{Problem, Reason};
use coracle_store::View;
use serde_json::{Value, json};

/// The block that service addresses come from.
#[derive(Debug, Clone, Copy)]
pub struct ServiceAddresses {
    /// First address of the block.
    pub base: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
}

/// The first addresses are kept for the system: the API's own is `.1`.
const RESERVED: u32 = 10;

/// What a Service gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assigned {
    /// No address: headless.
    Headless,
    /// One that it named itself.
    Asked(Ipv4Addr),
    /// A free one, which may be taken when the claim is made: then another is tried.
    Free(Ipv4Addr),
}

impl Assigned {
    /// The names that only this Service may hold.
    pub(crate) fn claims(&self) -> Vec<String> {
        match self {
            Self::Headless => Vec::new(),
            Self::Asked(address) | Self::Free(address) => vec![format!("clusterip/{address}")],
        }
    }
}

/// A problem of `spec.clusterIP`.
pub(crate) fn invalid(message: impl Into<String>) -> Problem {
    Problem::new("spec.clusterIP", Reason::Invalid, message)
}

impl ServiceAddresses {
    /// Gives a Service its address, or checks the one it asks for. `seed` says where the search for a free one begins.
    pub(crate) fn assign(&self, view: &View, service: &mut Value, seed: u32) -> Result<Assigned, Problem> {
        let spec = &mut service["spec"];
        let asked = match (text(&spec["clusterIP"]), list(&spec["clusterIPs"])) {
            (one, []) => one.to_owned(),
            ("", [first]) => text(first).to_owned(),
            (one, [first]) if text(first) == one => one.to_owned(),
            (_, [_]) => return Err(invalid("is not the first of `clusterIPs`")),
            _ => return Err(Problem::new("spec.clusterIPs", Reason::Invalid, "at most one address is supported")),
        };
        let assigned = match asked.as_str() {
            "None" => Assigned::Headless,
            "" => Assigned::Free(self.free(view, seed)?),
            asked => Assigned::Asked(self.checked(asked)?),
        };
        let shown = match &assigned {
            Assigned::Headless => "None".to_owned(),
            Assigned::Asked(address) | Assigned::Free(address) => address.to_string(),
        };
        spec["clusterIP"] = json!(shown);
        spec["clusterIPs"] = json!([shown]);
        Ok(assigned)
    }

    fn size(&self) -> u32 {
        1_u32 << (32 - u32::from(self.prefix)).min(31)
    }

    fn free(&self, view: &View, seed: u32) -> Result<Ipv4Addr, Problem> {
        let services: Vec<_> = view.list("services", None).collect();
        let taken: HashSet<&str> = services.iter().map(|service| text(&service.tree()["spec"]["clusterIP"])).collect();
        let size = self.size();
        let start = seed % size;
        (0..size)
            .map(|step| (start + step) % size)
            .filter(|offset| *offset >= RESERVED && *offset < size - 1)
            .map(|offset| Ipv4Addr::from(u32::from(self.base) + offset))
            .find(|address| !taken.contains(address.to_string().as_str()))
            .ok_or_else(|| invalid(format!("all addresses of {}/{} are taken", self.base, self.prefix)))
    }

    fn checked(&self, asked: &str) -> Result<Ipv4Addr, Problem> {
        let address: Ipv4Addr =
            asked.parse().map_err(|_| invalid(format!("`{asked}` is not an IPv4 address, `None` or nothing")))?;
        let offset = u32::from(address).wrapping_sub(u32::from(self.base));
        if offset == 0 || offset >= self.size() - 1 {
            return Err(invalid(format!("{asked} is not in the service block {}/{}", self.base, self.prefix)));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_store::{Key, Limits, Op, Store};

    const BLOCK: ServiceAddresses = ServiceAddresses { base: Ipv4Addr::new(10, 43, 0, 0), prefix: 28 };

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "x", "uid": "u"}, "spec": spec})
    }

    #[test]
    fn free_addresses_come_from_the_block_until_none_is_left() {
        let mut store = Store::new(Limits::default());
        let mut seen = Vec::new();
        // 16 addresses, ten of them reserved, the last is the broadcast one.
        for index in 0..5 {
            let mut value = service(json!({}));
            value["metadata"]["name"] = json!(format!("s{index}"));
            let assigned = BLOCK.assign(&store.view(), &mut value, index * 7919).unwrap();
            let claims = assigned.claims();
            assert!(!seen.contains(&claims));
            seen.push(claims.clone());
            let key = Key::new("services", "x", format!("s{index}"));
            let op = Op::Create { key, value: std::sync::Arc::new(value), claims };
            assert!(store.apply(&[op.into()])[0].is_ok());
        }
        let full = BLOCK.assign(&store.view(), &mut service(json!({})), 3).unwrap_err();
        assert!(full.message.contains("all addresses"));
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let ask = |spec: Value| BLOCK.assign(&View::default(), &mut service(spec), 0);
        assert_eq!(ask(json!({"clusterIP": "None"})), Ok(Assigned::Headless));
        assert_eq!(ask(json!({"clusterIP": "10.43.0.3"})), Ok(Assigned::Asked(Ipv4Addr::new(10, 43, 0, 3))));
        assert_eq!(ask(json!({"clusterIPs": ["10.43.0.3"]})), Ok(Assigned::Asked(Ipv4Addr::new(10, 43, 0, 3))));
        assert_eq!(ask(json!({"clusterIP": ""})), Ok(Assigned::Free(Ipv4Addr::new(10, 43, 0, 10))));
        for bad in [
            json!({"clusterIP": "10.43.0.0"}),
            json!({"clusterIP": "10.43.0.15"}),
            json!({"clusterIP": "10.43.0.16"}),
            json!({"clusterIP": "10.42.255.255"}),
            json!({"clusterIP": "::1"}),
            json!({"clusterIP": "here"}),
            json!({"clusterIP": "10.43.0.3", "clusterIPs": ["10.43.0.4"]}),
            json!({"clusterIPs": ["10.43.0.3", "10.43.0.4"]}),
        ] {
            assert!(ask(bad.clone()).is_err(), "{bad}");
        }
    }
}
