//! `coracle down`: stops everything that `up` started and leaves no trace on the machine; the data stays.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use coracle_daemon::Drain;
use coracle_node_agent::{Agent, Identity};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::config::Settings;
use crate::failure::Failure;
use crate::{output, preflight};

/// Stop the cluster on this machine, pods included
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle down\n\nLeaves no mount, link, cgroup, process, route or table behind. The data folder stays: the next `up` starts the pods again.\n\nExit codes: 0 all is gone, 1 something could not be removed"
)]
pub struct Down {
    /// Seconds that pods get to end by themselves
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// `json`: what could not be removed, as a list
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// Something could not be stopped or removed.
pub async fn run(data_dir: &Path, down: &Down) -> Result<(), Failure> {
    let Some(settings) = Settings::load(data_dir)? else {
        output::note(&format!("nothing has been started with the data folder {}", data_dir.display()));
        return Ok(());
    };
    preflight::root("sudo coracle down")?;
    let left = stop(&settings, Duration::from_secs(down.timeout)).await?;
    if down.output == output::Format::Json {
        output::line(&output::json(&serde_json::json!({"left": left})));
    }
    if left.is_empty() {
        if down.output != output::Format::Json {
            output::line("stopped; nothing is left but the data folder");
        }
        return Ok(());
    }
    Err(Failure::failed(format!("some things could not be removed:\n  {}", left.join("\n  "))))
}

/// Ends the program that runs with these settings and its pods, which get so long, and removes what they made on the machine.
/// Returns what could not be removed, in words.
///
/// # Errors
/// The program did not stop, or its folders cannot be used.
pub async fn stop(settings: &Settings, timeout: Duration) -> Result<Vec<String>, Failure> {
    stop_process(settings).await?;
    // An agent without a server, which starts nothing: it finds what is left by the same names, and takes it down.
    let nobody = Identity { cert_pem: String::new(), key_pem: String::new(), ca_pem: String::new() };
    let config = super::up::agent_config(settings, Vec::new(), nobody);
    let drain = Drain::new();
    let left =
        Agent::remove_leftovers(config, timeout, drain.watch()).await.map_err(|error| Failure::from_error(&error))?;
    drain.finish(Duration::from_secs(5)).await;
    Ok(left)
}

/// Ends the `up` of these settings, if it still runs.
async fn stop_process(settings: &Settings) -> Result<(), Failure> {
    let Some(pid) = i32::try_from(settings.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    // The number may belong to another program by now.
    let ours =
        std::fs::read_link(format!("/proc/{}/exe", settings.pid)).ok().zip(std::env::current_exe().ok()).is_some_and(
            |(theirs, own)| theirs.file_name() == own.file_name() || theirs.to_string_lossy().contains("coracle"),
        );
    if !ours {
        return Ok(());
    }
    let _ = kill_process(pid, Signal::TERM);
    let until = Instant::now() + Duration::from_secs(15);
    while test_kill_process(pid).is_ok() && !is_zombie(settings.pid) {
        if Instant::now() > until {
            let _ = kill_process(pid, Signal::KILL);
            return Err(Failure::failed(format!(
                "process {} did not stop and was killed\nhint: run `coracle down` again",
                settings.pid
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A process that has ended but whose parent has not looked.
fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
