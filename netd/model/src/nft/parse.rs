//! Replies of the kernel as values. Lengths are checked, not trusted: a short message ends the iteration.

use super::abi::*;

/// One netlink message: type, flags, sequence number and what follows the netlink header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Message type.
    pub kind: u16,
    /// Message flags.
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// The bytes after the 16-byte header.
    pub body: &'a [u8],
}

/// What a message means to whoever waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The request with this number was done.
    Ack,
    /// The request failed with this errno (positive).
    Error(i32),
    /// The listing is complete; errno 0, or why it broke off.
    Done(i32),
    /// A part of the answer.
    Data(&'a [u8]),
}

impl Frame<'_> {
    /// Whether the listing was cut by a change and must be asked for again.
    pub fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }
}

/// The messages of a received datagram.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(0..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get((length + 3) & !3..).unwrap_or(&[]);
        Some(Frame {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            body: &message[16..],
        })
    })
}

/// What a frame means.
pub fn reply<'a>(frame: &Frame<'a>) -> Reply<'a> {
    let code = || frame.body.get(0..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).unwrap_or(0);
    match frame.kind {
        NLMSG_ERROR if code() == 0 => Reply::Ack,
        NLMSG_ERROR => Reply::Error(code().saturating_neg()),
        NLMSG_DONE => Reply::Done(code().saturating_neg()),
        _ => Reply::Data(frame.body),
    }
}

/// The attributes in `bytes` as (type without flags, value).
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get((length + 3) & !3..).unwrap_or(&[]);
        Some((kind, value))
    })
}

pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned()
}

/// Skips the nfgenmsg header.
pub(crate) fn payload(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or(&[])
}

/// The generation in an answer to `get_generation`.
pub fn generation(body: &[u8]) -> Option<u32> {
    attribute(payload(body), NFTA_GEN_ID)?.try_into().ok().map(u32::from_be_bytes)
}

/// A table as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// The kernel's number of this very table: another number is another table of the same name.
    pub handle: u64,
    /// The comment, if it has one.
    pub comment: Option<String>,
}

/// The table in an answer to `get_table`.
pub fn table_info(body: &[u8]) -> Option<TableInfo> {
    let attributes = payload(body);
    let handle = attribute(attributes, NFTA_TABLE_HANDLE)?.try_into().ok().map(u64::from_be_bytes)?;
    let comment = attribute(attributes, NFTA_TABLE_USERDATA).and_then(|user| match user {
        [NFTNL_UDATA_TABLE_COMMENT, length, value @ ..] => value.get(..usize::from(*length)).map(text),
        _ => None,
    });
    Some(TableInfo { handle, comment })
}

/// A chain as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `NF_INET_*` number of its hook, for a base chain.
    pub hook: Option<u32>,
    /// Whether a packet that no rule decides about is dropped.
    pub drops: bool,
}

/// The chain in a part of an answer to `list_chains`.
pub fn chain_info(body: &[u8]) -> Option<ChainInfo> {
    let attributes = payload(body);
    let table = text(attribute(attributes, NFTA_CHAIN_TABLE)?);
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let hook = attribute(attributes, NFTA_CHAIN_HOOK).and_then(|h| attribute(h, NFTA_HOOK_HOOKNUM)).and_then(number);
    let drops = attribute(attributes, NFTA_CHAIN_POLICY).and_then(number) == Some(NF_DROP);
    Some(ChainInfo { table, name: text(attribute(attributes, NFTA_CHAIN_NAME)?), hook, drops })
}

/// The chain a rule of an answer to `list_rules` belongs to.
pub fn rule_chain(body: &[u8]) -> Option<String> {
    attribute(payload(body), NFTA_RULE_CHAIN).map(text)
}

/// An element of a set as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawElement {
    /// The key.
    pub key: Vec<u8>,
    /// The value of a map's element.
    pub value: Vec<u8>,
    /// The chain a verdict map's element goes to.
    pub chain: Option<String>,
    /// The last key of a range; empty for anything else.
    pub last: Vec<u8>,
}

/// The elements in a part of an answer to `list_elements`.
pub fn element_infos(body: &[u8]) -> impl Iterator<Item = RawElement> {
    let list = attribute(payload(body), NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(&[]);
    attributes(list).filter_map(|(_, element)| {
        let key = attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
        let data = attribute(element, NFTA_SET_ELEM_DATA).unwrap_or(&[]);
        let value = attribute(data, NFTA_DATA_VALUE).unwrap_or(&[]).to_vec();
        let chain = attribute(data, NFTA_DATA_VERDICT).and_then(|v| attribute(v, NFTA_VERDICT_CHAIN)).map(text);
        let last = attribute(element, NFTA_SET_ELEM_KEY_END).and_then(|end| attribute(end, NFTA_DATA_VALUE));
        Some(RawElement { key, value, chain, last: last.unwrap_or(&[]).to_vec() })
    })
}
