//! Who else has a device open, for messages.

use std::path::Path;

/// ` by process 4711 (name)` for whoever else has a disk open, as far as /proc tells.
pub(super) fn opened_by(device: &Path) -> String {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|p| {
        let name = p.file_name();
        name.as_encoded_bytes()[0].is_ascii_digit() && name != *own
    });
    for process in others {
        let fds = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|link| link == device) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!(
                " by process {} ({})",
                process.file_name().to_string_lossy(),
                name.trim().escape_default()
            );
        }
    }
    String::new()
}
