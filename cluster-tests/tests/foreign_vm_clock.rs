//! A machine that wakes in 1970, as one without a battery does: its power has gone, no registry and no time server can be reached, and
//! the same pods run again. In a virtual machine, whose clock is its own to set.

use std::collections::BTreeMap;
use std::time::Instant;

use coracle_cluster_tests::vm::{self, Vm, image::Disks};

/// Each time the program starts, the clock stands at the beginning first: systemd itself believes no clock that is older than it is.
/// And the server's certificate is gone, so that it is signed anew in 1970, as it is when the machine has another address.
const WAKES_IN_1970: &str = "mkdir -p /etc/systemd/system/coracle.service.d && \
     printf '[Service]\\nExecStartPre=/bin/date --set @86400\\nExecStartPre=/bin/rm /var/lib/coracle/pki/server.crt\\n' >/etc/systemd/system/coracle.service.d/clock.conf && \
     systemctl stop systemd-timesyncd chronyd ntpd 2>/dev/null; sync";

/// Pod -> its container's restarts, of those that are ready.
fn ready(vm: &mut Vm) -> BTreeMap<String, u64> {
    let pods = vm.get("pods");
    let ready = pods["items"].as_array().into_iter().flatten().filter_map(|pod| {
        let container = &pod["status"]["containerStatuses"][0];
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        (container["ready"] == true).then(|| (name, container["restartCount"].as_u64().unwrap_or(u64::MAX)))
    });
    ready.collect()
}

#[test]
fn a_machine_that_wakes_in_1970_runs_its_pods() {
    if !vm::possible() {
        return;
    }
    let begun = Instant::now();
    let disks = Disks::make();
    let mut vm = Vm::boot(&disks);
    println!("boot until systemd has all up: {:.1} s ({})", vm.booted().as_secs_f64(), vm.accelerator());
    vm.must("systemctl enable --now coracle");
    vm.wait("a ready node", |vm| vm.sh("coracle get nodes").out.contains(" Ready"));
    vm.must("coracle image import /usr/local/share/hello.image");
    vm.must("coracle apply -f /usr/local/share/hello.yaml");
    vm.wait("three ready replicas", |vm| ready(vm).len() == 3);
    let known = ready(&mut vm);
    let service = vm.get("svc/hello")["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned() + ":80";

    vm.must(WAKES_IN_1970);
    let started = Instant::now();
    vm.cut_power();
    vm.wait("1970", |vm| vm.must("date -u +%Y").trim() == "1970");
    vm.wait("a ready node in 1970", |vm| vm.sh("coracle get nodes").out.contains(" Ready"));
    assert_eq!(vm.must("date -u +%Y").trim(), "1970");
    vm.wait("three ready replicas again", |vm| {
        let now = ready(vm);
        now.len() == 3 && now.keys().eq(known.keys())
    });
    vm.asked(&service);
    println!("power cut -> the same pods answer in 1970: {:.1} s", started.elapsed().as_secs_f64());
    // What is new is made too: written, scheduled, started, and certificates signed before the beginning are believed.
    vm.must("coracle scale deploy/hello --replicas 4");
    vm.wait("a fourth replica", |vm| ready(vm).len() == 4);
    vm.must("coracle token create --server");
    // And the clock comes right again under it.
    vm.must(&format!("date --set @{}", std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs()));
    vm.must("coracle scale deploy/hello --replicas 3");
    vm.wait("three replicas once more", |vm| ready(vm).len() == 3);
    assert_eq!(vm.must("systemctl --failed --plain --no-legend"), "");
    println!("all: {:.1} s", begun.elapsed().as_secs_f64());
}
