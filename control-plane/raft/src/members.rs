//! Who belongs to the cluster, in our own encoding.

use std::collections::{BTreeMap, BTreeSet};

use coracle_store::codec::{CodecError, Reader, Writer};

/// A server as its peers know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Where its peers reach it (`host:port`); empty while it is alone.
    pub address: String,
}

/// The cluster's servers. During a change there are two sets of voters, and a majority of each must agree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// The sets of voters.
    pub voters: Vec<BTreeSet<u64>>,
    /// Every server, voter or learner.
    pub servers: BTreeMap<u64, Member>,
}

const FORMAT: u16 = 1;

impl Members {
    /// Whether this server is the only one that votes.
    #[must_use]
    pub fn is_alone(&self, node: u64) -> bool {
        self.voters.iter().flatten().all(|voter| *voter == node) && self.servers.keys().all(|server| *server == node)
    }

    /// `format u16, { { voter u64 } }, { server u64, address }`, counts and text lengths as u32.
    ///
    /// # Errors
    /// Too many servers.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Writer::new();
        out.u16(FORMAT);
        out.count(self.voters.len(), "the sets of voters")?;
        for voters in &self.voters {
            out.count(voters.len(), "the voters")?;
            for voter in voters {
                out.u64(*voter);
            }
        }
        out.count(self.servers.len(), "the servers")?;
        for (server, member) in &self.servers {
            out.u64(*server);
            out.blob(member.address.as_bytes(), "an address")?;
        }
        Ok(out.into_bytes())
    }

    /// The reverse.
    ///
    /// # Errors
    /// Not what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let found = input.u16("the format number")?;
        if found == 0 || found > FORMAT {
            return Err(CodecError::Format { found });
        }
        let voters = input.list("the sets of voters", |input| {
            Ok(input.list("the voters", |input| input.u64("a voter"))?.into_iter().collect())
        })?;
        let servers = input.list("the servers", |input| {
            Ok((input.u64("a server")?, Member { address: input.text("an address")?.to_owned() }))
        })?;
        input.end("the members")?;
        Ok(Self { voters, servers: servers.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_as_they_went() {
        let member = |address: &str| Member { address: address.to_owned() };
        let members = Members {
            voters: vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, u64::MAX])],
            servers: BTreeMap::from([(1, member("a:1")), (u64::MAX, member(""))]),
        };
        let bytes = members.encode().unwrap();
        assert_eq!(Members::decode(&bytes).unwrap(), members);
        for end in 0..bytes.len() {
            assert!(Members::decode(&bytes[..end]).is_err());
        }
    }
}
