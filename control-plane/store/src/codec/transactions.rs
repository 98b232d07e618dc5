//! Transactions: `format u16, count u32, { count u32, { tag u8, length u32, body } }`. The format is the oldest that can say it.

use std::sync::Arc;

use serde_json::Value;

use super::{CodecError, FORMAT, MAX_DEPTH, Reader, Writer};
use crate::{Expect, Key, Op, Transaction};

const CREATE: u8 = 1;
const UPDATE: u8 = 2;
const STATUS: u8 = 3;
const BIND: u8 = 4;
const DELETE: u8 = 5;
const RAISE_EPOCH: u8 = 6;
// Since format 2.
const RAISE_LEVEL: u8 = 7;

/// Encodes transactions.
///
/// # Errors
/// A tree too deep to be read back; a part of more than 4 GiB.
pub fn encode(transactions: &[Transaction]) -> Result<Vec<u8>, CodecError> {
    let parts = transactions.iter().map(encode_part).collect::<Result<Vec<_>, _>>()?;
    join(&parts)
}

/// One encoded transaction.
#[derive(Debug)]
pub struct Part {
    bytes: Vec<u8>,
    format: u16,
}

impl Part {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Encodes one transaction, to be joined with others.
///
/// # Errors
/// As `encode`.
pub fn encode_part(transaction: &Transaction) -> Result<Part, CodecError> {
    let mut out = Writer::new();
    out.count(transaction.ops.len(), "the list of commands")?;
    transaction.ops.iter().try_for_each(|op| write_op(&mut out, op))?;
    Ok(Part { bytes: out.into_bytes(), format: transaction_format(transaction) })
}

fn transaction_format(transaction: &Transaction) -> u16 {
    transaction.ops.iter().map(format_of).max().unwrap_or(1)
}

/// The first format that has a command.
fn format_of(op: &Op) -> u16 {
    match op {
        Op::RaiseLevel { .. } => 2,
        _ => 1,
    }
}

/// What `encode` gives for the transactions these parts were made of.
///
/// # Errors
/// More than 2^32 - 1 of them.
pub fn join(parts: &[Part]) -> Result<Vec<u8>, CodecError> {
    let mut out = Writer::new();
    out.u16(parts.iter().map(|part| part.format).max().unwrap_or(1));
    out.count(parts.len(), "the list of transactions")?;
    parts.iter().for_each(|part| out.raw(&part.bytes));
    Ok(out.into_bytes())
}

/// Decodes transactions.
///
/// # Errors
/// A newer format, an unknown command, or bytes that are no encoding.
pub fn decode(bytes: &[u8]) -> Result<Vec<Transaction>, CodecError> {
    read(bytes, read_transaction)
}

/// The same, each with its encoding, to be joined with others.
///
/// # Errors
/// As `decode`.
pub fn decode_parts(bytes: &[u8]) -> Result<Vec<(Transaction, Part)>, CodecError> {
    read(bytes, |input| {
        let mut begins = *input;
        let transaction = read_transaction(input)?;
        let bytes = begins.take(begins.left() - input.left(), "a transaction")?.to_vec();
        let format = transaction_format(&transaction);
        Ok((transaction, Part { bytes, format }))
    })
}

fn read<T>(bytes: &[u8], one: impl FnMut(&mut Reader<'_>) -> Result<T, CodecError>) -> Result<Vec<T>, CodecError> {
    let mut input = Reader::new(bytes);
    let found = input.u16("the format number")?;
    if found == 0 || found > FORMAT {
        return Err(CodecError::Format { found });
    }
    let all = input.list("the number of transactions", one)?;
    input.end("the transactions")?;
    Ok(all)
}

fn read_transaction(input: &mut Reader<'_>) -> Result<Transaction, CodecError> {
    Ok(Transaction { ops: input.list("the number of commands", read_op)? })
}

fn write_op(out: &mut Writer, op: &Op) -> Result<(), CodecError> {
    let mut body = Writer::new();
    let tag = match op {
        Op::Create { key, value, claims } => {
            write_key(&mut body, key)?;
            write_tree(&mut body, value)?;
            write_claims(&mut body, claims)?;
            CREATE
        }
        Op::Update { key, expect, value, claims } => {
            write_key(&mut body, key)?;
            write_expect(&mut body, expect)?;
            write_tree(&mut body, value)?;
            body.option(claims.as_deref(), write_claims)?;
            UPDATE
        }
        Op::Status { key, uid, status } => {
            write_key(&mut body, key)?;
            body.blob(uid.as_bytes(), "a uid")?;
            write_tree(&mut body, status)?;
            STATUS
        }
        Op::Bind { key, uid, node, at } => {
            write_key(&mut body, key)?;
            for part in [uid, node, at] {
                body.blob(part.as_bytes(), "a binding")?;
            }
            BIND
        }
        Op::Delete { key, expect } => {
            write_key(&mut body, key)?;
            write_expect(&mut body, expect)?;
            DELETE
        }
        Op::RaiseEpoch => RAISE_EPOCH,
        Op::RaiseLevel { level } => {
            body.u32(*level);
            RAISE_LEVEL
        }
    };
    out.u8(tag);
    out.blob(&body.into_bytes(), "a command")
}

fn read_op(input: &mut Reader<'_>) -> Result<Op, CodecError> {
    let tag = input.u8("a command's tag")?;
    let mut body = Reader::new(input.blob("a command")?);
    let op = match tag {
        CREATE => {
            Op::Create { key: read_key(&mut body)?, value: read_tree(&mut body)?, claims: read_claims(&mut body)? }
        }
        UPDATE => Op::Update {
            key: read_key(&mut body)?,
            expect: read_expect(&mut body)?,
            value: read_tree(&mut body)?,
            claims: body.option("whether claims follow", read_claims)?,
        },
        STATUS => Op::Status { key: read_key(&mut body)?, uid: body.shared("a uid")?, status: read_tree(&mut body)? },
        BIND => Op::Bind {
            key: read_key(&mut body)?,
            uid: body.shared("a uid")?,
            node: body.shared("a node")?,
            at: body.shared("a time")?,
        },
        DELETE => Op::Delete { key: read_key(&mut body)?, expect: read_expect(&mut body)? },
        RAISE_EPOCH => Op::RaiseEpoch,
        RAISE_LEVEL => Op::RaiseLevel { level: body.u32("a level")? },
        unknown => return Err(CodecError::UnknownCommand(unknown)),
    };
    body.end("a command")?;
    Ok(op)
}

pub(crate) fn write_key(out: &mut Writer, key: &Key) -> Result<(), CodecError> {
    for part in [&key.resource, &key.namespace, &key.name] {
        out.blob(part.as_bytes(), "a key")?;
    }
    Ok(())
}

pub(crate) fn read_key(input: &mut Reader<'_>) -> Result<Key, CodecError> {
    Ok(Key {
        resource: input.shared("a resource")?,
        namespace: input.shared("a namespace")?,
        name: input.shared("a name")?,
    })
}

fn write_expect(out: &mut Writer, expect: &Expect) -> Result<(), CodecError> {
    out.option(expect.uid.as_ref(), |out, uid| out.blob(uid.as_bytes(), "a uid"))?;
    out.option(expect.revision, |out, revision| {
        out.u64(revision);
        Ok(())
    })
}

fn read_expect(input: &mut Reader<'_>) -> Result<Expect, CodecError> {
    Ok(Expect {
        uid: input.option("whether a uid follows", |input| input.shared("a uid"))?,
        revision: input.option("whether a revision follows", |input| input.u64("a revision"))?,
    })
}

pub(crate) fn write_claims(out: &mut Writer, claims: &[impl AsRef<str>]) -> Result<(), CodecError> {
    out.count(claims.len(), "the list of claims")?;
    claims.iter().try_for_each(|claim| out.blob(claim.as_ref().as_bytes(), "a claim"))
}

pub(crate) fn read_claims(input: &mut Reader<'_>) -> Result<Vec<String>, CodecError> {
    input.list("the number of claims", |input| input.text("a claim").map(str::to_owned))
}

fn write_tree(out: &mut Writer, tree: &Value) -> Result<(), CodecError> {
    if deeper_than(tree, MAX_DEPTH) {
        return Err(CodecError::TooDeep);
    }
    out.blob(tree.to_string().as_bytes(), "an object")
}

fn read_tree(input: &mut Reader<'_>) -> Result<Arc<Value>, CodecError> {
    let what = "an object";
    let text = input.blob(what)?;
    match serde_json::from_slice(text) {
        Ok(tree) => Ok(Arc::new(tree)),
        Err(error) => Err(CodecError::Json { what, reason: error.to_string() }),
    }
}

// Recursion stops at the limit, so a hostile tree cannot exhaust the stack here.
fn deeper_than(tree: &Value, levels: usize) -> bool {
    match tree {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| deeper_than(field, levels - 1)),
        _ => false,
    }
}
