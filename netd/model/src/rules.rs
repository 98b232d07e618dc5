//! The fixed part of our table: sets, chains and rules. Services and endpoints are set elements only, so this changes
//! with the configuration and the release, never with the cluster.
//!
//! ```text
//! map svc      vip . proto . port        -> goto lb-N         N endpoints
//! map inner    the same for pods and this node alone, -> goto in-N: it comes first
//! map ep       vip . proto . port . slot -> address . port    slot 0..N-1, those of `inner` from 2^31 on
//! set hairpin  address . address         endpoints on this node, whose own connections come back to them
//! set outside  address                   endpoints that are no pods: outsiders reach them in this node's name
//! set vips     address                   service addresses that exist: refused, where unknown ones are dropped
//! set local    address                   service addresses this node answers itself
//! set shut     vip . proto . port        exposed, and without an endpoint: refused
//! set guarded  vip . proto . port        reached by some clients only
//! set allowed  vip . proto . port . clients   those clients, in ranges
//! map sticky   vip . proto . port . client -> address . port  which endpoint a client has, filled by packets
//! map keep     vip . proto . port        -> goto keep-T        ports whose clients stay with their endpoint for T seconds
//! chain lb-N   dnat to vip . proto . port . (random mod N) map @ep
//! chain keep-T update @sticky with whom a new connection came to
//! ```
//!
//! `vip` is whatever address a service is reached at: its own, this node's (node ports, load balancers), or one of the outside that
//! is led here.

use std::net::Ipv4Addr;

use crate::nft::{Batch, CompareOp, ConntrackKey, Expr, MetaKey, OriginalKey, PayloadBase, Rejection, Set, Verdict};
use crate::{Cidr, Clients, Layout};

/// Grows when the rules change in a way old elements do not survive.
const SCHEMA: u32 = 2;
/// Slots of endpoints for clients of the inside have this bit.
pub(crate) const INSIDE_SLOTS: u32 = 1 << 31;
/// Clients whose endpoint is remembered, of all services together: about 25 MB of kernel memory. Beyond it clients go anywhere.
const MOST_STICKY: u32 = 1 << 18;

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
    remembers: None,
    ranges: None,
};
/// The same for clients of the inside.
pub const INNER: Set = Set { name: "inner", id: 6, ..SVC };
/// vip . proto . port . slot -> address . port
pub const EP: Set = Set {
    name: "ep",
    id: 2,
    key_type: IPV4 << 18 | PROTO << 12 | PORT << 6 | SLOT,
    key_len: 16,
    data: Some((IPV4 << 6 | PORT, 8)),
    remembers: None,
    ranges: None,
};
/// source . destination of connections that come back to where they began
pub const HAIRPIN: Set =
    Set { name: "hairpin", id: 3, key_type: IPV4 << 6 | IPV4, key_len: 8, data: None, remembers: None, ranges: None };
/// service addresses that exist
pub const VIPS: Set =
    Set { name: "vips", id: 4, key_type: IPV4, key_len: 4, data: None, remembers: None, ranges: None };
/// service addresses that are answered here
pub const LOCAL: Set = Set { name: "local", id: 5, ..VIPS };
/// vip . proto . port of exposed ports without endpoints
pub const SHUT: Set = Set { name: "shut", id: 7, data: None, ..SVC };
/// vip . proto . port -> verdict, of ports whose clients stay with their endpoint
pub const KEEP: Set = Set { name: "keep", id: 8, ..SVC };
/// endpoints that are no pods
pub const OUTSIDE: Set = Set { name: "outside", id: 9, ..VIPS };
/// vip . proto . port . client -> address . port
pub const STICKY: Set = Set {
    name: "sticky",
    id: 10,
    key_type: IPV4 << 18 | PROTO << 12 | PORT << 6 | IPV4,
    key_len: 16,
    data: Some((IPV4 << 6 | PORT, 8)),
    remembers: Some(MOST_STICKY),
    ranges: None,
};
/// vip . proto . port of ports that only some clients may reach
pub const GUARDED: Set = Set { name: "guarded", id: 11, data: None, ..SVC };
/// vip . proto . port . clients that may
pub const ALLOWED: Set = Set {
    name: "allowed",
    id: 12,
    key_type: IPV4 << 18 | PROTO << 12 | PORT << 6 | IPV4,
    key_len: 16,
    data: None,
    remembers: None,
    ranges: Some(&[4, 1, 2, 4]),
};
/// The sets of the table that are written from here. What packets write is nobody's to compare.
pub const SETS: [Set; 11] = [SVC, EP, HAIRPIN, VIPS, LOCAL, INNER, SHUT, KEEP, OUTSIDE, GUARDED, ALLOWED];

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
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
const NF_CT_STATE_NEW_BIT: u32 = 1 << 3;
const ICMP_REDIRECT: u8 = 5;

