//! Draws the board: live on a terminal, else one line per second.

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write, stdout},
    sync::Arc,
    time::Duration,
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen},
    },
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize},
    text::Line,
    widgets::{Paragraph, Sparkline},
};

use crate::{
    board::{Board, InstanceState, View},
    ledger::{Job, PHASES},
};

/// Keeps the terminal up to date until it is dropped, and then restores the terminal.
pub(crate) struct Screen(tokio::task::JoinHandle<()>, Arc<Board>);

impl Screen {
    pub(crate) fn start(board: Arc<Board>, plain: bool) -> Self {
        let is_live = !plain && stdout().is_terminal();
        let task = match is_live {
            true => tokio::spawn(live(Arc::clone(&board))),
            false => tokio::spawn(lines(Arc::clone(&board))),
        };
        Self(task, board)
    }

    /// Prints what is left and restores the terminal.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
        for line in self.1.take_unprinted() {
            let _ = writeln!(stdout(), "{line}");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn live(board: Arc<Board>) {
    // Without raw mode, Ctrl-C still is a signal. The demo goes on if the terminal has gone away.
    let Ok(mut terminal) = Terminal::new(CrosstermBackend::new(stdout())) else { return };
    let _restored = Restored::new();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        // The screen draws the notes itself.
        board.take_unprinted();
        let _ = terminal.draw(|frame| draw(&board.view(), frame));
    }
}

/// A second screen of the terminal, until it is dropped.
struct Restored;

impl Restored {
    fn new() -> Self {
        let _ = execute!(stdout(), EnterAlternateScreen, Hide);
        Self
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = execute!(stdout(), Show, LeaveAlternateScreen);
    }
}

async fn lines(board: Arc<Board>) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for number in 0_u32.. {
        tick.tick().await;
        let mut out = stdout().lock();
        for line in board.take_unprinted() {
            let _ = writeln!(out, "{line}");
        }
        if number % 10 == 9 {
            let _ = writeln!(out, "{}", one_line(&board.view()));
        }
    }
}

pub(crate) fn draw(view: &View, frame: &mut Frame<'_>) {
    let (above, below) = (above(view), below(view));
    let height = u16::try_from(above.len()).unwrap_or(u16::MAX);
    let [top, charts, bottom] =
        Layout::vertical([Constraint::Length(height), Constraint::Length(4), Constraint::Min(0)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(above), top);
    draw_charts(view, frame, charts);
    frame.render_widget(Paragraph::new(below), bottom);
}

/// What the migration does.
fn above(view: &View) -> Vec<Line<'static>> {
    let standing = view.standing.as_ref();
    let mut lines =
        vec![Line::from(format!("{}   {}", view.title, clock(view.elapsed)).bold()), Line::default()];
    lines.push(Line::from(phase_line(view)));
    lines.extend(standing.and_then(|standing| standing.job.as_ref()).map(job_line).map(Line::from));
    lines.push(Line::from(format!("now: {}", view.doing)));
    let waits_for = standing.and_then(|standing| standing.waits_for.as_deref()).unwrap_or("nothing");
    lines.push(Line::from(format!("waits for: {waits_for}")));
    lines.push(Line::default());
    lines
}

/// Requests, failures, latency and rows of the last seconds, side by side.
fn draw_charts(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let charts = &view.charts;
    let now = |series: &VecDeque<u64>| series.back().copied().unwrap_or(0);
    let columns = [
        (format!("requests {}/s", now(&charts.requests)), &charts.requests, Style::new()),
        (format!("failed {}/s", now(&charts.failed)), &charts.failed, Style::new().red()),
        (format!("p99 {:.1} ms", view.p99_ms), &charts.p99, Style::new()),
        (format!("rows {}/s", now(&charts.rows)), &charts.rows, Style::new().cyan()),
    ];
    let areas = Layout::horizontal(columns.iter().map(|_| Constraint::Fill(1))).spacing(2).split(area);
    for ((title, series, style), area) in columns.into_iter().zip(areas.iter()) {
        let [above, chart] = Layout::vertical([Constraint::Length(1), Constraint::Length(2)]).areas(*area);
        frame.render_widget(Paragraph::new(title), above);
        let latest = series.iter().copied().skip(series.len().saturating_sub(usize::from(chart.width)));
        frame.render_widget(Sparkline::default().data(latest).style(style), chart);
    }
}

