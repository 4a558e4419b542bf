//! A workbook of Excel: the rows on the first sheet, the sums on the second.
//!
//! The library holds one row in memory. It collects the rows in a file without a name beside the workbook, about a
//! kilobyte a row, and packs them at the end. It panics where that file cannot be written; the caller catches that.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use rust_xlsxwriter::{ExcelDateTime, Format, Workbook, Worksheet, XlsxError};
use time::OffsetDateTime;

use super::{Output, Sealed};
use crate::cell::{Cell, clock, fits_number, guarded, yuan};
use crate::error::ExportError;
use crate::task::Kind;
use crate::{columns, words};

/// Bytes between two writes to the disk.
const BUFFER: usize = 64 * 1024;

/// A workbook that is being written.
pub struct XlsxSheet {
    workbook: Workbook,
    output: Output,
    forms: Forms,
    next_row: u32,
}

/// How numbers and times look.
struct Forms {
    amount: Format,
    time: Format,
    head: Format,
}

impl XlsxSheet {
    pub(super) fn begin(kind: Kind, output: Output, folder: &Path) -> Result<XlsxSheet, ExportError> {
        let forms = Forms {
            amount: Format::new().set_num_format("0.00"),
            time: Format::new().set_num_format("yyyy-mm-dd hh:mm:ss"),
            head: Format::new().set_bold(),
        };
        let mut workbook = Workbook::new();
        workbook.set_tempdir(folder)?;
        let sheet = workbook.add_worksheet_with_constant_memory()?;
        sheet.set_name(words::sheet(kind))?.set_freeze_panes(1, 0)?;
        for (at, column) in (0..).zip(columns::of(kind)) {
            sheet.set_column_width(at, column.width)?;
            sheet.write_string_with_format(0, at, column.head, &forms.head)?;
        }
        Ok(XlsxSheet { workbook, output, forms, next_row: 1 })
    }

    pub(super) fn row(&mut self, cells: &[Cell]) -> Result<(), ExportError> {
        let sheet = self.workbook.worksheet_from_index(0)?;
        self.forms.write(sheet, self.next_row, cells)?;
        self.next_row += 1;
        Ok(())
    }

    pub(super) fn finish(mut self, sums: &[Vec<Cell>]) -> Result<Sealed, ExportError> {
        let sheet = self.workbook.add_worksheet();
        sheet.set_name("汇总")?.set_column_range_width(0, 5, 26)?;
        for (row, cells) in (0..).zip(sums) {
            self.forms.write(sheet, row, cells)?;
        }
        let mut buffered = BufWriter::with_capacity(BUFFER, self.output);
        self.workbook.save_to_writer(&mut buffered)?;
        buffered.flush()?;
        let output = buffered.into_inner().map_err(|error| error.into_error())?;
        Ok(output.seal()?)
    }
}

impl Forms {
    fn write(&self, sheet: &mut Worksheet, row: u32, cells: &[Cell]) -> Result<(), XlsxError> {
        for (at, cell) in (0..).zip(cells) {
            match cell {
                Cell::Empty => continue,
                Cell::Text(text) => sheet.write_string(row, at, guarded(text))?,
                Cell::Word(word) => sheet.write_string(row, at, *word)?,
                Cell::Amount(fen) if fits_number(*fen) => {
                    sheet.write_number_with_format(row, at, in_yuan(*fen), &self.amount)?
                }
                Cell::Amount(fen) => sheet.write_string(row, at, yuan(*fen))?,
                Cell::Count(count) => sheet.write_number(row, at, *count as f64)?,
                Cell::Time(time) => match on_a_clock(*time) {
                    Some(shown) => sheet.write_datetime_with_format(row, at, &shown, &self.time)?,
                    None => sheet.write_string(row, at, clock(*time))?,
                },
            };
        }
        Ok(())
    }
}

/// The number whose shortest decimal form is the amount: at most 15 digits survive a double, and the file holds decimals.
fn in_yuan(fen: i64) -> f64 {
    fen as f64 / 100.0
}

/// A time on a clock in Beijing, to the second; `None` outside the years that Excel has.
fn on_a_clock(at: OffsetDateTime) -> Option<ExcelDateTime> {
    let at = at.to_offset(runtime::beijing::OFFSET);
    let year = u16::try_from(at.year()).ok()?;
    let day = ExcelDateTime::from_ymd(year, at.month().into(), at.day()).ok()?;
    day.and_hms(at.hour().into(), at.minute(), f64::from(at.second())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_the_same_decimal_in_the_file() {
        for fen in [0, 1, 5, 10, 29, 57, 1234, 110, 1_015, 9_999_999_999, 999_999_999_999_999, 123_456_789_012_345] {
            let shown = in_yuan(fen).to_string();
            let (whole, decimals) = shown.split_once('.').unwrap_or((&shown, ""));
            assert_eq!(format!("{whole}.{decimals:0<2}"), yuan(fen));
        }
    }
}