/// Rules of one chain.
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    hook: Option<(&'static str, u32, i32)>,
    rules: Vec<Vec<Expr>>,
}

/// The chains that come and go with what services want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chosen {
    /// Spreads over so many endpoints, at least one, for these clients.
    Spread(u32, Clients),
    /// Remembers endpoints for so many seconds.
    Keep(u32),
}

impl Chosen {
    /// The name of the chain.
    pub fn chain(self) -> String {
        match self {
            Chosen::Spread(endpoints, Clients::All) => format!("lb-{endpoints}"),
            Chosen::Spread(endpoints, Clients::Inside) => format!("in-{endpoints}"),
            Chosen::Keep(seconds) => format!("keep-{seconds}"),
        }
    }

    /// What the name of a chain says; `None` for any other name.
    pub fn of(chain: &str) -> Option<Chosen> {
        let (word, number) = chain.split_once('-')?;
        let number = number.parse().ok().filter(|number| *number > 0)?;
        let chosen = match word {
            "lb" => Chosen::Spread(number, Clients::All),
            "in" => Chosen::Spread(number, Clients::Inside),
            "keep" => Chosen::Keep(number),
            _ => return None,
        };
        // One chain has one name: no leading zeros.
        (chosen.chain() == chain).then_some(chosen)
    }

    /// How many rules its chain has.
    pub(crate) fn rule_count(self) -> usize {
        match self {
            Chosen::Spread(..) => 1,
            Chosen::Keep(_) => 2,
        }
    }
}

/// The fixed chains. A chain comes before those that go to it.
pub(crate) fn chains(layout: &Layout) -> Vec<Chain> {
    let dispatch = |map: Set| {
        let mut rule = service_key();
        rule.push(Expr::MapVerdict { set: map.name, set_id: map.id, key: REG });
        rule
    };
    let mut pods = match_block(SOURCE, layout.cluster_cidr, CompareOp::Equal);
    pods.extend(dispatch(INNER));
    let mut check = match_block(DESTINATION, layout.service_cidr, CompareOp::Equal);
    check.push(Expr::Verdict(Verdict::Goto("unrouted".to_owned())));
    let mut shut = service_key();
    shut.push(Expr::InSet { set: SHUT.name, set_id: SHUT.id, key: REG });
    shut.push(Expr::Verdict(Verdict::Goto("refuse".to_owned())));
    let mut unwanted = service_key();
    unwanted.push(Expr::InSet { set: GUARDED.name, set_id: GUARDED.id, key: REG });
    unwanted.extend(client_key());
    unwanted.push(Expr::NotInSet { set: ALLOWED.name, set_id: ALLOWED.id, key: REG });
    unwanted.push(Expr::Verdict(Verdict::Drop));
    let pre = vec![unwanted, go_back(), pods, dispatch(SVC)];
    let input = [&[shut.clone()][..], &keep()].concat();
    let out = vec![go_back(), dispatch(INNER), dispatch(SVC)];
    vec![
        Chain { name: "refuse", hook: None, rules: refuse() },
        Chain { name: "unrouted", hook: None, rules: unrouted() },
        Chain { name: "pre", hook: Some(("nat", PREROUTING, DSTNAT_PRIORITY)), rules: pre },
        Chain { name: "out", hook: Some(("nat", OUTPUT, DSTNAT_PRIORITY)), rules: out },
        Chain { name: "post", hook: Some(("nat", POSTROUTING, SRCNAT_PRIORITY)), rules: masquerade(layout) },
        // Where a connection goes on to its endpoint, in its client's name still.
        Chain { name: "passed", hook: Some(("filter", POSTROUTING, FILTER_PRIORITY)), rules: keep().to_vec() },
        // Before tracking remembers the flow: a UDP client would keep to it once there is an endpoint.
        Chain { name: "input", hook: Some(("filter", INPUT, FILTER_PRIORITY)), rules: input },
        Chain {
            name: "forward",
            hook: Some(("filter", FORWARD, FILTER_PRIORITY)),
            rules: vec![
                drop_invalid(MetaKey::InputName, layout),
                drop_invalid(MetaKey::OutputName, layout),
                check.clone(),
                shut.clone(),
            ],
        },
        Chain {
            name: "output",
            hook: Some(("filter", OUTPUT, FILTER_PRIORITY)),
            rules: vec![check, shut, drop_redirects(layout)],
        },
    ]
}