/// Instances, totals and the latest notes.
fn below(view: &View) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = instance_lines(view).map(Line::from).collect();
    lines.push(Line::default());
    let totals = format!(
        "requests {}   failed {}   p50 {:.1} ms   p99 {:.1} ms",
        view.counts.requests, view.counts.failed, view.p50_ms, view.p99_ms
    );
    let style = if view.counts.failed > 0 { Style::new().red() } else { Style::new() };
    lines.push(Line::styled(totals, style));
    let failures = view.counts.failures.iter().take(3);
    lines.extend(failures.map(|(what, times)| Line::from(format!("  {what}: {times}"))));
    lines.push(Line::default());
    lines.extend(view.notes.iter().map(|(at, text)| Line::from(format!("{:>7}  {text}", clock(*at)))));
    lines
}

/// The line that is printed every second.
pub(crate) fn one_line(view: &View) -> String {
    if view.instances.is_empty() && view.counts.requests == 0 {
        return format!("[{:6.1} s] {}", view.elapsed.as_secs_f64(), view.doing);
    }
    let ready = view.instances.iter().filter(|line| line.state == InstanceState::Ready).count();
    let mut line = format!(
        "[{:6.1} s] requests {} failed {} p50 {:.1} ms p99 {:.1} ms | ready {ready}/{}",
        view.elapsed.as_secs_f64(),
        view.counts.requests,
        view.counts.failed,
        view.p50_ms,
        view.p99_ms,
        view.instances.len(),
    );
    if let Some(standing) = &view.standing {
        line.push_str(&format!(" | {} (epoch {})", standing.phase, standing.epoch));
        if let Some(job) = standing.job.as_ref().filter(|job| !job.is_finished) {
            line.push_str(&format!(" | {} {} of {} rows", job.kind, job.rows_done, job.rows_total));
        }
        if let Some(waits_for) = &standing.waits_for {
            line.push_str(&format!(" | waits for: {waits_for}"));
        }
    }
    line
}

fn phase_line(view: &View) -> String {
    let now = view.standing.as_ref().map(|standing| standing.phase.as_str());
    let word = |phase: &&str| match now == Some(*phase) {
        true => format!("[{phase}]"),
        false => (*phase).to_owned(),
    };
    let words: Vec<String> = PHASES.iter().map(word).collect();
    let epoch =
        view.standing.as_ref().map_or(String::new(), |standing| format!("   epoch {}", standing.epoch));
    format!("{}{epoch}", words.join(" > "))
}

fn instance_lines(view: &View) -> impl Iterator<Item = String> {
    let epoch = |name: &str| {
        let all = view.standing.iter().flat_map(|standing| &standing.acknowledged);
        all.clone()
            .find(|(known, _)| known == name)
            .map_or(String::from("–"), |(_, epoch)| epoch.to_string())
    };
    view.instances.iter().map(move |line| {
        let state = match line.state {
            InstanceState::Starting => "starting",
            InstanceState::Ready => "ready",
            InstanceState::NotReady => "not ready",
            InstanceState::Draining => "draining",
        };
        format!("  {:<12} release {}   epoch {:>3}   {state}", line.name, line.release, epoch(&line.name))
    })
}

fn job_line(job: &Job) -> String {
    const WIDTH: i64 = 30;
    let total = job.rows_total.max(job.rows_done).max(1);
    let full = (job.rows_done * WIDTH / total) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH as usize - full));
    let rate = job.rows_per_second();
    let rest = match job.is_finished {
        true => format!("done in {:.1} s", job.took.as_secs_f64()),
        false => {
            let left = (total - job.rows_done) as f64 / rate.max(1.0);
            format!("{left:.0} s left")
        }
    };
    format!("{} [{bar}] {} of {} rows, {rate:.0} rows/s, {rest}", job.kind, job.rows_done, job.rows_total)
}

fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        board::{Charts, InstanceLine},
        ledger::Standing,
        stats::Counts,
    };
    use ratatui::backend::TestBackend;

    /// The picture as text, without blanks at the ends of lines.
    fn picture(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(view, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        let lines =
            rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    fn view() -> View {
        let instance = |name: &str, release, state| InstanceLine {
            name: name.to_owned(),
            release,
            admin: ([127, 0, 0, 1], 1).into(),
            state,
        };
        let job = Job {
            kind: "backfill".to_owned(),
            rows_done: 400_000,
            rows_total: 1_000_000,
            took: Duration::from_secs(10),
            ..Job::default()
        };
        let standing = Standing {
            phase: "backfill".to_owned(),
            epoch: 5,
            waits_for: Some("the backfill to complete the new side".to_owned()),
            job: Some(job),
            acknowledged: vec![("two-a".to_owned(), 5)],
            ..Standing::default()
        };
        View {
            elapsed: Duration::from_secs(75),
            title: "cutover demo".to_owned(),
            instances: vec![
                instance("two-a", 2, InstanceState::Ready),
                instance("one-c", 1, InstanceState::Draining),
            ],
            standing: Some(standing),
            doing: "backfill".to_owned(),
            counts: Counts {
                requests: 22_500,
                failed: 2,
                failures: [("GET order: 503".to_owned(), 2)].into(),
                ..Counts::default()
            },
            p50_ms: 1.26,
            p99_ms: 9.0,
            charts: Charts {
                requests: (0..20).map(|at| 280 + 2 * (at % 10)).collect(),
                failed: [0; 20].into(),
                p99: (0..20).map(|at| 4_000 + 500 * (at % 11)).collect(),
                rows: (0..20).map(|at| 4_000 * (at % 11)).collect(),
                ..Charts::default()
            },
            notes: [(Duration::from_secs(60), "expand reached".to_owned())].into(),
        }
    }

    #[test]
    fn draws_the_whole_picture() {
        let drawn = picture(&view(), 100, 30);
        for part in [
            "cutover demo   1:15",
            "off > expand > [backfill] > verify > ramp > switch > retire > contract   epoch 5",
            "backfill [############..................] 400000 of 1000000 rows, 40000 rows/s, 15 s left",
            "waits for: the backfill to complete the new side",
            "requests 298/s            failed 0/s               p99 9.0 ms                rows 32000/s",
            "█",
            "  two-a        release 2   epoch   5   ready",
            "  one-c        release 1   epoch   –   draining",
            "requests 22500   failed 2   p50 1.3 ms   p99 9.0 ms",
            "  GET order: 503: 2",
            "   1:00  expand reached",
        ] {
            assert!(drawn.contains(part), "{part:?} not in:\n{drawn}");
        }
    }

    #[test]
    fn charts_show_what_each_second_added() {
        let mut view = view();
        view.charts = Charts::default();
        for (requests, rows) in [(100, 10), (250, 40), (300, 0)] {
            view.counts.requests = requests;
            view.standing.as_mut().unwrap().job.as_mut().unwrap().rows_done = rows;
            view.second();
        }
        assert_eq!(view.charts.requests, [100, 150, 50]);
        assert_eq!(view.charts.rows, [10, 30, 0]);
        (0..1_000).for_each(|_| view.second());
        assert_eq!(view.charts.p99.len(), Charts::SECONDS);
    }

    /// The README shows the screen; it has to be what the code draws.
    #[test]
    fn the_readme_shows_this_picture() {
        let instance = |number| InstanceLine {
            name: format!("payments-2-{number}"),
            release: 2,
            admin: ([127, 0, 0, 1], 1).into(),
            state: InstanceState::Ready,
        };
        let view = view();
        let mut standing = view.standing.clone().unwrap();
        standing.acknowledged = (4..7).map(|number| (format!("payments-2-{number}"), 5)).collect();
        let view = View {
            title: "cutover demo: 1000000 orders, 300 requests/s".to_owned(),
            instances: (4..7).map(instance).collect(),
            standing: Some(standing),
            counts: Counts { requests: 22_500, ..Counts::default() },
            notes: [(Duration::from_secs(60), "expand after 0.6 s, epoch 4".to_owned())].into(),
            ..view
        };
        let picture = picture(&view, 100, 40);
        assert!(include_str!("../../../README.md").contains(&picture), "not in README.md:\n{picture}");
    }

    #[test]
    fn a_small_terminal_shows_a_part() {
        assert!(picture(&view(), 20, 5).contains("cutover demo"));
        assert!(picture(&View::default(), 1, 1).len() <= 4);
    }

    #[test]
    fn draws_one_line_for_a_log() {
        assert_eq!(
            one_line(&view()),
            "[  75.0 s] requests 22500 failed 2 p50 1.3 ms p99 9.0 ms | ready 1/2 | backfill (epoch 5) \
             | backfill 400000 of 1000000 rows | waits for: the backfill to complete the new side"
        );
        let begin = View { doing: "starting servers".to_owned(), ..View::default() };
        assert_eq!(one_line(&begin), "[   0.0 s] starting servers");
    }
}
