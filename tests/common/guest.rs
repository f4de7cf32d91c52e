//! A guest in QEMU, on its serial line: what its firmware says, a login, commands and their answers.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::killed_with_us;

/// How long a guest may take for anything, unless it is told otherwise, under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// After these nothing good comes any more.
const DEAD_ENDS: [&str; 11] = [
    "Kernel panic",
    "not xen image",
    "Failed to boot both",
    "grub rescue>",
    "minimal BASH-like",
    "No bootable device",
    "No bootable option",
    "Shell>",
    "(initramfs)",
    "Give root password",
    "You are in emergency mode",
];

/// What starts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    SeaBios,
    Ovmf,
    /// OVMF with Microsoft's keys enrolled, and enforcing.
    SecureBoot,
}

/// Where in an escape sequence the serial line is.
#[derive(Clone, Copy)]
enum Escape {
    No,
    Begun,
    Long,
}

/// A running guest; killed when dropped.
pub struct Guest {
    child: Child,
    keyboard: ChildStdin,
    serial: Receiver<Vec<u8>>,
    /// All that came over the serial line, without what moves a cursor.
    pub log: String,
    escape: Escape,
    /// How much of the log earlier waits have seen.
    seen: usize,
    pub started: Instant,
    /// How long it may take for anything.
    pub patience: Duration,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// Starts a guest on a disk, which stays as it is: what the guest writes is thrown away.
    pub fn boot(firmware: Firmware, disk: &Path, options: &[&str]) -> Guest {
        let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
        Guest::start(firmware, &[&["-drive", &drive], options].concat())
    }