/// Number of rules the fixed chains have.
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
    SETS.iter().chain([&STICKY]).for_each(|set| batch.add_set(set));
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

/// A chain with its rules.
pub(crate) fn write_chosen_chain(batch: &mut Batch, chosen: Chosen) {
    let name = chosen.chain();
    batch.add_chain(&name);
    match chosen {
        Chosen::Spread(endpoints, clients) => batch.add_rule(&name, &spread(endpoints, clients)),
        Chosen::Keep(seconds) => remember(seconds).iter().for_each(|rule| batch.add_rule(&name, rule)),
    }
}

fn spread(endpoints: u32, clients: Clients) -> Vec<Expr> {
    let offset = if clients == Clients::Inside { INSIDE_SLOTS } else { 0 };
    let mut rule = service_key();
    rule.push(Expr::Random { modulus: endpoints, offset, to: REG_PART_4 });
    rule.push(Expr::MapTo { set: EP.name, set_id: EP.id, key: REG, to: REG });
    rule.push(Expr::DestinationNat { address: REG, port: REG_PART_2 });
    rule
}

/// A client goes where it went before. Endpoints that are gone are taken out of the map by whoever takes them out of the others.
fn go_back() -> Vec<Expr> {
    let mut rule = client_key();
    rule.push(Expr::MapTo { set: STICKY.name, set_id: STICKY.id, key: REG, to: REG });
    rule.push(Expr::DestinationNat { address: REG, port: REG_PART_2 });
    rule
}

/// New connections to services whose clients stay with their endpoint. A rule for each protocol, as `nft` prints the original port
/// only where the protocol is known.
fn keep() -> [Vec<Expr>; 2] {
    [Protocol::TCP, Protocol::UDP].map(|number| {
        let mut rule = match_l4(number);
        rule.extend(conntrack_bits(ConntrackKey::State, NF_CT_STATE_NEW_BIT));
        rule.extend(conntrack_bits(ConntrackKey::Status, IPS_DST_NAT));
        rule.extend(original_key());
        rule.push(Expr::MapVerdict { set: KEEP.name, set_id: KEEP.id, key: REG });
        rule
    })
}

/// Notes for whom a connection came and where it went. When no more fit the next one may go anywhere.
fn remember(seconds: u32) -> [Vec<Expr>; 2] {
    // `NFT_REG_2`, behind the four parts of the key.
    const VALUE: u32 = 12;
    [Protocol::TCP, Protocol::UDP].map(|number| {
        let mut rule = match_l4(number);
        rule.extend(original_key());
        rule.extend([
            Expr::ConntrackOriginal { key: OriginalKey::Source, to: REG_PART_4 },
            Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: VALUE },
            Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, to: VALUE + 1 },
            Expr::Remember { set: STICKY.name, set_id: STICKY.id, key: REG, value: VALUE, timeout_s: seconds },
        ]);
        rule
    })
}

