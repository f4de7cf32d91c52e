//! The trace of bash, which shows the file and line of an assignment. An entry begins with the id of
//! the run, which no value holds. A line that a value adds to an entry does not begin with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Variable to file and line of its last assignment.
pub type Lines = BTreeMap<String, (PathBuf, usize)>;

/// Commands whose arguments are assignments.
const DECLARATIONS: [&str; 4] = ["export", "declare", "typeset", "readonly"];

/// The assignments of the two files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub defaults_file: Lines,
    pub variant: Lines,
}

impl Trace {
    /// Reads the trace of the run `id`: an entry is `+ID\x01FILE\x01LINE\x01COMMAND`, and
    /// `ID\x01SECTION` marks where bash wrote a section of the report.
    pub fn parse(trace: &[u8], id: &str) -> Trace {
        let mut parsed = Trace::default();
        let mut lines = Lines::new();
        for entry in String::from_utf8_lossy(trace).split('\n') {
            let entry = entry.trim_start_matches('+').strip_prefix(id);
            let Some(entry) = entry.and_then(|entry| entry.strip_prefix('\x01')) else { continue };
            match entry {
                "defaults" => parsed.defaults_file = std::mem::take(&mut lines),
                "before" => lines.clear(),
                "variant" => parsed.variant = std::mem::take(&mut lines),
                _ => lines.extend(assignment(entry)),
            }
        }
        parsed
    }
}

/// The variable that an entry assigns to, and where. Our own commands have no file.
fn assignment(entry: &str) -> Option<(String, (PathBuf, usize))> {
    let mut parts = entry.splitn(3, '\x01');
    let (file, line, command) = (parts.next()?, parts.next()?, parts.next()?);
    let is_declaration = |word: &&str| DECLARATIONS.contains(word) || word.starts_with('-');
    let word = command.split(' ').find(|word| !is_declaration(word))?;
    // Bash quotes a word that has a blank or a control byte.
    let word = word.strip_prefix('$').unwrap_or(word).trim_start_matches('\'');
    let (name, _) = word.split_once('=')?;
    let name = name.trim_end_matches('+');
    let place = (PathBuf::from(file), line.parse().ok()?);
    (!file.is_empty()).then(|| (name.to_owned(), place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(trace: &str) -> Trace {
        Trace::parse(trace.replace("ID", "__id").replace('|', "\x01").as_bytes(), "__id")
    }

    fn line(lines: &Lines, name: &str) -> Option<usize> {
        lines.get(name).map(|(_, line)| *line)
    }

    #[test]
    fn assignments_have_the_line_of_their_file() {
        let trace = parse(
            "+ID|/d|1|A=x\n++ID|/d|2|B+=$'y\\001'\n+ID|/d|3|export 'C=a b'\n+ID|/d|4|declare -r D=1\n\
             +ID||9|instance=web\n\nID|defaults\n+ID||10|A=z\n\nID|before\n+ID|/v|5|A=q\n+ID|/v|6|echo E=1\n\nID|variant\n\
             +ID|/v|7|F=1\n",
        );
        let found = ["A", "B", "C", "D", "E", "instance"].map(|name| line(&trace.defaults_file, name));
        assert_eq!(found, [Some(1), Some(2), Some(3), Some(4), None, None]);
        assert_eq!(trace.variant.len(), 1);
        assert_eq!(trace.variant["A"], (PathBuf::from("/v"), 5));
    }

    #[test]
    fn a_traced_value_is_no_entry() {
        let trace = parse(
            "+ID|/d|1|[[ x\n+__no|/d|7|SUITE=evil\nID |/d|8|SUITE=evil\nSUITE=evil == db ]]\nID|defaults\n",
        );
        assert_eq!(trace, Trace::default());
    }
}
