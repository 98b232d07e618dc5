//! Builds podmon, the small static program that holds a pod, and hands its bytes to the crate.
//!
//! It is another program with another profile (small, no unwinding, not relocatable), so it has a cargo run and a target folder
//! of its own; nothing of the outer build's flags may leak into it.

use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let target = std::env::var("TARGET")?;
    for watched in [
        "podmon/src",
        "podmon/Cargo.toml",
        "plan/src/wire.rs",
        "plan/src/message.rs",
        "plan/src/lib.rs",
        "plan/Cargo.toml",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={}", here.join(watched).display());
    }
    let folder = out.join("podmon");
    let mut command = Command::new(std::env::var("CARGO")?);
    command
        .current_dir(here.join(".."))
        .args(["build", "--quiet", "--package", "coracle-podmon", "--profile", "podmon", "--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    for leak in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(leak);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(format!("podmon does not build ({status})").into());
    }
    let built = folder.join(&target).join("podmon/coracle-podmon");
    std::fs::copy(&built, out.join("podmon.bin"))?;
    Ok(())
}
