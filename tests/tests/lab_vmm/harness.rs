//! A host with KVM, and `portcullis-vmm` run on it as a person would.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::lab::control::Output;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::{Disk, Firmware};
use portcullis_tests::programs::Programs;
use portcullis_tests::stage::tenant;
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::log::{EndReason, Event, LogLine, MarkSource};

/// One command on the host. Seconds are usual.
const COMMAND: Duration = Duration::from_mins(5);
/// A VMM with its API. Requests name files of VMs, of snapshots, and of the disk with the guests.
const API: &str = "--api-sock api --metrics-path metrics --api-dir /run --api-dir /root --api-dir /mnt";
/// One guest, from its start to its end. Ten seconds are usual, a minute with systemd.
const GUEST: Duration = Duration::from_mins(10);

/// The host, with the guests' files in `/mnt` and one directory a VM in `/run/vm`.
pub struct Lab {
    pub host: Host,
    /// Commands that guests were given or that were left running.
    pub commands: u32,
}

/// What a VMM left.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub console: String,
    pub errors: String,
    pub events: Vec<Event>,
}

impl Ended {
    fn end(&self) -> (i32, EndReason, Option<&str>) {
        match self.events.last() {
            Some(Event::End { reason, error, .. }) => (self.code, *reason, error.as_deref()),
            _ => panic!("the log does not end with the VM's end: {self:?}"),
        }
    }

    pub fn expect_clean(&self, reason: EndReason) {
        assert_eq!(self.end(), (0, reason, None), "{self:?}");
        assert_eq!(self.errors, "", "{self:?}");
    }

    /// Asserts that init ran on `vcpus` vCPUs, and that the log has its boot mark.
    pub fn expect_booted(&self, vcpus: u8) {
        assert!(self.console.contains(&format!("guest: init on {vcpus} vCPU, Linux 6.")), "{self:?}");
        let marks: Vec<_> =
            self.events.iter().filter_map(|e| if let Event::GuestBoot(mark) = e { Some(mark) } else { None }).collect();
        assert_eq!(marks.len(), 1, "{self:?}");
        assert_eq!((marks[0].source, marks[0].value), (MarkSource::Mmio, 123), "{self:?}");
        let Some(Event::End { run_us, .. }) = self.events.last() else { panic!("{self:?}") };
        assert!(marks[0].boot_us > 0 && marks[0].boot_us < *run_us, "{self:?}");
        let started = self.events.iter().any(|e| matches!(e, Event::Start { vcpus: n, .. } if *n == vcpus));
        let confined =
            self.events.iter().any(|e| matches!(e, Event::Confined { seccomp: true, no_new_privs: true, .. }));
        assert!(started && confined, "{self:?}");
    }
}

/// What a host has beside the VMM.
#[derive(Default)]
pub struct LabSpec<'a> {
    /// Files of `/mnt`, which is read-only.
    pub files: &'a [&'a Path],
    /// Further programs of this machine.
    pub programs: Vec<Program>,
    /// Further disks, `/dev/vdd` and on.
    pub disks: Vec<Disk>,
    /// Free space of the host's root file system in MiB; the image's default when 0.
    pub free_mib: u64,
}

impl Lab {
    /// Boots a host whose `/mnt` holds `files`.
    pub fn new(files: &[&Path]) -> Self {
        Self::with(LabSpec { files, ..LabSpec::default() })
    }

    pub fn with(spec: LabSpec) -> Self {
        let programs = Programs::find().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let files = tenant::disk(&dir.path().join("disk.ext4"), spec.files).unwrap();
        let vmm = Program { path: "/usr/bin/portcullis-vmm".to_owned(), source: programs.path("portcullis-vmm") };
        let programs = [vec![vmm], spec.programs].concat();
        // The emulated processor has none of the flaws that the kernel would work around, and pays for it with an eighth
        // of its time.
        let variants = vec![Variant::Cmdline("mitigations=off".to_owned())];
        let image = ImageSpec { programs, free_mib: spec.free_mib, variants, ..ImageSpec::default() };
        let mut host = HostSpec::new("vmm", &Image::build(&image).unwrap());
        host.firmware = Firmware::Direct;
        host.memory_mib = 1536;
        host.disks = [vec![Disk { image: files, read_only: true }], spec.disks].concat();
        let host = Host::boot(host).unwrap_or_else(|error| panic!("{error}"));
        let mut lab = Self { host, commands: 0 };
        lab.must("mount -t ext4 -o ro /dev/vdc /mnt && mkdir /run/vm");
        lab
    }