    /// Starts a guest without a disk, but for what `options` say.
    pub fn start(firmware: Firmware, options: &[&str]) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        // graphics=off: the BIOS writes to the serial line.
        let smm = if firmware == Firmware::SecureBoot { ",smm=on" } else { "" };
        command.args(["-machine", &format!("q35,graphics=off{smm}"), "-m", "1024", "-smp", "1"]);
        command.args(["-display", "none", "-nodefaults", "-serial", "stdio", "-no-reboot"]);
        command.args([
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]);
        command.args(["-accel", accelerator()]);
        if let Some((code, vars)) = firmware.flash() {
            let own = dir.path().join("vars");
            std::fs::copy(vars, &own).unwrap();
            command.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={code}")]);
            command.args(["-drive", &format!("if=pflash,format=raw,file={}", own.display())]);
        }
        command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).env("TMPDIR", dir.path());
        let mut child = killed_with_us(&mut command).spawn().expect("qemu-system-x86_64");
        let (sender, serial) = channel();
        let mut output = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keyboard = child.stdin.take().unwrap();
        Guest {
            child,
            keyboard,
            serial,
            log: String::new(),
            escape: Escape::No,
            seen: 0,
            started: Instant::now(),
            patience: PATIENCE,
            _dir: dir,
        }
    }

    /// Waits for one of some texts on the serial line and says which.
    pub fn wait_for_any<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        let start = Instant::now();
        loop {
            let new = &self.log[self.seen..];
            let found = texts.iter().filter_map(|text| Some((new.find(text)?, *text))).min();
            if let Some((at, text)) = found {
                self.seen += at + text.len();
                return text;
            }
            let dead_end = DEAD_ENDS.iter().find(|text| new.contains(**text));
            assert!(dead_end.is_none(), "{dead_end:?} while waiting for {texts:?}\n{}", self.tail());
            match self.serial.recv_timeout(self.patience.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.hear(&bytes),
                Err(RecvTimeoutError::Timeout) => panic!("{texts:?} does not come\n{}", self.tail()),
                Err(RecvTimeoutError::Disconnected) => panic!("QEMU ended before {texts:?}\n{}", self.tail()),
            }
        }
    }

    /// Adds to the log what came, but for carriage returns and escape sequences: `ESC [ ... letter`, and those of two
    /// bytes.
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::No, 0x1b) => Escape::Begun,
                // One or several: each console on the way may add its own.
                (Escape::No, b'\r') => Escape::No,
                (Escape::No, byte) => {
                    self.log.push(if byte.is_ascii() { char::from(*byte) } else { '?' });
                    Escape::No
                }
                (Escape::Begun, b'[') => Escape::Long,
                (Escape::Long, byte) if !byte.is_ascii_alphabetic() => Escape::Long,
                _ => Escape::No,
            };
        }
    }

    pub fn wait_for(&mut self, text: &str) {
        self.wait_for_any(&[text]);
    }

    fn tail(&self) -> &str {
        let from = self.log.len().saturating_sub(3000);
        self.log.get(from..).unwrap_or(&self.log)
    }

    pub fn send(&mut self, line: &str) {
        // Slowly enough for Xen, which keeps 128 bytes until somebody reads them, and drops what comes then.
        for part in format!("{line}\n").as_bytes().chunks(32) {
            self.keyboard.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the login prompt and logs root in. Returns what is to be known before a shell is there: the
    /// seconds to the prompt.
    pub fn login(&mut self, password: Option<&str>) -> f64 {
        self.wait_for(" login: ");
        let seconds = self.started.elapsed().as_secs_f64();
        self.send("root");
        if let Some(password) = password {
            self.wait_for("assword: ");
            self.send(password);
        }
        self.wait_for("# ");
        // Split, so that the echo of the line is not taken for its answer.
        self.send("stty -echo cols 500; PS1=; PS2=; dmesg -n 1; export TERM=dumb PAGER=cat; echo rea''dy");
        self.wait_for("ready\n");
        seconds
    }

    /// Runs a command in the shell that is logged in; exit status and output.
    pub fn try_run(&mut self, command: &str) -> (i32, String) {
        let from = self.seen;
        self.send(&format!("{{ {command}\n}} 2>&1; echo \"@rc=\"$?@"));
        self.wait_for("@rc=");
        let output = self.log[from..self.seen - "@rc=".len()].to_owned();
        let at = self.seen;
        self.wait_for("@");
        (self.log[at..self.seen - 1].parse().unwrap(), output)
    }

    /// Runs a command that must succeed; its output without the last line's end.
    pub fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        assert_eq!(status, 0, "{command}\n{output}");
        output.trim().to_owned()
    }

    /// Waits until the system is up, and wants it up without a failed unit.
    pub fn assert_running(&mut self) {
        let (_, state) = self.try_run("systemctl is-system-running --wait");
        let failed = self.run("systemctl --failed --no-legend --plain --no-pager");
        assert_eq!((state.trim(), failed.as_str()), ("running", ""), "{}", self.tail());
    }

    /// Switches the guest off and waits for it.
    pub fn power_off(mut self) {
        self.send("systemctl poweroff");
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < self.patience, "it does not switch off\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Firmware {
    /// Code and an empty (or enrolled) variable store; Debian's names, the newer first.
    fn flash(self) -> Option<(&'static str, &'static str)> {
        let (code, vars) = match self {
            Firmware::SeaBios => return None,
            Firmware::Ovmf => ("CODE", "VARS"),
            Firmware::SecureBoot => ("CODE_4M.ms", "VARS_4M.ms"),
        };
        let path = |name: &str| format!("/usr/share/OVMF/OVMF_{name}.fd");
        let named = |name: &str| {
            [path(&format!("{name}_4M")), path(name)].into_iter().find(|file| Path::new(file).exists())
        };
        let found = |name| PathBuf::from(named(name).expect("the package ovmf"));
        Some((leak(found(code)), leak(found(vars))))
    }

    /// Wants that a disk has nothing that this firmware starts.
    pub fn assert_finds_nothing(self, disk: &Path) {
        let mut guest = Guest::boot(self, disk, &[]);
        guest.wait_for_any(&["No bootable device", "No bootable option", "Shell>"]);
    }
}

fn leak(path: PathBuf) -> &'static str {
    Box::leak(path.display().to_string().into_boxed_str())
}

/// KVM only where the processor has it: the device may be there and hang the guest.
fn accelerator() -> &'static str {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtual_machines = cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if virtual_machines && Path::new("/dev/kvm").exists() { "kvm" } else { "tcg,thread=multi" }
}
