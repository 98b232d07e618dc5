//! What a transaction came to, for a server that proposed it through another: outcomes and refusals.

use std::sync::Arc;

use bytes::Bytes;

use super::transactions::{read_key, write_key};
use super::{CodecError, Reader, Writer};
use crate::{Applied, Object, Outcome, Rejection};

const STORED: u8 = 1;
const UNCHANGED: u8 = 2;
const DELETED: u8 = 3;
const SKIPPED: u8 = 4;
const DONE: u8 = 5;

const EXISTS: u8 = 1;
const MISSING: u8 = 2;
const CONFLICT: u8 = 3;
const OTHER_UID: u8 = 4;
const CLAIMED: u8 = 5;
const UNBINDABLE: u8 = 6;
const MALFORMED: u8 = 7;

/// Writes what came of one transaction.
///
/// # Errors
/// A part of more than 4 GiB.
pub fn write_applied(out: &mut Writer, applied: &Applied) -> Result<(), CodecError> {
    match applied {
        Ok(outcomes) => {
            out.u8(0);
            out.count(outcomes.len(), "the outcomes")?;
            outcomes.iter().try_for_each(|outcome| write_outcome(out, outcome))
        }
        Err((index, rejection)) => {
            out.u8(1);
            out.count(*index, "an operation's number")?;
            write_rejection(out, rejection)
        }
    }
}

/// The reverse.
///
/// # Errors
/// Not what `write_applied` writes.
pub fn read_applied(input: &mut Reader<'_>) -> Result<Applied, CodecError> {
    match input.u8("whether a transaction happened")? {
        0 => Ok(Ok(input.list("the outcomes", read_outcome)?)),
        1 => {
            let index = input.u32("an operation's number")? as usize;
            Ok(Err((index, read_rejection(input)?)))
        }
        value => Err(CodecError::Value { what: "whether a transaction happened", value }),
    }
}

fn write_outcome(out: &mut Writer, outcome: &Outcome) -> Result<(), CodecError> {
    let (tag, object) = match outcome {
        Outcome::Stored(object) => (STORED, Some(object)),
        Outcome::Unchanged(object) => (UNCHANGED, Some(object)),
        Outcome::Deleted(object) => (DELETED, Some(object)),
        Outcome::Skipped => (SKIPPED, None),
        Outcome::Done => (DONE, None),
    };
    out.u8(tag);
    let Some(object) = object else { return Ok(()) };
    write_key(out, &object.key)?;
    out.blob(object.uid.as_bytes(), "a uid")?;
    out.u64(object.revision);
    out.blob(&object.json, "an object")
}

fn read_outcome(input: &mut Reader<'_>) -> Result<Outcome, CodecError> {
    let tag = input.u8("an outcome")?;
    match tag {
        SKIPPED => return Ok(Outcome::Skipped),
        DONE => return Ok(Outcome::Done),
        STORED | UNCHANGED | DELETED => {}
        value => return Err(CodecError::Value { what: "an outcome", value }),
    }
    let key = read_key(input)?;
    let uid = input.shared("a uid")?;
    let revision = input.u64("a revision")?;
    let json = Bytes::copy_from_slice(input.blob("an object")?);
    let object = Arc::new(Object::new(key, uid, revision, json));
    Ok(match tag {
        STORED => Outcome::Stored(object),
        UNCHANGED => Outcome::Unchanged(object),
        _ => Outcome::Deleted(object),
    })
}

fn write_rejection(out: &mut Writer, rejection: &Rejection) -> Result<(), CodecError> {
    match rejection {
        Rejection::Exists(key) => {
            out.u8(EXISTS);
            write_key(out, key)
        }
        Rejection::Missing(key) => {
            out.u8(MISSING);
            write_key(out, key)
        }
        Rejection::Conflict { key, expected, actual } => {
            out.u8(CONFLICT);
            write_key(out, key)?;
            out.u64(*expected);
            out.u64(*actual);
            Ok(())
        }
        Rejection::OtherUid { key, expected, actual } => {
            out.u8(OTHER_UID);
            write_key(out, key)?;
            out.blob(expected.as_bytes(), "a uid")?;
            out.blob(actual.as_bytes(), "a uid")
        }
        Rejection::Claimed { claim, holder } => {
            out.u8(CLAIMED);
            out.blob(claim.as_bytes(), "a claim")?;
            write_key(out, holder)
        }
        Rejection::Unbindable { pod, node, reason } => {
            out.u8(UNBINDABLE);
            write_key(out, pod)?;
            out.blob(node.as_bytes(), "a node")?;
            out.blob(reason.as_bytes(), "a reason")
        }
        Rejection::Malformed { key, reason } => {
            out.u8(MALFORMED);
            write_key(out, key)?;
            out.blob(reason.as_bytes(), "a reason")
        }
    }
}

fn read_rejection(input: &mut Reader<'_>) -> Result<Rejection, CodecError> {
    Ok(match input.u8("a refusal")? {
        EXISTS => Rejection::Exists(read_key(input)?),
        MISSING => Rejection::Missing(read_key(input)?),
        CONFLICT => Rejection::Conflict {
            key: read_key(input)?,
            expected: input.u64("a revision")?,
            actual: input.u64("a revision")?,
        },
        OTHER_UID => Rejection::OtherUid {
            key: read_key(input)?,
            expected: input.shared("a uid")?,
            actual: input.shared("a uid")?,
        },
        CLAIMED => Rejection::Claimed { claim: input.text("a claim")?.to_owned(), holder: read_key(input)? },
        UNBINDABLE => Rejection::Unbindable {
            pod: read_key(input)?,
            node: input.shared("a node")?,
            reason: input.text("a reason")?.to_owned(),
        },
        MALFORMED => Rejection::Malformed { key: read_key(input)?, reason: input.text("a reason")?.to_owned() },
        value => return Err(CodecError::Value { what: "a refusal", value }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    #[test]
    fn every_answer_comes_back_as_it_went() {
        let key = || Key::new("pods", "default", "p");
        let object = || Arc::new(Object::new(key(), "u".into(), 7, Bytes::from_static(b"{}")));
        let answers: Vec<Applied> = vec![
            Ok(vec![
                Outcome::Stored(object()),
                Outcome::Unchanged(object()),
                Outcome::Deleted(object()),
                Outcome::Skipped,
                Outcome::Done,
            ]),
            Err((0, Rejection::Exists(key()))),
            Err((1, Rejection::Missing(key()))),
            Err((2, Rejection::Conflict { key: key(), expected: 1, actual: 2 })),
            Err((3, Rejection::OtherUid { key: key(), expected: "a".into(), actual: "b".into() })),
            Err((4, Rejection::Claimed { claim: "c".into(), holder: key() })),
            Err((5, Rejection::Unbindable { pod: key(), node: "n".into(), reason: "full".into() })),
            Err((6, Rejection::Malformed { key: key(), reason: "no uid".into() })),
        ];
        for answer in answers {
            let mut out = Writer::new();
            write_applied(&mut out, &answer).unwrap();
            let bytes = out.into_bytes();
            let mut input = Reader::new(&bytes);
            let back = read_applied(&mut input).unwrap();
            input.end("the answer").unwrap();
            assert_eq!(format!("{back:?}"), format!("{answer:?}"));
            for end in 0..bytes.len() {
                assert!(read_applied(&mut Reader::new(&bytes[..end])).is_err());
            }
        }
    }
}
