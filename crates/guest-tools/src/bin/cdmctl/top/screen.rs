// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl top` on a terminal.

use std::env;
use std::ffi::OsStr;
use std::time::Instant;

use anyhow::Context;
use cdm_guest_tools::size::Size;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{LineGauge, Row, Table};

use super::Watch;
use super::rates::{DEVICE_COLUMNS, PROCESS_COLUMNS, Rates};
use crate::table::Column;

/// Share of a device from which on it is nearly full.
const NEARLY_FULL: f64 = 0.9;

/// Draws until somebody presses a key for the end, or there were enough intervals.
pub fn run(watch: &mut Watch) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("cannot use the terminal; try --once")?;
    let result = draw_until_ended(&mut terminal, watch);
    ratatui::restore();
    result
}

fn draw_until_ended(
    terminal: &mut ratatui::DefaultTerminal,
    watch: &mut Watch,
) -> anyhow::Result<()> {
    let colours = Colours::wanted(env::var_os("NO_COLOR").as_deref());
    let mut rates: Option<Rates> = None;
    loop {
        terminal.draw(|frame| draw(frame, rates.as_ref(), colours))?;
        if watch.is_over() || is_end_pressed_before(watch.due())? {
            return Ok(());
        }
        if Instant::now() >= watch.due() {
            rates = Some(watch.next()?);
        }
    }
}

/// Waits for a key, or another reason to draw, but not beyond `due`.
fn is_end_pressed_before(due: Instant) -> anyhow::Result<bool> {
    if !event::poll(due.saturating_duration_since(Instant::now()))? {
        return Ok(false);
    }
    Ok(match event::read()? {
        Event::Key(key) => is_end(key),
        _ => false,
    })
}

fn is_end(key: KeyEvent) -> bool {
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let ends = is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    key.kind == KeyEventKind::Press && ends
}

/// Whether there are any. A terminal that shows none still has bold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Colours(bool);

impl Colours {
    /// As <https://no-color.org> has it, with the value of that variable.
    fn wanted(no_color: Option<&OsStr>) -> Self {
        Self(no_color.is_none_or(OsStr::is_empty))
    }

    fn foreground(self, colour: Color) -> Style {
        match self.0 {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }
}

fn draw(frame: &mut Frame, rates: Option<&Rates>, colours: Colours) {
    let Some(rates) = rates else {
        frame.render_widget(Line::raw("cdmctl top: looking"), frame.area());
        return;
    };
    let devices = rates.devices.len() as u16;
    let [title, gauges, device_table, process_table] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(devices + 1),
        Constraint::Length(devices + 2),
        Constraint::Min(0),
    ])
    .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let line = format!("cdmctl top: the last {:.1} s; q ends", rates.seconds);
    frame.render_widget(Line::styled(line, bold), title);
    for (device, area) in rates.devices.iter().zip(gauges.rows()) {
        let colour = match device.share_used() {
            share if share >= NEARLY_FULL => Color::Red,
            _ => Color::Green,
        };
        let label = format!(
            "cdm{} {:>10} of {:>10}",
            device.device,
            Size(device.bytes_used),
            Size(device.bytes_total)
        );
        let gauge = LineGauge::default()
            .ratio(device.share_used())
            .label(label)
            .filled_style(colours.foreground(colour));
        frame.render_widget(gauge, area);
    }
    let rows = rates.devices.iter().map(|device| device.cells());
    frame.render_widget(table(&DEVICE_COLUMNS, rows, bold), device_table);
    let rows = rates.processes.iter().map(|process| process.cells());
    frame.render_widget(table(&PROCESS_COLUMNS, rows, bold), process_table);
}

fn table(
    columns: &[Column<'static>],
    rows: impl Iterator<Item = Vec<String>>,
    head: Style,
) -> Table<'static> {
    let aligned = |cells: Vec<String>| {
        let cells = cells.into_iter().zip(columns);
        let lines = cells.map(|(cell, column)| match column.is_figure {
            true => Line::raw(cell).right_aligned(),
            false => Line::raw(cell),
        });
        Row::new(lines.collect::<Vec<_>>())
    };
    let names = columns
        .iter()
        .map(|column| column.name.to_owned())
        .collect();
    let mut widths: Vec<_> = columns
        .iter()
        .map(|column| Constraint::Length(column.width(&[]) as u16))
        .collect();
    if let (Some(width), Some(last)) = (widths.last_mut(), columns.last()) {
        // It takes what is left.
        *width = Constraint::Min(last.width(&[]) as u16);
    }
    Table::new(rows.map(aligned).collect::<Vec<_>>(), widths).header(aligned(names).style(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::rates::tests::rates;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;

    fn drawn(rates: Option<&Rates>, colours: Colours) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(104, 16)).unwrap();
        terminal
            .draw(|frame| draw(frame, rates, colours))
            .unwrap()
            .buffer
            .clone()
    }

    fn text(buffer: &Buffer) -> String {
        let width = usize::from(buffer.area.width);
        let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
        let lines = cells.chunks(width).map(|line| line.concat() + "\n");
        lines.collect()
    }

    #[test]
    fn screen_shows_each_device_twice_and_the_hottest_processes() {
        let screen = text(&drawn(Some(&rates(true, 2)), Colours(true)));
        assert!(screen.contains("cdm0    126 MiB of    252 MiB"), "{screen}");
        assert!(screen.contains("cdm1 "), "{screen}");
        for head in ["COMMANDS/s", "IN DEVICES", "FAULTS/s"] {
            assert!(screen.contains(head), "{head} is not on {screen}");
        }
        let first = screen
            .lines()
            .position(|line| line.trim_end().ends_with(" p6"));
        let second = screen
            .lines()
            .position(|line| line.trim_end().ends_with(" p7"));
        assert!(first.is_some() && first < second, "{screen}");
    }

    #[test]
    fn colours_are_there_only_where_they_are_wanted() {
        let rates = rates(true, 2);
        let coloured = |colours| {
            let buffer = drawn(Some(&rates), colours);
            let mut cells = buffer.content.iter();
            cells.any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(coloured(Colours(true)));
        assert!(!coloured(Colours(false)));
    }

    #[test]
    fn no_color_takes_colours_away_unless_it_is_empty() {
        assert_eq!(Colours::wanted(None), Colours(true));
        assert_eq!(Colours::wanted(Some("".as_ref())), Colours(true));
        assert_eq!(Colours::wanted(Some("1".as_ref())), Colours(false));
    }

    #[test]
    fn screen_of_no_sample_and_one_too_small_are_drawn() {
        assert!(text(&drawn(None, Colours(true))).contains("looking"));
        let mut terminal = Terminal::new(TestBackend::new(10, 3)).unwrap();
        let rates = rates(true, 2);
        terminal
            .draw(|frame| draw(frame, Some(&rates), Colours(true)))
            .unwrap();
    }

    #[test]
    fn keys_for_the_end_are_q_escape_and_ctrl_c() {
        let plain = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(is_end(plain(KeyCode::Char('q'))) && is_end(plain(KeyCode::Esc)));
        assert!(is_end(KeyEvent::new(
            KeyCode::Char('c'),
            KeyModifiers::CONTROL
        )));
        assert!(!is_end(plain(KeyCode::Char('c'))) && !is_end(plain(KeyCode::Enter)));
    }
}
