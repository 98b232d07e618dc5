//! IPv4 blocks: the cluster's, the nodes' and the services'.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network with its prefix length; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// Why a text is no block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an IPv4 block: expected an address with zero host bits and a prefix length, such as 10.42.0.0/16"
)]
pub struct CidrError(String);

impl Cidr {
    /// Prefix length, 0 to 32.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The `index`th address of the block, if it has one.
    #[must_use]
    pub fn address(self, index: u32) -> Option<Ipv4Addr> {
        (u64::from(index) < self.size()).then(|| Ipv4Addr::from(self.base + index))
    }

    /// The `index`th block of `prefix` bits within this one, if it has one.
    #[must_use]
    pub fn block(self, index: u32, prefix: u8) -> Option<Self> {
        if prefix < self.prefix || prefix > 32 {
            return None;
        }
        let blocks = 1_u64 << (prefix - self.prefix);
        let base = u64::from(self.base) + (u64::from(index) << (32 - prefix));
        (u64::from(index) < blocks).then_some(Self { base: u32::try_from(base).ok()?, prefix })
    }

    /// Which of this one's blocks of its length a block is; `None` when it is not within this one.
    #[must_use]
    pub fn index_of(self, block: Self) -> Option<u32> {
        let within = block.prefix >= self.prefix && self.overlaps(block);
        within.then(|| (u64::from(block.base - self.base) >> (32 - block.prefix)) as u32)
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let bits = self.prefix.min(other.prefix);
        let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
        self.base & mask == other.base & mask
    }

    fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let bad = || CidrError(text.chars().take(60).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(bad)?;
        let base = u32::from(address);
        let host = if prefix == 0 { u32::MAX } else { !(u64::from(u32::MAX) << (32 - prefix)) as u32 };
        if base & host == 0 { Ok(Self { base, prefix }) } else { Err(bad()) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_and_counted() {
        let cluster: Cidr = "10.42.0.0/16".parse().unwrap();
        assert_eq!(cluster.block(0, 24).unwrap().to_string(), "10.42.0.0/24");
        assert_eq!(cluster.block(255, 24).unwrap().to_string(), "10.42.255.0/24");
        assert_eq!(cluster.block(256, 24), None);
        assert_eq!(cluster.address(1).unwrap().to_string(), "10.42.0.1");
        assert!(cluster.overlaps("10.42.7.0/24".parse().unwrap()));
        assert!(!cluster.overlaps("10.43.0.0/16".parse().unwrap()));
        for index in [0, 7, 255] {
            assert_eq!(cluster.index_of(cluster.block(index, 24).unwrap()), Some(index));
        }
        assert_eq!(cluster.index_of("10.43.0.0/24".parse().unwrap()), None);
        assert_eq!(cluster.index_of("10.0.0.0/8".parse().unwrap()), None);
        for bad in ["10.42.0.1/16", "10.42.0.0", "10.42.0.0/33", "x/8", "10.42.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
