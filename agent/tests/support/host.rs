//! A host: its TPM, its boot, its files, and the agent's program on it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::tpm::Swtpm;
use serde_json::Value;

use super::boot::Boot;
use super::verifier::Verifier;
use super::wait_for;

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis-agent");

/// Stands in for device-mapper's part of cryptsetup, which not every kernel has: headers and keys are checked by the real
/// program, the mapped device is a loop device over the plain file system that lies beside the image. As the real one it
/// fails to close what is in use; with a file `refuse-close` beside it, it always fails.
const CRYPTSETUP: &str = r#"#!/bin/sh
real=/usr/sbin/cryptsetup
memory=$(dirname "$0")/mapped
active() { [ -n "$(losetup -j "$(cat "$memory/$1" 2>/dev/null)" 2>/dev/null)" ]; }
case "$1 $2" in
"open --type")
    image=$8 name=$9
    $real open --test-passphrase --type luks2 --batch-mode --key-file - "$image" || exit $?
    mkdir -p /dev/mapper "$memory"
    loop=$(losetup --find --show --read-only "$image.plain") || exit 1
    ln -s "$loop" "/dev/mapper/$name"
    echo "$image.plain" > "$memory/$name" ;;
"close --deferred")
    [ ! -e "$(dirname "$0")/refuse-close" ] || exit 5
    losetup -d "$(readlink "/dev/mapper/$3")" ;;
close*)
    active "$2" || exit 4
    [ ! -e "$(dirname "$0")/refuse-close" ] || { echo "Device $2 is still in use." >&2; exit 5; }
    losetup -d "$(readlink "/dev/mapper/$2")"
    ! active "$2" || { echo "Device $2 is still in use." >&2; exit 5; }
    rm "/dev/mapper/$2" ;;
status*) active "$2" || exit 4 ;;
*) exec $real "$@" ;;
esac
"#;

/// Stands in for the VMM: shows what it was given, says that the guest booted, and waits.
const VMM: &str = r#"#!/bin/sh
[ "$1" != --version ] || exit 0
for config; do :; done
echo "arguments: $*"
echo "process: $$"
cat "$config"
echo
kernel=$(sed -n 's/.*"kernel_image_path": "\(.*\)".*/\1/p' "$config")
cat "$kernel"
# With a file `hold`, something outlives the VM and keeps one of the volume's files open.
[ ! -e "$(dirname "$0")/hold" ] || setsid sh -c 'echo $$ >"$0"; exec sleep 600' "$(dirname "$0")/holder" <"$kernel" >/dev/null 2>&1 &
echo "Linux version 6.1.0-test (made up)"
echo '{"timestamp":"t","level":"INFO","event":"guest-boot","source":"port80","value":1,"boot_us":1234567,"cpu_us":1}' >&2
while [ ! -e "$(dirname "$0")/power-off" ]; do sleep 0.1; done
echo '{"timestamp":"t","level":"INFO","event":"end","reason":"power-off","run_us":9,"serial_out":1,"serial_lost":0}' >&2
"#;

/// What the kernel file in the test's volumes holds.
pub const KERNEL: &[u8] = b"the tenant's kernel";
/// The key that opens the test's volumes.
pub const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A host.
pub struct Host {
    pub name: String,
    pub swtpm: Swtpm,
    pub dir: tempfile::TempDir,
    pub boot: Boot,
}

impl Host {
    /// A host that went through the good boot and obeys `verifier`.
    pub fn new(name: &str, verifier: &Verifier) -> Self {
        let swtpm = Swtpm::new().unwrap();
        let mut boot = Boot::good();
        boot.extend(&swtpm);
        let dir = tempfile::tempdir().unwrap();
        let host = Self { name: name.to_owned(), swtpm, dir, boot };
        for part in ["state", "run", "volumes", "trust"] {
            std::fs::create_dir(host.path(part)).unwrap();
        }
        for file in ["ca.pem", "order-keys.json", "verifier-id"] {
            std::fs::copy(verifier.trust().join(file), host.path("trust").join(file)).unwrap();
        }
        std::fs::write(host.path("eventlog"), host.boot.eventlog()).unwrap();
        std::fs::write(host.path("ima"), host.boot.ima()).unwrap();
        for (file, script) in [("cryptsetup", CRYPTSETUP), ("vmm", VMM)] {
            std::fs::write(host.path(file), script).unwrap();
            std::fs::set_permissions(host.path(file), PermissionsExt::from_mode(0o700)).unwrap();
        }
        let path = |name: &str| host.path(name).display().to_string();
        let config = format!(
            "host = {:?}\nverifier_url = {:?}\ntrust_dir = {:?}\nstate_dir = {:?}\nruntime_dir = {:?}\n\
             volumes_dir = {:?}\ntcti = {:?}\neventlog = {:?}\nima = {:?}\nvmm = {:?}\ncryptsetup = {:?}\n\
             interval_s = 1\npoll_s = 1\n",
            host.name,
            verifier.url(),
            path("trust"),
            path("state"),
            path("run"),
            path("volumes"),
            host.swtpm.tcti(),
            path("eventlog"),
            path("ima"),
            path("vmm"),
            path("cryptsetup"),
        );
        std::fs::write(host.path("agent.toml"), config).unwrap();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes a line of the configuration.
    pub fn configure(&self, key: &str, value: &str) {
        let text = std::fs::read_to_string(self.path("agent.toml")).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect();
        std::fs::write(self.path("agent.toml"), format!("{}\n{key} = {value}\n", lines.join("\n"))).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.path("agent.toml")).args(arguments);
        command
    }

