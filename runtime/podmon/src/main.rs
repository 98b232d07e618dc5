//! The small static program that holds a pod: it runs launch plans, waits, keeps logs and exit codes.
//!
//! One process a pod, one thread (a fenced pod has a second, `fence`), no heap to speak of while idle. It is the parent of the pod's containers and holds the pod's
//! network, IPC and host name namespaces by being in them, so that the agent may be killed, upgraded or absent and nothing
//! stops. The agent speaks to it over a SOCK_SEQPACKET socket (`coracle_plan::message`).
//!
//! `podmon DIR HOSTNAME [host-network]`: DIR is the pod's private folder; the socket is `DIR/podmon.sock`, the journal of exits
//! `DIR/exits`.

mod child;
mod fence;
mod log;
mod pod;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(hostname)) = (arguments.next(), arguments.next()) else {
        eprintln!("podmon: started by the coracle agent only");
        return ExitCode::from(2);
    };
    let host_network = arguments.next().is_some_and(|word| word == "host-network");
    match pod::start(&dir, &hostname, host_network) {
        Ok(Some(pod)) => {
            pod.run();
            ExitCode::SUCCESS
        }
        // The parent of the pod's process: its socket listens, the agent may go on.
        Ok(None) => ExitCode::SUCCESS,
        Err((what, error)) => {
            eprintln!("podmon: cannot {what}: {error}");
            ExitCode::FAILURE
        }
    }
}
