//! What can go wrong with a machine as a whole and with its disk.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::Site;
use super::api::{Api, Credentials};
use super::processes::Body;
use super::storage::{Slow, Storage};
use crate::machine::{Said, program, programs};

/// Where a client of the API is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// Beside the machines, at the switch: no cut but those of the asked machine concerns it.
    Outside,
    /// On a machine.
    At(usize),
}

impl Site {
    /// The machine loses its power: all its processes, cgroups, links and its run folder are gone at once. Its data stays;
    /// on a disk of its own (`on_disk`) what was not synced is lost.
    ///
    /// # Panics
    /// Something of it does not go.
    pub fn power_off(&mut self, number: usize) {
        let body = Body::of(self.at(number));
        // From here on none of them says anything more to anybody.
        body.send(Signal::STOP);
        self.underlay.unplug(number);
        if let Some(disk) = &mut self.disks[number - 1] {
            disk.fast();
            disk.cut_power();
        }
        body.kill().unwrap_or_else(|left| panic!("processes {left:?} of m{number} do not die"));
        let machine = self.at_mut(number);
        machine.kill();
        body.remove_cgroups().unwrap_or_else(|left| panic!("cgroups of m{number} are in use: {left:?}"));
        machine.renew_namespace();
        unmount_below(machine.folder());
        let run = machine.run();
        if run.exists() {
            std::fs::remove_dir_all(&run).unwrap_or_else(|error| panic!("cannot wipe {}: {error}", run.display()));
        }
        if let Some(disk) = &self.disks[number - 1] {
            disk.take_out();
        }
        self.off.insert(number);
    }

    /// It has power again, and its cable. Nothing runs on it until it is started.
    ///
    /// # Panics
    /// It was not off.
    pub fn power_on(&mut self, number: usize) {
        assert!(self.off.remove(&number), "m{number} is on");
        if let Some(disk) = &mut self.disks[number - 1] {
            disk.put_in();
        }
        let holder = self.at(number).holder();
        self.underlay.plug(number, holder);
    }

    /// Stops every process of the machine where it is, its pods and their monitors included: a VM that is paused.
    ///
    /// # Panics
    /// Some do not stop.
    pub fn pause(&self, number: usize) {
        let stopped = Body::of(self.at(number)).stop();
        stopped.unwrap_or_else(|left| panic!("processes {left:?} of m{number} do not stop"));
    }

    /// Lets them all go on.
    pub fn resume(&self, number: usize) {
        Body::of(self.at(number)).send(Signal::CONT);
    }

    /// Pids of all processes of the machine: the program, monitors of pods, containers, and commands of the test on it.
    #[must_use]
    pub fn processes(&self, number: usize) -> Vec<u32> {
        Body::of(self.at(number)).processes()
    }

    /// Gives a machine that has not been started a disk of its own for its data folder.
    ///
    /// # Panics
    /// There is data already, or disks cannot be made: root and e2fsprogs are needed.
    pub fn on_disk(&mut self, number: usize, megabytes: u64) {
        assert!(!self.at(number).data().exists(), "m{number} has data already");
        let disk = Storage::new(megabytes);
        self.at_mut(number).set_data(&disk.path().join("data"));
        self.disks[number - 1] = Some(disk);
    }

    /// Takes all free space of the machine's disk.
    ///
    /// # Panics
    /// It has no disk of its own.
    pub fn fill_disk(&mut self, number: usize) {
        self.disk(number).fill();
    }

    /// Gives the space back.
    ///
    /// # Panics
    /// It has no disk of its own.
    pub fn free_disk(&mut self, number: usize) {
        self.disk(number).free();
    }

    /// Makes the machine's disk slow.
    ///
    /// # Panics
    /// It has no disk of its own.
    pub fn slow_disk(&mut self, number: usize, how: Slow) {
        self.disk(number).slow(how);
    }

