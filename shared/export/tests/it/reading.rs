//! Reads files back, as the programs of their readers do.

use std::path::Path;

use calamine::{Data, Reader, Xlsx, open_workbook};

/// The lines of a CSV with their cells, each with one `'` at the beginning cut off. Checks the BOM, the ends of lines, and
/// that each line has as many cells.
pub fn csv(path: &Path) -> Vec<Vec<String>> {
    raw_csv(path)
        .into_iter()
        .map(|line| line.into_iter().map(|cell| cell.strip_prefix('\'').unwrap_or(&cell).to_owned()).collect())
        .collect()
}

/// The cells as they are in the file.
pub fn raw_csv(path: &Path) -> Vec<Vec<String>> {
    let bytes = std::fs::read(path).unwrap();
    let text = std::str::from_utf8(&bytes).unwrap().strip_prefix('\u{feff}').expect("a BOM");
    assert!(text.ends_with("\r\n") && !text.replace("\r\n", "").contains('\n'), "each line ends with CRLF");
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|line| line.unwrap().iter().map(str::to_owned).collect()).collect()
}

/// What the file of a workbook says about a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Empty,
    Text(String),
    Number(String),
    Time(String),
}

/// The cells of a sheet.
pub fn sheet(path: &Path, name: &str) -> Vec<Vec<Value>> {
    let mut book: Xlsx<_> = open_workbook(path).unwrap();
    assert!(book.worksheet_formula(name).unwrap().cells().all(|(_, _, formula)| formula.is_empty()), "no formula");
    let range = book.worksheet_range(name).unwrap();
    range.rows().map(|row| row.iter().map(value).collect()).collect()
}

pub fn sheets(path: &Path) -> Vec<String> {
    let book: Xlsx<_> = open_workbook(path).unwrap();
    book.sheet_names().clone()
}

fn value(cell: &Data) -> Value {
    match cell {
        Data::Empty => Value::Empty,
        // Excel cuts a mark off that it wrote itself; the file holds it.
        Data::String(text) => Value::Text(text.strip_prefix('\'').unwrap_or(text).to_owned()),
        Data::Float(number) => Value::Number(number.to_string()),
        Data::Int(number) => Value::Number(number.to_string()),
        Data::DateTime(at) => {
            let (year, month, day, hour, minute, second, milli) = at.to_ymd_hms_milli();
            assert_eq!(milli, 0);
            Value::Time(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"))
        }
        other => panic!("{other:?}"),
    }
}

/// The texts of a sheet's cells, with `'` in front as the file has them.
pub fn raw_texts(path: &Path, name: &str) -> Vec<String> {
    let mut book: Xlsx<_> = open_workbook(path).unwrap();
    let range = book.worksheet_range(name).unwrap();
    let texts =
        range.cells().filter_map(|(_, _, cell)| if let Data::String(text) = cell { Some(text.clone()) } else { None });
    texts.collect()
}
