// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the kernel's time goes while this thread has it work: call chains, some thousand times
//! in a second (perf_event_open(2), by the CPU's clock).

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};

/// Samples in a second: with more of them, an emulated CPU comes to nothing else.
const FREQUENCY: u64 = 3000;
/// Room for some seconds of them.
const BUFFER_BYTES: usize = 4 << 20;
/// Kinds of records (linux/perf_event.h).
const LOST: u32 = 2;
const SAMPLE: u32 = 9;
/// What is above is no address but tells what those behind it are.
const MARKS: u64 = u64::MAX - 4095;

/// Names of the kernel's functions, by where they begin.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of this kernel.
    pub fn of_kernel() -> Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("cannot read /proc/kallsyms")?;
        let symbols = Self::parse(&text);
        ensure!(
            symbols.0.iter().any(|symbol| symbol.0 > 0),
            "/proc/kallsyms shows no addresses: who measures must be root"
        );
        Ok(symbols)
    }

    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
            is_code.then(|| Some((address, words.next()?.to_owned())))?
        };
        let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
        symbols.sort();
        Self(symbols)
    }

    /// The function that an address is in.
    fn name(&self, address: u64) -> &str {
        let behind = self.0.partition_point(|symbol| symbol.0 <= address);
        let symbol = behind.checked_sub(1).and_then(|place| self.0.get(place));
        symbol.map_or("", |symbol| &symbol.1)
    }

    /// The functions of a call chain, the innermost one first.
    fn names(&self, chain: &[u64]) -> Vec<&str> {
        let addresses = chain.iter().filter(|address| **address < MARKS);
        addresses
            .enumerate()
            // Where a call returns to may be the next function's beginning.
            .map(|(depth, address)| self.name(address - u64::from(depth > 0)))
            .collect()
    }
}

/// Takes samples of this thread, as long as it is told to.
pub struct Profiler {
    sampler: Sampler,
}

impl Profiler {
    /// One that takes none yet.
    pub fn new() -> Result<Self> {
        let counter = Builder::new(Software::CPU_CLOCK)
            .observe_self()
            .any_cpu()
            .include_kernel()
            .exclude_callchain_user(true)
            .sample(SampleFlag::CALLCHAIN)
            .sample_frequency(FREQUENCY)
            .build()
            .context("cannot sample call chains: is CONFIG_PERF_EVENTS on?")?;
        let sampler = counter.sampled(BUFFER_BYTES);
        Ok(Self {
            sampler: sampler.context("cannot map the samples")?,
        })
    }

    /// Takes samples while something is done.
    pub fn during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.sampler.enable()?;
        let done = work();
        self.sampler.disable()?;
        done
    }

    /// Hands over the samples that were taken, as names of functions.
    pub fn take(&mut self, symbols: &Symbols, mut each: impl FnMut(&[&str])) -> Result<()> {
        while let Some(record) = self.sampler.next_record() {
            match record.ty() {
                SAMPLE => each(&symbols.names(&chain(&record.to_vec())?)),
                LOST => bail!("there were more samples than there is room for"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The addresses in a sample that is a call chain and nothing else: how many, and each.
fn chain(sample: &[u8]) -> Result<Vec<u64>> {
    let (words, rest) = sample.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let count = words.next().context("an empty sample")?;
    let addresses: Vec<u64> = words.collect();
    ensure!(
        rest.is_empty() && addresses.len() as u64 == count,
        "a sample of {} bytes says that it has {count} addresses",
        sample.len()
    );
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_says_how_many_addresses_it_has() {
        let sample = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        assert_eq!(chain(&sample(&[2, 7, 8])).unwrap(), [7, 8]);
        assert!(chain(&sample(&[0])).unwrap().is_empty());
        assert!(chain(&sample(&[3, 7, 8])).is_err());
        assert!(chain(&[]).is_err());
    }

    #[test]
    fn address_is_in_the_function_that_begins_before_it() {
        let text = "\
ffffffff81000300 T third
ffffffff81000100 T first
ffffffff81000180 d data
ffffffffc0000000 t driver\t[cdm]
ffffffff81000200 t second
";
        let symbols = Symbols::parse(text);
        assert_eq!(symbols.name(0xffff_ffff_8100_0100), "first");
        assert_eq!(symbols.name(0xffff_ffff_8100_01ff), "first");
        assert_eq!(symbols.name(0xffff_ffff_c000_0fff), "driver");
        assert_eq!(symbols.name(7), "");
        // A mark; then the place itself, and where calls return to.
        let chain = [
            u64::MAX - 127,
            0xffff_ffff_8100_0200,
            0xffff_ffff_8100_0300,
            0xffff_ffff_8100_0110,
        ];
        assert_eq!(symbols.names(&chain), ["second", "second", "first"]);
    }
}
