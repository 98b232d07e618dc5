//! The coracle program: every verb.
#![forbid(unsafe_code)]

mod client;
mod config;
mod failure;
mod output;
mod preflight;
mod resource;
mod source;
mod statuspage;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::Client;
use crate::failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A small container orchestrator: one program turns a handful of machines into a cluster
#[derive(Debug, Parser)]
#[command(name = "coracle", version, propagate_version = true, disable_help_subcommand = true)]
struct Coracle {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    verb: Verb,
}

/// How verbs find the API.
#[derive(Debug, clap::Args)]
struct Access {
    /// The kubeconfig to use [default: admin.kubeconfig in the data folder]
    #[arg(long, global = true, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The data folder
    #[arg(long, global = true, env = "CORACLE_DATA_DIR", default_value = config::DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
}

impl Access {
    /// The authority that the kubeconfig trusts, PEM.
    fn authority(&self) -> Result<String, Failure> {
        let path = self.kubeconfig.clone().unwrap_or_else(|| self.data_dir.join("admin.kubeconfig"));
        Ok(client::authority(&path)?)
    }

    fn client(&self) -> Result<Client, Failure> {
        let path = self.kubeconfig.clone().unwrap_or_else(|| self.data_dir.join("admin.kubeconfig"));
        Ok(Client::open(&path)?)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(Box<verbs::up::Up>),
    Join(Box<verbs::join::Join>),
    Token(verbs::token::Token),
    Cordon(verbs::cordon::Cordon),
    Uncordon(verbs::cordon::Uncordon),
    Drain(verbs::drain::Drain),
    Leave(verbs::leave::Leave),
    Down(verbs::down::Down),
    Apply(verbs::apply::Apply),
    Get(verbs::get::Get),
    Describe(verbs::describe::Describe),
    Logs(verbs::logs::Logs),
    Delete(verbs::delete::Delete),
    Scale(verbs::scale::Scale),
    Status(verbs::status::Status),
    Doctor(verbs::doctor::Doctor),
    Backup(verbs::backup::Backup),
    Restore(verbs::backup::Restore),
    Recover(verbs::backup::Recover),
    RotateKeys(verbs::rotate::RotateKeys),
    Image(verbs::image::Image),
    Kubeconfig(verbs::kubeconfig::Kubeconfig),
    Version(verbs::version::Version),
}

fn main() -> ExitCode {
    let coracle = Coracle::parse();
    // The servers need every core; one-shot verbs are faster without the threads.
    let mut runtime = match &coracle.verb {
        Verb::Up(_) | Verb::Join(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start the runtime: {error}")).exit(),
    };
    let outcome = runtime.block_on(run(&coracle));
    // A blocking read of standard input or a name lookup must not hold the exit up.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

async fn run(coracle: &Coracle) -> Result<(), Failure> {
    let access = &coracle.access;
    match &coracle.verb {
        Verb::Up(up) => verbs::up::run(&access.data_dir, up).await,
        Verb::Join(join) => verbs::join::run(&access.data_dir, join).await,
        Verb::Token(token) => verbs::token::run(access, token).await,
        Verb::Cordon(cordon) => verbs::cordon::cordon(&access.client()?, cordon).await,
        Verb::Uncordon(uncordon) => verbs::cordon::uncordon(&access.client()?, uncordon).await,
        Verb::Drain(drain) => verbs::drain::run(&access.client()?, drain).await,
        Verb::Leave(leave) => verbs::leave::run(access, leave).await,
        Verb::Down(down) => verbs::down::run(&access.data_dir, down).await,
        Verb::Apply(apply) => verbs::apply::run(&access.client()?, apply).await,
        Verb::Get(get) => verbs::get::run(&access.client()?, get).await,
        Verb::Describe(describe) => verbs::describe::run(&access.client()?, describe).await,
        Verb::Logs(logs) => verbs::logs::run(&access.client()?, logs).await,
        Verb::Delete(delete) => verbs::delete::run(&access.client()?, delete).await,
        Verb::Scale(scale) => verbs::scale::run(&access.client()?, scale).await,
        Verb::Doctor(doctor) => verbs::doctor::run(&access.data_dir, doctor).await,
        Verb::Status(status) => verbs::status::run(&access.data_dir, status).await,
        Verb::Backup(backup) => verbs::backup::run(&access.client()?, backup).await,
        Verb::Restore(restore) => verbs::backup::restore(&access.data_dir, restore),
        Verb::Recover(recover) => verbs::backup::recover(&access.data_dir, recover),
        Verb::RotateKeys(rotate) => verbs::rotate::run(&access.data_dir, rotate),
        Verb::Image(image) => verbs::image::run(&access.data_dir, image).await,
        Verb::Kubeconfig(kubeconfig) => verbs::kubeconfig::run(&access.data_dir, kubeconfig),
        Verb::Version(version) => verbs::version::run(version),
    }
}

/// Milliseconds since 1970, for ages.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
