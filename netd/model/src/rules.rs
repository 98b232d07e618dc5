//! The fixed part of our table: sets, chains and rules. Services and endpoints are set elements only, so this changes
//! with the configuration and the release, never with the cluster.
//!
//! ```text
//! map svc      vip . proto . port        -> goto lb-N         N endpoints
//! map ep       vip . proto . port . slot -> address . port    slot 0..N-1
//! set hairpin  address . address         endpoints on this node, whose own connections come back to them
//! set vips     address                   service addresses that exist: refused, where unknown ones are dropped
//! set local    address                   service addresses this node answers itself
//! chain lb-N   dnat to vip . proto . port . (random mod N) map @ep
//! ```

use std::net::Ipv4Addr;

use crate::nft::{Batch, CompareOp, ConntrackKey, Expr, MetaKey, PayloadBase, Rejection, Set, Verdict};
use crate::{Cidr, Layout};

/// Grows when the rules change in a way old elements do not survive.
const SCHEMA: u32 = 1;

const IPV4: u32 = crate::nft::TYPE_IPV4_ADDR;
const PROTO: u32 = crate::nft::TYPE_INET_PROTOCOL;
const PORT: u32 = crate::nft::TYPE_INET_SERVICE;
const SLOT: u32 = crate::nft::TYPE_MARK;

/// vip . proto . port -> verdict
pub const SVC: Set = Set {
    name: "svc",
    id: 1,
    key_type: IPV4 << 12 | PROTO << 6 | PORT,
    key_len: 12,
    data: Some((crate::nft::DATA_VERDICT, 0)),
};
/// vip . proto . port . slot -> address . port
pub const EP: Set = Set {
    name: "ep",
    id: 2,
    key_type: IPV4 << 18 | PROTO << 12 | PORT << 6 | SLOT,
    key_len: 16,
    data: Some((IPV4 << 6 | PORT, 8)),
};
/// source . destination of connections that come back to where they began
pub const HAIRPIN: Set = Set { name: "hairpin", id: 3, key_type: IPV4 << 6 | IPV4, key_len: 8, data: None };
/// service addresses that exist
pub const VIPS: Set = Set { name: "vips", id: 4, key_type: IPV4, key_len: 4, data: None };
/// service addresses that are answered here
pub const LOCAL: Set = Set { name: "local", id: 5, key_type: IPV4, key_len: 4, data: None };
/// All sets of the table.
pub const SETS: [Set; 5] = [SVC, EP, HAIRPIN, VIPS, LOCAL];

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const DSTNAT_PRIORITY: i32 = -100;
const FILTER_PRIORITY: i32 = 0;
const SRCNAT_PRIORITY: i32 = 100;
/// The offset of the destination address in an IPv4 header.
const DESTINATION: u32 = 16;
const SOURCE: u32 = 12;
/// `NFT_REG_1`, and the 32-bit registers that follow its first four bytes.
const REG: u32 = 1;
const REG_PART_2: u32 = 9;
const REG_PART_3: u32 = 10;
const REG_PART_4: u32 = 11;
const IPS_DST_NAT: u32 = 1 << 5;
const NF_CT_STATE_INVALID_BIT: u32 = 1;
const ICMP_REDIRECT: u8 = 5;

/// Rules of one chain.
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    hook: Option<(&'static str, u32, i32)>,
    rules: Vec<Vec<Expr>>,
}

/// Name of the chain that spreads over `n` endpoints.
pub fn spread_chain(n: u32) -> String {
    format!("lb-{n}")
}

/// The number of endpoints in the name of a spreading chain.
pub fn spread_of(chain: &str) -> Option<u32> {
    chain.strip_prefix("lb-")?.parse().ok().filter(|n| *n > 0)
}

