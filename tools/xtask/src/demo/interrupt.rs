//! Ctrl-C as something to ask and to wait for: whoever has machines running takes them down before it ends.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody asked us to end.
#[derive(Clone)]
pub struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// From now on Ctrl-C, SIGTERM and the end of the terminal no longer end this process: they are told here.
    ///
    /// # Errors
    /// The system refuses, in words.
    pub fn listen() -> Result<Self, String> {
        let bad = |error: std::io::Error| format!("cannot listen for signals: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(bad)?;
        let entered = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(bad)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(bad)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(bad)?;
        drop(entered);
        let asked = Self(Arc::new((Mutex::new(false), Condvar::new())));
        let teller = asked.clone();
        let listen = move || {
            runtime.block_on(async {
                tokio::select! {
                    // Cancel safe all three.
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            *teller.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            teller.0.1.notify_all();
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(bad)?;
        Ok(asked)
    }

    /// Rests for so long, or until asked to end; tells which.
    pub fn pause(&self, rest: Duration) -> bool {
        let asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = self.0.1.wait_timeout_while(asked, rest, |asked| !*asked);
        *rested.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Rests until asked to end.
    pub fn wait(&self) {
        let asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(asked, |asked| !*asked));
    }
}
