//! The picture of `cutover status --watch`.

use cutover::migration::Phase;
use cutover::migration::admin::MigrationReport;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::traffic::Sample;
use super::{Picture, Series, full_name};
use crate::text::{self, age};

/// Eight heights of a bar in text.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const GAUGE: usize = 30;

pub(super) fn draw(picture: &Picture, frame: &mut Frame<'_>) {
    let traffic = if picture.traffic.is_some() { 4 } else { 0 };
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(traffic), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    match &picture.traffic {
        Some(Ok(samples)) => draw_traffic(samples, frame, top),
        Some(Err(problem)) => frame.render_widget(Paragraph::new(problem.clone().red()), top),
        None => {}
    }
    let lines = lines(picture, usize::from(middle.width));
    // The last line stays on the screen.
    let most = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(1);
    frame.render_widget(Paragraph::new(lines).scroll((picture.scroll.min(most), 0)), middle);
    frame.render_widget(Paragraph::new("↑ ↓ scroll   q end".dim()), bottom);
}

fn draw_traffic(samples: &[Sample], frame: &mut Frame<'_>, area: Rect) {
    let columns = Layout::horizontal(samples.iter().map(|_| Constraint::Fill(1))).spacing(2).split(area);
    for (sample, column) in samples.iter().zip(columns.iter()) {
        let [title, chart] = Layout::vertical([Constraint::Length(1), Constraint::Length(2)]).areas(*column);
        let now = sample.now.map_or_else(|| "no data".into(), |now| format!("{now:.1}{}", sample.unit));
        frame.render_widget(Paragraph::new(format!("{} {now}", sample.what)), title);
        frame.render_widget(Sparkline::default().data(latest(&sample.series, chart.width)), chart);
    }
}

/// The values that fit.
fn latest(series: &Series, width: u16) -> Vec<u64> {
    series.iter().copied().skip(series.len().saturating_sub(usize::from(width))).collect()
}

fn lines(picture: &Picture, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for one in &picture.ledgers {
        if let Some(name) = &one.ledger {
            lines.push(Line::from(format!("ledger {name}").bold()));
        }
        match &one.reports {
            Err(problem) => {
                lines.extend(wrapped(&format!("unreachable: {}", problem.text), width, Style::new().red()))
            }
            Ok(reports) if reports.is_empty() => {
                lines.extend(wrapped(text::NO_MIGRATION, width, Style::new()))
            }
            Ok(reports) => {
                for report in reports {
                    let name = full_name(one.ledger.as_deref(), report);
                    migration(report, &name, picture.rows.get(&name), width, &mut lines);
                }
            }
        }
        lines.push(Line::default());
    }
    lines
}

fn migration(
    report: &MigrationReport,
    name: &str,
    rates: Option<&Series>,
    width: usize,
    lines: &mut Vec<Line<'static>>,
) {
    let since = format!("epoch {}, for {}", report.epoch, age(report.phase_age_seconds));
    if name.chars().count() + 2 + since.chars().count() <= width {
        lines.push(Line::from(vec![Span::from(name.to_owned()).bold(), Span::from(format!("  {since}"))]));
    } else {
        lines.extend(wrapped(name, width, Style::new().bold()));
        lines.extend(wrapped(&since, width, Style::new()));
    }
    lines.extend(phases(report, width));
    if let Some(waits_for) = &report.waits_for {
        let text = format!("waits for {waits_for} (since {})", age(report.waits_seconds.unwrap_or(0.0)));
        lines.extend(wrapped(&text, width, Style::new().yellow()));
    }
    if let Some(by) = &report.paused_by {
        let text = format!("backfills and scans are paused by {by}");
        lines.extend(wrapped(&text, width, Style::new().yellow()));
    }
    if let Some(text) = text::no_driver(report) {
        lines.extend(wrapped(&text, width, Style::new().yellow()));
    }
    if let Some(work) = &report.work {
        let share = (work.rows_done as f64 / work.rows_total.max(1) as f64).clamp(0.0, 1.0);
        let full = (share * GAUGE as f64) as usize;
        let gauge = format!("[{}{}] ", "#".repeat(full), ".".repeat(GAUGE - full));
        let text = text::progress(work);
        lines.extend(wrapped(&if work.finished { text } else { gauge + &text }, width, Style::new()));
        if let Some(rates) = rates.filter(|_| !work.finished) {
            lines.push(Line::from(format!("rows/s {}", bars(rates, width.saturating_sub(8)))).cyan());
        }
    }
    for one in &report.instances {
        let [name, version, range, epoch, lease, state] = text::instance(one, report);
        let style =
            if one.lease_seconds <= 0.0 || one.refusal.is_some() { Style::new().red() } else { Style::new() };
        let text =
            format!("  {name:<20} {version:<10} {range:<15} epoch {epoch:<4} lease {lease:<8} {state}");
        match text.chars().count() <= width {
            true => lines.push(Line::styled(text, style)),
            false => lines.extend(wrapped(&text, width, style)),
        }
    }
}

/// All phases, on as many lines as they need.
fn phases(report: &MigrationReport, width: usize) -> Vec<Line<'static>> {
    let desired = report.desired.as_deref().and_then(|text| text.split(':').next());
    let mut lines = vec![Line::default()];
    for phase in Phase::ALL {
        let name = phase.name();
        let span = if report.phase == name {
            Span::styled(format!("[{name}]"), Style::new().add_modifier(Modifier::BOLD))
        } else if desired == Some(name) {
            Span::from(format!("({name})"))
        } else {
            Span::from(name)
        };
        let Some(last) = lines.last_mut() else { break };
        if phase != Phase::Off {
            last.push_span(" > ");
        }
        match last.width() + span.width() <= width {
            true => last.push_span(span),
            false => lines.push(Line::from(span)),
        }
    }
    lines
}

