//! What bash and the files print, without the values in it: the log shows it, and others than root read logs. Trace entries that a
//! file sent to the log (`unset BASH_XTRACEFD`) and lines of the files themselves (`set -v`, and bash where it quotes one) are left
//! out. What cannot be told from the file's own words loses the user and password of every URL, and the secrets that are known.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use super::Files;
use crate::command::LINE_BYTES;
use crate::settings::table::KEYS;

/// A shorter text is in many lines by chance.
const MIN_BYTES: usize = 4;
/// The same of a line of a file within another one: `done` and `esac` are words.
const MIN_BYTES_WITHIN: usize = 8;
/// Of a file of settings.
const MAX_BYTES: u64 = 1 << 20;
const CUT: &[u8] = b"...";

/// Judges the lines that one bash prints, in their order.
pub struct Prints {
    id: Vec<u8>,
    /// Lines of the files, as far as a line of the log goes.
    source: Vec<Vec<u8>>,
    secrets: Vec<Vec<u8>>,
    /// The files are too long to know their lines: only complaints of bash are shown.
    only_bash: bool,
    /// How an entry of the trace ends of which this line may be a part.
    open: Option<&'static [u8]>,
}

impl Prints {
    /// Of the run `id`.
    pub fn of(files: &Files, id: &str) -> Prints {
        let texts = files.defaults_file.into_iter().chain(files.variant_file).map(|path| {
            let mut text = Vec::new();
            // What cannot be read is told of by bash.
            let _ = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text));
            text
        });
        let secret = KEYS
            .iter()
            .filter(|key| key.kind.is_secret())
            .map(|key| format!("OSP_{}", key.name.to_uppercase()));
        let secrets = secret
            .filter_map(|name| Some(files.env.get(name.as_ref() as &std::ffi::OsStr)?.as_bytes().to_vec()));
        let texts: Vec<Vec<u8>> = texts.collect();
        let only_bash = texts.iter().any(|text| text.len() as u64 > MAX_BYTES);
        Prints { only_bash, ..Prints::new(id, &texts.join(&b'\n'), secrets.collect()) }
    }

    fn new(id: &str, text: &[u8], mut secrets: Vec<Vec<u8>>) -> Prints {
        let lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
        let lines = lines.map(|line| line[..line.len().min(LINE_BYTES)].to_vec());
        let mut source: Vec<Vec<u8>> = lines.filter(|line| line.len() >= MIN_BYTES).collect();
        // One that is a part of another one comes after it.
        source.sort_by_key(|line| std::cmp::Reverse(line.len()));
        let passwords = credentials(text)
            .filter_map(|user| Some(user[user.iter().position(|b| *b == b':')? + 1..].to_vec()));
        secrets.extend(passwords);
        secrets.retain(|secret| secret.len() >= MIN_BYTES);
        Prints { id: id.as_bytes().to_vec(), source, secrets, only_bash: false, open: None }
    }

    /// What of a line may be shown; `None`: nothing.
    pub fn shown<'l>(&mut self, line: &'l [u8]) -> Option<Cow<'l, [u8]>> {
        let without_plus = &line[line.iter().take_while(|byte| **byte == b'+').count()..];
        if let Some(entry) = without_plus.strip_prefix(&*self.id) {
            // `\x01FILE\x01LINE\x01COMMAND`: bash prints the operands of these as they are, also in several lines.
            let command = entry.splitn(4, |byte| *byte == 1).nth(3).unwrap_or_default();
            let end: Option<&[u8]> = match command {
                [b'[', b'[', ..] => Some(b" ]]"),
                [b'(', b'(', ..] => Some(b"))"),
                _ => None,
            };
            self.open = end.filter(|end| !command.ends_with(end));
            return None;
        }
        if let Some(end) = self.open {
            self.open = Some(end).filter(|end| !line.ends_with(end));
            return None;
        }
        let of_bash = of_bash(line);
        if self.is_source(line.trim_ascii()) || (self.only_bash && of_bash.is_none()) {
            return None;
        }
        let mut shown = of_bash.map_or(Cow::Borrowed(line), Cow::Owned);
        let source = self.source.iter().filter(|source| source.len() >= MIN_BYTES_WITHIN);
        for text in source.chain(&self.secrets) {
            shown = without(shown, text);
        }
        // The beginning of a line of the files that bash quotes, where the log's line ends in it.
        if let Some(at) = shown.iter().position(|byte| *byte == b'`') {
            if line.len() >= LINE_BYTES && self.is_source(&shown[at + 1..]) {
                shown = [&shown[..at], CUT].concat().into();
            }
        }
        let users: Vec<Vec<u8>> = credentials(&shown).map(<[u8]>::to_vec).collect();
        for user in users {
            shown = without(shown, &[b"://", &*user].concat());
        }
        Some(shown)
    }

    /// Whether it is a line of the files, or as much of one as the log shows.
    fn is_source(&self, line: &[u8]) -> bool {
        let is_cut = line.len() + MIN_BYTES >= LINE_BYTES;
        line.len() >= MIN_BYTES
            && self.source.iter().any(|source| source == line || (is_cut && source.starts_with(line)))
    }
}

