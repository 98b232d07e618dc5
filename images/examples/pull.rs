//! Pulls one image into a store and says what it does: `cargo run --example pull -- REFERENCE STORE_DIR`.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use coracle_images::{ImageStore, Progress, ProgressEvent, PullOptions, Reference};

struct Print;

impl Progress for Print {
    fn event(&self, event: &ProgressEvent<'_>) {
        match event {
            ProgressEvent::Resolved { digest, layers, bytes, .. } => {
                println!("{digest}: {layers} layers, {bytes} bytes")
            }
            ProgressEvent::LayerDone { digest, shared } => {
                println!("{digest} {}", if *shared { "was here" } else { "done" })
            }
            ProgressEvent::Retry { reason, after_ms } => println!("again in {after_ms} ms: {reason}"),
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, dir] = arguments.as_slice() else { return Err("usage: pull REFERENCE STORE_DIR".into()) };
    let reference: Reference = reference.parse()?;
    let store = ImageStore::open(dir)?;
    match store.pull(&reference, &PullOptions::default(), Arc::new(Print)).await {
        Ok(record) => println!("{} {} ({} bytes unpacked)", record.reference, record.digest, record.size),
        Err(error) => println!("{}", coracle_base::chain(&error)),
    }
    Ok(())
}
