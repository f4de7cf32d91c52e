//! What the program says while it works: steps with their times, warnings, progress. It alone writes to stderr,
//! ASCII only: Ganeti replaces a message with a stray byte in it by a codec error.
//!
//! A log gets plain lines; a terminal gets a spinner for what takes long.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::sys::signals;

#[derive(Default)]
struct State {
    debug: bool,
    terminal: bool,
    spinner: Option<ProgressBar>,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

fn state() -> MutexGuard<'static, State> {
    let fresh = || Mutex::new(State { terminal: std::io::stderr().is_terminal(), ..State::default() });
    STATE.get_or_init(fresh).lock().unwrap_or_else(PoisonError::into_inner)
}

/// DEBUG_LEVEL of 1 and more adds the commands.
pub fn set_debug(debug: bool) {
    state().debug = debug;
}

/// Printable ASCII as it is, tabs as blanks, the rest as `?`; bytes of escape sequences lose their power.
pub fn ascii(text: &[u8]) -> String {
    let clean = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        b'\t' => ' ',
        _ => '?',
    };
    text.iter().map(clean).collect()
}

/// A text of several lines in printable ASCII: what else is in it is escaped.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' | '\n' => clean.push(c),
            _ => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| clean += &format!("\\x{byte:02x}")),
        }
    }
    clean
}

/// Characters of one line of the log: a tool, a mirror or a setting could make it as long as it likes, and who reads a log sees
/// the last 20 lines.
const LINE_MAX: usize = 2000;
/// How many of them are the end of a longer line.
const LINE_END: usize = 400;

/// The text of one line, cut in the middle where it is too long. ASCII.
fn bounded(line: String) -> String {
    if line.len() <= LINE_MAX {
        return line;
    }
    let mark = format!(" ... ({} characters) ... ", line.len());
    let start = LINE_MAX - LINE_END - mark.len();
    format!("{}{mark}{}", &line[..start], &line[line.len() - LINE_END..])
}

/// As much as can be written to a pipe without waiting, once it can be written to (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Characters of a wrong value that a message repeats.
const QUOTED_MAX: usize = 80;

/// A wrong value in quotes, for a message: escaped, so that it stays on its line, and cut where it is long.
pub fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(QUOTED_MAX).collect();
    let shown = shown.escape_default();
    if text.chars().nth(QUOTED_MAX).is_some() {
        format!("\"{shown}...\" ({} bytes)", text.len())
    } else {
        format!("\"{shown}\"")
    }
}

/// Text that somebody else wrote: a name in an archive, in a guest, of a process. It can be printed escaped alone, so that it is
/// neither a line of its own nor a terminal's command.
#[derive(Debug, Clone, Copy)]
pub struct Foreign<'a>(pub &'a [u8]);

impl std::fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0 {
            match byte {
                b'\\' => f.write_str("\\\\")?,
                b' '..=b'~' => f.write_char(char::from(*byte))?,
                b'\n' => f.write_str("\\n")?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

/// One line on stderr, whatever the text holds; line breaks in it stay.
pub fn line(text: &str) {
    let state = state();
    let print = || {
        let mut out = String::new();
        for part in text.trim_end().split('\n') {
            let _ = writeln!(out, "{}", bounded(ascii(part.as_bytes())));
        }
        write_out(out.as_bytes());
    };
    match &state.spinner {
        Some(spinner) => spinner.suspend(print),
        None => print(),
    }
}

/// A closed stderr must not stop an installation, nor a full one keep it from hearing a signal.
fn write_out(text: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    for piece in text.chunks(PIPE_BUF) {
        if !signals::await_writable(stderr.as_fd()) || stderr.write_all(piece).is_err() {
            return;
        }
    }
}

/// A fact that an admin should know although the work goes on.
pub fn warning(text: &str) {
    line(&format!("warning: {text}"));
}

/// Shown only with DEBUG_LEVEL of 1 or more.
pub fn detail(text: &str) {
    let debug = state().debug;
    if debug {
        line(&format!("    + {text}"));
    }
}

/// A line that a tool printed: into the log, or beside the spinner on a terminal.
pub fn tool_line(text: &[u8]) {
    let text = ascii(text);
    let state_now = state();
    match &state_now.spinner {
        Some(spinner) => spinner.set_message(text.chars().take(60).collect::<String>()),
        None => {
            drop(state_now);
            line(&format!("    | {text}"));
        }
    }
}

/// Seconds, as they stand before a step.
fn seconds(elapsed: Duration) -> String {
    format!("{:8.2} s", elapsed.as_secs_f64())
}

/// A step that is over in a moment: one line with its time when it is done.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    timed(what, work)
}

/// A step that may take long: it is announced, and on a terminal a spinner shows what its tools say.
pub fn long_step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    {
        let mut state = state();
        if state.terminal && state.spinner.is_none() {
            state.spinner = Some(spinner(what));
        }
    }
    let announced = state().spinner.is_some();
    if !announced {
        line(&format!("{:>10}  {what}", "..."));
    }
    let result = timed(what, work);
    if let Some(spinner) = state().spinner.take() {
        spinner.finish_and_clear();
    }
    result
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    signals::check()?;
    let start = Instant::now();
    let result = work()?;
    line(&format!("{}  {what}", seconds(start.elapsed())));
    Ok(result)
}

fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {elapsed_precise}  {prefix}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_chars("-\\|/ ");
    let bar = ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// How far a long step is, for the terminal alone.
