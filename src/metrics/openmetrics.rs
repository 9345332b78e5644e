use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use ::http::HeaderMap;
use ::http::header::ACCEPT;
use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::collector::{DURATIONS, Exemplars};
use super::series::Exemplar;

/// Content type of what [`encode`] writes.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the client prefers OpenMetrics to the older text format.
pub(super) fn is_preferred(headers: &HeaderMap) -> bool {
    let (mut openmetrics, mut text) = (0.0, 0.0);
    for range in headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let best: &mut f32 = match parts.next() {
            Some(kind) if kind.eq_ignore_ascii_case("application/openmetrics-text") => &mut openmetrics,
            Some(kind) if kind.eq_ignore_ascii_case("text/plain") => &mut text,
            _ => continue,
        };
        let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        *best = best.max(quality);
    }
    openmetrics > 0.0 && openmetrics >= text
}

/// The families in OpenMetrics' text format, with the exemplars that the older format does not have. Numbers are
/// written as in the older format, so that a bucket is the same series in both.
pub(super) fn encode(families: &[MetricFamily], exemplars: &Exemplars) -> Result<String, fmt::Error> {
    let mut page = String::new();
    for family in families {
        write_family(&mut page, family, exemplars)?;
    }
    page.push_str("# EOF\n");
    Ok(page)
}

fn write_family(page: &mut String, family: &MetricFamily, exemplars: &Exemplars) -> fmt::Result {
    let full = family.name();
    let (name, kind) = match (family.get_field_type(), full.strip_suffix("_total")) {
        (MetricType::COUNTER, Some(name)) => (name, "counter"),
        // In this format the name of a counter has the suffix.
        (MetricType::COUNTER, None) | (MetricType::UNTYPED, _) => (full, "unknown"),
        (MetricType::GAUGE, _) => (full, "gauge"),
        (MetricType::HISTOGRAM, _) => (full, "histogram"),
        (MetricType::SUMMARY, _) => (full, "summary"),
    };
    writeln!(page, "# TYPE {name} {kind}\n# HELP {name} {}", Escaped(family.help()))?;
    for metric in family.get_metric() {
        let mut sample =
            |suffix: &str, extra: Option<(&str, f64)>, value: f64, exemplar: Option<&Exemplar>| {
                write!(page, "{full}{suffix}{} {value}", Labels(metric.get_label(), extra))?;
                exemplar.map_or(Ok(()), |exemplar| write_exemplar(page, exemplar))?;
                page.write_char('\n')
            };
        match family.get_field_type() {
            MetricType::COUNTER => sample("", None, metric.get_counter().get_value(), None)?,
            MetricType::GAUGE => sample("", None, metric.get_gauge().get_value(), None)?,
            // The client library can't create one.
            MetricType::UNTYPED => {}
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let (count, buckets) = (histogram.get_sample_count() as f64, histogram.get_bucket());
                let traced = if full == DURATIONS { exemplars.get(metric.get_label()) } else { None };
                let traced = |index: usize| traced.and_then(|all| all.get(index)?.as_ref());
                let finite = buckets.iter().filter(|bucket| bucket.upper_bound().is_finite());
                let above = finite.clone().count();
                for (index, bucket) in finite.enumerate() {
                    let extra = Some(("le", bucket.upper_bound()));
                    sample("_bucket", extra, bucket.cumulative_count() as f64, traced(index))?;
                }
                sample("_bucket", Some(("le", f64::INFINITY)), count, traced(above))?;
                sample("_sum", None, histogram.get_sample_sum(), None)?;
                sample("_count", None, count, None)?;
            }
            MetricType::SUMMARY => {
                let summary = metric.get_summary();
                for quantile in summary.get_quantile() {
                    sample("", Some(("quantile", quantile.quantile())), quantile.value(), None)?;
                }
                sample("_sum", None, summary.sample_sum(), None)?;
                sample("_count", None, summary.sample_count() as f64, None)?;
            }
        }
    }
    Ok(())
}

fn write_exemplar(page: &mut String, exemplar: &Exemplar) -> fmt::Result {
    let Exemplar { trace, nanos, at } = exemplar;
    write!(page, " # {{trace_id=\"{trace}\"}} {}", Duration::from_nanos(*nanos).as_secs_f64())?;
    // The wall clock is read here, and not by each request.
    let at = SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => write!(page, " {:.3}", since.as_secs_f64()),
        Err(_) => Ok(()),
    }
}

struct Labels<'a>(&'a [LabelPair], Option<(&'a str, f64)>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(pairs, extra) = self;
        if pairs.is_empty() && extra.is_none() {
            return Ok(());
        }
        let mut between = '{';
        for pair in *pairs {
            write!(f, "{between}{}=\"{}\"", pair.name(), Escaped(pair.value()))?;
            between = ',';
        }
        match extra {
            Some((name, value)) if value.is_infinite() => write!(f, "{between}{name}=\"+Inf\"")?,
            Some((name, value)) => write!(f, "{between}{name}=\"{value}\"")?,
            None => {}
        }
        f.write_char('}')
    }
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\n' => f.write_str("\\n"),
            '"' | '\\' => write!(f, "\\{c}"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn the_client_chooses_the_format() {
        let prefers = |accept: &'static str| {
            is_preferred(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
        };
        // What Prometheus 2.42 sends.
        assert!(prefers(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(prefers("Application/OpenMetrics-Text"));
        for other in [
            "*/*",
            "text/plain;version=0.0.4, application/openmetrics-text; version=1.0.0; q=0.3",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=much",
            "",
        ] {
            assert!(!prefers(other), "{other}");
        }
    }
}
