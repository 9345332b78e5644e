//! Draws the board: in place on a terminal, else one line per second.

use std::{
    io::{IsTerminal, Stdout, Write, stdout},
    sync::Arc,
    time::Duration,
};

use crossterm::{cursor, queue, style::Print, terminal};

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
    let mut terminal = Terminal { out: stdout(), drawn: 0 };
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        // The screen draws the notes itself.
        board.take_unprinted();
        let (width, height) = terminal::size().unwrap_or((80, 24));
        let lines = draw(&board.view(), usize::from(width), usize::from(height));
        // The demo goes on if the terminal has gone away.
        let _ = terminal.show(&lines);
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

/// Draws over its last picture. Shows the cursor again when it is dropped.
struct Terminal {
    out: Stdout,
    drawn: u16,
}

impl Terminal {
    fn show(&mut self, lines: &[String]) -> std::io::Result<()> {
        queue!(self.out, cursor::Hide)?;
        if self.drawn > 0 {
            queue!(self.out, cursor::MoveToPreviousLine(self.drawn))?;
        }
        for line in lines {
            queue!(self.out, terminal::Clear(terminal::ClearType::CurrentLine), Print(line), Print("\r\n"))?;
        }
        queue!(self.out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        self.drawn = lines.len() as u16;
        self.out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = queue!(self.out, cursor::Show);
        let _ = self.out.flush();
    }
}

/// The picture, cut to the size of the terminal.
pub(crate) fn draw(view: &View, width: usize, height: usize) -> Vec<String> {
    let mut lines = vec![format!("{}   {}", view.title, clock(view.elapsed)), String::new()];
    lines.push(phase_line(view));
    lines.extend(view.standing.as_ref().and_then(|standing| standing.job.as_ref()).map(job_line));
    lines.push(format!("now: {}", view.doing));
    let waits_for = view.standing.as_ref().and_then(|standing| standing.waits_for.as_deref());
    lines.push(format!("waits for: {}", waits_for.unwrap_or("nothing")));
    lines.push(String::new());
    lines.extend(instance_lines(view));
    lines.push(String::new());
    lines.push(format!(
        "requests {}   failed {}   p50 {:.1} ms   p99 {:.1} ms",
        view.counts.requests, view.counts.failed, view.p50_ms, view.p99_ms
    ));
    lines.extend(view.counts.failures.iter().take(3).map(|(what, times)| format!("  {what}: {times}")));
    lines.push(String::new());
    lines.extend(view.notes.iter().map(|(at, text)| format!("{:>7}  {text}", clock(*at))));
    // Writing to the last line would scroll.
    lines.truncate(height.saturating_sub(1));
    let cut = |line: String| line.chars().take(width.saturating_sub(1)).collect();
    lines.into_iter().map(cut).collect()
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
    use crate::{board::InstanceLine, ledger::Standing, stats::Counts};

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
            notes: [(Duration::from_secs(60), "expand reached".to_owned())].into(),
        }
    }

    #[test]
    fn draws_the_whole_picture() {
        let expected = "\
cutover demo   1:15

off > expand > [backfill] > verify > ramp > switch > retire > contract   epoch 5
backfill [############..................] 400000 of 1000000 rows, 40000 rows/s, 15 s left
now: backfill
waits for: the backfill to complete the new side

  two-a        release 2   epoch   5   ready
  one-c        release 1   epoch   –   draining

requests 22500   failed 2   p50 1.3 ms   p99 9.0 ms
  GET order: 503: 2

   1:00  expand reached";
        assert_eq!(draw(&view(), 120, 40).join("\n"), expected);
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
        let picture = draw(&view, 120, 40).join("\n");
        assert!(include_str!("../../../README.md").contains(&picture), "not in README.md:\n{picture}");
    }

    #[test]
    fn picture_is_cut_to_a_small_terminal() {
        let lines = draw(&view(), 20, 5);
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.chars().count() < 20), "{lines:?}");
        assert!(!draw(&View::default(), 80, 24).is_empty());
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
