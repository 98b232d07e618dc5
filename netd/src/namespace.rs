//! Entering network namespaces, always on a thread made for it: a namespace belongs to the thread, and an executor's
//! worker that changed its own would take strangers' sockets along.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves the calling thread for good.
pub(crate) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

/// Runs `work` on a thread of its own inside the namespace and waits for it.
pub(crate) fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).stack_size(128 * 1024);
        let handle = thread.spawn_scoped(scope, || enter(netns).and_then(|()| work()))?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