/// User and password of each URL in a text: the bytes between `://` and the last `@` of the word. A word that was cut short may
/// have lost its `@`.
fn credentials(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let starts = text.windows(3).enumerate().filter(|(_, window)| window == b"://").map(|(at, _)| at + 3);
    starts.filter_map(move |start| {
        let word = text[start..].split(u8::is_ascii_whitespace).next()?;
        let is_cut = text.len() >= LINE_BYTES && start + word.len() == text.len() && word.contains(&b':');
        let length = word.iter().rposition(|byte| *byte == b'@').or(is_cut.then_some(word.len()))?;
        Some(&word[..length])
    })
}

/// A complaint of bash without the values in it: `FILE: line N: NAME: VALUE: REASON`, where NAME and VALUE may be missing, and the
/// reason may quote. `None`: it is none.
fn of_bash(line: &[u8]) -> Option<Vec<u8>> {
    const LINE: &[u8] = b": line ";
    let at = line.windows(LINE.len()).position(|window| window == LINE)? + LINE.len();
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = line[at + digits..].strip_prefix(b": ").filter(|_| digits > 0)?;
    let (head, text) = (&line[..at + digits], quotes_cut(text));
    let parts: Vec<&[u8]> = split_at(&text, b": ");
    let (reason, values) = parts.split_last()?;
    let is_name = |part: &&&[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-./[".contains(byte))
    };
    let name = values.first().filter(is_name);
    let mut shown = head.to_vec();
    for part in
        name.into_iter().chain((values.len() > usize::from(name.is_some())).then_some(&CUT)).chain([reason])
    {
        shown.extend_from_slice(b": ");
        shown.extend_from_slice(part);
    }
    Some(shown)
}

/// The text without its quoted parts. A quoted sign of the shell stays.
fn quotes_cut(text: &[u8]) -> Vec<u8> {
    let Some(begin) = text.iter().position(|byte| b"`\"".contains(byte)) else { return text.to_vec() };
    let end =
        text.iter().rposition(|byte| b"'\"".contains(byte)).filter(|end| *end > begin).unwrap_or(text.len());
    let quoted = &text[begin + 1..end];
    let is_sign = quoted.len() <= 2 && quoted.iter().all(u8::is_ascii_punctuation);
    if is_sign { text.to_vec() } else { [&text[..=begin], CUT, &text[end..]].concat() }
}

fn split_at<'t>(text: &'t [u8], separator: &[u8]) -> Vec<&'t [u8]> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(separator.len()).position(|window| window == separator) {
        parts.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    parts.push(rest);
    parts
}

