//! Packets in and out: what a received packet asks, and an answer as bytes within the client's limits.

use std::slice;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts};
use hickory_proto::rr::{DNSClass, LowerName, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;

use crate::config::MAX_UDP_BYTES;

/// How a question came, which bounds its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A well-formed question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) head: Head,
    pub(crate) query: Query,
    pub(crate) name: LowerName,
}

/// What an answer needs to know of the packet it answers, also when that was not well-formed.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: u16,
    pub(crate) op_code: OpCode,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) dnssec_ok: bool,
    pub(crate) edns: bool,
    /// Largest answer in bytes.
    pub(crate) limit: u16,
}

/// What to do with a packet.
#[derive(Debug)]
pub(crate) enum Received {
    /// A question for the table or the forwarder.
    Question(Box<Question>),
    /// Something to refuse with this code, echoing the question if there was one.
    Refuse(Box<Head>, Option<Query>, ResponseCode),
    /// Nothing to answer: not DNS, or an answer itself (answering answers makes two servers talk for ever).
    Ignore,
}

/// Reads a packet. Never fails: what cannot be read is refused or ignored.
pub(crate) fn receive(packet: &[u8], transport: Transport) -> Received {
    let Some(header) = packet.get(..12) else { return Received::Ignore };
    if header[2] & 0x80 != 0 {
        return Received::Ignore;
    }
    let plain = match transport {
        Transport::Udp => 512,
        Transport::Tcp => u16::MAX,
    };
    let mut head = Head {
        id: u16::from_be_bytes([header[0], header[1]]),
        op_code: OpCode::from_u8((header[2] >> 3) & 0xf),
        recursion_desired: header[2] & 1 != 0,
        checking_disabled: header[3] & 0x10 != 0,
        dnssec_ok: false,
        edns: false,
        limit: plain,
    };
    if head.op_code != OpCode::Query {
        return Received::Refuse(Box::new(head), None, ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(packet) else {
        return Received::Refuse(Box::new(head), None, ResponseCode::FormErr);
    };
    if let Some(edns) = &message.edns {
        head.edns = true;
        head.dnssec_ok = edns.flags().dnssec_ok;
        if transport == Transport::Udp {
            head.limit = edns.max_payload().clamp(512, MAX_UDP_BYTES);
        }
        if edns.version() != 0 {
            return Received::Refuse(Box::new(head), message.queries.first().cloned(), ResponseCode::BADVERS);
        }
    }
    let [query] = message.queries.as_slice() else {
        return Received::Refuse(Box::new(head), None, ResponseCode::FormErr);
    };
    let refused = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || refused {
        return Received::Refuse(Box::new(head), Some(query.clone()), ResponseCode::Refused);
    }
    let name = LowerName::new(query.name());
    Received::Question(Box::new(Question { head, query: query.clone(), name }))
}

/// The sections of an answer.
#[derive(Debug, Default)]
pub(crate) struct Sections<'a> {
    pub(crate) answers: Vec<&'a Record>,
    pub(crate) authorities: Vec<&'a Record>,
    pub(crate) additionals: Vec<&'a Record>,
    pub(crate) authoritative: bool,
    pub(crate) authentic: bool,
}

/// The answer's bytes. Too long for the client: first the additional section goes, then everything, and the truncation
/// bit sends the client to TCP.
pub(crate) fn encode(head: &Head, query: Option<&Query>, code: ResponseCode, sections: &Sections<'_>) -> Vec<u8> {
    let limit = usize::from(head.limit);
    let whole = emit(head, query, code, sections, true, false);
    if let Some(bytes) = whole.filter(|bytes| bytes.len() <= limit) {
        return bytes;
    }
    let lean = emit(head, query, code, sections, false, false);
    if let Some(bytes) = lean.filter(|bytes| bytes.len() <= limit) {
        return bytes;
    }
    let empty = Sections { authoritative: sections.authoritative, ..Sections::default() };
    emit(head, query, code, &empty, false, true).unwrap_or_default()
}

fn emit(
    head: &Head,
    query: Option<&Query>,
    code: ResponseCode,
    sections: &Sections<'_>,
    additionals: bool,
    truncated: bool,
) -> Option<Vec<u8>> {
    let mut metadata = Metadata::new(head.id, MessageType::Response, head.op_code);
    metadata.authoritative = sections.authoritative;
    metadata.truncation = truncated;
    metadata.recursion_desired = head.recursion_desired;
    metadata.recursion_available = true;
    metadata.authentic_data = sections.authentic;
    metadata.checking_disabled = head.checking_disabled;
    metadata.response_code = code;
    let edns = head.edns.then(|| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES).set_dnssec_ok(head.dnssec_ok);
        edns
    });
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    let none: &[&Record] = &[];
    let extra = if additionals { sections.additionals.as_slice() } else { none };
    emit_message_parts(
        &metadata,
        &mut query.map(slice::from_ref).unwrap_or(&[]).iter(),
        &mut sections.answers.iter().copied(),
        &mut sections.authorities.iter().copied(),
        &mut extra.iter().copied(),
        edns.as_ref(),
        None,
        &mut encoder,
    )
    .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData};

    use super::*;

    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("web.default.svc.cluster.local.").unwrap(), RecordType::A));
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn records(count: u32) -> Vec<Record> {
        let name = Name::from_ascii("web.default.svc.cluster.local.").unwrap();
        (0..count).map(|i| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::from(i))))).collect()
    }

    fn answer(packet: &[u8], transport: Transport, records: &[Record]) -> (Vec<u8>, Message) {
        let Received::Question(question) = receive(packet, transport) else { panic!("a plain question") };
        let sections = Sections { answers: records.iter().collect(), ..Sections::default() };
        let bytes = encode(&question.head, Some(&question.query), ResponseCode::NoError, &sections);
        let message = Message::from_vec(&bytes).unwrap();
        (bytes, message)
    }

    #[test]
    fn answers_fit_what_the_client_takes() {
        let many = records(200);
        for (edns, transport, limit, truncated) in [
            (None, Transport::Udp, 512, true),
            (Some(100), Transport::Udp, 512, true),
            (Some(1_232), Transport::Udp, 1_232, true),
            (Some(65_535), Transport::Udp, 1_232, true),
            (None, Transport::Tcp, 65_535, false),
        ] {
            let (bytes, message) = answer(&query(edns), transport, &many);
            assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
            assert_eq!(message.metadata.truncation, truncated);
            assert_eq!(message.edns.is_some(), edns.is_some(), "EDNS is answered with EDNS");
            assert_eq!(message.answers.len(), if truncated { 0 } else { 200 });
        }
        let (_, message) = answer(&query(Some(1_232)), Transport::Udp, &records(60));
        assert_eq!(message.answers.len(), 60);
    }

    #[test]
    fn refuses_what_it_does_not_do() {
        let code = |packet: &[u8]| match receive(packet, Transport::Udp) {
            Received::Refuse(_, _, code) => Some(code),
            Received::Question(_) => None,
            Received::Ignore => Some(ResponseCode::NoError),
        };
        let mut message = Message::from_vec(&query(None)).unwrap();
        message.queries[0].set_query_type(RecordType::AXFR);
        assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::Refused));
        message.queries[0].set_query_type(RecordType::TXT).set_query_class(DNSClass::CH);
        assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::Refused));
        let mut packet = query(None);
        packet[2] |= 5 << 3;
        assert_eq!(code(&packet), Some(ResponseCode::NotImp), "UPDATE");
        let mut packet = query(None);
        packet[5] = 0;
        packet.truncate(12);
        assert_eq!(code(&packet), Some(ResponseCode::FormErr), "no question");
        let mut packet = query(None);
        packet[2] |= 0x80;
        assert_eq!(code(&packet), Some(ResponseCode::NoError), "answers are ignored");
        assert_eq!(code(&[0; 11]), Some(ResponseCode::NoError), "too short to answer");
        let mut message = Message::from_vec(&query(Some(1_232))).unwrap();
        message.edns.as_mut().unwrap().set_version(1);
        assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::BADVERS));
        // RFC 9267: a compression pointer to itself.
        let mut packet = query(None)[..12].to_vec();
        packet.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&packet), Some(ResponseCode::FormErr));
    }

    proptest::proptest! {
        #[test]
        fn no_packet_panics_and_answers_are_well_formed(
            mut packet in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            from in 0usize..40,
            valid in proptest::bool::ANY,
        ) {
            if valid {
                // A real question with random bytes over its middle gets deeper than noise does.
                let mut base = query(Some(1_232));
                let end = (from + packet.len()).min(base.len());
                let from = from.min(end);
                base[from..end].copy_from_slice(&packet[..end - from]);
                packet = base;
            }
            for transport in [Transport::Udp, Transport::Tcp] {
                let many = records(100);
                let sections = Sections { answers: many.iter().collect(), ..Sections::default() };
                let (head, bytes) = match receive(&packet, transport) {
                    Received::Ignore => continue,
                    Received::Refuse(head, query, code) => {
                        let bytes = encode(&head, query.as_ref(), code, &Sections::default());
                        (head, bytes)
                    }
                    Received::Question(q) => {
                        let bytes = encode(&q.head, Some(&q.query), ResponseCode::NoError, &sections);
                        (Box::new(q.head.clone()), bytes)
                    }
                };
                proptest::prop_assert!(bytes.len() <= usize::from(head.limit).max(512));
                proptest::prop_assert_eq!(&bytes[..2], &packet[..2], "the id is echoed");
                proptest::prop_assert!(bytes[2] & 0x80 != 0);
                let read = Message::from_vec(&bytes).unwrap();
                proptest::prop_assert_eq!(read.to_vec().is_ok(), true);
            }
        }
    }
}