    /// Runs a command of the agent.
    pub fn agent(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command, checks its exit code and gives both outputs.
    pub fn expect(&self, arguments: &[&str], code: i32) -> (String, String) {
        outputs(&self.agent(arguments), code, arguments)
    }

    /// Starts `run`.
    pub fn run(&self) -> RunningAgent {
        let log = self.path("agent.log");
        self.run_logging_to(log)
    }

    /// Starts `run` with standard error in this file.
    pub fn run_logging_to(&self, log: PathBuf) -> RunningAgent {
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        RunningAgent { child, log }
    }

    /// Puts a volume for the tenant `alice` on the host: its LUKS2 header takes [`KEY`], its file system holds [`KERNEL`].
    pub fn make_volume(&self, name: &str) {
        let image = self.path("volumes").join(format!("alice.{name}.luks"));
        let key = self.path("volume-key");
        std::fs::write(&key, KEY).unwrap();
        std::fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
        must(
            Command::new("/usr/sbin/cryptsetup")
                .args(["luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2"])
                .args(["--pbkdf-force-iterations", "1000", "--key-file"])
                .args([&key, &image]),
        );
        std::fs::remove_file(key).unwrap();
        let tree = self.path("tree");
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        std::fs::write(tree.join("boot/vmlinuz"), KERNEL).unwrap();
        let plain = format!("{}.plain", image.display());
        std::fs::File::create(&plain).unwrap().set_len(4 << 20).unwrap();
        must(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&plain));
    }

    /// The `status.json` of an order, once it is there.
    pub fn status(&self, order: &str) -> Option<Value> {
        let bytes = std::fs::read(self.path("state").join("vms").join(order).join("status.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// The console of an order's VM.
    pub fn console(&self, order: &str) -> String {
        std::fs::read_to_string(self.path("state").join("vms").join(order).join("console.log")).unwrap_or_default()
    }

    /// Fails if a volume is still mounted or mapped, or if a VM's configuration is still there.
    pub fn nothing_is_left(&self, order: &str) {
        assert!(!Path::new("/dev/mapper").join(format!("portcullis-{order}")).exists(), "a mapping was left");
        for part in ["run/volumes", "run/vms"] {
            let left: Vec<_> = std::fs::read_dir(self.path(part)).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{part}: {left:?}");
        }
        let loops = Command::new("losetup").arg("--list").output().unwrap();
        let loops = String::from_utf8(loops.stdout).unwrap();
        assert!(!loops.contains(self.dir.path().to_str().unwrap()), "{loops}");
    }

    /// Fails if the volume key lies in any of the agent's files.
    pub fn no_file_holds_the_key(&self) {
        let found = Command::new("grep")
            .args(["-rlaF", std::str::from_utf8(KEY).unwrap()])
            .args(["state", "run", "trust", "agent.log"].map(|part| self.path(part)))
            .output()
            .unwrap();
        assert_eq!(found.status.code(), Some(1), "{}", String::from_utf8_lossy(&found.stdout));
    }
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Checks an exit code and gives both outputs.
pub fn outputs(output: &Output, code: i32, arguments: &[&str]) -> (String, String) {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

/// A started `portcullis-agent run`; killed when dropped.
pub struct RunningAgent {
    child: Child,
    log: PathBuf,
}

impl RunningAgent {
    /// Waits until the log says this.
    pub fn says(&mut self, words: &str) {
        wait_for(&format!("{words:?} in the agent's log:\n{}", self.log()), || {
            assert!(self.child.try_wait().unwrap().is_none(), "the agent ended: {}", self.log());
            self.log().contains(words).then_some(())
        });
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(mut self) -> ExitStatus {
        must(Command::new("kill").arg(self.child.id().to_string()));
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "SIGTERM did not end the agent: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it without a word.
    pub fn kill9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        // Gone already in tests that ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