/// The line with another word in the place of each `text`.
fn without<'l>(line: Cow<'l, [u8]>, text: &[u8]) -> Cow<'l, [u8]> {
    let mut rest = &*line;
    let mut shown = Vec::new();
    let find = |rest: &[u8]| rest.windows(text.len().max(1)).position(|window| window == text);
    let Some(mut at) = find(rest) else { return line };
    loop {
        shown.extend_from_slice(&rest[..at]);
        shown.extend_from_slice(CUT);
        rest = &rest[at + text.len()..];
        match find(rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    shown.extend_from_slice(rest);
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "SUITE=sid\n  MIRROR=http://me:hidden@m.example.org/\nKEY='these\nlines of it'\n";

    fn shown(lines: &[&str]) -> Vec<String> {
        let mut prints = Prints::new("__id", FILE.as_bytes(), vec![b"$6$hash".to_vec()]);
        let shown = lines.iter().filter_map(|line| Some(prints.shown(line.as_bytes())?.into_owned()));
        shown.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn entries_of_the_trace_are_left_out_to_their_end() {
        let lines = [
            "+__id\u{1}/d\u{1}1\u{1}SUITE=sid",
            "a word of the file",
            "++__id\u{1}/d\u{1}2\u{1}[[ one",
            "secret line",
            "of it == x ]]",
            "another",
            "+__id\u{1}/d\u{1}2\u{1}[[ x == x ]]",
            "a third",
        ];
        assert_eq!(shown(&lines), ["a word of the file", "another", "a third"]);
    }

    #[test]
    fn lines_of_the_files_are_left_out_also_within_a_line_of_bash() {
        let lines = [
            "SUITE=sid",
            "MIRROR=http://me:hidden@m.example.org/",
            "lines of it'",
            "/d: line 2: `MIRROR=http://me:hidden@m.example.org/'",
            "+ KEY='these",
            "suite is sid",
        ];
        assert_eq!(shown(&lines), ["/d: line 2: `...'", "+ ...", "suite is sid"]);
    }

    #[test]
    fn a_complaint_of_bash_keeps_its_reason_and_no_value() {
        for (complaint, expected) in [
            ("/d: line 1: X: unbound variable", "/d: line 1: X: unbound variable"),
            ("/d: line 12: lsb_release: command not found", "/d: line 12: lsb_release: command not found"),
            ("/d: line 1: [: a secret: integer expected", "/d: line 1: [: ...: integer expected"),
            (
                "/d: line 1: 3 a: syntax error in it (error token is \"a\")",
                "/d: line 1: ...: syntax error in it (error token is \"...\")",
            ),
            (
                "/d: line 1: x: y: operand expected (error token is \": y\")",
                "/d: line 1: x: ...: operand expected (error token is \"...\")",
            ),
            (
                "/d: line 1: syntax error near unexpected token `('",
                "/d: line 1: syntax error near unexpected token `('",
            ),
            (
                "/d: line 1: syntax error near unexpected token `abc'",
                "/d: line 1: syntax error near unexpected token `...'",
            ),
            (
                "/d: line 1: unexpected EOF while looking for matching `\"'",
                "/d: line 1: unexpected EOF while looking for matching `\"'",
            ),
        ] {
            assert_eq!(shown(&[complaint]), [expected]);
        }
    }

    #[test]
    fn credentials_and_secrets_are_cut_wherever_they_stand() {
        let lines = [
            "+ P=http://a:b@c/d http://e/ ftp://f@g@h",
            "the password is hidden",
            "[[ $6$hash ]]",
            "http://a:1/b",
        ];
        assert_eq!(
            shown(&lines),
            ["+ P=http...@c/d http://e/ ftp...@h", "the password is ...", "[[ ... ]]", "http://a:1/b"]
        );
        let cut = format!("{}http://me:secret", " ".repeat(LINE_BYTES - 16));
        assert_eq!(shown(&[&cut])[0].trim(), "http...");
    }
}
