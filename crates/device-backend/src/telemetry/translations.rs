// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the model counts of its translations, as Prometheus wants it. It is read when somebody
//! asks: the model knows nothing of counters' formats.

use crate::model::{Device, Translated};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use std::fmt;
use std::sync::Arc;

/// The counters of a device's translations.
#[derive(Debug)]
pub struct Translations(pub Arc<Device>);

impl Collector for Translations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Translated {
            hits,
            misses,
            requests,
            exclusive_requests,
            refusals,
            invalidations,
        } = self.0.translated();
        for (name, help, value) in [
            (
                "translation_hits",
                "Pages whose translation was known when it was needed",
                hits,
            ),
            (
                "translation_misses",
                "Needs of a translation that was not known",
                misses,
            ),
            (
                "page_requests",
                "Page requests that the driver was sent",
                requests,
            ),
            (
                "page_requests_exclusive",
                "Page requests for exclusive access, for atomics over a link that carries none",
                exclusive_requests,
            ),
            (
                "page_refusals",
                "Page requests that ended with a refusal",
                refusals,
            ),
            (
                "invalidations",
                "Invalidations that are complete",
                invalidations,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
