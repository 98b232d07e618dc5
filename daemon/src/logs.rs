//! Logs of a long-running process: to standard error, filtered by `CORACLE_LOG` (the syntax of `tracing`'s `EnvFilter`).

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// Starts logging. `default` is the filter when `CORACLE_LOG` is unset; a filter that does not parse falls back to it and
/// the reason is returned, to be printed by the caller.
pub fn start(default: &str, color: bool) -> Option<String> {
    let (filter, complaint) = match std::env::var("CORACLE_LOG") {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(format!("CORACLE_LOG={text:?} is ignored: {error}"))),
        },
        Err(_) => (EnvFilter::new(default), None),
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_ansi(color)
        .with_target(true)
        .try_init();
    complaint
}
