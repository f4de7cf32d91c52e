//! Names that are safe as host names, file names and words of a shell.

use std::fmt;

/// A host name as Ganeti allows it: labels of letters, digits and hyphens (and underscores, which it tolerates).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName(String);

impl InstanceName {
    /// None where a shell, a file name or /etc/hosts could misread it.
    pub fn parse(text: &str) -> Option<InstanceName> {
        let label = |l: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !l.is_empty() && l.len() <= 63 && l.chars().all(plain) && !l.starts_with('-') && !l.ends_with('-')
        };
        (text.len() <= 253 && text.split('.').all(label)).then(|| InstanceName(text.to_owned()))
    }

    /// The whole name.
    pub fn full(&self) -> &str {
        &self.0
    }

    /// Its first label.
    pub fn short(&self) -> &str {
        self.0.split('.').next().unwrap_or(&self.0)
    }

    /// What stands after the first dot.
    pub fn domain(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, domain)| domain)
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that may stand for a file NAME.toml or NAME.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantName(String);

impl VariantName {
    /// None where it could name another file than one of ours.
    pub fn parse(text: &str) -> Option<VariantName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let good = !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.chars().all(plain);
        good.then(|| VariantName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VariantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_that_could_be_misread_are_refused() {
        for good in ["a", "web-1.example.com", "x_y.z", "1.2"] {
            assert!(InstanceName::parse(good).is_some(), "{good}");
        }
        for bad in ["", ".", "a..b", "a b", "-a", "a-", "a/b", "a\nb", "$x", &"a".repeat(64)] {
            assert!(InstanceName::parse(bad).is_none(), "{bad}");
        }
    }
}
