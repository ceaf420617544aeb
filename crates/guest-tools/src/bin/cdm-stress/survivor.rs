// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A user of devices that fail, lie, or go away while he uses them. He knows what each of his pages
//! holds, or, after an error, which two values each of its words may have; and he goes on when the
//! device does.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Answer, Bound, Comparison, Device, Direction, Options, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES, WORD_BYTES};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::uapi::{CDM_CAN_BIND, CDM_CAN_MOVE_FILES};
use cdm_protocol::Status;
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;

use crate::contents::{Contents, Region};
use crate::counts::{Count, Counts};
use crate::own_memory;

/// Pages of a region of small pages.
const SMALL_PAGES: usize = 96;
/// How long somebody waits who finds no device.
const ABSENCE_PAUSE: Duration = Duration::from_millis(10);
/// Once in so many rounds all nodes are closed, and opened anew when they are needed.
const REOPEN_ODDS: usize = 24;
/// Rounds after which everything is compared.
const CHECK_INTERVAL: u64 = 16;

/// What may become of a device that is used. Anything else is an error of the run.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// It goes away, and another comes.
    pub absence: bool,
    /// So does the module: nodes are closed behind each round.
    pub unload: bool,
    /// Commands end with errors, having done all, nothing or a part.
    pub errors: bool,
    /// What it says it read is not believed.
    pub lies: bool,
    /// Its memory fails: a page is as it should be or lost, and nobody loads from it unwarned.
    pub loss: bool,
}

impl Allowed {
    /// That it does what it should.
    pub const NOTHING: Self = Self {
        absence: false,
        unload: false,
        errors: false,
        lies: false,
        loss: false,
    };
}

/// A device's node.
enum Open {
    /// Commands pin what they name.
    Plain(Device),
    /// Commands name addresses.
    Bound(Bound),
}

impl Open {
    fn device(&self) -> &Device {
        match self {
            Self::Plain(device) => device,
            Self::Bound(bound) => bound,
        }
    }
}

/// One who has memory in devices and has them work on it.
pub struct Survivor<'a> {
    allowed: Allowed,
    /// Devices that there are, as far as he knows.
    numbers: Vec<u32>,
    /// His open nodes, by the number of the device.
    nodes: BTreeMap<u32, Open>,
    can_bind: bool,
    random: Random,
    regions: Vec<Region>,
    /// What the device adds to.
    sum: Mapping,
    expected_sum: u64,
    counts: &'a Counts,
    rounds: u64,
}

impl<'a> Survivor<'a> {
    /// Takes memory; devices are opened when they are used. There must be one now, to see what it
    /// can do.
    pub fn new(random: Random, counts: &'a Counts, allowed: Allowed) -> Result<Self> {
        let numbers = Device::numbers()?;
        let first = *numbers.first().context("there is no device")?;
        let can = Device::open(first)?.query()?.capabilities;
        let mut regions = vec![Region::small(SMALL_PAGES)?, Region::huge(1)?];
        // A page of a file that fails stays in the file.
        if can & CDM_CAN_MOVE_FILES != 0 && !allowed.loss {
            regions.push(Region::file(SMALL_PAGES)?);
        }
        Ok(Self {
            allowed,
            numbers,
            nodes: BTreeMap::new(),
            can_bind: can & CDM_CAN_BIND != 0,
            random,
            regions,
            sum: Mapping::anonymous(PAGE_BYTES)?,
            expected_sum: 0,
            counts,
            rounds: 0,
        })
    }

    /// Does one thing, and looks whether everything is as it should be.
    pub fn round(&mut self) -> Result<()> {
        let what = self.random.below(9);
        let done = match what {
            0 | 1 => self.migrate(Direction::ToDevice),
            2 => self.migrate(Direction::ToSystem),
            3 => self.rewrite(),
            4 => self.fill(),
            5 => self.copy(),
            6 => self.checksum(),
            7 => self.compare(),
            _ => self.add(),
        };
        done.with_context(|| format!("round {}, kind {what}", self.rounds))?;
        self.rounds += 1;
        // Bindings come and go, too.
        if self.allowed.unload || self.random.one_in(REOPEN_ODDS) {
            self.close();
        }
        match self.rounds.is_multiple_of(CHECK_INTERVAL) {
            true => self.verify_all(),
            false => self.verify_some(),
        }
    }

