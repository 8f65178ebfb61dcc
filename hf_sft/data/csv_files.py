"""Csv files to rows. Each cell is text as it is written; a line that does not fit the header is an error, not a guess."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from hf_sft.data.data_files import COMPRESSED
from hf_sft.errors import DataError, list_few

DELIMITERS = (",", ";", "\t", "|")
CHUNK = 5_000
"""Rows of an Arrow chunk. A chunk of text holds less than 2 GiB, and Python collects no garbage among so few lists."""
LOOKED_AT = 20
"""Rows that are read to find a file's delimiter."""

csv.field_size_limit(sys.maxsize)  # a cell may hold a book


@dataclass(frozen=True)
class CsvFormat:
    """How a csv file is written."""

    delimiter: str = ","
    quoting: bool | None = None
    """Whether quotation marks enclose cells; if not, they are characters like others. If None: not in a .tsv whose header has
    none, and nowhere else where both readings give a table."""
    encoding: str | None = None
    """UTF-8 if None; a byte that is not of another encoding becomes U+FFFD."""


@dataclass
class _Lines:
    """What is odd in the lines of a file, how many cells its header has, and how many rows were read."""

    width: int = 0
    rows: int = 0
    long: list[tuple[int, int]] = field(default_factory=list)
    """Lines with more cells than the header: the line's number, from 1, and its cells."""
    short: list[tuple[int, int]] = field(default_factory=list)
    joined: list[tuple[int, int]] = field(default_factory=list)
    """First and last line of cells that hold line breaks and delimiters."""
    enclosed: list[int] = field(default_factory=list)
    """Lines with cells in quotation marks that are read as plain characters."""


def find_delimiter(path: str, written: CsvFormat, wanted: Sequence[str], usual: str | None) -> str:
    """The delimiter by which the header has the `wanted` columns; else the `usual` one, or if there is none the one by which
    the first rows have equally many cells. A comma comes before a semicolon, a tab and a vertical bar."""
    alike: list[str] = []
    for delimiter in dict.fromkeys((usual or ",", *DELIMITERS)):
        with open_text(path, written.encoding) as lines:
            reader = _reader(path, replace(written, delimiter=delimiter), lines)
            rows = [row for row, _ in zip(reader, range(LOOKED_AT), strict=False) if row]
        if wanted and rows and {*wanted} <= {*rows[0]}:
            return delimiter
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            alike.append(delimiter)
    return usual or next(iter(alike), ",")


def read_header(path: str, written: CsvFormat) -> list[str]:
    """The names of a file's columns. One without a name is `Unnamed: 0` by its place; a second `a` is `a.1`."""
    with open_text(path, written.encoding) as lines:
        return _name_columns(next(_reader(path, written, lines), []))


def read_csv(paths: Sequence[str], written: CsvFormat, drop_invalid: bool) -> tuple[Dataset, list[str]]:
    """The rows of files with the same columns, all text; an empty cell is None. And notes on lines that are odd.

    A line with more cells than the header is left out if `drop_invalid`, and refused otherwise; one with fewer is filled with
    None and counted. Raises `DataError`.
    """
    columns, batches, notes = read_header(paths[0], written), [], []
    for path in paths:
        if {*(found := read_header(path, written))} != {*columns}:
            raise DataError(
                f"`{path}` has the columns {', '.join(found)}, and `{paths[0]}` has {', '.join(columns)}.\n"
                "  Expected the same columns in all files of a split."
            )
        made = _read_plain_rows(path, written, len(found))
        if made is None:
            odd = _Lines()
            chunks = _chunks(_read_rows(path, written, odd))
            made = [[pa.array(cells, pa.string()) for cells in zip(*chunk, strict=True)] for chunk in chunks]
            notes += _explain_lines(path, written, odd, drop_invalid)
        for arrays in made:
            cells = dict(zip(found, arrays, strict=True))
            batches.append(pa.record_batch([cells[name] for name in columns], names=columns))
    table = pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in columns]))
    if not len(table):
        raise DataError(f"`{paths[0]}` holds no rows.")
    return Dataset(table, fingerprint=generate_random_fingerprint()), notes


def open_text(path: str, encoding: str | None) -> Any:
    """A file of text, compressed or not, with its line ends as they are. Of UTF-8, bytes of other encodings are an error where
    no encoding is named; otherwise they become U+FFFD."""
    named = encoding or "utf-8"
    codec = "utf-8-sig" if named.lower().replace("_", "-") in ("utf-8", "utf8") else named
    errors = "strict" if encoding is None else "replace"
    how: dict[str, Any] = {"encoding": codec, "errors": errors, "newline": ""}
    if "://" not in path and not path.lower().endswith(COMPRESSED):
        return open(path, **how)
    return fsspec.open(path, "rt", compression="infer", **how)


def _is_enclosed(path: str, written: CsvFormat) -> bool | None:
    """Whether quotation marks enclose cells: as the format says, or since they enclose all of the header; None if unknown."""
    if written.quoting is not None:
        return written.quoting
    with open_text(path, written.encoding) as lines:
        header = next(iter(lines), "").strip("\r\n").split(written.delimiter)
    return True if all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in header) else None


def _is_quoted(path: str, written: CsvFormat) -> bool:
    enclosed = _is_enclosed(path, written)
    return ".tsv" not in path.lower() if enclosed is None else enclosed


def _reader(path: str, written: CsvFormat, lines: Any, strict: bool = False) -> Any:
    if not _is_quoted(path, written):
        return csv.reader(lines, delimiter=written.delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=written.delimiter, strict=strict)