/// The latest values as bars of text.
fn bars(series: &Series, width: usize) -> String {
    let shown = series.iter().skip(series.len().saturating_sub(width));
    let most = shown.clone().copied().max().unwrap_or(0).max(1);
    shown.map(|value| BARS[usize::try_from(value * 7 / most).unwrap_or(7).min(7)]).collect()
}

/// The text in lines of at most `width` characters, split between words unless one is longer.
fn wrapped(text: &str, width: usize, style: Style) -> Vec<Line<'static>> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        let space = if last.is_empty() { "" } else { " " };
        if last.chars().count() + space.len() + word.chars().count() <= width {
            last.push_str(space);
            last.push_str(word);
            continue;
        }
        let characters: Vec<char> = word.chars().collect();
        let mut parts = characters.chunks(width.max(1)).map(|part| part.iter().collect());
        if last.is_empty() {
            *last = parts.next().unwrap_or_default();
        }
        lines.extend(parts);
    }
    lines.into_iter().map(|line| Line::styled(line, style)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// What a terminal of this size shows, without blanks at the ends of lines.
    fn shown(picture: &Picture, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(picture, frame)).unwrap();
        let rows = terminal.backend().buffer().content().chunks(usize::from(width));
        let lines =
            rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    fn picture(traffic: Option<Result<Vec<Sample>, String>>) -> String {
        let bad = super::super::Problem { text: "connection refused".into(), code: 3 };
        let picture = Picture {
            ledgers: vec![
                super::super::Shown { ledger: Some("eu".into()), reports: Ok(Vec::new()) },
                super::super::Shown { ledger: Some("us".into()), reports: Err(bad) },
            ],
            traffic,
            ..Picture::default()
        };
        shown(&picture, 60, 16)
    }

    /// A report as `cutover status --json` prints it.
    fn report() -> MigrationReport {
        let instance = |number: i32, acknowledged: i32| {
            serde_json::json!({
                "name": format!("payments-2-{number}"), "version": "2", "admitted": true, "range": "off..=contract",
                "acknowledged": acknowledged, "seen_seconds": 0.4, "lease_seconds": 9.6,
            })
        };
        serde_json::from_value(serde_json::json!({
            "fleet": "payments", "name": "payment-status", "epoch": 5, "phase": "backfill", "desired": "switch",
            "phase_age_seconds": 12.0, "waits_for": "the backfill to complete the new side", "waits_seconds": 12.0,
            "driver": "payments-2-4", "instances": [instance(4, 5), instance(5, 5), instance(6, 5)],
            "work": {
                "kind": "backfill", "rows_done": 400_000, "rows_total": 1_000_000, "rows_changed": 400_000,
                "differences": 0, "seconds": 10.0, "finished": false,
            },
        }))
        .unwrap()
    }

    /// The guide shows the screen; it has to be what the code draws.
    #[test]
    fn the_guide_shows_this_picture() {
        let sample = |what, unit, now, series: &[u64]| Sample {
            what,
            unit,
            now: Some(now),
            series: series.iter().copied().cycle().take(20).collect(),
        };
        let report = report();
        let rates = [38_000, 41_000, 40_000, 36_000, 12_000, 15_000, 39_000, 40_000];
        let picture = Picture {
            rows: [(full_name(None, &report), rates.into())].into(),
            ledgers: vec![super::super::Shown { ledger: None, reports: Ok(vec![report]) }],
            traffic: Some(Ok(vec![
                sample("requests", "/s", 298.0, &[280, 290, 298]),
                sample("errors", "/s", 0.0, &[0]),
                sample("p99", " ms", 9.0, &[4, 5, 7, 9]),
            ])),
            ..Picture::default()
        };
        let picture = shown(&picture, 100, 15);
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/command-line.md");
        assert!(std::fs::read_to_string(guide).unwrap().contains(&picture), "not in {guide}:\n{picture}");
    }

    #[test]
    fn an_unreachable_ledger_is_shown_beside_the_others() {
        let shown = picture(None);
        for part in ["ledger eu", "the ledger has no migration", "ledger us", "unreachable: ", "q end"] {
            assert!(shown.contains(part), "{part:?} not in {shown}");
        }
    }

    #[test]
    fn traffic_is_drawn_with_its_numbers() {
        let sample = Sample { what: "requests", unit: "/s", now: Some(12.5), series: (0..100).collect() };
        let shown = picture(Some(Ok(vec![sample.clone(), Sample { now: None, ..sample }])));
        for part in ["requests 12.5/s", "requests no data", "█"] {
            assert!(shown.contains(part), "{part:?} not in {shown}");
        }
        let shown = picture(Some(Err("cannot query Prometheus".into())));
        assert!(shown.contains("cannot query Prometheus"), "{shown}");
    }

    #[test]
    fn a_narrow_terminal_shows_everything() {
        let mut report = report();
        report.name = "a-name-that-is-longer-than-the-terminal-is-wide".into();
        let ledgers = vec![super::super::Shown { ledger: None, reports: Ok(vec![report]) }];
        let shown = shown(&Picture { ledgers, ..Picture::default() }, 40, 40);
        let words: String = shown.split_whitespace().collect();
        for part in ["terminal-is-wide", "[backfill]", "(switch)", ">contract", "15sleft", "serving,driver"] {
            assert!(words.contains(part), "{part:?} not in {shown}");
        }
    }

    #[test]
    fn bars_show_the_latest_values() {
        assert_eq!(bars(&[9, 0, 5, 10].into(), 3), "▁▄█");
        assert_eq!(bars(&Series::new(), 3), "");
    }
}
