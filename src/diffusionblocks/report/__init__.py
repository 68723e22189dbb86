"""From tidy tables to statistics and figures; reads what the other stages wrote, runs nothing."""

import gzip
import zlib
from pathlib import Path

import pandas as pd

from ..errors import UserError

#: Columns that hold names; an empty cell is the empty name, not a missing number.
NAMES = (
    "run,task,dataset,method,partition,layers_per_block,sampling,solver,metric,better,split,"
    "extractor,version,table,model,notes,kind,embedding,note"
).split(",")


#: The column that tells runs of a learning-rate sweep apart; absent where there is none.
RATE = "learning_rate_scale"


def read_table(
    folder: Path, name: str, text: bool = False, every_rate: bool = False
) -> pd.DataFrame:
    """Read one tidy table.

    Args:
        folder: where ``<name>.csv`` lies, or ``<name>.csv.gz``, as references keep long ones.
        name: for instance ``scores``.
        text: read every cell as text.
        every_rate: keep the runs of a learning-rate sweep, and name the rate of every run (1
            where the table names none). Otherwise only runs at the preset's own rate are kept:
            the others are there to be unstable, and would be taken for repeats.

    Raises:
        UserError: the file is missing or holds no header.
    """
    path = Path(folder) / f"{name}.csv"
    packed = path.with_name(f"{name}.csv.gz")
    if packed.is_file() and not path.is_file():
        path = packed
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a table of the sweep: build the tables")
    try:
        frame = pd.read_csv(path, dtype=str if text else {"layers_per_block": str})
    # ValueError: bytes that are no text, and what pandas makes of half a table.
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole table ({error}); delete it and build it again"
        ) from None
    for column in frame.columns.intersection(NAMES):
        if frame[column].isna().any():
            # A column of empty cells is read as numbers; it is a column of empty names.
            frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
    if every_rate:
        return frame if RATE in frame else frame.assign(**{RATE: 1.0})
    if RATE in frame and not text:
        return frame[frame[RATE] == 1].drop(columns=RATE).reset_index(drop=True)
    return frame


def read_setting(folder: Path) -> dict[str, str]:
    """The preset's settings and provenance, ``setting.csv``, as text by key."""
    table = read_table(folder, "setting", text=True).fillna("")
    if not {"key", "value"} <= set(table.columns):
        raise UserError(
            f"{Path(folder) / 'setting.csv'} has columns {[*table.columns]}; expected key and "
            "value: delete it and build it again"
        )
    return dict(zip(table["key"], table["value"], strict=True))


def setting_number(setting: dict[str, str], key: str) -> float:
    """A number out of the settings.

    Raises:
        UserError: the key is missing or its value is no number.
    """
    found = setting.get(key)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise UserError(
            f"setting.csv has {found!r} for {key}; expected a number: build the tables again"
        ) from None
