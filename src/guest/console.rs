//! A login on the serial line, under systemd and under sysvinit.

use anyhow::Result;

use crate::request::Instance;
use crate::rootdir::RootDir;

const INITTAB_MAX_BYTES: u64 = 1 << 20;

/// What the predecessor's gettys ran at, where Ganeti does not say.
const DEFAULT_SPEED: u32 = 38400;

/// A serial console of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// `ttyS0` or `hvc0`
    pub port: &'static str,
    /// In baud.
    pub speed: u32,
}

impl Console {
    /// As HYPERVISOR and INSTANCE_HV_serial_console say: xen-pvm always has one.
    pub fn of(instance: &Instance) -> Option<Console> {
        let port = match (instance.serial_console, instance.hypervisor.as_str()) {
            (_, "xen-pvm") => "hvc0",
            (true, _) => "ttyS0",
            (false, _) => return None,
        };
        Some(Console { port, speed: instance.serial_speed.unwrap_or(DEFAULT_SPEED) })
    }

    /// Switches the login on.
    pub fn enable(&self, root: &RootDir) -> Result<()> {
        if root.is_file("lib/systemd/system/serial-getty@.service")? {
            self.enable_systemd(root)?;
        }
        if let Some(text) = root.read("etc/inittab", INITTAB_MAX_BYTES)? {
            let old = String::from_utf8_lossy(&text).into_owned();
            root.write("etc/inittab", self.edit_inittab(&old).as_bytes(), 0o644)?;
        }
        Ok(())
    }

    fn enable_systemd(&self, root: &RootDir) -> Result<()> {
        let unit = format!("serial-getty@{}.service", self.port);
        let wants = "etc/systemd/system/getty.target.wants";
        let drop_in = format!("etc/systemd/system/{unit}.d");
        root.create_dir_all(wants, 0o755)?;
        root.create_dir_all(&drop_in, 0o755)?;
        root.symlink("/lib/systemd/system/serial-getty@.service", format!("{wants}/{unit}"))?;
        // The line's own speed first: what Ganeti told the hypervisor is what the guest is to use.
        let text = format!(
            "[Service]\nExecStart=\nExecStart=-/sbin/agetty -o '-p -- \\\\u' {},115200,57600,38400,9600 %I $TERM\n",
            self.speed
        );
        root.write(format!("{drop_in}/speed.conf"), text.as_bytes(), 0o644)
    }

    /// inittab(5) with one line for the port; a line of an earlier run is replaced.
    fn edit_inittab(&self, old: &str) -> String {
        let id = if self.port == "hvc0" { "H0" } else { "T0" };
        let kept = old.lines().filter(|line| !line.starts_with(&format!("{id}:")));
        let mut text: String = kept.map(|line| format!("{line}\n")).collect();
        text += &format!("{id}:23:respawn:/sbin/getty -L {} {} vt100\n", self.port, self.speed);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inittab_gets_its_line_once() {
        let console = Console { port: "ttyS0", speed: 115_200 };
        let once = console.edit_inittab("id:2:initdefault:\n");
        assert_eq!(once, "id:2:initdefault:\nT0:23:respawn:/sbin/getty -L ttyS0 115200 vt100\n");
        assert_eq!(console.edit_inittab(&once), once);
    }
}
