//! Snapshots to Prometheus text, exposition format 0.0.4.
//!
//! Layout, number formats and the cumulation of buckets are `prometheus-client`'s. Its registry writes OpenMetrics, which names a counter
//! without its `_total`; here a counter goes through the crate as a plain number under its full name, which is what 0.0.4 asks for. The
//! crate escapes no label values: all of ours are constants that need none.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{FAMILIES, Family, Number, Source, Type};
use super::{DistributionSnapshot, ProcessUsage, ShardSnapshot};

/// Of what [`render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of all shards. `shards` in shard order; `version` of the build.
pub fn render(shards: &[ShardSnapshot], process: &ProcessUsage, version: &'static str) -> String {
    let page = Page {
        shards: shards.into(),
        process: *process,
        version,
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let mut text = String::with_capacity(16 * 1024 * (shards.len() + 1));
    text::encode_registry(&mut text, &registry).expect("a string takes all that is written");
    text
}

type Label = (&'static str, String);
type Labels = [Label];

#[derive(Debug)]
struct Page {
    shards: Arc<[ShardSnapshot]>,
    process: ProcessUsage,
    version: &'static str,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in FAMILIES {
            let kind = match family.kind {
                Type::Counter => MetricType::Counter,
                Type::Gauge => MetricType::Gauge,
                Type::Histogram => MetricType::Histogram,
            };
            let samples = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            self.encode_family(family, samples)?;
        }
        Ok(())
    }
}

impl Page {
    fn encode_family(&self, family: &Family, mut samples: MetricEncoder<'_>) -> fmt::Result {
        match family.source {
            Source::Build => {
                return number(
                    &mut samples,
                    &[(family.labels[0], self.version.to_string())],
                    Number::Whole(1),
                );
            }
            Source::Process(read) => return number(&mut samples, &[], read(&self.process)),
            _ => (),
        }
        let mut result = Ok(());
        for shard in self.shards.iter() {
            let name = shard.shard.to_string();
            let labels = |values: &[&str]| -> Vec<Label> {
                assert_eq!(
                    values.len(),
                    family.labels.len(),
                    "{} has other labels",
                    family.name
                );
                let own = family
                    .labels
                    .iter()
                    .zip(values)
                    .map(|(label, value)| (*label, (*value).to_string()));
                std::iter::once(("shard", name.clone()))
                    .chain(own)
                    .collect()
            };
            // the first error stands; after it a string would have been out of memory anyway
            match family.source {
                Source::Shard(read) => {
                    result = result.and_then(|()| number(&mut samples, &labels(&[]), read(shard)))
                }
                Source::Among(read) => {
                    result = result.and_then(|()| {
                        number(&mut samples, &labels(&[]), read(shard, &self.shards))
                    });
                }
                Source::Labelled(read) => read(shard, &mut |values, value| {
                    result = result.and_then(|()| number(&mut samples, &labels(values), value));
                }),
                Source::Distributions(read) => read(shard, &mut |values, distribution| {
                    result = result
                        .and_then(|()| histogram(&mut samples, &labels(values), &distribution));
                }),
                Source::Build | Source::Process(_) => unreachable!("handled above"),
            }
        }
        result
    }
}

fn number(samples: &mut MetricEncoder<'_>, labels: &Labels, number: Number) -> fmt::Result {
    if labels.is_empty() {
        return encode_number(samples, number); // `name{} 1` is no line that everybody reads
    }
    encode_number(&mut samples.encode_family(&labels)?, number)
}

fn encode_number(sample: &mut MetricEncoder<'_>, number: Number) -> fmt::Result {
    match number {
        Number::Whole(value) => sample.encode_gauge(&value),
        Number::Real(value) => sample.encode_gauge(&value),
    }
}

fn histogram(
    samples: &mut MetricEncoder<'_>,
    labels: &Labels,
    distribution: &DistributionSnapshot,
) -> fmt::Result {
    let buckets: Vec<(f64, u64)> = distribution.buckets().collect();
    samples
        .encode_family(&labels)?
        .encode_histogram::<NoLabelSet>(distribution.sum(), distribution.count(), &buckets, None)
}
