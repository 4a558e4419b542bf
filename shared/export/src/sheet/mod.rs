//! The two formats behind one face: heads, rows, sums, the end.

mod csv;
mod xlsx;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use tokio_util::sync::CancellationToken;

use self::csv::CsvSheet;
use self::xlsx::XlsxSheet;
use crate::cell::Cell;
use crate::error::ExportError;
use crate::task::{Format, Kind};

/// A file that is being written.
pub enum Sheet {
    /// CSV.
    Csv(Box<CsvSheet>),
    /// A workbook.
    Xlsx(Box<XlsxSheet>),
}

/// What a finished file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// SHA-256 of its bytes, in hex digits.
    pub sha256: String,
    /// How many bytes.
    pub bytes: u64,
}

impl Sheet {
    /// Begins a file with its heads. `folder` may hold a file without a name while a workbook is written.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn begin(format: Format, kind: Kind, output: Output, folder: &Path) -> Result<Sheet, ExportError> {
        Ok(match format {
            Format::Csv => Sheet::Csv(Box::new(CsvSheet::begin(kind, output)?)),
            Format::Xlsx => Sheet::Xlsx(Box::new(XlsxSheet::begin(kind, output, folder)?)),
        })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn row(&mut self, cells: &[Cell]) -> Result<(), ExportError> {
        match self {
            Sheet::Csv(sheet) => sheet.row(cells),
            Sheet::Xlsx(sheet) => sheet.row(cells),
        }
    }

    /// Adds the sums and ends the file.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn finish(self, sums: &[Vec<Cell>]) -> Result<Sealed, ExportError> {
        match self {
            Sheet::Csv(sheet) => sheet.finish(sums),
            Sheet::Xlsx(sheet) => sheet.finish(sums),
        }
    }
}

/// The file on the disk: counts and hashes what is written, and writes nothing more once `halt` is cancelled.
pub struct Output {
    file: File,
    digest: Context,
    bytes: u64,
    halt: CancellationToken,
}

impl Output {
    /// Writes to an empty file.
    pub fn new(file: File, halt: CancellationToken) -> Output {
        Output { file, digest: Context::new(&SHA256), bytes: 0, halt }
    }

    /// Brings everything to the disk: a full disk may show only here.
    ///
    /// # Errors
    /// The disk's.
    fn seal(mut self) -> io::Result<Sealed> {
        self.file.flush()?;
        self.file.sync_all()?;
        let digest = self.digest.finish();
        let sha256 = digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Ok(Sealed { sha256, bytes: self.bytes })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.halt.is_cancelled() {
            return Err(io::Error::other("the export was stopped"));
        }
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
