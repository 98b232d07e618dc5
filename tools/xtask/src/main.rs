//! The tasks of the workspace: `cargo xtask demo|test|foreign|previous|sim|bench|tidy`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod previous;
mod tests;
mod tidy;
mod unsupported;
mod words;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <task>

  demo [--once] [--data-dir DIR]  build, start a one-machine cluster, apply examples/hello.yaml, print what to try next;
                                  --once takes everything down again at the end (root)
  demo --nodes N [--once] [--data-dir DIR]
                                  the same on a cluster of N machines (1 to 9), which are network namespaces and are
                                  taken down at Ctrl-C; their data is in a new folder below DIR until then (root)
  test [--fast] [FILTER]          formatting, lints, tidy and every test that needs no foreign program (root);
                                  --fast leaves out formatting and lints
  foreign [FILTER]                the suites with programs of others: kubectl, Debian's nginx and redis, QEMU, the release before (root)
  foreign vms                     three virtual machines as one cluster: formed, paused, lost, beside firewalld and Docker (root)
  previous                        builds the release before, which the tests of upgrades run; once for each
  sim [SEEDS] [FIRST]             the simulator's seeds, 1,000 unless said otherwise, each reproducible, and its planted bugs
  bench [PART...]                 the numbers of PROMISES.md, measured now, with the peers that are installed (root);
                                  with parts (containers, writes, memory ...) only theirs, the other rows stay
  tidy [--bless]                  the rules of the house: crate graph, purity, fences, licences;
                                  --bless writes the crate graph and the list of what is not
                                  supported anew
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let outcome = match task.as_str() {
        "demo" => demo::run(&rest),
        "test" => tests::run(&rest),
        "foreign" => tests::foreign(&rest),
        "previous" => previous::run(&rest),
        "sim" => tests::sim(&rest),
        "tidy" => tidy::run(&rest),
        "bench" => bench(&rest),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => Err(format!("there is no task `{other}`\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {task}: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The benches of single rooms.
const ROOM_BENCHES: &[(&str, &str)] = &[
    ("coracle-runtime", "start_bench"),
    ("coracle-raft", "write_bench"),
    ("coracle-netd", "network_bench"),
    ("coracle-dns", "dns_bench"),
    ("coracle-scheduler", "placements"),
    ("coracle-images", "unpack"),
];

/// Builds everything optimised, then measures.
fn bench(parts: &[String]) -> Result<(), String> {
    must(cargo().args(["build", "--release", "--quiet", "--workspace", "--bins"]))?;
    for (room, example) in ROOM_BENCHES {
        must(cargo().args(["build", "--release", "--quiet", "-p", room, "--example", example]))?;
    }
    must(
        cargo()
            .args(["run", "--release", "--quiet", "-p", "coracle-cluster-tests", "--bin", "bench", "--"])
            .args(parts),
    )
}

/// The folder of the workspace.
fn root() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The cargo that runs us.
fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end with our own terminal; its failure is ours.
fn must(command: &mut std::process::Command) -> Result<(), String> {
    let shown = format!("{command:?}").replace('"', "");
    println!("+ {shown}");
    let status = command.status().map_err(|error| format!("cannot run {shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown} failed ({status})")) }
}