def _name_columns(header: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for place, cell in enumerate(header):
        name = plain = cell or f"Unnamed: {place}"
        number = 0
        while name in names:
            number += 1
            name = f"{plain}.{number}"
        names[name] = None
    return [*names]


def _chunks(rows: Iterable[list[str | None]]) -> Iterator[list[list[str | None]]]:
    chunk: list[list[str | None]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read_plain_rows(path: str, written: CsvFormat, width: int) -> list[list[Any]] | None:
    """The columns of a file by chunks, if each of its lines is a row with as many cells as the header, and nothing is odd in
    them: that is most files, and four times as fast as looking at each row. None for other files."""
    compute: Any = pc  # its functions are made when it is imported
    chunks: list[list[Any]] = []
    with open_text(path, written.encoding) as lines:
        reader = _reader(path, written, lines, strict=True)
        try:
            next(reader, None)
            while rows := list(islice(reader, CHUNK)):
                read = sum(len(chunk[0]) for chunk in chunks) + len(rows)
                if {*map(len, rows)} != {width} or reader.line_num != read + 1:
                    return None
                arrays = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
                if any(compute.any(compute.starts_with(array, '"')).as_py() for array in arrays):
                    return None
                chunks.append([compute.if_else(compute.equal(array, ""), None, array) for array in arrays])
        except csv.Error:
            return None
    return chunks


def _read_rows(path: str, written: CsvFormat, odd: _Lines) -> Iterator[list[str | None]]:
    """The rows of a file; `odd` has what was found when all are read. Raises `DataError`."""
    quoted, last = _is_quoted(path, written), 0
    with open_text(path, written.encoding) as lines:
        reader = _reader(path, written, lines, strict=True)
        try:
            for row in reader:
                first, last = last + 1, reader.line_num
                if not odd.width:  # the header
                    odd.width = len(row)
                    continue
                if not row:
                    continue
                if len(row) == odd.width + 1 and not row[-1]:  # a delimiter behind the last cell
                    row.pop()
                if last > first and any(written.delimiter in cell and ("\n" in cell or "\r" in cell) for cell in row):
                    odd.joined.append((first, last))
                if not quoted and any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in row):
                    odd.enclosed.append(first)
                if len(row) > odd.width:
                    odd.long.append((first, len(row)))
                    continue
                if len(row) < odd.width:
                    odd.short.append((first, len(row)))
                    row += [""] * (odd.width - len(row))
                odd.rows += 1
                yield [cell or None for cell in row]
        except csv.Error as error:
            raise DataError(_explain_quoting(path, written, odd.width, last + 1, error)) from None


def _explain_lines(path: str, written: CsvFormat, odd: _Lines, drop_invalid: bool) -> list[str]:
    """A note for each kind of odd line. Raises `DataError` for those that could be read in two ways."""
    notes = []
    header = f"the header, which has {odd.width} ({', '.join(read_header(path, written))})"
    if odd.long:
        few = list_few([f"line {line} has {cells} cells" for line, cells in odd.long])
        what = f"`{path}`: {len(odd.long)} line(s) have more cells than {header}: {few}."
        if not drop_invalid:
            raise DataError(
                f"{what}\n  Put cells that hold a {written.delimiter!r} in quotation marks, name another `data.delimiter`,\n"
                "  or leave such lines out with `data.drop_invalid=true`."
            )
        notes.append(f"{what}  They are left out.")
    if odd.short:
        few = list_few([f"line {line} has {cells} cells" for line, cells in odd.short])
        notes.append(f"`{path}`: {len(odd.short)} line(s) have fewer cells than {header}: {few}.  The others are empty.")
    if odd.joined:
        few = list_few([f"lines {first} to {last}" for first, last in odd.joined])
        what = f"`{path}`: {len(odd.joined)} cell(s) in quotation marks hold line breaks and delimiters ({few})"
        plain = _count_plain_rows(path, written, odd.width)
        if plain and _is_enclosed(path, written) is None:
            raise DataError(
                f"{what},\n  but each line has {odd.width} cells if quotation marks are plain characters.\n"
                f"  If they are ({plain} rows): `data.quoting=false`.\n"
                f"  If they enclose cells ({odd.rows} rows): `data.quoting=true`."
            )
        notes.append(f"{what}.  If quotation marks are plain characters: `data.quoting=false`.")
    if odd.enclosed and written.quoting is None:
        notes.append(
            f"`{path}`: {len(odd.enclosed)} line(s) have cells in quotation marks, which are read as part of the cell "
            f"(line {list_few(odd.enclosed)}).  If they enclose cells: `data.quoting=true`."
        )
    return notes


def _count_plain_rows(path: str, written: CsvFormat, width: int) -> int:
    """The rows of a file if quotation marks are plain characters; 0 if a line has another number of cells than the header."""
    rows = 0
    with open_text(path, written.encoding) as lines:
        for row in csv.reader(lines, delimiter=written.delimiter, quoting=csv.QUOTE_NONE):
            if row and len(row) != width:
                return 0
            rows += bool(row)
    return rows - 1


def _explain_quoting(path: str, written: CsvFormat, width: int, line: int, error: csv.Error) -> str:
    where = "is opened and never closed" if "end of data" in str(error) else "is closed before its cell ends"
    fits = "" if _count_plain_rows(path, written, width) else ", but not each line has as many cells as the header then"
    return (
        f"`{path}`: in the row that begins in line {line}, a quotation mark {where}.\n"
        f"  If quotation marks are plain characters: `data.quoting=false`{fits}.\n"
        '  If they enclose cells: write each one that belongs to a cell twice ("").'
    )
