//! Standard output: tables for people, JSON for scripts.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

use serde_json::Value;

use crate::cli::Color;
use crate::units::visible;

/// What `--color` said; the same for the whole process, since any part of it may fail.
static COLOR: OnceLock<Color> = OnceLock::new();

/// Sets once what `--color` said.
pub fn set_color(color: Color) {
    // A second call could only repeat the first.
    let _ = COLOR.set(color);
}

/// Whether standard error gets colour.
pub fn is_colored() -> bool {
    match COLOR.get().copied().unwrap_or(Color::Auto) {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let is_forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            io::stderr().is_terminal() && !is_forbidden
        }
    }
}

/// Prints results. A reader that has gone away ends the program quietly, as it does for other tools in a pipe.
pub fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: write to standard output: {error}");
            std::process::exit(1);
        }
    }
}

/// Prints a line.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints an answer to a question: one document.
pub fn json_document(value: &Value) {
    print(&format!("{value:#}\n"));
}

/// Prints an object on a line of its own, as long work does.
pub fn json_line(value: &Value) {
    print(&format!("{value}\n"));
}

/// Something a person may want to know; to standard error.
pub fn note(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{}", visible(text));
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Aligned columns without borders, the header in capitals.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; names in it may be hostile.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for every column");
        self.rows.push(cells.iter().map(|cell| visible(cell)).collect());
    }

    /// The table as text; `width` cuts its lines.
    pub fn render(&self, width: Option<usize>) -> String {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&header).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in all {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line += "  ";
                }
                match self.columns[column].1 {
                    Align::Left => line += &format!("{cell:<width$}"),
                    Align::Right => line += &format!("{cell:>width$}"),
                }
            }
            let line = line.trim_end();
            match width {
                Some(width) if line.chars().count() > width => text.extend(line.chars().take(width)),
                _ => text += line,
            }
            text.push('\n');
        }
        text
    }

    /// Prints it, cut to the terminal only when it is one.
    pub fn print(&self) {
        print(&self.render(terminal_width(&io::stdout())));
    }
}

/// Columns of a terminal; `None` for anything else.
#[cfg(unix)]
pub fn terminal_width(of: &(impl io::IsTerminal + std::os::fd::AsFd)) -> Option<usize> {
    if !of.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(of).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Columns of a terminal: not asked here, so that nothing is cut.
#[cfg(not(unix))]
pub fn terminal_width(_: &impl io::IsTerminal) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cut_on_request() {
        let mut table = Table::new(&[("VM", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["DC01".into(), "8 B".into()]);
        table.row(vec!["a\nb".into(), "118 MiB".into()]);
        assert_eq!(table.render(None), "VM       SIZE\nDC01      8 B\na\u{fffd}b   118 MiB\n");
        assert_eq!(table.render(Some(6)), "VM    \nDC01  \na\u{fffd}b   \n");
    }
}
