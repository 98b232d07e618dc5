//! Deletes pods' links off the owner's way: the kernel waits for grace periods (3 to 30 ms) before a deletion returns.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::oneshot;

use crate::socket::Socket;
use crate::{NetError, links};

/// Links that may wait to be deleted; more are deleted by whoever asks.
const QUEUE: usize = 256;

/// A link to delete, by number: a successor of the same name must not be hit.
pub(crate) struct Doomed {
    pub(crate) index: u32,
    pub(crate) answer: oneshot::Sender<Result<(), NetError>>,
}

/// Hands deletions to a thread of their own.
pub(crate) struct Reaper {
    queue: SyncSender<Doomed>,
}

impl Reaper {
    /// Starts the thread in the calling thread's network namespace.
    pub(crate) fn start() -> io::Result<Reaper> {
        let socket = Socket::route()?;
        let (queue, doomed) = sync_channel(QUEUE);
        std::thread::Builder::new().name("netd-reaper".to_owned()).spawn(move || reap(socket, &doomed))?;
        Ok(Reaper { queue })
    }

    /// Deletes a link some time soon and answers then. What does not fit the queue comes back.
    pub(crate) fn take(&self, doomed: Doomed) -> Result<(), Doomed> {
        self.queue.try_send(doomed).map_err(|error| match error {
            TrySendError::Full(doomed) | TrySendError::Disconnected(doomed) => doomed,
        })
    }
}

fn reap(mut socket: Socket, doomed: &Receiver<Doomed>) {
    while let Ok(link) = doomed.recv() {
        delete(&mut socket, link);
    }
}

/// Deletes one link and answers; one that is gone is no error.
pub(crate) fn delete(socket: &mut Socket, doomed: Doomed) {
    let deleted = links::delete_index(socket, doomed.index);
    let deleted = deleted.map_err(|source| NetError::Netlink { operation: "deleting a pod's link".to_owned(), source });
    // A caller that no longer waits needs no answer.
    drop(doomed.answer.send(deleted));
}
