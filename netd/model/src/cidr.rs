//! An IPv4 address block: what a node, a cluster and the services get their addresses from.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 block such as `10.42.1.0/24`. The host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

/// Why a text is not an IPv4 block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not of the form address/prefix.
    #[error("`{0}` is not an IPv4 block (hint: write it like 10.42.0.0/16)")]
    Syntax(String),
    /// A prefix over 32.
    #[error("prefix length {0} is over 32")]
    Prefix(u8),
    /// Bits set behind the prefix.
    #[error("`{address}/{prefix}` has host bits set (hint: did you mean {network}/{prefix}?)")]
    HostBits {
        /// The address as given.
        address: Ipv4Addr,
        /// The prefix length as given.
        prefix: u8,
        /// The network the address lies in.
        network: Ipv4Addr,
    },
}

impl Cidr {
    /// The block of `prefix` bits starting at `address`.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Cidr, CidrError> {
        if prefix > 32 {
            return Err(CidrError::Prefix(prefix));
        }
        let network = u32::from(address) & mask(prefix);
        if network != u32::from(address) {
            return Err(CidrError::HostBits { address, prefix, network: network.into() });
        }
        Ok(Cidr { network, prefix })
    }

    /// The first address of the block (the network address).
    pub fn network(&self) -> Ipv4Addr {
        self.network.into()
    }

    /// The last address of the block (the broadcast address).
    pub fn last(&self) -> Ipv4Addr {
        (self.network | !mask(self.prefix)).into()
    }

    /// The first usable address: the pods' gateway on the node's bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.wrapping_add(1).into()
    }

    /// Prefix length in bits, 0 to 32.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    /// Number of addresses in the block.
    pub fn size(&self) -> u64 {
        1u64 << (32 - self.prefix)
    }

    /// Whether `address` lies in the block.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// Whether all of `inner` lies in the block.
    pub fn covers(&self, inner: &Cidr) -> bool {
        self.prefix <= inner.prefix && self.contains(inner.network())
    }

    /// Whether the blocks share an address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address `offset` places after the network address, if it lies in the block.
    pub fn nth(&self, offset: u64) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from(self.network + offset as u32))
    }
}

fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let syntax = || CidrError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        Cidr::new(address.parse().map_err(|_| syntax())?, prefix.parse().map_err(|_| syntax())?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_ask() {
        let block: Cidr = "10.42.3.0/24".parse().unwrap();
        assert_eq!(block.gateway(), Ipv4Addr::new(10, 42, 3, 1));
        assert_eq!(block.last(), Ipv4Addr::new(10, 42, 3, 255));
        assert_eq!(block.to_string(), "10.42.3.0/24");
        assert!(block.contains(Ipv4Addr::new(10, 42, 3, 77)) && !block.contains(Ipv4Addr::new(10, 42, 4, 0)));
        assert_eq!(block.nth(255), Some(block.last()));
        assert_eq!(block.nth(256), None);
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn refuses_what_is_no_block() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.1/8", "::/0", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        let error = "10.42.0.7/16".parse::<Cidr>().unwrap_err();
        assert!(error.to_string().contains("did you mean 10.42.0.0/16"), "{error}");
    }
}
