//! CSV as Excel opens it by a double click: UTF-8 with a BOM, lines that end with CRLF.
//!
//! The sums follow the rows after a line of empty cells. Each line has as many cells as the heads, so strict readers read
//! the sums too. The first cell of the first line of the sums is `汇总`.

use std::io::{BufWriter, Write as _};

use csv::{Terminator, Writer, WriterBuilder};

use super::{Output, Sealed};
use crate::cell::{Cell, in_csv};
use crate::columns;
use crate::error::ExportError;
use crate::task::Kind;

const BOM: &[u8] = "\u{feff}".as_bytes();
/// Bytes between two writes to the disk.
const BUFFER: usize = 64 * 1024;

/// A CSV that is being written.
pub struct CsvSheet {
    writer: Writer<BufWriter<Output>>,
    columns: usize,
}

impl CsvSheet {
    pub(super) fn begin(kind: Kind, output: Output) -> Result<CsvSheet, ExportError> {
        let mut output = BufWriter::with_capacity(BUFFER, output);
        output.write_all(BOM)?;
        let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(output);
        let columns = columns::of(kind);
        writer.write_record(columns.iter().map(|column| column.head))?;
        Ok(CsvSheet { writer, columns: columns.len() })
    }

    pub(super) fn row(&mut self, cells: &[Cell]) -> Result<(), ExportError> {
        for cell in cells {
            self.writer.write_field(in_csv(cell).as_bytes())?;
        }
        for _ in cells.len()..self.columns {
            self.writer.write_field("")?;
        }
        Ok(self.writer.write_record(None::<&[u8]>)?)
    }

    pub(super) fn finish(mut self, sums: &[Vec<Cell>]) -> Result<Sealed, ExportError> {
        self.row(&[])?;
        for row in sums {
            self.row(row)?;
        }
        let buffered = self.writer.into_inner().map_err(|error| error.into_error())?;
        let output = buffered.into_inner().map_err(|error| error.into_error())?;
        Ok(output.seal()?)
    }
}
