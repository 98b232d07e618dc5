//! The state hash: an order-free sum over objects, kept up to date with every change, so that replicas can compare.

use crate::Object;

/// The share of one object, and of the names it holds.
pub(crate) fn of_object(object: &Object, claims: &[std::sync::Arc<str>]) -> u64 {
    let key = &object.key;
    let mut sum = crc32c::crc32c(key.resource.as_bytes());
    for part in [key.namespace.as_bytes(), key.name.as_bytes(), &object.json] {
        // The length keeps ("ab","c") apart from ("a","bc").
        sum = crc32c::crc32c_append(sum, &(part.len() as u64).to_le_bytes());
        sum = crc32c::crc32c_append(sum, part);
    }
    let mut names = 0;
    for claim in claims {
        names = crc32c::crc32c_append(names, &(claim.len() as u64).to_le_bytes());
        names = crc32c::crc32c_append(names, claim.as_bytes());
    }
    let text = crc32c::crc32c_append(!sum, &object.json);
    mix(mix(u64::from(sum) << 32 | u64::from(text)) ^ u64::from(names))
}

/// SplitMix64's finaliser: spreads neighbouring inputs, so that sums of many do not cancel.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