    /// Closes all nodes.
    pub fn close(&mut self) {
        self.nodes.clear();
    }

    /// Compares everything with what it must be.
    pub fn verify_all(&mut self) -> Result<()> {
        for region in 0..self.regions.len() {
            let own = self.regions[region].own.clone();
            self.verify(region, own)?;
        }
        self.check_sum(self.expected_sum, self.expected_sum)
    }

    fn verify_some(&mut self) -> Result<()> {
        let (region, pages) = self.some_pages();
        self.verify(region, pages)
    }

    fn verify(&mut self, region: usize, pages: Range<usize>) -> Result<()> {
        self.counts.add(Count::Verified, pages.len() as u64);
        for page in pages {
            let expected = self.regions[region].contents(page);
            self.expect(region, page, expected, expected)?;
        }
        Ok(())
    }

    /// Expects each word of a page to be one of two; or the page to be lost, where that may be, which
    /// is then replaced by a new one.
    fn expect(&mut self, region: usize, page: usize, one: Contents, other: Contents) -> Result<()> {
        let memory = &self.regions[region].memory;
        let words = match self.allowed.loss {
            true => own_memory::read_page(memory, page)?,
            false => Some(own_memory::load_page(memory, page)),
        };
        let Some(words) = words else {
            return self.replace(region, page);
        };
        for (index, found) in words.into_iter().enumerate() {
            let (one, other) = (one.word(index), other.word(index));
            ensure!(
                found == one || found == other,
                "region {region}, page {page}, word {index}: {found:#018x}, neither {one:#018x} nor \
                 {other:#018x}"
            );
        }
        Ok(())
    }

    /// A lost page is given back, and a new one is there in its place.
    fn replace(&mut self, region: usize, page: usize) -> Result<()> {
        self.counts.add(Count::PagesLost, 1);
        let region = &mut self.regions[region];
        region
            .memory
            .advise_pages(page, 1, MmapAdvise::MADV_DONTNEED)
            .context("cannot give a lost page back")?;
        region.set(page..page + 1, |_| Contents::Zeroes);
        Ok(())
    }

    fn some_pages(&mut self) -> (usize, Range<usize>) {
        let region = self.random.below(self.regions.len());
        let own = self.regions[region].own.len();
        (region, self.random.piece(own))
    }

    /// Stores anew to some pages.
    fn rewrite(&mut self) -> Result<()> {
        let (region, pages) = self.some_pages();
        self.rewrite_pages(region, pages)
    }

    fn rewrite_pages(&mut self, region: usize, pages: Range<usize>) -> Result<()> {
        let seed = self.random.number();
        self.counts.add(Count::Rewrite, pages.len() as u64);
        if !self.allowed.loss {
            self.regions[region].rewrite(pages, seed);
            return Ok(());
        }
        for page in pages {
            let contents = Contents::pattern(seed, page);
            let bytes = contents.bytes();
            if !own_memory::write_page(&self.regions[region].memory, page, &bytes)? {
                self.replace(region, page)?;
                continue;
            }
            self.regions[region].set(page..page + 1, |_| contents);
        }
        Ok(())
    }

    /// A node of some device; none while it is away.
    fn node(&mut self) -> Result<Option<u32>> {
        if self.allowed.absence {
            // Another one may have come, and a node that is dead keeps its number from it.
            self.numbers = Device::numbers()?;
            let numbers = &self.numbers;
            self.nodes.retain(|number, _| numbers.contains(number));
        }
        if self.numbers.is_empty() {
            self.is_away();
            return Ok(None);
        }
        let number = self.numbers[self.random.below(self.numbers.len())];
        let binds = self.can_bind && self.random.one_in(2);
        if self.nodes.contains_key(&number) {
            return Ok(Some(number));
        }
        let opened = match binds {
            true => Bound::open(number).map(Open::Bound),
            false => Device::open(number).map(Open::Plain),
        };
        match opened {
            Ok(open) => {
                self.nodes.insert(number, open);
                Ok(Some(number))
            }
            // It went since it was looked for.
            Err(error) if error.kind() == ErrorKind::NotFound && self.allowed.absence => {
                self.is_away();
                Ok(None)
            }
            Err(error) => {
                self.put_up_with(number, error)
                    .with_context(|| format!("cannot open device {number}"))?;
                Ok(None)
            }
        }
    }

