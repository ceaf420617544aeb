// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the model counts of its translations and of what they are used for, as Prometheus wants it. It is read when somebody
//! asks: the model knows nothing of counters' formats.

use crate::model::{Counted, Device, Translated};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
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
        let Counted {
            spaces,
            granules,
            accesses,
            hot,
            forgotten,
        } = self.0.counted();
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
            (
                "accesses_counted",
                "Accesses across the link that were counted by process and granule",
                accesses,
            ),
            (
                "granules_hot",
                "Granules whose count reached the threshold",
                hot,
            ),
            (
                "granules_forgotten",
                "Granules whose count was forgotten for want of room",
                forgotten,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        for (name, help, value) in [
            (
                "spaces_counted",
                "Address spaces whose accesses are counted",
                spaces,
            ),
            ("granules_counted", "Granules that have a count", granules),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
