//! Netlink messages of one nf_tables transaction, and the questions we ask about our own table.

use super::abi::*;
use super::expr::{Expr, Verdict};

/// Longest element list of one message: the list is one attribute and its length a u16.
const MAX_LIST_BYTES: usize = 60_000;

/// Appends attributes to a buffer. Lengths are patched when a nest or message ends.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A number in network order, as nf_tables wants them.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut with_nul = Vec::with_capacity(value.len() + 1);
        with_nul.extend_from_slice(value.as_bytes());
        with_nul.push(0);
        self.bytes(kind, &with_nul);
    }

    pub(crate) fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        content(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// One netlink message with an nfgenmsg header.
    pub(crate) fn message(&mut self, header: Header, content: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&header.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(header.flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&header.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[header.family, 0]);
        self.bytes.extend_from_slice(&header.resource.to_be_bytes());
        content(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// Netlink and nfgenmsg header fields.
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) family: u8,
    pub(crate) resource: u16,
}

fn nftables(message: u16, flags: u16, sequence: u32) -> Header {
    Header { kind: NFNL_SUBSYS_NFTABLES << 8 | message, flags, sequence, family: NFPROTO_IPV4, resource: 0 }
}

/// The shape of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// A number unique in the transaction.
    pub id: u32,
    /// nft's type number of the key.
    pub key_type: u32,
    /// Key length in bytes, each part padded to 4.
    pub key_len: u32,
    /// For a map: nft's type number and length of the value.
    pub data: Option<(u32, u32)>,
    /// For a map that packets fill, whose elements time out: the most elements.
    pub remembers: Option<u32>,
    /// For a set of ranges: the lengths of the key's parts in bytes, unpadded.
    pub ranges: Option<&'static [u32]>,
}

/// The value of a map's element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementData {
    /// None: the element of a plain set.
    None,
    /// Bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
    /// The last key of a range in a set of ranges.
    Until(Vec<u8>),
}

/// One transaction: all of it happens, at one instant, or nothing.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    table: String,
    sequence: u32,
    /// Where the last message starts, to ask for its acknowledgement.
    last: usize,
}

impl Batch {
    /// An empty transaction for `table`. With `generation` the kernel refuses it (ERESTART) if anybody changed any
    /// table since that generation.
    pub fn new(table: &str, generation: Option<u32>) -> Batch {
        let mut writer = Writer::default();
        let begin =
            Header { kind: NFNL_MSG_BATCH_BEGIN, flags: 0, sequence: 0, family: 0, resource: NFNL_SUBSYS_NFTABLES };
        writer.message(begin, |w| {
            if let Some(generation) = generation {
                w.u32(NFNL_BATCH_GENID, generation);
            }
        });
        Batch { writer, table: table.to_owned(), sequence: 0, last: 0 }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.sequence == 0
    }

