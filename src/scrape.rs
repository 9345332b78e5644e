//! Metric families whose values are read when they are scraped, so that no code has to keep them up to date.

use std::collections::HashMap;

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// The families of one module. They are registered together.
#[derive(Default)]
pub(crate) struct Scraped {
    /// Labels that every series has.
    constant: Vec<(&'static str, String)>,
    families: Vec<Family>,
    descriptions: Vec<Desc>,
}

type Read = Box<dyn Fn(&mut Samples<'_>) + Send + Sync>;

struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    read: Read,
}

/// The values of a family at one time.
pub(crate) struct Samples<'a> {
    constant: &'a [(&'static str, String)],
    kind: MetricType,
    labels: &'static [&'static str],
    metrics: Vec<Metric>,
}

/// The buckets of a histogram at one time.
pub(crate) struct Buckets<'a> {
    /// Upper bounds in seconds, without the one above every bound.
    pub(crate) bounds: &'a [f64],
    /// As many counts as bounds. Each includes those below it.
    pub(crate) cumulative: &'a [u64],
    pub(crate) count: u64,
    pub(crate) seconds: f64,
}

impl Scraped {
    /// Families whose series have these labels beside their own. Others of the same names may be registered with other
    /// values.
    pub(crate) fn with(constant: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self { constant: constant.into_iter().collect(), ..Self::default() }
    }

    /// Adds a gauge with these labels.
    pub(crate) fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        read: impl Fn(&mut Samples) + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        self.add(MetricType::GAUGE, name, help, labels, read)
    }

    /// Adds a family of this type.
    pub(crate) fn add(
        &mut self,
        kind: MetricType,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        read: impl Fn(&mut Samples) + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let names = labels.iter().map(|label| (*label).to_owned()).collect();
        let constant = self.constant.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let constant = constant.collect::<HashMap<_, _>>();
        self.descriptions.push(Desc::new(name.to_owned(), help.to_owned(), names, constant)?);
        self.families.push(Family { name, help, kind, labels, read: Box::new(read) });
        Ok(())
    }

    /// Registers all of them, or none.
    pub(crate) fn register(self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self))
    }
}

impl Collector for Scraped {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = self.families.iter().map(|family| {
            let (kind, labels) = (family.kind, family.labels);
            let mut samples = Samples { constant: &self.constant, kind, labels, metrics: Vec::new() };
            (family.read)(&mut samples);
            family_of(family.name, family.help, kind, samples.metrics)
        });
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

impl Samples<'_> {
    /// Adds a value under these labels, in the order of the family's labels.
    pub(crate) fn value(&mut self, labels: &[&str], value: f64) {
        let metric = match self.kind {
            MetricType::COUNTER => counter(self.labels, labels, value),
            _ => gauge(self.labels, labels, value),
        };
        self.push(metric);
    }

    /// Adds 1 or 0.
    pub(crate) fn flag(&mut self, labels: &[&str], is_set: bool) {
        self.value(labels, f64::from(u8::from(is_set)));
    }

    /// Adds a histogram under these labels.
    pub(crate) fn histogram(&mut self, labels: &[&str], buckets: &Buckets<'_>) {
        self.push(histogram(self.labels, labels, buckets));
    }

    fn push(&mut self, mut metric: Metric) {
        let mut labels = metric.take_label();
        labels.extend(self.constant.iter().map(|(name, value)| pair(name, value)));
        labels.sort_by(|one, other| one.name().cmp(other.name()));
        metric.set_label(labels);
        self.metrics.push(metric);
    }
}

pub(crate) fn family_of(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(names: &[&str], values: &[&str]) -> Metric {
    Metric::from_label(names.iter().zip(values).map(|(name, value)| pair(name, value)).collect())
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(crate) fn counter(names: &[&str], values: &[&str], value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = labelled(names, values);
    metric.set_counter(counter);
    metric
}

pub(crate) fn gauge(names: &[&str], values: &[&str], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = labelled(names, values);
    metric.set_gauge(gauge);
    metric
}

pub(crate) fn histogram(names: &[&str], values: &[&str], buckets: &Buckets<'_>) -> Metric {
    let bucket = |(bound, count): (&f64, &u64)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(*count);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.bounds.iter().zip(buckets.cumulative).map(bucket).collect());
    histogram.set_sample_count(buckets.count);
    histogram.set_sample_sum(buckets.seconds);
    let mut metric = labelled(names, values);
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_at_each_scrape() {
        let registry = Registry::new();
        let mut scraped = Scraped::default();
        let reads = std::sync::atomic::AtomicU64::new(0);
        let read = move |samples: &mut Samples<'_>| {
            samples.value(&["a"], reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as f64);
        };
        scraped.gauge("reads", "How often it was read.", &["name"], read).unwrap();
        scraped.gauge("nothing", "A family without series.", &[], |_| {}).unwrap();
        scraped.register(&registry).unwrap();
        let page = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(page().contains("reads{name=\"a\"} 0"));
        assert!(page().contains("reads{name=\"a\"} 1"));
        assert!(!page().contains("nothing"));
    }
}
