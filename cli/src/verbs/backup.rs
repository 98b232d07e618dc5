//! `coracle backup`, `restore` and `recover`: what a cluster is worth is kept elsewhere, and comes back.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use coracle_control_plane::Member;
use coracle_control_plane::backup::{self, BackupError};
use coracle_control_plane::passphrase::{Passphrase, Sealing};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::client::Client;
use crate::config::Settings;
use crate::failure::Failure;
use crate::{output, preflight};

/// Write the whole cluster into a file
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle backup /mnt/backups/coracle-$(date +%F).backup\n\nThe file holds every object, Secrets too, and the key of the cluster's authority: keep it as you keep passwords, or seal it\nwith --passphrase-file and keep the passphrase elsewhere. Volumes and images are not in it.\n\nExit codes: 0 written and checked, 1 failed"
)]
pub struct Backup {
    /// Where to write it; a file that is there is replaced when the new one is whole
    file: PathBuf,
    /// Seal it with the first line of this file; whoever loses that line cannot read the backup
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// `json`: what it holds, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Make a cluster of one server from a backup, in an empty data folder
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle restore /mnt/backups/coracle-2026-11-26.backup && coracle up\n\nThe nodes of the cluster come back by themselves, and what runs there is adopted. Stop the servers of before first: they\nbelong to another life of the cluster. Each of them joins again as a new server, with its `log` folder moved away.\n\nExit codes: 0 restored, 1 failed"
)]
pub struct Restore {
    /// The backup
    file: PathBuf,
    /// The passphrase it was sealed with is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Only look whether it is whole
    #[arg(long)]
    check: bool,
    /// `json`: what came of it, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Go on with this server alone, when a majority of the servers is lost for good
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle recover --yes && coracle up\n\nUse the server that was last in touch with the others (`coracle status --servers`: the one with the longest log). What the lost\nservers had acknowledged and this one has not is lost, and cannot be told. The folder of before is kept as log.before-recovery-...\n\nExit codes: 0 recovered, 1 failed, 2 not confirmed"
)]
pub struct Recover {
    /// Yes, the other servers are lost for good and will never be started again with the data they had
    #[arg(long)]
    yes: bool,
    /// `json`: what came of it, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs `backup`.
///
/// # Errors
/// The cluster gives none, it does not come whole, or the file cannot be written.
pub async fn run(client: &Client, verb: &Backup) -> Result<(), Failure> {
    let passphrase = passphrase(verb.passphrase_file.as_deref())?;
    let temp = verb.file.with_extension("partial");
    let written = async {
        let bad = |error: io::Error| Failure::failed(format!("cannot write {}: {error}", temp.display()));
        let _ = std::fs::remove_file(&temp);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(bad)?;
        let mut out = match &passphrase {
            None => Out::Plain(file),
            Some(passphrase) => Out::Sealed(Box::new(Sealing::begin(file, passphrase).map_err(bad)?)),
        };
        let mut answer =
            client.stream(Method::GET, "/coracle.dev/v1/backup", "application/octet-stream", None).await?.into_body();
        while let Some(frame) = answer.frame().await {
            let frame = frame.map_err(|error| Failure::failed(format!("the backup broke off: {error}")))?;
            if let Some(bytes) = frame.data_ref() {
                out.write_all(bytes).map_err(bad)?;
            }
        }
        out.finish().and_then(|file| file.sync_all()).map_err(bad)?;
        let head = backup::check(&temp, passphrase.as_ref()).map_err(|error| Failure::from_error(&error))?;
        std::fs::rename(&temp, &verb.file).map_err(bad)?;
        Ok::<_, Failure>(head)
    };
    let head = match written.await {
        Ok(head) => head,
        Err(failure) => {
            let _ = std::fs::remove_file(&temp);
            return Err(failure);
        }
    };
    if verb.output == output::Format::Json {
        let shown = json!({"file": verb.file, "created": head.created, "objects": head.objects, "revision": head.revision, "bytes": head.bytes});
        output::line(&output::json(&shown));
    } else {
        output::line(&format!(
            "{}: {} objects at revision {}, {} KB, checked",
            verb.file.display(),
            head.objects,
            head.revision,
            head.bytes / 1024
        ));
        output::note(if passphrase.is_some() {
            "it is sealed: keep the passphrase elsewhere than the backup"
        } else {
            "it holds Secrets and the key of the cluster's authority: keep it as you keep passwords"
        });
    }
    Ok(())
}

fn passphrase(file: Option<&Path>) -> Result<Option<Passphrase>, Failure> {
    file.map(Passphrase::read).transpose().map_err(Failure::usage)
}

/// A backup's file.
enum Out {
    Plain(File),
    Sealed(Box<Sealing<File>>),
}

impl Out {
    fn finish(self) -> io::Result<File> {
        match self {
            Self::Plain(file) => Ok(file),
            Self::Sealed(sealing) => sealing.finish(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Sealed(sealing) => sealing.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Sealed(sealing) => sealing.flush(),
        }
    }
}

/// Runs `restore`.
///
/// # Errors
/// The backup is not whole, the folder is not empty, or the disk refuses.
pub fn restore(data_dir: &Path, verb: &Restore) -> Result<(), Failure> {
    let bad = |error: BackupError| Failure::from_error(&error);
    let passphrase = passphrase(verb.passphrase_file.as_deref())?;
    if verb.check {
        let head = backup::check(&verb.file, passphrase.as_ref()).map_err(bad)?;
        if verb.output == output::Format::Json {
            output::line(&output::json(
                &json!({"created": head.created, "objects": head.objects, "revision": head.revision}),
            ));
        } else {
            output::line(&format!(
                "whole: {} objects at revision {}, of {}",
                head.objects, head.revision, head.created
            ));
        }
        return Ok(());
    }
    preflight::root("sudo coracle restore ...")?;
    let (head, rescued) = backup::restore(&verb.file, passphrase.as_ref(), data_dir, member(data_dir)?).map_err(bad)?;
    if verb.output == output::Format::Json {
        output::line(&output::json(
            &json!({"created": head.created, "objects": rescued.objects, "epoch": rescued.epoch}),
        ));
        return Ok(());
    }
    output::line(&format!("{} objects of {} restored into {}", rescued.objects, head.created, data_dir.display()));
    output::note("`coracle up` starts the cluster again; what was written after the backup is not in it");
    Ok(())
}

/// Runs `recover`.
///
/// # Errors
/// Not confirmed, a server works in the folder, or its log is damaged.
pub fn recover(data_dir: &Path, verb: &Recover) -> Result<(), Failure> {
    if !verb.yes {
        return Err(Failure::usage(
            "recovery makes a cluster of this server alone: what only the lost servers have is lost, and they must never be started again with the data they had\nhint: if that is so, add --yes",
        ));
    }
    preflight::root("sudo coracle recover --yes")?;
    let (kept, rescued) = backup::recover(data_dir, member(data_dir)?).map_err(|error| Failure::from_error(&error))?;
    if verb.output == output::Format::Json {
        output::line(&output::json(&json!({
            "objects": rescued.objects, "epoch": rescued.epoch, "lastEntry": rescued.last.index, "term": rescued.last.term,
            "unsure": rescued.unsure, "kept": kept,
        })));
        return Ok(());
    }
    output::line(&format!(
        "{} objects, up to entry {} of term {}; the folder of before is kept at {}",
        rescued.objects,
        rescued.last.index,
        rescued.last.term,
        kept.display()
    ));
    output::note(&format!(
        "{} entries at the end were not known to be acknowledged and are kept; what the lost servers had acknowledged after entry {} is lost",
        rescued.unsure, rescued.last.index
    ));
    output::note(
        "`coracle up` (or `coracle join`, as before) starts it; other servers join again as new ones, with their `log` folder moved away",
    );
    Ok(())
}

/// This machine as the only server, as far as the last start in this folder tells; the next start puts it right.
fn member(data_dir: &Path) -> Result<Member, Failure> {
    let settings = Settings::load(data_dir)?;
    Ok(settings.map_or_else(Member::default, |settings| Member {
        address: if settings.node_ip.is_loopback() {
            String::new()
        } else {
            std::net::SocketAddr::new(settings.node_ip, settings.peer_listen.port()).to_string()
        },
        name: settings.node_name,
        api_port: settings.api_listen.port(),
    }))
}
