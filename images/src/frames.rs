//! From the network to a thread that may block: a bounded channel of frames, read as a file.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Frames on their way; hyper's are at most some ten KiB.
const FRAMES: usize = 64;

/// The network's end. An empty frame says the end: a channel that merely closes is a break.
pub type Sender = mpsc::Sender<io::Result<Bytes>>;

/// The reading end.
pub struct Frames {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    frame: Bytes,
    ended: bool,
}

/// Both ends.
pub fn channel() -> (Sender, Frames) {
    let (sender, receiver) = mpsc::channel(FRAMES);
    (sender, Frames { receiver, frame: Bytes::new(), ended: false })
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.frame.is_empty() && !self.ended {
            self.frame =
                self.receiver.blocking_recv().unwrap_or_else(|| Err(io::Error::other("the download was given up")))?;
            self.ended = self.frame.is_empty();
        }
        let count = buffer.len().min(self.frame.len());
        buffer[..count].copy_from_slice(&self.frame.split_to(count));
        Ok(count)
    }
}
