//! Answers of upstream servers, kept as long as their TTL says and a while longer for bad days.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, RData, Record, RecordType};

use crate::config::{CACHE_ENTRIES, FAILURE_TTL, MAX_NEGATIVE_TTL, MAX_STALE, MAX_TTL, STALE_TTL_S};

/// What makes two forwarded questions equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) name: LowerName,
    pub(crate) kind: RecordType,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

/// An upstream's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) authentic: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Answer {
    /// "No upstream could say."
    pub(crate) fn failure() -> Answer {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Answer { code: ResponseCode::ServFail, authentic: false, answers, authorities, additionals }
    }

    /// A copy whose TTLs are as `age` later, or all `STALE_TTL_S` when it is expired.
    fn aged(&self, age: Duration, stale: bool) -> Answer {
        let age = age.as_secs() as u32;
        let aged = |records: &[Record]| {
            let mut records = records.to_vec();
            for record in &mut records {
                record.ttl = if stale { STALE_TTL_S } else { record.ttl.saturating_sub(age) };
            }
            records
        };
        Answer {
            code: self.code,
            authentic: self.authentic,
            answers: aged(&self.answers),
            authorities: aged(&self.authorities),
            additionals: aged(&self.additionals),
        }
    }

    /// How long it may be kept (RFC 2308 for negative answers).
    fn time_to_live(&self) -> Duration {
        let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl));
        match self.code {
            ResponseCode::NoError | ResponseCode::NXDomain => {}
            _ => return FAILURE_TTL,
        }
        let negative = self.code == ResponseCode::NXDomain || self.answers.is_empty();
        if !negative {
            return self.answers.iter().map(|record| seconds(record.ttl)).min().unwrap_or_default().min(MAX_TTL);
        }
        let soa = self.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(seconds(record.ttl.min(soa.minimum))),
            _ => None,
        });
        soa.unwrap_or_default().min(MAX_NEGATIVE_TTL)
    }
}

struct Entry {
    answer: Arc<Answer>,
    stored: Instant,
    expires: Instant,
}

/// A bounded cache. When it is full the oldest entry goes.
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<(Key, Instant)>,
    capacity: usize,
}

impl Cache {
    pub(crate) fn new() -> Cache {
        Cache { entries: HashMap::new(), order: VecDeque::new(), capacity: CACHE_ENTRIES }
    }

    /// An answer that is still good.
    pub(crate) fn fresh(&self, key: &Key, now: Instant) -> Option<Answer> {
        let entry = self.entries.get(key).filter(|entry| now < entry.expires)?;
        Some(entry.answer.aged(now - entry.stored, false))
    }

    /// An answer that was good not too long ago.
    pub(crate) fn stale(&self, key: &Key, now: Instant) -> Option<Answer> {
        let entry = self.entries.get(key).filter(|entry| now < entry.expires + MAX_STALE)?;
        let failure = !matches!(entry.answer.code, ResponseCode::NoError | ResponseCode::NXDomain);
        (!failure).then(|| entry.answer.aged(Duration::ZERO, true))
    }

    /// Keeps an answer. A failure never displaces a good answer: that one may be wanted stale.
    pub(crate) fn store(&mut self, key: Key, answer: Arc<Answer>, now: Instant) {
        let time_to_live = answer.time_to_live();
        if time_to_live.is_zero() {
            return;
        }
        let failure = !matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain);
        if failure && self.stale(&key, now).is_some() {
            return;
        }
        while self.order.len() >= self.capacity {
            let Some((oldest, stored)) = self.order.pop_front() else { break };
            // An entry stored again since stands further back in the line.
            if self.entries.get(&oldest).is_some_and(|entry| entry.stored == stored) {
                self.entries.remove(&oldest);
            }
        }
        self.order.push_back((key.clone(), now));
        self.entries.insert(key, Entry { answer, stored: now, expires: now + time_to_live });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn key(name: &str) -> Key {
        let name = LowerName::new(&Name::from_ascii(name).unwrap());
        Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn positive(ttl: u32) -> Arc<Answer> {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = Record::from_rdata(name, ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 1))));
        Arc::new(Answer { code: ResponseCode::NoError, answers: vec![record], ..Answer::failure() })
    }

    fn negative(ttl: u32, minimum: u32) -> Arc<Answer> {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
        let authorities = vec![Record::from_rdata(name, ttl, RData::SOA(soa))];
        Arc::new(Answer { code: ResponseCode::NXDomain, authorities, ..Answer::failure() })
    }

    #[test]
    fn ttl_counts_down_and_ends() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.store(key("a."), positive(30), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.fresh(&key("a."), after(10)).unwrap().answers[0].ttl, 20);
        assert!(cache.fresh(&key("a."), after(30)).is_none());
        assert_eq!(cache.stale(&key("a."), after(31)).unwrap().answers[0].ttl, STALE_TTL_S);
        assert!(cache.stale(&key("a."), after(31 + 3600)).is_none());
        assert!(cache.fresh(&key("b."), start).is_none());
    }

    #[test]
    fn negative_answers_live_as_long_as_the_soa_says() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.store(key("a."), negative(600, 20), start);
        assert!(cache.fresh(&key("a."), start + Duration::from_secs(19)).is_some());
        assert!(cache.fresh(&key("a."), start + Duration::from_secs(20)).is_none());
        let without_soa = Answer { code: ResponseCode::NXDomain, ..Answer::failure() };
        cache.store(key("b."), Arc::new(without_soa), start);
        assert!(cache.fresh(&key("b."), start).is_none(), "without an SOA it is not kept");
        cache.store(key("c."), positive(0), start);
        assert!(cache.fresh(&key("c."), start).is_none());
    }

    #[test]
    fn a_failure_is_short_and_never_displaces_an_answer() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.store(key("a."), Arc::new(Answer::failure()), start);
        assert!(cache.fresh(&key("a."), start + Duration::from_secs(1)).is_some());
        assert!(cache.fresh(&key("a."), start + FAILURE_TTL).is_none());
        cache.store(key("b."), positive(1), start);
        let later = start + Duration::from_secs(5);
        cache.store(key("b."), Arc::new(Answer::failure()), later);
        assert_eq!(cache.stale(&key("b."), later).unwrap().code, ResponseCode::NoError);
    }

    #[test]
    fn it_never_grows_over_its_bound() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.capacity = 10;
        for round in 0..1_000u32 {
            let now = start + Duration::from_millis(u64::from(round));
            cache.store(key(&format!("n{}.", round % 50)), positive(60), now);
            assert!(cache.entries.len() <= 10 && cache.order.len() <= 10);
        }
        assert!(cache.fresh(&key("n49."), start + Duration::from_secs(1)).is_some(), "the newest is there");
    }
}