    pub fn run(&mut self, command: &str) -> Output {
        self.host.run(command, COMMAND).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn must(&mut self, command: &str) -> String {
        self.host.must_run(command, COMMAND).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a VMM without API.
    pub fn start(&mut self, name: &str, config: &VmConfig) {
        self.prepare(name, config);
        self.launch(name, "--no-api --config-file vm.json");
    }

    /// Starts a VMM with its API at `api` in the VM's directory, and metrics in `metrics`.
    pub fn start_with_api(&mut self, name: &str, config: &VmConfig) {
        self.prepare(name, config);
        self.launch(name, &format!("{API} --config-file vm.json"));
    }

    /// Starts a VMM that has an API and no VM yet. The VM's directory may be there already.
    pub fn start_empty(&mut self, name: &str) {
        self.must(&format!("mkdir -p /run/vm/{name}"));
        self.launch(name, API);
        self.wait_until(name, &format!("test -S /run/vm/{name}/api"));
    }

    /// Leaves a shell command running on the host.
    pub fn background(&mut self, command: &str) {
        self.commands += 1;
        let script = format!("/run/background-{}", self.commands);
        self.host.write_file(&script, command.as_bytes()).unwrap();
        self.must(&format!("setsid sh {script} </dev/null >/dev/null 2>&1 &"));
    }

    fn prepare(&mut self, name: &str, config: &VmConfig) {
        self.must(&format!("mkdir -p /run/vm/{name}"));
        self.host.write_file(&format!("/run/vm/{name}/vm.json"), config.to_json().unwrap().as_bytes()).unwrap();
    }

    /// Runs the VMM in the VM's directory. Its console's input stays open until it has ended.
    fn launch(&mut self, name: &str, flags: &str) {
        self.must(&format!("mkfifo /run/vm/{name}/in"));
        let script = format!(
            "cd /run/vm/{name}; exec 9<>in; portcullis-vmm --id {name} --boot-timer {flags} \
             --log-path log <in >console 2>errors & pid=$!; echo $pid >pid.new; mv pid.new pid; wait $pid; \
             echo $? >code.new; mv code.new code"
        );
        self.background(&script);
        self.wait_until(name, &format!("test -s /run/vm/{name}/pid"));
    }

    pub fn wait_until(&mut self, name: &str, condition: &str) {
        let until = Instant::now() + GUEST;
        while self.run(condition).status != 0 {
            if Instant::now() > until {
                let state = self.run(&format!("cd /run/vm/{name}; cat errors log console; ps")).text();
                panic!("VM {name}: {condition:?} did not come true:\n{state}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn wait_for(&mut self, name: &str, text: &str) {
        self.wait_until(name, &format!("grep -q '{text}' /run/vm/{name}/console || test -e /run/vm/{name}/code"));
        let console = self.must(&format!("cat /run/vm/{name}/console"));
        assert!(console.contains(text), "VM {name} ended without {text:?}:\n{console}");
    }

    pub fn ended(&mut self, name: &str) -> Ended {
        self.wait_until(name, &format!("test -e /run/vm/{name}/code"));
        let code = self.must(&format!("cat /run/vm/{name}/code")).parse().unwrap();
        let log = self.must(&format!("cat /run/vm/{name}/log"));
        let events = log.lines().map(|line| LogLine::parse(line).expect(line).event).collect();
        let console = self.must(&format!("cat /run/vm/{name}/console"));
        let errors = self.must(&format!("cat /run/vm/{name}/errors"));
        Ended { code, console, errors, events }
    }

    pub fn boot(&mut self, name: &str, config: &VmConfig) -> Ended {
        self.start(name, config);
        self.ended(name)
    }

    pub fn signal(&mut self, name: &str, signal: &str) {
        self.must(&format!("kill -{signal} $(cat /run/vm/{name}/pid)"));
    }

    /// Asserts that no VMM runs and nothing holds KVM.
    pub fn expect_nothing_left(&mut self) {
        assert_eq!(self.run("pidof portcullis-vmm").text(), "");
        // A dead process's VM goes away a moment after it.
        self.wait_until(".", "test $(cat /sys/module/kvm_amd/refcnt) = 0");
    }
}

/// A check's name and what it does.
pub type Check = (&'static str, fn(&mut Lab));

/// Does every check, so that one run shows all that is wrong.
pub fn all(lab: &mut Lab, checks: &[Check]) {
    let failed: Vec<&str> = checks
        .iter()
        .filter_map(|(name, check)| {
            eprintln!("check: {name}");
            let failed = catch_unwind(AssertUnwindSafe(|| check(lab))).is_err();
            // What a failed check left running must not fail the next.
            failed.then(|| lab.run("killall -9 portcullis-vmm"));
            failed.then_some(*name)
        })
        .collect();
    assert!(failed.is_empty(), "failed: {failed:#?}");
}