    fn is_away(&self) {
        self.counts.add(Count::Absence, 1);
        thread::sleep(ABSENCE_PAUSE);
    }

    /// Takes an error that a device may give, or fails with it.
    fn put_up_with(&mut self, number: u32, error: io::Error) -> Result<()> {
        let errno = error.raw_os_error().map(Errno::from_raw);
        match errno {
            Some(Errno::ENODEV | Errno::ENXIO) if self.allowed.absence => {
                self.nodes.remove(&number);
                self.is_away();
                Ok(())
            }
            Some(Errno::EIO) if self.allowed.errors => {
                self.counts.add(Count::CommandsFailed, 1);
                Ok(())
            }
            // What is lost cannot be pinned.
            Some(Errno::EFAULT) if self.allowed.loss => {
                self.counts.add(Count::CommandsFailed, 1);
                Ok(())
            }
            // The device said so in a completion.
            None if self.allowed.errors || self.allowed.loss || self.allowed.lies => {
                self.counts.add(Count::CommandsFailed, 1);
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    /// Takes an answer that is none, or fails with it; whether it is one.
    fn is_good(&mut self, number: u32, answer: io::Result<Answer>) -> Result<bool> {
        let status = match answer {
            Ok(answer) => answer.status,
            Err(error) => {
                self.put_up_with(number, error)?;
                return Ok(false);
            }
        };
        let is_allowed = match status {
            Status::OK => {
                self.counts.add(Count::CommandsDone, 1);
                return Ok(true);
            }
            // The binding ended with the device.
            Status::UNBOUND => self.allowed.absence || self.allowed.errors,
            Status::POISONED | Status::PAGE_ERROR => self.allowed.loss || self.allowed.errors,
            _ => self.allowed.errors,
        };
        ensure!(is_allowed, "the device answered {status:?}");
        self.counts.add(Count::CommandsFailed, 1);
        if status == Status::UNBOUND {
            self.nodes.remove(&number);
        }
        Ok(false)
    }

    fn migrate(&mut self, direction: Direction) -> Result<()> {
        let (region, pages) = self.some_pages();
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let options = Options {
            populate: self.random.one_in(3),
            make_room: self.random.one_in(3) && direction == Direction::ToDevice,
            small: self.random.one_in(4),
        };
        let range = self.regions[region]
            .memory
            .page_range(pages.start, pages.len());
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        match open.device().migrate_with(0, range, direction, options) {
            Ok(migration) => {
                ensure!(
                    migration.adds_up(),
                    "the counts of a migration do not add up: {migration:?}"
                );
                let count = match direction {
                    Direction::ToDevice => Count::PagesToDevice,
                    Direction::ToSystem => Count::PagesToSystem,
                };
                self.counts.add(count, migration.moved);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => self
                .put_up_with(number, error)
                .with_context(|| format!("cannot move {range} {direction:?}, {options:?}")),
        }
    }

    /// After a command that stored, or was to: each page holds what it should, or a part of that and
    /// a part of what it held, and is written anew.
    fn settle(
        &mut self,
        region: usize,
        pages: Range<usize>,
        is_done: bool,
        new: impl Fn(usize) -> Contents,
    ) -> Result<()> {
        self.counts.add(Count::DeviceStore, u64::from(is_done));
        self.counts.add(Count::Verified, pages.len() as u64);
        for page in pages.clone() {
            let old = self.regions[region].contents(page);
            let new = new(page);
            if is_done {
                self.regions[region].set(page..page + 1, |_| new);
                self.expect(region, page, new, new)?;
            } else {
                self.expect(region, page, old, new)
                    .context("after an error")?;
            }
        }
        match is_done {
            true => Ok(()),
            false => self.rewrite_pages(region, pages),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let (region, pages) = self.some_pages();
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let value = self.random.number();
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        let memory = &self.regions[region].memory;
        let answer = open.device().fill(memory, span(&pages), 8, value);
        let is_done = self.is_good(number, answer).context("FILL")?;
        self.settle(region, pages, is_done, |_| Contents::Fill(value))
            .context("FILL")
    }

    fn copy(&mut self) -> Result<()> {
        let (from, source) = self.some_pages();
        let to = (from + 1) % self.regions.len();
        let length = source.len().min(self.regions[to].own.len());
        let start = self.random.below(self.regions[to].own.len() - length + 1);
        let (source, target) = (source.start..source.start + length, start..start + length);
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        let answer = open.device().copy(
            (&self.regions[from].memory, span(&source)),
            (&self.regions[to].memory, span(&target)),
        );
        let is_done = self.is_good(number, answer).context("COPY")?;
        let contents: Vec<Contents> = source
            .clone()
            .map(|page| self.regions[from].contents(page))
            .collect();
        self.settle(to, target, is_done, |page| contents[page - start])
            .context("COPY")
    }

    fn checksum(&mut self) -> Result<()> {
        let (region, pages) = self.some_pages();
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        let memory = &self.regions[region].memory;
        let found = match open.device().checksum(memory, span(&pages), 0) {
            Ok(found) => found,
            Err(error) => return self.put_up_with(number, error).context("CHECKSUM"),
        };
        self.counts.add(Count::CommandsDone, 1);
        self.counts.add(Count::DeviceRead, 1);
        let expected = pages.fold(0, |crc, page| {
            crc32c::crc32c_append(crc, &self.regions[region].contents(page).bytes())
        });
        ensure!(
            found == expected || self.allowed.lies,
            "CHECKSUM: {found:#x}, not {expected:#x}"
        );
        Ok(())
    }

    fn compare(&mut self) -> Result<()> {
        let (region, pages) = self.some_pages();
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        let memory = &self.regions[region].memory;
        let both = (memory, span(&pages));
        let found = match open.device().compare(both, both) {
            Ok(found) => found,
            Err(error) => return self.put_up_with(number, error).context("COMPARE"),
        };
        self.counts.add(Count::CommandsDone, 1);
        self.counts.add(Count::DeviceCompare, 1);
        ensure!(
            found == Comparison::Equal || self.allowed.lies,
            "COMPARE: pages {pages:?} differ from themselves: {found:?}"
        );
        Ok(())
    }

    /// Adds to a number, once if at all.
    fn add(&mut self) -> Result<()> {
        if self.random.one_in(4) {
            let direction = match self.random.one_in(2) {
                true => Direction::ToDevice,
                false => Direction::ToSystem,
            };
            self.migrate_sum(direction)?;
        }
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let addend = self.random.number();
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        let span = Span {
            offset: 0,
            bytes: WORD_BYTES,
        };
        let answer = open.device().fetch_add(&self.sum, span, addend, 1);
        let (before, after) = (self.expected_sum, self.expected_sum.wrapping_add(addend));
        if let Ok(answer) = &answer
            && answer.status == Status::OK
        {
            let found = answer.result;
            ensure!(
                found == before || self.allowed.lies,
                "FETCH_ADD found {found:#x}, not {before:#x}"
            );
        }
        match self.is_good(number, answer).context("FETCH_ADD")? {
            true => {
                self.counts.add(Count::DeviceAtomic, 1);
                self.expected_sum = after;
                self.check_sum(after, after)
            }
            false => self.check_sum(before, after),
        }
    }

    fn migrate_sum(&mut self, direction: Direction) -> Result<()> {
        let Some(number) = self.node()? else {
            return Ok(());
        };
        let Some(open) = self.nodes.get(&number) else {
            return Ok(());
        };
        match open.device().migrate(0, self.sum.range(), direction) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => self.put_up_with(number, error).context("cannot move a sum"),
        }
    }

    /// Expects one of two sums, and goes on with what is there.
    fn check_sum(&mut self, one: u64, other: u64) -> Result<()> {
        let found = match self.allowed.loss {
            true => own_memory::read_page(&self.sum, 0)?.map(|words| words[0]),
            false => Some(self.sum.word(0).load(Relaxed)),
        };
        match found {
            Some(found) if found == one || found == other => self.expected_sum = found,
            Some(found) => bail!("a sum is {found:#x}, neither {one:#x} nor {other:#x}"),
            None => {
                self.counts.add(Count::PagesLost, 1);
                self.sum.advise(MmapAdvise::MADV_DONTNEED)?;
                self.expected_sum = 0;
            }
        }
        Ok(())
    }
}

fn span(pages: &Range<usize>) -> Span {
    Span {
        offset: pages.start * PAGE_BYTES,
        bytes: pages.len() * PAGE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivor(counts: &Counts, allowed: Allowed) -> Survivor<'_> {
        Survivor {
            allowed,
            numbers: vec![0],
            nodes: BTreeMap::new(),
            can_bind: false,
            random: Random::new(1),
            regions: vec![Region::small(4).unwrap(), Region::small(4).unwrap()],
            sum: Mapping::anonymous(PAGE_BYTES).unwrap(),
            expected_sum: 0,
            counts,
            rounds: 0,
        }
    }

    const ERRORS: Allowed = Allowed {
        errors: true,
        ..Allowed::NOTHING
    };

    #[test]
    fn half_a_fill_is_taken_after_an_error_and_not_after_success() {
        let counts = Counts::new(0).unwrap();
        for is_done in [false, true] {
            let mut survivor = survivor(&counts, ERRORS);
            survivor.rewrite_pages(0, 0..2).unwrap();
            for word in &survivor.regions[0].memory.words()[..PAGE_BYTES / WORD_BYTES / 2] {
                word.store(7, Relaxed);
            }
            let settled = survivor.settle(0, 0..2, is_done, |_| Contents::Fill(7));
            assert_eq!(settled.is_ok(), !is_done);
        }
    }

    #[test]
    fn word_that_is_neither_old_nor_new_is_found_after_an_error() {
        let counts = Counts::new(0).unwrap();
        let mut survivor = survivor(&counts, ERRORS);
        survivor.rewrite_pages(0, 0..4).unwrap();
        survivor.regions[0]
            .memory
            .word(PAGE_BYTES)
            .store(8, Relaxed);
        let error = survivor.settle(0, 0..4, false, |_| Contents::Fill(7));
        assert!(format!("{:#}", error.unwrap_err()).contains("page 1, word 0"));
    }

    #[test]
    fn errors_are_put_up_with_where_they_are_allowed_alone() {
        let counts = Counts::new(0).unwrap();
        let error = |errno: Errno| io::Error::from(errno);
        let mut none = survivor(&counts, Allowed::NOTHING);
        for errno in [Errno::EIO, Errno::ENODEV, Errno::EFAULT] {
            assert!(none.put_up_with(0, error(errno)).is_err(), "{errno}");
        }
        let mut errors = survivor(&counts, ERRORS);
        errors.put_up_with(0, error(Errno::EIO)).unwrap();
        assert!(errors.put_up_with(0, error(Errno::EINVAL)).is_err());
        assert!(errors.put_up_with(0, error(Errno::ENODEV)).is_err());
        assert_eq!(counts.get(Count::CommandsFailed), 1);
    }

    #[test]
    fn sum_is_the_old_or_the_new_one_after_an_error() {
        let counts = Counts::new(0).unwrap();
        let mut survivor = survivor(&counts, ERRORS);
        survivor.sum.word(0).store(5, Relaxed);
        survivor.check_sum(0, 5).unwrap();
        assert_eq!(survivor.expected_sum, 5);
        assert!(survivor.check_sum(6, 7).is_err());
    }
}
