//! One record of a pax extended header, `LENGTH KEYWORD=VALUE\n` (POSIX pax(1), "pax Header Block"): read and appended.
//! Must not know what a keyword means.

use anyhow::{Context, Result, bail, ensure};

/// Appends one record.
pub(super) fn push(records: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(keyword);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Appends a record with a decimal number.
pub(super) fn push_number(records: &mut Vec<u8>, keyword: &str, value: u64) {
    push(records, keyword.as_bytes(), value.to_string().as_bytes());
}

/// A decimal number, for records and sparse maps.
pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    let wrong = || format!("it is {:?}, expected a decimal number", text.escape_ascii().to_string());
    ensure!(!text.is_empty() && text.iter().all(u8::is_ascii_digit), wrong());
    let value = text
        .iter()
        .try_fold(0_i64, |value, digit| value.checked_mul(10)?.checked_add(i64::from(digit - b'0')));
    Ok(value.with_context(wrong)?.unsigned_abs())
}

/// `LENGTH KEYWORD=VALUE\n` at the start of `bytes`: keyword, value and what follows.
pub(super) fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length = usize::try_from(decimal(&bytes[..digits]).context("reading the length of a pax record")?)?;
    let Some(record) = bytes.get(digits..length) else {
        bail!("a pax record of {length} bytes does not fit into its header");
    };
    let body = record.strip_prefix(b" ").and_then(|body| body.strip_suffix(b"\n"));
    let body = body.context("a pax record does not have the form \"LENGTH KEYWORD=VALUE\"")?;
    let equals = body.iter().position(|&byte| byte == b'=').context("a pax record has no \"=\"")?;
    Ok((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// POSIX: an empty value means that the header's own field holds.
pub(super) fn nonempty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}
