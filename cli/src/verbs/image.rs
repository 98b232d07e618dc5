//! `coracle image`: the images of this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use coracle_images::{ImageStore, Quiet};

use crate::failure::Failure;
use crate::output;

/// Import and list the images of this machine
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle image import hello.tar\n  coracle image ls\n\nExit codes: 0 done, 1 failed"
)]
pub struct Image {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take in an OCI layout: a folder or a tar of one, or what `docker save` writes
    Import {
        /// The folder or file
        path: PathBuf,
        /// `json` or `name`
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
    /// List what is here
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
}

/// Runs the verb.
///
/// # Errors
/// The image cannot be read or stored.
pub async fn run(data_dir: &Path, image: &Image) -> Result<(), Failure> {
    let store = ImageStore::open(data_dir.join("images")).map_err(|error| Failure::from_error(&error))?;
    let (records, format, done) = match &image.what {
        What::Import { path, output } => {
            let records = store.import(path, Arc::new(Quiet)).await.map_err(|error| Failure::from_error(&error))?;
            (records, *output, true)
        }
        What::Ls { output } => (store.list().map_err(|error| Failure::from_error(&error))?, *output, false),
    };
    match format {
        output::Format::Json | output::Format::Yaml => {
            let list: Vec<_> = records
                .iter()
                .map(|record| serde_json::json!({"reference": record.reference.to_string(), "digest": record.digest.to_string()}))
                .collect();
            let value = serde_json::Value::Array(list);
            output::line(&if format == output::Format::Json { output::json(&value) } else { output::yaml(&value) });
        }
        output::Format::Name => records.iter().for_each(|record| output::line(&record.reference.to_string())),
        _ if done => records
            .iter()
            .for_each(|record| output::line(&format!("imported {} ({})", record.reference, record.digest))),
        _ => {
            let header = ["IMAGE", "DIGEST"].map(ToOwned::to_owned);
            let rows: Vec<Vec<String>> =
                records.iter().map(|record| vec![record.reference.to_string(), record.digest.to_string()]).collect();
            output::raw(output::columns(&header, &rows).as_bytes());
        }
    }
    Ok(())
}
