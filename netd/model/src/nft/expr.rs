//! The expressions our rules are made of. Each encodes itself as the kernel's `NFTA_LIST_ELEM {name, data}`.

use super::abi::*;
use super::encode::Writer;

/// A 32-bit register. Registers of a concatenation follow each other: `NFT_REG_1` is 1 and covers 8..=11, so a second
/// 4-byte part goes to 9, as `nft` itself does it.
pub type Register = u32;

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// The IP header.
    Network = 1,
    /// The TCP, UDP or ICMP header.
    Transport = 2,
}

/// Packet metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Name of the link it came in on, 16 bytes.
    InputName = 6,
    /// Name of the link it goes out on, 16 bytes.
    OutputName = 7,
    /// Transport protocol number, 1 byte.
    L4Proto = 16,
}

/// Connection-tracking data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConntrackKey {
    /// State bits (`NF_CT_STATE_INVALID_BIT` is 1), 4 bytes in host order.
    State = 0,
    /// `IPS_*` status bits, 4 bytes in host order.
    Status = 2,
}

/// What the first packet of a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalKey {
    /// Its destination port, 2 bytes.
    DestinationPort = 12,
    /// Its source address, 4 bytes.
    Source = 19,
    /// Its destination address, 4 bytes.
    Destination = 20,
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal.
    Equal = 0,
    /// Not equal.
    NotEqual = 1,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// ICMP destination unreachable, port unreachable.
    PortUnreachable,
    /// A TCP reset (not rate-limited by the kernel, so every connect is refused at once).
    TcpReset,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on, past this table's chains of the hook.
    Accept,
    /// Is forgotten.
    Drop,
    /// Goes on in a chain and does not come back.
    Goto(String),
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Copies `len` bytes of the packet into `to`.
    Payload {
        /// Where the offset counts from.
        base: PayloadBase,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Destination.
        to: Register,
    },
    /// Copies metadata into `to`.
    Meta {
        /// Which.
        key: MetaKey,
        /// Destination.
        to: Register,
    },
    /// Copies connection-tracking data into `to`.
    Conntrack {
        /// Which.
        key: ConntrackKey,
        /// Destination.
        to: Register,
    },
    /// Copies a part of what the first packet of a connection was, before any translation, into `to`.
    ConntrackOriginal {
        /// Which.
        key: OriginalKey,
        /// Destination.
        to: Register,
    },
    /// `reg = reg & mask`.
    Mask {
        /// The register.
        reg: Register,
        /// The mask, in the order of the register's content.
        mask: Vec<u8>,
    },
    /// Ends the rule unless the comparison holds.
    Compare {
        /// The register.
        reg: Register,
        /// The comparison.
        op: CompareOp,
        /// The value.
        value: Vec<u8>,
    },
    /// Looks a register up in a set and ends the rule unless it is in it.
    InSet {
        /// The set.
        set: &'static str,
        /// Its number in this transaction.
        set_id: u32,
        /// First register of the key.
        key: Register,
    },
    /// Looks a register up in a set and ends the rule if it is in it.
    NotInSet {
        /// The set.
        set: &'static str,
        /// Its number in this transaction.
        set_id: u32,
        /// First register of the key.
        key: Register,
    },
    /// Looks a register up in a map and copies the value to `to`; ends the rule unless it is in it.
    MapTo {
        /// The map.
        set: &'static str,
        /// Its number in this transaction.
        set_id: u32,
        /// First register of the key.
        key: Register,
        /// First register of the value.
        to: Register,
    },
    /// Looks a register up in a verdict map and takes the verdict; ends the rule unless it is in it.
    MapVerdict {
        /// The map.
        set: &'static str,
        /// Its number in this transaction.
        set_id: u32,
        /// First register of the key.
        key: Register,
    },
    /// A random number in `offset..offset + modulus`, in host order.
    Random {
        /// The modulus.
        modulus: u32,
        /// What is added.
        offset: u32,
        /// Destination.
        to: Register,
    },
    /// Writes into a map from the packet's way; an element that is there keeps its value and lives on from now. Ends the rule when the
    /// map is full.
    Remember {
        /// The map, whose elements have a timeout.
        set: &'static str,
        /// Its number in this transaction.
        set_id: u32,
        /// First register of the key.
        key: Register,
        /// First register of the value.
        value: Register,
        /// How long it is remembered without use, seconds.
        timeout_s: u32,
    },
    /// Translates the destination address and port to those in registers.
    DestinationNat {
        /// Register of the address.
        address: Register,
        /// Register of the port.
        port: Register,
    },
    /// Translates the source address to that of the outgoing link.
    Masquerade {
        /// Picks source ports at random, which avoids clashes when many connections start at once.
        fully_random: bool,
    },
    /// Refuses the packet.
    Reject(Rejection),
    /// Takes a verdict.
    Verdict(Verdict),
}

