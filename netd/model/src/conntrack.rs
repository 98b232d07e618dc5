//! Connection tracking's UDP flows to service addresses: which are stale, and the messages that list and delete them.
//!
//! A UDP flow keeps its translation as long as the client keeps its source port, also when the endpoint is gone; then
//! it goes nowhere until somebody deletes the flow.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::nft::{Header, Writer, attribute, payload};
use crate::tables::Backend;
use crate::{Cidr, Protocol};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPS_DST_NAT: u32 = 1 << 5;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_ACK: u16 = 4;

/// Asks for all flows whose destination was translated.
pub fn list_translated() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(header(IPCTNL_MSG_CT_GET, NLM_F_DUMP, 1), |w| {
        w.u32(CTA_STATUS, IPS_DST_NAT);
        w.u32(CTA_STATUS_MASK, IPS_DST_NAT);
    });
    writer.bytes
}

fn header(message: u16, flags: u16, sequence: u32) -> Header {
    Header { kind: NFNL_SUBSYS_CTNETLINK << 8 | message, flags, sequence, family: 2, resource: 0 }
}

/// A flow as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where the client sent to: a service address, if the flow is one of ours.
    pub destination: Backend,
    /// Where the answer comes from: the endpoint.
    pub endpoint: Backend,
    /// The original direction's attribute as received, to name the flow when deleting it.
    original: Vec<u8>,
    id: Option<[u8; 4]>,
    zone: Option<[u8; 2]>,
}

/// The UDP flow in a part of an answer to [`list_translated`].
pub fn udp_flow(body: &[u8]) -> Option<Flow> {
    let attributes = payload(body);
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let number = *attribute(attribute(original, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?.first()?;
    if number != Protocol::Udp.number() {
        return None;
    }
    Some(Flow {
        destination: (tuple_address(original, CTA_IP_V4_DST)?, tuple_port(original, CTA_PROTO_DST_PORT)?),
        endpoint: (tuple_address(reply, CTA_IP_V4_SRC)?, tuple_port(reply, CTA_PROTO_SRC_PORT)?),
        original: original.to_vec(),
        id: attribute(attributes, CTA_ID).and_then(|id| id.try_into().ok()),
        zone: attribute(attributes, CTA_ZONE).and_then(|zone| zone.try_into().ok()),
    })
}

fn tuple_address(tuple: &[u8], which: u16) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = attribute(attribute(tuple, CTA_TUPLE_IP)?, which)?.try_into().ok()?;
    Some(octets.into())
}

fn tuple_port(tuple: &[u8], which: u16) -> Option<u16> {
    attribute(attribute(tuple, CTA_TUPLE_PROTO)?, which)?.try_into().ok().map(u16::from_be_bytes)
}

/// Whether a flow goes to an endpoint that its service no longer has. Others translate addresses too; ours are those to service
/// addresses, to ports that services have, and to pods (of services and node ports that are gone).
pub fn is_stale(
    flow: &Flow,
    services: &HashMap<(Ipv4Addr, u16), Vec<Backend>>,
    service_cidr: Cidr,
    cluster_cidr: Cidr,
) -> bool {
    match services.get(&flow.destination) {
        Some(backends) => !backends.contains(&flow.endpoint),
        None => service_cidr.contains(flow.destination.0) || cluster_cidr.contains(flow.endpoint.0),
    }
}

/// The message that deletes one flow. ENOENT in the answer means it ended by itself.
pub fn delete(flow: &Flow, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(header(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, sequence), |w| {
        w.nested(CTA_TUPLE_ORIG, |w| w.bytes.extend_from_slice(&flow.original));
        if let Some(zone) = flow.zone {
            w.bytes(CTA_ZONE, &zone);
        }
        if let Some(id) = flow.id {
            w.bytes(CTA_ID, &id);
        }
    });
    writer.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_of_others_are_left_alone() {
        let (services, pods) = ("10.43.0.0/16".parse().unwrap(), "10.42.0.0/16".parse().unwrap());
        let (vip, node) = (Ipv4Addr::new(10, 43, 0, 9), Ipv4Addr::new(192, 0, 2, 1));
        let (pod, other) = (Ipv4Addr::new(10, 42, 1, 2), Ipv4Addr::new(172, 17, 0, 2));
        let table = HashMap::from([((vip, 53), vec![(pod, 5353)]), ((node, 30_053), vec![(pod, 5353), (other, 53)])]);
        let stale = |destination: Backend, endpoint: Backend| {
            let flow = Flow { destination, endpoint, original: Vec::new(), id: None, zone: None };
            is_stale(&flow, &table, services, pods)
        };
        assert!(!stale((vip, 53), (pod, 5353)), "its endpoint");
        assert!(stale((vip, 53), (pod, 5354)), "an endpoint it has no more");
        assert!(stale((vip, 54), (pod, 5353)), "a port it has no more");
        assert!(!stale((node, 30_053), (other, 53)) && stale((node, 30_053), (other, 54)));
        assert!(stale((node, 30_054), (pod, 5353)), "a node port that is gone");
        assert!(!stale((node, 8053), (other, 53)), "somebody else's containers");
    }
}
