//! How fast layers are unpacked, against what one core can inflate: `cargo run --release --example unpack -- [DIR] [SCRATCH]`.
//!
//! Packs DIR (`/usr/bin`) into a layer, then takes it three times through (1) inflating alone, on one core, (2) the whole import:
//! two hashes, inflating, every rule, every file on the disk of SCRATCH (a temporary folder). Nothing is compared across machines. On a busy
//! machine the processor seconds say more than the rates: the import's may be up to twice its wall time, it works on two threads.
#![allow(clippy::print_stdout)]

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::builder::{Compress, LayerBuilder, Layout, RunConfig};
use coracle_images::{ImageStore, Quiet};

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let source = arguments.next().unwrap_or_else(|| "/usr/bin".into());
    let scratch = match arguments.next() {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let layout = Layout::create(scratch.path().join("oci"))?;
    let mut layer = LayerBuilder::new();
    layer.tree("data", &source, false)?;
    let layer = layout.layer(&layer, Compress::Gzip)?;
    layout.image("example.com/bench:1", &RunConfig::default(), std::slice::from_ref(&layer))?;
    let blob = scratch.path().join("oci/blobs/sha256").join(layer.digest.hex());
    let mut inflated = 0;
    let inflate = best(|_| {
        let mut decoder = flate2::read::GzDecoder::new(std::fs::File::open(&blob)?);
        let mut buffer = vec![0; 256 << 10];
        inflated = 0;
        loop {
            let count = decoder.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            inflated += count as u64;
        }
    })?;
    let runtime = tokio::runtime::Runtime::new()?;
    let import = best(|round| {
        let store = ImageStore::open(scratch.path().join(format!("store-{round}")))?;
        runtime.block_on(store.import(&scratch.path().join("oci"), Arc::new(Quiet)))?;
        Ok(())
    })?;
    let rate = |(wall, _): (Duration, Duration)| inflated as f64 / 1e6 / wall.as_secs_f64();
    let cpu = |(_, cpu): (Duration, Duration)| cpu.as_secs_f64();
    println!("layer: {:.1} MB, {:.1} MB unpacked", layer.size as f64 / 1e6, inflated as f64 / 1e6);
    println!("inflate alone, one core: {:.0} MB/s, {:.2} s of processor", rate(inflate), cpu(inflate));
    println!(
        "import (hash, inflate, hash, check, write, sync): {:.0} MB/s, {:.2} s of processor",
        rate(import),
        cpu(import)
    );
    println!("import / inflate: {:.2}", rate(import) / rate(inflate));
    Ok(())
}

type Failure = Box<dyn std::error::Error>;

/// The shortest of three runs: time on the wall, time on processors.
fn best(mut run: impl FnMut(usize) -> Result<(), Failure>) -> Result<(Duration, Duration), Failure> {
    let mut best = (Duration::MAX, Duration::MAX);
    for round in 0..3 {
        let (began, used) = (Instant::now(), processor());
        run(round)?;
        best = best.min((began.elapsed(), processor().saturating_sub(used)));
    }
    Ok(best)
}

/// Processor time of this process, all threads.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
