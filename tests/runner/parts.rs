//! `make test-full`, in parts: what takes long, by what it is about.

/// A part of `make test-full`.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub name: &'static str,
    /// Its tests: long ones whose names begin like this, and that are in no part before it.
    prefixes: &'static [&'static str],
    /// What runs beside them, and is no test of Rust's.
    pub command: Option<&'static [&'static str]>,
}

const fn part(name: &'static str, prefixes: &'static [&'static str]) -> Part {
    Part { name, prefixes, command: None }
}

/// Every long test is in exactly one of these.
const PARTS: [Part; 7] = [
    part("machines", &["machines::xen::", "machines::ganeti::"]),
    part("boots", &["machines::boot::", "installs::source::", "installs::examples::", "upgrade::backup::"]),
    part("upgrades", &["upgrade::"]),
    part("kills", &["faults::kill::", "backups::stream_faults::", "installs::templates::faults::"]),
    part("installs", &["installs::"]),
    part("disks", &["backups::", "hostile::"]),
    Part { name: "fuzz", prefixes: &[], command: Some(&["tests/fuzz", "20"]) },
];

pub fn all() -> &'static [Part] {
    &PARTS
}

/// The part of a test.
pub fn of(test: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.prefixes.iter().any(|prefix| test.starts_with(prefix)))
}

/// All of them, beginning with another quarter each time: of four runs with seeds that follow each other, each part comes
/// first, or among the first, in one.
pub fn in_order_of(seed: u64) -> impl Iterator<Item = &'static Part> {
    let quarter = PARTS.len().div_ceil(4);
    let first = usize::try_from(seed % 4).unwrap_or_default() * quarter;
    PARTS.iter().cycle().skip(first).take(PARTS.len())
}

impl Part {
    pub fn named(name: &str) -> Option<&'static Part> {
        PARTS.iter().find(|part| part.name == name)
    }

    pub fn has(&self, test: &str) -> bool {
        of(test).is_some_and(|part| part.name == self.name)
    }

    /// How its time is recorded.
    pub fn key(&self) -> String {
        format!("part {}", self.name)
    }
}
