//! What the operating system knows about this process.

use std::fs;
use std::time::Duration;

use prometheus::Registry;
use prometheus::proto::MetricType::{self, COUNTER, GAUGE};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::scrape::Scraped;

/// `/proc` counts time in these, on every architecture that Linux still supports.
const TICKS_PER_SECOND: f64 = 100.0;

type Value = fn() -> Option<f64>;

const FAMILIES: [(&str, &str, MetricType, Value); 7] = [
    ("process_cpu_seconds_total", "User and system time of the process.", COUNTER, cpu_seconds),
    ("process_resident_memory_bytes", "Resident memory of the process.", GAUGE, || status("VmRSS:")),
    ("process_virtual_memory_bytes", "Virtual memory of the process.", GAUGE, || status("VmSize:")),
    ("process_open_fds", "Open file descriptors.", GAUGE, open_files),
    ("process_max_fds", "How many file descriptors may be open.", GAUGE, max_files),
    ("process_threads", "Threads of the process.", GAUGE, || status("Threads:")),
    ("process_start_time_seconds", "When the process started, as Unix time.", GAUGE, start_time),
];

pub(super) fn register(registry: &Registry) -> prometheus::Result<()> {
    let mut scraped = Scraped::default();
    for (name, help, kind, value) in FAMILIES {
        scraped.add(kind, name, help, &[], move |samples| {
            if let Some(value) = value() {
                samples.value(&[], value);
            }
        })?;
    }
    scraped.register(registry)
}

fn cpu_seconds() -> Option<f64> {
    fs::exists("/proc/self").ok().filter(|exists| *exists)?;
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let time = Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?);
    Some(time.as_secs_f64())
}

/// A line of `/proc/self/status`, in bytes if it has a unit.
fn status(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    let value: f64 = words.next()?.parse().ok()?;
    Some(if words.next() == Some("kB") { value * 1024.0 } else { value })
}

fn open_files() -> Option<f64> {
    // One of them reads the folder.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn max_files() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(|limit| limit as f64)
}

fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may have spaces. The 22nd is the time of the start.
    let (_, fields) = stat.rsplit_once(')')?;
    let after_boot: f64 = fields.split_whitespace().nth(19)?.parse::<f64>().ok()? / TICKS_PER_SECOND;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + after_boot)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn every_value_can_be_read_and_is_plausible() {
        let values = FAMILIES.map(|(name, _, _, value)| (name, value().unwrap_or_else(|| panic!("{name}"))));
        let value = |name| values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value).unwrap();
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_threads") >= 1.0);
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
            - value("process_start_time_seconds");
        assert!((-1.0..3600.0).contains(&age), "started {age} s ago");
    }
}
