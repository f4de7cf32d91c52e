//! The table: medians of the raw runs, and whether what was to be reached was.

use std::fmt::Write;

use crate::cases::{CASES, Case, Report};
use crate::measure::Run;
use crate::sides::Side;

const HEAD: [&str; 9] =
    ["case", "predecessor", "this", "faster", "wanted", "floor", "of floor", "processor", "memory"];

/// As README.md has it.
pub fn of(report: &Report) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(CASES.iter().filter_map(|case| row(case, report)));
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(text, "|-{}-|", rules.join("-|-"));
        }
    }
    text
}

fn row(case: &Case, report: &Report) -> Option<Vec<String>> {
    let median = |side, of: fn(&Run) -> f64| {
        let runs = report.runs.iter().filter(|run| run.case == case.name && run.side == side);
        let mut values: Vec<f64> = runs.map(|run| of(&run.run)).collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| values[values.len() / 2])
    };
    let wall = |side| median(side, |run| run.wall_s);
    let (old, new) = (wall(Side::Predecessor)?, wall(Side::Program)?);
    let floor = wall(Side::Floor);
    let faster = old / new;
    let slower = floor.map(|floor| new / floor);
    let met = faster >= case.times_faster && slower.zip(case.times_floor).is_none_or(|(is, may)| is <= may);
    let wanted = match case.times_floor {
        Some(floor) => format!("{:.1}x, {floor:.1} floors", case.times_faster),
        None => format!("{:.1}x", case.times_faster),
    };
    let both = |of: fn(&Run) -> f64, digits: usize| {
        let (old, new) = (median(Side::Predecessor, of), median(Side::Program, of));
        format!("{:.digits$} / {:.digits$}", old.unwrap_or(0.0), new.unwrap_or(0.0))
    };
    Some(vec![
        case.name.to_owned(),
        format!("{old:.3} s"),
        format!("{new:.3} s"),
        format!("{faster:.1}x"),
        format!("{wanted}: {}", if met { "met" } else { "not met" }),
        floor.map_or_else(String::new, |floor| format!("{floor:.3} s")),
        slower.map_or_else(String::new, |slower| format!("{slower:.2}")),
        format!("{} s", both(|run| run.cpu_s, 3)),
        format!("{} MiB", both(|run| run.peak_kib as f64 / 1024.0, 0)),
    ])
}
