"""Columns of .parquet, .feather and .xlsx files, by pyarrow and openpyxl."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable, Collection
from datetime import datetime, time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from ...files.atomic import open_file
from ...support.command_line import UNPACKED, CommandError
from ..tables import REMEDY, as_values, named_columns
from .cells import EXACT, Parsed, parse
from .csv_files import are_names, different

if TYPE_CHECKING:
    import pyarrow
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

#: Endings of the files, and the package that reads each.
SUFFIXES = {".parquet": "pyarrow", ".feather": "pyarrow", ".xlsx": "openpyxl"}


def read_data(
    path: str, header: bool | None, sheet: str | None, decimal: str | None, as_text: Collection[str]
) -> Parsed:
    """Read the columns of such a file.

    :param header: whether the first row of a sheet names the columns; by default it does where it
        holds no number.
    :param sheet: name of the sheet of an .xlsx file; by default the first one.
    :raises CommandError: when it is no table, or the package that reads it is not installed.
    :raises OSError: when it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    package = SUFFIXES[suffix]
    module = {".parquet": "pyarrow.parquet", ".feather": "pyarrow.feather"}.get(suffix, package)
    try:
        reader = importlib.import_module(module)
    except ImportError:
        raise CommandError(
            f"{path} is read by {package}, which is not installed: pip install 'pyro_naf[data]'"
        ) from None
    with open_file(path) as file:
        content = io.BytesIO(file.read())
    try:
        if suffix == ".xlsx":
            return _sheet(_Workbook(path, content, reader, sheet), header, decimal, as_text)
        return _columns(path, reader.read_table(content))
    except CommandError:
        raise
    except Exception as error:  # what a reader of foreign bytes may raise is written nowhere
        reason = (str(error).splitlines() or [""])[0][:300]
        raise CommandError(f"{path} cannot be read as {suffix}: {reason}") from None


def _columns(path: str, table: pyarrow.Table) -> Parsed:
    if table.num_rows == 0 or table.num_columns == 0:
        raise CommandError(f"{path} holds no rows")
    named = named_columns(table)
    assert named is not None
    rows = np.zeros((table.num_rows, len(named)))
    found = Parsed(rows, different(list(named)), range(1, table.num_rows + 1))
    for i, (name, values) in enumerate(named.items()):
        if "dictionary" in str(getattr(values, "type", "")):  # classes, in an order of their own
            found.cells[i] = cast("pyarrow.ChunkedArray", values).to_pandas()
            continue
        try:
            array = as_values(values, f"column {name}")
        except (TypeError, ValueError) as error:
            wrong = str(error).removesuffix(f": {REMEDY}")
            found.text[i] = f"no plain values: {wrong}; leave it out with --exclude {name}"
            continue
        whole = array.dtype.kind in "iu" or "int" in str(getattr(values, "type", ""))
        if array.dtype.kind in "iuf" and whole and (np.abs(array.astype(float)) >= EXACT).any():
            wrong = f"an integer of too many digits in column {name}"
            found.text[i] = f"{wrong}; leave it out with --exclude {name}"
        elif array.dtype.kind in "iuf":
            rows[:, i] = array
            found.whole += [i] if whole else []
        else:
            found.cells[i] = array
    return found


# ------------------------------------------------------------------------------------------- Excel


class _Workbook:
    """A sheet's rows as written cells, and where they are."""

    def __init__(self, path: str, file: io.BytesIO, reader: ModuleType, sheet: str | None) -> None:
        self.path, self.note = path, None
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
        file.seek(0, 2)
        if size > max(UNPACKED, 100 * file.tell()):
            raise CommandError(f"{path} would unpack to {size} bytes")

        def opened(values: bool) -> Workbook:
            file.seek(0)
            return reader.load_workbook(file, data_only=values)

        book = opened(True)
        names = [own.title for own in book.worksheets]
        if sheet is not None and sheet not in names:
            raise CommandError(f"{path} has no sheet {sheet!r}; there are {', '.join(names)}")
        chosen = book[sheet or names[0]]
        if sheet is None and len(names) > 1:
            self.note = f"{path} has the sheets {', '.join(names)}: read the first, see --sheet"
        self._load(chosen, lambda: opened(False)[chosen.title])

    def _load(self, sheet: Worksheet, formulas: Callable[[], Worksheet]) -> None:
        rows = [(i, cells) for i, cells in enumerate(sheet.iter_rows(values_only=True), 1)]
        rows = [(i, cells) for i, cells in rows if any(cell is not None for cell in cells)]
        used = [j for j in range(sheet.max_column) if any(c[j] is not None for _, c in rows)]
        self.records = [[_written(cells[j]) for j in used] for _, cells in rows]
        self.lines = [i for i, _ in rows]
        for area in sheet.merged_cells.ranges:
            if rows and area.max_row > rows[0][0]:
                raise CommandError(f"{self.path} has merged cells {area} in sheet {sheet.title}")
        if rows and any(cell is None for _, cells in rows for cell in cells):
            self._check_formulas(sheet, formulas())

    def _check_formulas(self, values: Worksheet, formulas: Worksheet) -> None:
        """Refuse formulas whose value is not stored, as of programs that do not compute them."""
        for row in formulas.iter_rows():
            for cell in row:
                if cell.data_type == "f" and values[cell.coordinate].value is None:
                    raise CommandError(
                        f"{self.path} has a formula without a value in cell {cell.coordinate} of "
                        f"sheet {values.title}: open it in Excel or LibreOffice and save it"
                    )


def _written(value: object) -> str:
    """Write a cell as a text file would hold it."""
    if value is None:
        return ""
    if isinstance(value, datetime | time):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)


def _sheet(
    book: _Workbook, header: bool | None, decimal: str | None, as_text: Collection[str]
) -> Parsed:
    records, lines = book.records, book.lines
    names: list[str] | None = None
    if records and (are_names(records[0]) if header is None else header):
        names = different([name.strip() for name in records[0]])
        records, lines = records[1:], lines[1:]
    if not records:
        raise CommandError(f"{book.path} holds no rows")
    called = names or [str(i) for i in range(len(records[0]))]
    found = parse(records, called, lines, decimal, as_text)
    found.columns, found.note = names, book.note
    return found
