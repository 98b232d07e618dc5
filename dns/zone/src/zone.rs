//! The table and its answers.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};

use crate::ZoneInput;
use crate::build::Builder;

/// Time to live of every record, in seconds: how long a client may go on using an endpoint that is gone.
pub const TTL_S: u32 = 5;
/// Aliases followed inside the zone; a loop ends here.
const MAX_ALIASES: usize = 8;

/// All names of a cluster at one moment. Built once, then only asked.
#[derive(Debug)]
pub struct Zone {
    pub(crate) origin: LowerName,
    pub(crate) names: HashMap<LowerName, Vec<RecordSet>>,
    pub(crate) reverse_blocks: Vec<(u32, u8)>,
    pub(crate) soa: Record,
    pub(crate) skipped: Vec<Skipped>,
}

/// Records of one name and type.
#[derive(Debug)]
pub(crate) struct RecordSet {
    pub(crate) kind: RecordType,
    pub(crate) records: Vec<Record>,
}

/// Why there is no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The domain is no domain name.
    #[error("cluster domain `{0}` is not a domain name")]
    Domain(String),
}

/// Something that got no records because its name cannot stand in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The name as it was given.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What the zone has to say to a question.
#[derive(Debug)]
pub struct Answer<'a> {
    /// `NoError` or `NXDomain`.
    pub code: ResponseCode,
    /// Answer section: aliases first, then what was asked for.
    pub answers: Vec<&'a Record>,
    /// Authority section: the zone's SOA when there is no answer, for negative caching.
    pub authority: Option<&'a Record>,
    /// Additional section: addresses of SRV targets.
    pub additionals: Vec<&'a Record>,
    /// The last alias leads out of the zone: this name is still to be looked up elsewhere.
    pub chase: Option<&'a Name>,
}

impl Zone {
    /// Builds the table. Objects whose names cannot stand in DNS are left out and listed in [`Zone::skipped`].
    pub fn build(input: &ZoneInput) -> Result<Zone, ZoneError> {
        Builder::build(input)
    }

    /// What was left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The zone's name.
    pub fn origin(&self) -> &LowerName {
        &self.origin
    }

    /// Number of names, those without records of their own included.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name at all; never so for a built zone.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Answers a question of class IN. `None`: the name is not of this zone. Addresses start at the `rotation`-th, so
    /// that callers who give a different number each time spread load over headless services.
    pub fn answer(&self, name: &LowerName, kind: RecordType, rotation: usize) -> Option<Answer<'_>> {
        if !self.origin.zone_of(name) && !self.answers_reverse(name) {
            return None;
        }
        let mut answer = Answer {
            code: ResponseCode::NoError,
            answers: Vec::new(),
            authority: None,
            additionals: Vec::new(),
            chase: None,
        };
        let mut current = self.names.get(name);
        if current.is_none() {
            answer.code = ResponseCode::NXDomain;
        }
        for _ in 0..MAX_ALIASES {
            let Some(sets) = current else { break };
            let of = |kind: RecordType| sets.iter().find(|set| set.kind == kind);
            match (of(kind), of(RecordType::CNAME)) {
                (Some(found), _) => {
                    extend_rotated(&mut answer.answers, &found.records, rotation);
                    break;
                }
                (None, Some(alias)) if kind != RecordType::ANY => {
                    let Some(RData::CNAME(target)) = alias.records.first().map(|record| &record.data) else { break };
                    answer.answers.extend(&alias.records);
                    let target_lower = LowerName::new(&target.0);
                    if !self.origin.zone_of(&target_lower) {
                        answer.chase = Some(&target.0);
                        break;
                    }
                    current = self.names.get(&target_lower);
                }
                (None, _) => {
                    // RFC 8482: "any" gets one set of records, not everything there is.
                    let some = of(RecordType::A).or(sets.first()).filter(|_| kind == RecordType::ANY);
                    answer.answers.extend(some.map(|set| &set.records).into_iter().flatten());
                    break;
                }
            }
        }
        if kind == RecordType::SRV {
            self.add_target_addresses(&mut answer);
        }
        if answer.answers.is_empty() {
            answer.authority = Some(&self.soa);
        }
        Some(answer)
    }

    /// Whether a reverse question is ours to answer, be it in the negative.
    fn answers_reverse(&self, name: &LowerName) -> bool {
        if self.names.contains_key(name) {
            return true;
        }
        let Some(address) = reverse_address(name) else { return false };
        self.reverse_blocks.iter().any(|(network, prefix)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            u32::from(address) & mask == network & mask
        })
    }

    fn add_target_addresses<'a>(&'a self, answer: &mut Answer<'a>) {
        let mut seen = std::collections::HashSet::new();
        for record in &answer.answers {
            let RData::SRV(srv) = &record.data else { continue };
            if !seen.insert(&srv.target) {
                continue;
            }
            let sets = self.names.get(&LowerName::new(&srv.target)).map(Vec::as_slice).unwrap_or(&[]);
            let addresses = sets.iter().filter(|set| set.kind == RecordType::A).flat_map(|set| &set.records);
            answer.additionals.extend(addresses);
        }
    }
}

fn extend_rotated<'a>(answers: &mut Vec<&'a Record>, records: &'a [Record], rotation: usize) {
    let start = if records.is_empty() { 0 } else { rotation % records.len() };
    answers.extend(&records[start..]);
    answers.extend(&records[..start]);
}

/// The address in a name like `4.3.2.1.in-addr.arpa.`.
fn reverse_address(name: &LowerName) -> Option<Ipv4Addr> {
    let name = Name::from(name);
    let labels: Vec<&[u8]> = name.iter().collect();
    let [d, c, b, a, in_addr, arpa] = labels[..] else { return None };
    if (in_addr, arpa) != (b"in-addr".as_slice(), b"arpa".as_slice()) {
        return None;
    }
    let octet = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}