const NFT_REG_VERDICT: u32 = 0;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Expr::Payload { .. } => "payload",
            Expr::Meta { .. } => "meta",
            Expr::Conntrack { .. } | Expr::ConntrackOriginal { .. } => "ct",
            Expr::Mask { .. } => "bitwise",
            Expr::Compare { .. } => "cmp",
            Expr::InSet { .. } | Expr::NotInSet { .. } | Expr::MapTo { .. } | Expr::MapVerdict { .. } => "lookup",
            Expr::Random { .. } => "numgen",
            Expr::Remember { .. } => "dynset",
            Expr::DestinationNat { .. } => "nat",
            Expr::Masquerade { .. } => "masq",
            Expr::Reject(_) => "reject",
            Expr::Verdict(_) => "immediate",
        }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.nested(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, self.name());
            w.nested(NFTA_EXPR_DATA, |w| self.write_data(w));
        });
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            // NFTA_PAYLOAD_{DREG,BASE,OFFSET,LEN}
            Expr::Payload { base, offset, len, to } => {
                w.u32(1, *to);
                w.u32(2, *base as u32);
                w.u32(3, *offset);
                w.u32(4, *len);
            }
            // NFTA_META_{KEY=2,DREG=1}, NFTA_CT_{KEY=2,DREG=1}
            Expr::Meta { key, to } => {
                w.u32(2, *key as u32);
                w.u32(1, *to);
            }
            Expr::Conntrack { key, to } => {
                w.u32(2, *key as u32);
                w.u32(1, *to);
            }
            // NFTA_CT_DIRECTION=3; IP_CT_DIR_ORIGINAL is 0
            Expr::ConntrackOriginal { key, to } => {
                w.u32(2, *key as u32);
                w.u32(1, *to);
                w.bytes(3, &[0]);
            }
            // NFTA_BITWISE_{SREG,DREG,LEN,MASK,XOR}
            Expr::Mask { reg, mask } => {
                w.u32(1, *reg);
                w.u32(2, *reg);
                w.u32(3, mask.len() as u32);
                w.nested(4, |w| w.bytes(NFTA_DATA_VALUE, mask));
                w.nested(5, |w| w.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
            }
            // NFTA_CMP_{SREG,OP,DATA}
            Expr::Compare { reg, op, value } => {
                w.u32(1, *reg);
                w.u32(2, *op as u32);
                w.nested(3, |w| w.bytes(NFTA_DATA_VALUE, value));
            }
            Expr::InSet { set, set_id, key } => write_lookup(w, set, *set_id, *key, None),
            // NFTA_LOOKUP_FLAGS; NFT_LOOKUP_F_INV is 1
            Expr::NotInSet { set, set_id, key } => {
                write_lookup(w, set, *set_id, *key, None);
                w.u32(5, 1);
            }
            Expr::MapTo { set, set_id, key, to } => write_lookup(w, set, *set_id, *key, Some(*to)),
            Expr::MapVerdict { set, set_id, key } => write_lookup(w, set, *set_id, *key, Some(NFT_REG_VERDICT)),
            // NFTA_NG_{DREG,MODULUS,TYPE,OFFSET}; NFT_NG_RANDOM is 1
            Expr::Random { modulus, offset, to } => {
                w.u32(1, *to);
                w.u32(2, *modulus);
                w.u32(3, 1);
                w.u32(4, *offset);
            }
            // NFTA_DYNSET_{SET_NAME,SET_ID,OP,SREG_KEY,SREG_DATA,TIMEOUT}; NFT_DYNSET_OP_UPDATE is 1
            Expr::Remember { set, set_id, key, value, timeout_s } => {
                w.u32(4, *key);
                w.u32(3, 1);
                w.u32(5, *value);
                w.string(1, set);
                w.u32(2, *set_id);
                w.bytes(6, &(u64::from(*timeout_s) * 1000).to_be_bytes());
            }
            // NFTA_NAT_{TYPE,FAMILY,REG_ADDR_MIN,REG_PROTO_MIN=5}; NFT_NAT_DNAT is 1
            Expr::DestinationNat { address, port } => {
                w.u32(1, 1);
                w.u32(2, u32::from(NFPROTO_IPV4));
                w.u32(3, *address);
                w.u32(5, *port);
            }
            // NFTA_MASQ_FLAGS
            Expr::Masquerade { fully_random } => {
                if *fully_random {
                    w.u32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
                }
            }
            // NFTA_REJECT_{TYPE,ICMP_CODE}: NFT_REJECT_ICMP_UNREACH 0 with ICMP_PORT_UNREACH 3, NFT_REJECT_TCP_RST 1
            Expr::Reject(rejection) => {
                let (kind, code) = match rejection {
                    Rejection::PortUnreachable => (0, 3),
                    Rejection::TcpReset => (1, 0),
                };
                w.u32(1, kind);
                w.bytes(2, &[code]);
            }
            // NFTA_IMMEDIATE_{DREG,DATA}
            Expr::Verdict(verdict) => {
                w.u32(1, NFT_REG_VERDICT);
                w.nested(2, |w| verdict.write(w));
            }
        }
    }
}

/// NFTA_LOOKUP_{SET=1,SREG=2,DREG=3,SET_ID=4}, in the order `nft` writes them.
fn write_lookup(w: &mut Writer, set: &str, set_id: u32, key: Register, to: Option<Register>) {
    w.u32(2, key);
    if let Some(to) = to {
        w.u32(3, to);
    }
    w.string(1, set);
    w.u32(4, set_id);
}

impl Verdict {
    /// Writes `NFTA_DATA_VERDICT {code, chain}`.
    pub(super) fn write(&self, w: &mut Writer) {
        w.nested(NFTA_DATA_VERDICT, |w| match self {
            Verdict::Accept => w.u32(NFTA_VERDICT_CODE, NF_ACCEPT),
            Verdict::Drop => w.u32(NFTA_VERDICT_CODE, NF_DROP),
            Verdict::Goto(chain) => {
                w.u32(NFTA_VERDICT_CODE, NFT_GOTO);
                w.string(NFTA_VERDICT_CHAIN, chain);
            }
        });
    }
}
