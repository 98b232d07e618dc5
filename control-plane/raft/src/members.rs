//! Who belongs to the cluster, in our own encoding.

use std::collections::{BTreeMap, BTreeSet};

use coracle_store::codec::{CodecError, Reader, Writer};

/// A server as its peers know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Where its peers reach it (`host:port`); empty while it is alone.
    pub address: String,
    /// The name of its machine: a server that comes back with an empty disk is another server of the same name.
    pub name: String,
    /// The port of its API, at the host of `address`; 0 when it is not known.
    pub api_port: u16,
}

/// The cluster's servers. During a change there are two sets of voters, and a majority of each must agree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// The sets of voters.
    pub voters: Vec<BTreeSet<u64>>,
    /// Every server, voter or learner.
    pub servers: BTreeMap<u64, Member>,
}

/// 2: names and API ports.
const FORMAT: u16 = 2;

impl Members {
    /// Whether this server is the only one that votes.
    #[must_use]
    pub fn is_alone(&self, node: u64) -> bool {
        self.voters.iter().flatten().all(|voter| *voter == node) && self.servers.keys().all(|server| *server == node)
    }

    /// `format u16, { { voter u64 } }, { server u64, address, name, API port u16 }`, counts and text lengths as u32. Format 1
    /// ends each server after its address.
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
            out.blob(member.name.as_bytes(), "a name")?;
            out.u16(member.api_port);
        }
        Ok(out.into_bytes())
    }

    /// Every server that votes, in the old set or the new.
    #[must_use]
    pub fn all_voters(&self) -> BTreeSet<u64> {
        self.voters.iter().flatten().copied().collect()
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
            let server = input.u64("a server")?;
            let mut member = Member { address: input.text("an address")?.to_owned(), ..Member::default() };
            if found > 1 {
                member.name = input.text("a name")?.to_owned();
                member.api_port = input.u16("a port")?;
            }
            Ok((server, member))
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
        let member = |address: &str| Member { address: address.to_owned(), name: "m1".to_owned(), api_port: 6443 };
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

    #[test]
    fn a_list_of_the_first_release_is_read() {
        let mut out = Writer::new();
        out.u16(1);
        out.count(1, "sets").unwrap();
        out.count(1, "voters").unwrap();
        out.u64(7);
        out.count(1, "servers").unwrap();
        out.u64(7);
        out.blob(b"10.0.0.1:6444", "an address").unwrap();
        let members = Members::decode(&out.into_bytes()).unwrap();
        assert_eq!(members.servers[&7], Member { address: "10.0.0.1:6444".to_owned(), ..Member::default() });
    }
}