/// Loads what a client of a service sent to: daddr . l4proto . dport before translation.
fn original_key() -> Vec<Expr> {
    vec![
        Expr::ConntrackOriginal { key: OriginalKey::Destination, to: REG },
        Expr::Meta { key: MetaKey::L4Proto, to: REG_PART_2 },
        Expr::ConntrackOriginal { key: OriginalKey::DestinationPort, to: REG_PART_3 },
    ]
}

/// Loads daddr . l4proto . dport.
fn service_key() -> Vec<Expr> {
    vec![
        Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG },
        Expr::Meta { key: MetaKey::L4Proto, to: REG_PART_2 },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, to: REG_PART_3 },
    ]
}

/// Loads daddr . l4proto . dport . saddr.
fn client_key() -> Vec<Expr> {
    let mut key = service_key();
    key.push(Expr::Payload { base: PayloadBase::Network, offset: SOURCE, len: 4, to: REG_PART_4 });
    key
}

/// What happens to packets for a port that nobody serves.
fn refuse() -> Vec<Vec<Expr>> {
    let mut invalid = conntrack_bits(ConntrackKey::State, NF_CT_STATE_INVALID_BIT);
    invalid.push(Expr::Verdict(Verdict::Drop));
    let mut tcp = match_l4(Protocol::TCP);
    tcp.push(Expr::Reject(Rejection::TcpReset));
    vec![
        // A late segment of a connection that tracking gave up on: a reset would break a healthy connection.
        invalid,
        tcp,
        vec![Expr::Reject(Rejection::PortUnreachable)],
    ]
}

/// What happens to packets for a service address that no endpoint took.
fn unrouted() -> Vec<Vec<Expr>> {
    let destination = Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG };
    let in_set = |set: Set| Expr::InSet { set: set.name, set_id: set.id, key: REG };
    vec![
        vec![destination.clone(), in_set(LOCAL), Expr::Verdict(Verdict::Accept)],
        vec![destination, in_set(VIPS), Expr::Verdict(Verdict::Goto("refuse".to_owned()))],
        // An address no service has (yet): a client that retries gets through once the service is known.
        vec![Expr::Verdict(Verdict::Drop)],
    ]
}

struct Protocol;
impl Protocol {
    const ICMP: u8 = 1;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
}

fn masquerade(layout: &Layout) -> Vec<Vec<Expr>> {
    let mut hairpin = conntrack_bits(ConntrackKey::Status, IPS_DST_NAT);
    hairpin.extend([
        Expr::Payload { base: PayloadBase::Network, offset: SOURCE, len: 4, to: REG },
        Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG_PART_2 },
        Expr::InSet { set: HAIRPIN.name, set_id: HAIRPIN.id, key: REG },
        Expr::Masquerade { fully_random: false },
    ]);
    // Whoever comes from outside to an endpoint elsewhere comes in this node's name, so that the answer passes here again. To one on
    // this node everybody comes in their own.
    let entering = || {
        let mut rule = conntrack_bits(ConntrackKey::Status, IPS_DST_NAT);
        rule.extend(match_block(SOURCE, layout.cluster_cidr, CompareOp::NotEqual));
        rule
    };
    let mut to_pods = entering();
    to_pods.extend(match_block(DESTINATION, layout.cluster_cidr, CompareOp::Equal));
    to_pods.extend(match_block(DESTINATION, layout.node_cidr, CompareOp::NotEqual));
    to_pods.push(Expr::Masquerade { fully_random: true });
    let mut to_others = entering();
    to_others.extend([
        Expr::Payload { base: PayloadBase::Network, offset: DESTINATION, len: 4, to: REG },
        Expr::InSet { set: OUTSIDE.name, set_id: OUTSIDE.id, key: REG },
        Expr::Masquerade { fully_random: true },
    ]);
    let mut outgoing = match_block(SOURCE, layout.node_cidr, CompareOp::Equal);
    outgoing.extend(match_block(DESTINATION, layout.cluster_cidr, CompareOp::NotEqual));
    outgoing.push(Expr::Masquerade { fully_random: true });
    vec![hairpin, to_pods, to_others, outgoing]
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