pub fn progress(done_bytes: u64, total_bytes: u64) {
    if let Some(spinner) = &state().spinner {
        let percent = done_bytes.saturating_mul(100).checked_div(total_bytes).unwrap_or(100);
        spinner.set_message(format!("{percent}% of {}", size(total_bytes)));
    }
}

/// A size for people: `20 GiB`, `1.5 MiB`, `512 bytes`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// What an admin can do about an error: a link of its chain that is printed last.
#[derive(Debug)]
pub struct Hint {
    text: String,
    error: Error,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hint: {}", self.text)
    }
}

impl std::error::Error for Hint {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error.as_ref())
    }
}

/// Adds a hint to an error.
pub trait WithHint<T> {
    /// `hint` says what to do next: an imperative, no full stop.
    fn hint(self, hint: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Error>> WithHint<T> for std::result::Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> Result<T> {
        self.map_err(|error| with_hint(error.into(), hint))
    }
}

/// An error with a hint.
pub fn with_hint(error: Error, hint: impl Into<String>) -> Error {
    Hint { text: hint.into(), error }.into()
}

/// The cause of that type, or the context of that type, wherever it is in an error. anyhow itself does not look into what a
/// hint was added to.
#[expect(clippy::disallowed_methods, reason = "this is what all others call")]
pub fn cause<E: std::fmt::Debug + std::fmt::Display + Send + Sync + 'static>(error: &Error) -> Option<&E> {
    let hinted = || error.chain().find_map(|link| cause(&link.downcast_ref::<Hint>()?.error));
    error.downcast_ref().or_else(hinted)
}

/// An error and its causes in one sentence, without the hints.
pub fn sentence(error: &Error) -> String {
    let causes = error.chain().filter(|link| !link.is::<Hint>()).map(|link| link.to_string());
    causes.collect::<Vec<_>>().join(": ")
}

/// The same, with the innermost hint at its end.
pub fn sentence_with_remedy(error: &Error) -> String {
    let hint = error.chain().filter_map(|link| link.downcast_ref::<Hint>()).last();
    let remedy = hint.map_or(String::new(), |hint| format!("; {}", hint.text));
    format!("{}{remedy}", sentence(error))
}

/// Prints an error once: what was being done, its causes inward, the innermost hint as the last line.
pub fn error(error: &Error) {
    let mut text = String::new();
    let mut indent = "error: ";
    let mut hint = None;
    for link in error.chain() {
        let message = link.to_string();
        if link.is::<Hint>() {
            hint = Some(message);
            continue;
        }
        // The predecessor's own words are left alone.
        let indent_now = if message.starts_with("ERROR: ") { "" } else { indent };
        let _ = writeln!(text, "{indent_now}{message}");
        indent = "  ";
    }
    text.extend(hint);
    line(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_a_person_writes_them() {
        let table = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536 << 10, "1.5 MiB"),
            (20 << 30, "20 GiB"),
            (1 << 40, "1 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn only_printable_ascii_leaves_the_program() {
        assert_eq!(ascii("a\u{e9}\x1b[31m\tb".as_bytes()), "a???[31m b");
    }

    #[test]
    fn a_long_line_is_cut_in_the_middle() {
        assert_eq!(bounded("x".repeat(LINE_MAX)), "x".repeat(LINE_MAX));
        let cut = bounded(format!("begin{}end", "x".repeat(100_000)));
        assert!(cut.starts_with("beginx") && cut.ends_with("xend"), "{cut}");
        assert!(cut.len() == LINE_MAX && cut.contains("x ... (100008 characters) ... x"), "{cut}");
    }

    #[test]
    fn an_answer_keeps_its_lines_and_nothing_else_that_is_not_printable() {
        assert_eq!(printable("a\\b\nc\u{1b}[31m\u{9b}\u{e9}\t"), "a\\b\nc\\x1b[31m\\xc2\\x9b\\xc3\\xa9\\x09");
    }

    #[test]
    fn foreign_text_is_printed_as_one_word_of_one_line() {
        let all: Vec<u8> = (0..=255).collect();
        let shown = Foreign(&all).to_string();
        assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
        let name = b"a\nerror: b\0\x1b[31m\\ c\xc3\xa9";
        assert_eq!(Foreign(name).to_string(), "a\\nerror: b\\x00\\x1b[31m\\\\ c\\xc3\\xa9");
    }

    #[test]
    fn a_quoted_value_stays_on_its_line_and_short() {
        assert_eq!(quoted("gtp"), "\"gtp\"");
        assert_eq!(quoted("a\nb\u{e9}\x1b\"\\"), "\"a\\nb\\u{e9}\\u{1b}\\\"\\\\\"");
        assert_eq!(quoted(&"x".repeat(80)), format!("\"{}\"", "x".repeat(80)));
        assert_eq!(quoted(&"x".repeat(81)), format!("\"{}...\" (81 bytes)", "x".repeat(80)));
    }

    #[derive(Debug)]
    struct Marked;

    impl std::fmt::Display for Marked {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("marked")
        }
    }

    #[test]
    fn a_cause_is_found_below_hints_and_a_text_that_begins_like_a_hint_is_none() {
        let error = Err::<(), _>(anyhow::anyhow!("hint: of a guest").context(Marked)).hint("one").hint("two");
        let error = error.unwrap_err().context("outside");
        assert!(cause::<Marked>(&error).is_some());
        assert!(cause::<std::io::Error>(&error).is_none());
        assert_eq!(sentence(&error), "outside: marked: hint: of a guest");
    }
}
