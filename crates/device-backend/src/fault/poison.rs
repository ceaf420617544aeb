// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory that fails on request.

use super::SetError;
use super::chance::Chance;
use crate::model::Device;
use cdm_control_protocol::Fault;
use cdm_protocol::QUEUE_EVENT;

/// Lets the pages fail that the fault names, or that follow from its seed; how many had not before.
///
/// By the seed exactly so many fail: a page that has failed already stands for the next one
/// that has not. So the same seeds lead to the same pages if they are set in the same order.
pub fn carry_out(fault: &Fault, device: &Device) -> Result<u64, SetError> {
    let all = device.pages();
    if let Some(first) = fault.page {
        let end = first.checked_add(fault.count).filter(|&end| end <= all);
        return Ok(device.fail_pages(first..end.ok_or(SetError::Page(all))?));
    }
    let mut bad = device.bad_pages();
    let good = all - bad.pages();
    if fault.count > good {
        return Err(SetError::AllBad(good));
    }
    for number in 0..fault.count {
        // No request of that queue is ever hit, so its chance is free.
        let page = Chance::new(fault.seed, QUEUE_EVENT, number).below(all);
        let page = match bad.next(page) {
            Some(found) if found.start == page => match found.end {
                // The memory goes on at its beginning.
                end if end == all => bad
                    .next(0)
                    .filter(|first| first.start == 0)
                    .map_or(0, |f| f.end),
                end => end,
            },
            _ => page,
        };
        bad.insert(page);
        device.fail_pages(page..page + 1);
    }
    Ok(fault.count)
}