/// The fixed chains. A chain comes before those that go to it.
pub(crate) fn chains(layout: &Layout) -> Vec<Chain> {
    let dispatch = || {
        let mut rule = service_key();
        rule.push(Expr::MapVerdict { set: SVC.name, set_id: SVC.id, key: REG });
        vec![rule]
    };
    let mut check = match_block(DESTINATION, layout.service_cidr, CompareOp::Equal);
    check.push(Expr::Verdict(Verdict::Goto("unrouted".to_owned())));
    vec![
        Chain { name: "unrouted", hook: None, rules: unrouted() },
        Chain { name: "pre", hook: Some(("nat", PREROUTING, DSTNAT_PRIORITY)), rules: dispatch() },
        Chain { name: "out", hook: Some(("nat", OUTPUT, DSTNAT_PRIORITY)), rules: dispatch() },
        Chain { name: "post", hook: Some(("nat", POSTROUTING, SRCNAT_PRIORITY)), rules: masquerade(layout) },
        Chain {
            name: "forward",
            hook: Some(("filter", FORWARD, FILTER_PRIORITY)),
            rules: vec![
                drop_invalid(MetaKey::InputName, layout),
                drop_invalid(MetaKey::OutputName, layout),
                check.clone(),
            ],
        },
        Chain {
            name: "output",
            hook: Some(("filter", OUTPUT, FILTER_PRIORITY)),
            rules: vec![check, drop_redirects(layout)],
        },
    ]
}

/// Number of rules the fixed chains have, and each spreading chain has one.
pub(crate) fn fixed_rule_count(layout: &Layout) -> usize {
    chains(layout).iter().map(|chain| chain.rules.len()).sum()
}

/// The comment on the table: tells whether the fixed part there is the one we would write.
pub fn stamp(layout: &Layout) -> String {
    let mut batch = Batch::new(&layout.table, None);
    write_fixed(&mut batch, layout);
    let (bytes, _) = batch.finish();
    format!("coracle {SCHEMA} {:016x}", fnv1a(&bytes))
}

/// The fixed part without the table itself.
pub(crate) fn write_fixed(batch: &mut Batch, layout: &Layout) {
    SETS.iter().for_each(|set| batch.add_set(set));
    let chains = chains(layout);
    for chain in &chains {
        match chain.hook {
            None => batch.add_chain(chain.name),
            Some((kind, hook, priority)) => batch.add_base_chain(chain.name, kind, hook, priority),
        }
    }
    for chain in &chains {
        chain.rules.iter().for_each(|rule| batch.add_rule(chain.name, rule));
    }
}

/// The chain that spreads over `n` endpoints, with its one rule.
pub(crate) fn write_spread_chain(batch: &mut Batch, n: u32) {
    let name = spread_chain(n);
    batch.add_chain(&name);
    let mut rule = service_key();
    rule.push(Expr::Random { modulus: n, to: REG_PART_4 });
    rule.push(Expr::MapTo { set: EP.name, set_id: EP.id, key: REG, to: REG });
    rule.push(Expr::DestinationNat { address: REG, port: REG_PART_2 });
    batch.add_rule(&name, &rule);
}

/// Loads daddr . l4proto . dport.
fn service_key() -> Vec<Expr> {
    vec![
        Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG },
        Expr::Meta { key: MetaKey::L4Proto, to: REG_PART_2 },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, to: REG_PART_3 },
    ]
}

/// What happens to packets for a service address that no endpoint took.
fn unrouted() -> Vec<Vec<Expr>> {
    let destination = Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG };
    let in_set = |set: Set| Expr::InSet { set: set.name, set_id: set.id, key: REG };
    let known = vec![destination.clone(), in_set(VIPS)];
    let mut invalid = conntrack_bits(ConntrackKey::State, NF_CT_STATE_INVALID_BIT);
    invalid.push(Expr::Verdict(Verdict::Drop));
    let mut tcp = known.clone();
    tcp.extend(match_l4(Protocol::TCP));
    tcp.push(Expr::Reject(Rejection::TcpReset));
    let mut other = known;
    other.push(Expr::Reject(Rejection::PortUnreachable));
    vec![
        vec![destination, in_set(LOCAL), Expr::Verdict(Verdict::Accept)],
        // A late segment of a connection that tracking gave up on: a reset would break a healthy connection.
        invalid,
        tcp,
        other,
        // An address no service has (yet): a client that retries gets through once the service is known.
        vec![Expr::Verdict(Verdict::Drop)],
    ]
}

