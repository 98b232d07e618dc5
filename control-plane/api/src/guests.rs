//! Who may hold a connection. Those who have shown who they are get many and for long; strangers get a few, for a short time,
//! and no single address gets them all. So nobody without a certificate or token can keep those out who have one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of members, and of strangers in all and from one address.
const MEMBERS: usize = 2000;
const STRANGERS: usize = 512;
const STRANGERS_OF_ONE: usize = 64;

/// All connections.
pub(crate) struct Guests {
    members: Arc<Semaphore>,
    strangers: Arc<Mutex<Strangers>>,
}

#[derive(Default)]
struct Strangers {
    total: usize,
    /// At most `STRANGERS` entries.
    of: HashMap<IpAddr, usize>,
}

/// A stranger's place; it is free again when this is dropped.
struct Place {
    address: IpAddr,
    strangers: Arc<Mutex<Strangers>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.total = strangers.total.saturating_sub(1);
        if let Some(count) = strangers.of.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                strangers.of.remove(&self.address);
            }
        }
    }
}

/// One connection's standing: at first a stranger, a member once it is known who it is.
pub(crate) struct Standing {
    members: Arc<Semaphore>,
    held: Mutex<Held>,
}

enum Held {
    Stranger { _place: Place },
    Member { _permit: OwnedSemaphorePermit },
}

impl Default for Guests {
    fn default() -> Self {
        Self { members: Arc::new(Semaphore::new(MEMBERS)), strangers: Arc::default() }
    }
}

impl Guests {
    /// Lets a connection in, as a stranger; `None` when there are too many.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Arc<Standing>> {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = strangers.of.get(&address).copied().unwrap_or(0);
        if strangers.total >= STRANGERS || of_one >= STRANGERS_OF_ONE {
            return None;
        }
        strangers.total += 1;
        strangers.of.insert(address, of_one + 1);
        let place = Place { address, strangers: self.strangers.clone() };
        Some(Arc::new(Standing { members: self.members.clone(), held: Mutex::new(Held::Stranger { _place: place }) }))
    }
}

impl Standing {
    /// Makes a member of a stranger whose name is now known; false when there are too many members.
    pub(crate) fn promote(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*held, Held::Member { .. }) {
            return true;
        }
        let Ok(permit) = self.members.clone().try_acquire_owned() else { return false };
        *held = Held::Member { _permit: permit };
        true
    }

    /// Whether it is known who holds the connection.
    pub(crate) fn is_member(&self) -> bool {
        matches!(*self.held.lock().unwrap_or_else(PoisonError::into_inner), Held::Member { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_address_does_not_take_all_places() {
        let guests = Guests::default();
        let held: Vec<_> = (0..STRANGERS_OF_ONE).map(|_| guests.enter(address(1)).unwrap()).collect();
        assert!(guests.enter(address(1)).is_none());
        assert!(guests.enter(address(2)).is_some());
        drop(held);
        assert!(guests.enter(address(1)).is_some());
    }

    #[test]
    fn strangers_are_few_and_members_do_not_count_among_them() {
        let guests = Guests::default();
        let mut held = Vec::new();
        for round in 0..STRANGERS * 2 {
            let guest = guests.enter(address(u8::try_from(round % 200).unwrap())).unwrap();
            assert!(guest.promote() && guest.promote() && guest.is_member());
            held.push(guest);
        }
        let strangers: Vec<_> =
            (0..STRANGERS + 9).filter_map(|round| guests.enter(address(u8::try_from(round % 200).unwrap()))).collect();
        assert_eq!(strangers.len(), STRANGERS);
        assert!(strangers.iter().all(|stranger| !stranger.is_member()));
        assert!(guests.enter(address(250)).is_none());
        drop(held);
        drop(strangers);
        assert_eq!(guests.strangers.lock().unwrap().of.len(), 0);
    }

    #[test]
    fn members_are_not_endless() {
        let guests = Guests::default();
        let held: Vec<_> = (0..MEMBERS)
            .map(|_| {
                let guest = guests.enter(address(1)).unwrap();
                assert!(guest.promote());
                guest
            })
            .collect();
        let one_more = guests.enter(address(1)).unwrap();
        assert!(!one_more.promote() && !one_more.is_member());
        drop(held);
        assert!(one_more.promote());
    }
}
