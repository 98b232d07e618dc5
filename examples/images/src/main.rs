//! Makes the OCI images the examples run: hello from its binary, nginx and redis from Debian packages. No registry is needed.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod debian;
mod hello;
mod nginx;
mod redis;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coracle_images::{ImageError, Platform};

/// Makes the images of the examples as OCI layouts, ready for `coracle image import`
#[derive(Debug, Parser)]
#[command(name = "example-images", version)]
struct Arguments {
    #[command(subcommand)]
    image: Image,
}

#[derive(Debug, Subcommand)]
enum Image {
    /// The small web server of examples/hello: one layer, one static file
    Hello {
        /// The folder to write
        out: PathBuf,
        /// The program to pack [default: the `hello` beside this program]
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
        /// The image's name
        #[arg(long, default_value = hello::NAME)]
        name: String,
        /// Whom it says it is for, `OS/ARCHITECTURE`; what is packed stays the same [default: this machine]
        #[arg(long, value_name = "PLATFORM", value_parser = hello::platform)]
        platform: Option<Platform>,
    },
    /// Debian's nginx: base, packages, and a layer that takes things away
    Nginx(Packaged),
    /// Debian's redis-server, under its own user
    Redis(Packaged),
}

#[derive(Debug, clap::Args)]
struct Packaged {
    /// The folder to write
    out: PathBuf,
    /// Where downloaded packages are kept for the next time [default: OUT.cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl Packaged {
    fn cache(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| {
            let mut name = self.out.as_os_str().to_owned();
            name.push(".cache");
            name.into()
        })
    }
}

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot make the image")]
    Image(#[from] ImageError),
    #[error("cannot read {}\n  hint: `cargo build -p hello` makes it", .0.display())]
    Binary(PathBuf, #[source] std::io::Error),
    #[error("cannot {0}")]
    Step(String, #[source] std::io::Error),
    #[error(
        "cannot {what}; it said:\n{said}\n  hint: this needs apt-get and dpkg-deb of a Debian-like system, and its package sources"
    )]
    Tool { what: String, said: String },
    #[error("the packages hold no {0}")]
    Missing(&'static str),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().image {
        Image::Hello { out, binary, name, platform } => hello::build(&out, binary, &name, platform),
        Image::Nginx(packaged) => nginx::build(&packaged.out, &packaged.cache()),
        Image::Redis(packaged) => redis::build(&packaged.out, &packaged.cache()),
    };
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("error: {}", coracle_base::chain(&failure));
            ExitCode::FAILURE
        }
    }
}