    /// The finished bytes and the sequence number whose acknowledgement means "committed".
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        let flags = u16::from_ne_bytes([self.writer.bytes[self.last + 6], self.writer.bytes[self.last + 7]]);
        self.writer.bytes[self.last + 6..self.last + 8].copy_from_slice(&(flags | NLM_F_ACK).to_ne_bytes());
        let end = Header {
            kind: NFNL_MSG_BATCH_END,
            flags: 0,
            sequence: self.sequence + 1,
            family: 0,
            resource: NFNL_SUBSYS_NFTABLES,
        };
        self.writer.message(end, |_| {});
        (self.writer.bytes, self.sequence)
    }

    fn push(&mut self, message: u16, flags: u16, content: impl FnOnce(&mut Writer)) {
        self.sequence += 1;
        self.last = self.writer.bytes.len();
        self.writer.message(nftables(message, flags, self.sequence), content);
    }

    /// Creates our table (no error if it exists). The comment is what [`super::table_info`] reads back.
    pub fn add_table(&mut self, comment: &str) {
        let table = self.table.clone();
        self.push(NFT_MSG_NEWTABLE, NLM_F_CREATE, |w| {
            w.string(NFTA_TABLE_NAME, &table);
            w.u32(NFTA_TABLE_FLAGS, 0);
            let mut user = vec![NFTNL_UDATA_TABLE_COMMENT, comment.len() as u8 + 1];
            user.extend_from_slice(comment.as_bytes());
            user.push(0);
            w.bytes(NFTA_TABLE_USERDATA, &user);
        });
    }

    /// Deletes our table with everything in it; an error if there is none.
    pub fn delete_table(&mut self) {
        let table = self.table.clone();
        self.push(NFT_MSG_DELTABLE, 0, |w| w.string(NFTA_TABLE_NAME, &table));
    }

    /// Creates a chain that is only jumped to.
    pub fn add_chain(&mut self, name: &str) {
        let table = self.table.clone();
        self.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |w| {
            w.string(NFTA_CHAIN_TABLE, &table);
            w.string(NFTA_CHAIN_NAME, name);
        });
    }

    /// Creates a chain at a hook (`NF_INET_*`), of type `nat` or `filter`.
    pub fn add_base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let table = self.table.clone();
        self.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |w| {
            w.string(NFTA_CHAIN_TABLE, &table);
            w.string(NFTA_CHAIN_NAME, name);
            w.string(NFTA_CHAIN_TYPE, kind);
            w.nested(NFTA_CHAIN_HOOK, |w| {
                w.u32(NFTA_HOOK_HOOKNUM, hook);
                w.u32(NFTA_HOOK_PRIORITY, priority as u32);
            });
        });
    }

    /// Creates a set or map.
    pub fn add_set(&mut self, set: &Set) {
        let table = self.table.clone();
        self.push(NFT_MSG_NEWSET, NLM_F_CREATE, |w| {
            w.string(NFTA_SET_TABLE, &table);
            w.string(NFTA_SET_NAME, set.name);
            let map = if set.data.is_some() { NFT_SET_MAP } else { 0 };
            let dynamic = if set.remembers.is_some() { NFT_SET_TIMEOUT | NFT_SET_EVAL } else { 0 };
            let ranges = if set.ranges.is_some() { NFT_SET_INTERVAL | NFT_SET_CONCAT } else { 0 };
            w.u32(NFTA_SET_FLAGS, map | dynamic | ranges);
            w.u32(NFTA_SET_KEY_TYPE, set.key_type);
            w.u32(NFTA_SET_KEY_LEN, set.key_len);
            if let Some((kind, len)) = set.data {
                w.u32(NFTA_SET_DATA_TYPE, kind);
                w.u32(NFTA_SET_DATA_LEN, len);
            }
            w.u32(NFTA_SET_ID, set.id);
            if let Some(most) = set.remembers {
                w.nested(NFTA_SET_DESC, |w| w.u32(NFTA_SET_DESC_SIZE, most));
            }
            if let Some(parts) = set.ranges {
                let part = |w: &mut Writer, len: u32| w.nested(NFTA_LIST_ELEM, |w| w.u32(NFTA_SET_FIELD_LEN, len));
                w.nested(NFTA_SET_DESC, |w| {
                    w.nested(NFTA_SET_DESC_CONCAT, |w| parts.iter().for_each(|len| part(w, *len)));
                });
            }
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expr]) {
        let table = self.table.clone();
        self.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |w| {
            w.string(NFTA_RULE_TABLE, &table);
            w.string(NFTA_RULE_CHAIN, chain);
            w.nested(NFTA_RULE_EXPRESSIONS, |w| expressions.iter().for_each(|expression| expression.write(w)));
        });
    }

    /// Adds elements to a set, in as few messages as fit.
    pub fn add_elements(&mut self, set: &str, elements: impl IntoIterator<Item = (Vec<u8>, ElementData)>) {
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements);
    }

    /// Removes elements from a set; an error if one is not there.
    pub fn delete_elements(&mut self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) {
        self.elements(NFT_MSG_DELSETELEM, 0, set, keys.into_iter().map(|key| (key, ElementData::None)));
    }

    /// Removes ranges, by their first and last keys, from a set; an error if one is not there.
    pub fn delete_ranges(&mut self, set: &str, ranges: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) {
        let ranges = ranges.into_iter().map(|(key, last)| (key, ElementData::Until(last)));
        self.elements(NFT_MSG_DELSETELEM, 0, set, ranges);
    }

    fn elements(
        &mut self,
        message: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = (Vec<u8>, ElementData)>,
    ) {
        let mut elements = elements.into_iter().peekable();
        let table = self.table.clone();
        while elements.peek().is_some() {
            self.push(message, flags, |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, &table);
                w.string(NFTA_SET_ELEM_LIST_SET, set);
                w.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    let start = w.bytes.len();
                    while w.bytes.len() - start < MAX_LIST_BYTES {
                        let Some((key, data)) = elements.next() else { break };
                        write_element(w, &key, &data);
                    }
                });
            });
        }
    }
}

fn write_element(w: &mut Writer, key: &[u8], data: &ElementData) {
    w.nested(NFTA_LIST_ELEM, |w| {
        w.nested(NFTA_SET_ELEM_KEY, |w| w.bytes(NFTA_DATA_VALUE, key));
        match data {
            ElementData::None => {}
            ElementData::Value(value) => w.nested(NFTA_SET_ELEM_DATA, |w| w.bytes(NFTA_DATA_VALUE, value)),
            ElementData::Verdict(verdict) => w.nested(NFTA_SET_ELEM_DATA, |w| verdict.write(w)),
            ElementData::Until(last) => w.nested(NFTA_SET_ELEM_KEY_END, |w| w.bytes(NFTA_DATA_VALUE, last)),
        }
    });
}

fn question(message: u16, flags: u16, content: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(nftables(message, flags, 1), content);
    writer.bytes
}

/// Asks for the number of the current generation of all tables.
pub fn get_generation() -> Vec<u8> {
    question(NFT_MSG_GETGEN, 0, |_| {})
}

/// Asks for one table; the kernel answers ENOENT if there is none.
pub fn get_table(table: &str) -> Vec<u8> {
    question(NFT_MSG_GETTABLE, 0, |w| w.string(NFTA_TABLE_NAME, table))
}

/// Asks for the chains of all tables of a family, or of all families (0): the kernel does not filter chains by table.
pub fn list_chains(family: u8) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(Header { family, ..nftables(NFT_MSG_GETCHAIN, NLM_F_DUMP, 1) }, |_| {});
    writer.bytes
}

/// Asks for the rules of one table.
pub fn list_rules(table: &str) -> Vec<u8> {
    question(NFT_MSG_GETRULE, NLM_F_DUMP, |w| w.string(NFTA_RULE_TABLE, table))
}

/// Asks for the elements of one set.
pub fn list_elements(table: &str, set: &str) -> Vec<u8> {
    question(NFT_MSG_GETSETELEM, NLM_F_DUMP, |w| {
        w.string(NFTA_SET_ELEM_LIST_TABLE, table);
        w.string(NFTA_SET_ELEM_LIST_SET, set);
    })
}
