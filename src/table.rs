//! Tables for people: aligned columns, numbers to the right, and the units they need.
//!
//! Invariant: what a cell holds cannot move the cursor or colour the terminal, and a line has no trailing blanks.

use std::fmt;

/// A table under construction.
#[derive(Debug)]
pub struct Table {
    heads: Vec<Head>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Head {
    text: &'static str,
    right: bool,
}

impl Table {
    /// A table with these columns; a head that begins with `>` is of a column of numbers, aligned to the right.
    pub fn new(heads: &[&'static str]) -> Table {
        let head = |text: &&'static str| match text.strip_prefix('>') {
            Some(text) => Head { text, right: true },
            None => Head { text, right: false },
        };
        Table { heads: heads.iter().map(head).collect(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the heads are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| match cell.is_empty() {
            true => "-".to_owned(),
            false => cell.replace(|c: char| c.is_control(), "\u{fffd}"),
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<String> = self.heads.iter().map(|head| head.text.to_owned()).collect();
        let lines = || std::iter::once(&heads).chain(&self.rows);
        let width = |column: usize| lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.heads.len()).map(|column| width(column).unwrap_or(0)).collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, head), width) in line.iter().zip(&self.heads).zip(&widths) {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if head.right { (pad.as_str(), "") } else { ("", pad.as_str()) };
                text.push_str(&format!("{before}{cell}{after}  "));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// A count with commas between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes, in the largest decimal unit that leaves a number of at least 1.
pub fn bytes(number: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, unit)| number >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", number as f64 / *unit as f64),
        None => format!("{number} B"),
    }
}

/// A time in the two largest units that it has.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// The first `most` of them, and how many there are besides.
pub fn some(all: &[String], most: usize) -> String {
    let named = all.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(most) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">FRAMES", "STATE"]);
        table.row(["web/0".to_owned(), "7".to_owned(), "up".to_owned()]);
        table.row(["database/0".to_owned(), "1,234,567".to_owned(), String::new()]);
        let text = "NAME           FRAMES  STATE\nweb/0               7  up\ndatabase/0  1,234,567  -\n";
        assert_eq!(table.to_string(), text);
    }

    #[test]
    fn cells_cannot_steer_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\u{1b}[2J\n".to_owned()]);
        assert_eq!(table.to_string(), "NAME\na\u{fffd}[2J\u{fffd}\n");
    }

    #[test]
    fn units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"].map(str::to_owned));
        assert_eq!(
            [0, 999, 1_500, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.5 kB", "18446744.1 TB"].map(str::to_owned)
        );
        assert_eq!(
            [5, 65, 3_660, 90_000].map(duration),
            ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"].map(str::to_owned)
        );
    }
}
