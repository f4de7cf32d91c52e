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
    let quick = faster >= case.times_faster || case.or_within_s.is_some_and(|within| new <= within);
    let met = quick && slower.zip(case.times_floor).is_none_or(|(is, may)| is <= may);
    let mut wanted = format!("{:.1}x", case.times_faster);
    if let Some(within) = case.or_within_s {
        wanted += &format!(" or {:.0} ms", within * 1e3);
    }
    if let Some(floors) = case.times_floor {
        wanted += &format!(", {floors:.2} floors");
    }
    let of_both = |old: fn(&Run) -> f64, new: fn(&Run) -> f64, digits: usize| {
        let (old, new) = (median(Side::Predecessor, old), median(Side::Program, new));
        format!("{:.digits$} / {:.digits$}", old.unwrap_or(0.0), new.unwrap_or(0.0))
    };
    let cpu = of_both(|run| run.cpu_s, |run| run.cpu_s, 3);
    let memory = of_both(peak_mib, own_peak_mib, 0);
    Some(vec![
        case.name.to_owned(),
        format!("{old:.3} s"),
        format!("{new:.3} s"),
        format!("{faster:.1}x"),
        format!("{wanted}: {}", if met { "met" } else { "not met" }),
        floor.map_or_else(String::new, |floor| format!("{floor:.3} s")),
        slower.map_or_else(String::new, |slower| format!("{slower:.2}")),
        format!("{cpu} s"),
        format!("{memory} MiB"),
    ])
}

fn peak_mib(run: &Run) -> f64 {
    run.peak_kib as f64 / 1024.0
}

/// Whoever ends before he is looked at runs no tools.
fn own_peak_mib(run: &Run) -> f64 {
    if run.own_peak_kib == 0 { peak_mib(run) } else { run.own_peak_kib as f64 / 1024.0 }
}