    /// Makes it fast again.
    ///
    /// # Panics
    /// It has no disk of its own.
    pub fn fast_disk(&mut self, number: usize) {
        self.disk(number).fast();
    }

    fn disk(&mut self, number: usize) -> &mut Storage {
        let disk = self.disks[number - 1].as_mut();
        disk.unwrap_or_else(|| panic!("m{number} has no disk of its own\nhint: call `on_disk` before it is started"))
    }

    /// The namespace of the switch, from where every machine is reached.
    #[must_use]
    pub fn outside(&self) -> PathBuf {
        self.underlay.switch()
    }

    /// The API's address of a machine.
    #[must_use]
    pub fn api_address(&self, number: usize) -> SocketAddr {
        (self.address(number), 6443).into()
    }

    /// A client of the API on a machine, with the rights of the administrator.
    ///
    /// # Panics
    /// No machine has a kubeconfig yet.
    #[must_use]
    pub fn api(&self, from: Where, to: usize) -> Api {
        let text = self.kubeconfig_text(to);
        let credentials = Credentials::read(&text).expect("a kubeconfig of ours");
        Api::new(self.namespace(from), self.api_address(to), credentials)
    }

    /// Runs a verb somewhere against the API of another machine, as a user with a copy of its kubeconfig does.
    ///
    /// # Panics
    /// No machine has a kubeconfig yet, or the program cannot be run.
    #[must_use]
    pub fn coracle_from(&self, from: Where, to: usize, words: &[&str]) -> Said {
        let copy = self.at(to).folder().join("copy.kubeconfig");
        let server = format!("    server: https://{}", self.api_address(to));
        let text = self.kubeconfig_text(to);
        let lines: Vec<&str> =
            text.lines().map(|line| if line.trim_start().starts_with("server: ") { &server } else { line }).collect();
        std::fs::write(&copy, lines.join("\n")).expect("a folder");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace(from).display())).arg("--").arg(program("coracle"));
        command.args(words).env("CORACLE_KUBECONFIG", &copy).stdin(std::process::Stdio::null());
        Said::of(&command.output().expect("coracle"))
    }

    fn namespace(&self, from: Where) -> PathBuf {
        match from {
            Where::Outside => self.outside(),
            Where::At(number) => self.at(number).namespace(),
        }
    }

    /// The machine's own, or that of any other: the certificates are good everywhere.
    fn kubeconfig_text(&self, number: usize) -> String {
        std::iter::once(self.at(number))
            .chain(self.all())
            .find_map(|machine| std::fs::read_to_string(machine.data().join("admin.kubeconfig")).ok())
            .expect("a server has been started")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        // Whatever state a failed test left them in: nothing here may wait for the program under test.
        for disk in self.disks.iter_mut().flatten() {
            disk.fast();
        }
        for machine in &mut self.machines {
            let body = Body::of(machine);
            if let Err(left) = body.kill() {
                eprintln!("processes {left:?} of {} do not die", machine.node());
            }
            machine.kill();
            if let Err(left) = body.remove_cgroups() {
                eprintln!("cgroups of {} stay: {left:?}", machine.node());
            }
            unmount_below(machine.folder());
            // Nothing is left for it to take down.
            machine.forget();
        }
    }
}

impl Site {
    /// Copies every log to where it outlives the test, until the same test fails again, and says where.
    fn keep_logs(&self) {
        // The harness names a test's thread after it.
        let test = std::thread::current().name().unwrap_or("main").replace("::", "-");
        let folder = programs().join("failed").join(test);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            println!("no logs are kept: cannot create {}: {error}", folder.display());
            return;
        }
        for machine in self.all() {
            let _ = std::fs::write(folder.join(format!("{}.log", machine.node())), machine.log());
        }
        println!("the logs of all machines are in {}", folder.display());
    }
}

/// Unmounts what is mounted below a folder, the last first.
fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let prefix = format!("{}/", folder.display());
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&prefix));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").arg("--lazy").arg(point).status();
    }
}