struct Protocol;
impl Protocol {
    const ICMP: u8 = 1;
    const TCP: u8 = 6;
}

fn masquerade(layout: &Layout) -> Vec<Vec<Expr>> {
    let mut hairpin = conntrack_bits(ConntrackKey::Status, IPS_DST_NAT);
    hairpin.extend([
        Expr::Payload { base: PayloadBase::Network, offset: SOURCE, len: 4, to: REG },
        Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG_PART_2 },
        Expr::InSet { set: HAIRPIN.name, set_id: HAIRPIN.id, key: REG },
        Expr::Masquerade { fully_random: false },
    ]);
    let mut outgoing = match_block(SOURCE, layout.node_cidr, CompareOp::Equal);
    outgoing.extend(match_block(DESTINATION, layout.cluster_cidr, CompareOp::NotEqual));
    outgoing.push(Expr::Masquerade { fully_random: true });
    vec![hairpin, outgoing]
}

/// Segments that tracking calls invalid are not translated back: the client would see the endpoint's own address and
/// reset a healthy connection. They come from pods here, and from endpoints on other nodes.
fn drop_invalid(side: MetaKey, layout: &Layout) -> Vec<Expr> {
    let mut rule = match_link(side, &layout.bridge);
    rule.extend(conntrack_bits(ConntrackKey::State, NF_CT_STATE_INVALID_BIT));
    rule.push(Expr::Verdict(Verdict::Drop));
    rule
}

/// The kernel would tell a pod that its neighbour is on the same link; the pod would then go past our rules. The
/// setting send_redirects forbids it too, but whoever resets the one for all links overrules ours.
fn drop_redirects(layout: &Layout) -> Vec<Expr> {
    let mut rule = match_link(MetaKey::OutputName, &layout.bridge);
    rule.extend(match_l4(Protocol::ICMP));
    rule.extend([
        Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, to: REG },
        Expr::Compare { reg: REG, op: CompareOp::Equal, value: vec![ICMP_REDIRECT] },
        Expr::Verdict(Verdict::Drop),
    ]);
    rule
}

fn match_link(key: MetaKey, name: &str) -> Vec<Expr> {
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    vec![Expr::Meta { key, to: REG }, Expr::Compare { reg: REG, op: CompareOp::Equal, value }]
}

fn match_l4(number: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::L4Proto, to: REG },
        Expr::Compare { reg: REG, op: CompareOp::Equal, value: vec![number] },
    ]
}

fn conntrack_bits(key: ConntrackKey, bits: u32) -> Vec<Expr> {
    vec![
        Expr::Conntrack { key, to: REG },
        Expr::Mask { reg: REG, mask: bits.to_ne_bytes().to_vec() },
        Expr::Compare { reg: REG, op: CompareOp::NotEqual, value: vec![0; 4] },
    ]
}

/// Compares the address at `offset` with a block. Blocks that end at a byte are compared by their leading bytes, as
/// `nft` does it.
fn match_block(offset: u32, block: Cidr, op: CompareOp) -> Vec<Expr> {
    let prefix = u32::from(block.prefix());
    let network = block.network().octets();
    if prefix > 0 && prefix.is_multiple_of(8) {
        let len = prefix / 8;
        return vec![
            Expr::Payload { base: PayloadBase::Network, offset, len, to: REG },
            Expr::Compare { reg: REG, op, value: network[..len as usize].to_vec() },
        ];
    }
    vec![
        Expr::Payload { base: PayloadBase::Network, offset, len: 4, to: REG },
        Expr::Mask { reg: REG, mask: block.mask().octets().to_vec() },
        Expr::Compare { reg: REG, op, value: network.to_vec() },
    ]
}

/// A key of HAIRPIN.
pub(crate) fn hairpin_key(address: Ipv4Addr) -> Vec<u8> {
    [address.octets(), address.octets()].concat()
}

/// A small stable hash for stamps and names.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
