//! nf_tables over netlink: expressions, objects and elements as message bytes, and replies back into values.
//!
//! Written against `include/uapi/linux/netfilter/nf_tables.h`; no `nft` binary and no libnftnl. Only what our own table
//! needs is here. The tests compare with what `nft` itself prints of a table made by these bytes.

mod abi;
mod encode;
mod expr;
mod parse;

pub use abi::NFPROTO_IPV4;
pub(crate) use abi::{
    NFT_DATA_VERDICT as DATA_VERDICT, TYPE_INET_PROTOCOL, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, TYPE_MARK,
};
pub use encode::{Batch, ElementData, Set, get_generation, get_table, list_chains, list_elements, list_rules};
pub(crate) use encode::{Header, Writer};
pub use expr::{CompareOp, ConntrackKey, Expr, MetaKey, OriginalKey, PayloadBase, Register, Rejection, Verdict};
pub use parse::{ChainInfo, Frame, RawElement, Reply, TableInfo};
pub(crate) use parse::{attribute, payload};
pub use parse::{chain_info, element_infos, frames, generation, reply, rule_chain, table_info};
