"""Memory tables: rows with ratios, as text to read, CSV and JSON; sizes in words."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json, write_text

UNITS = {"B": 1}
for _power, _letter in enumerate("KMGT", 1):
    UNITS |= {f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power}

#: Columns that name a point; those that do not vary are left out of the text.
SETTINGS = (
    "method,blocks,batch_size,precision,checkpointing,optimizer,optimizer_state,resident,layers"
).split(",")


def size_text(nbytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1, for instance 23.4 GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes >= UNITS[unit]:
            return f"{nbytes / UNITS[unit]:.3g} {unit}"
    return f"{nbytes:.0f} B"


def parse_size(text: str) -> int:
    """Bytes of a text such as 24GiB, 500MB or 1000000.

    Raises:
        UserError: the text is no size above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found and (found.group(2) or "B")
    if not found or unit not in UNITS or float(found.group(1)) == 0:
        raise UserError(f"found size {text!r}; expected a number and a unit, for instance 24GiB")
    return int(float(found.group(1)) * UNITS[unit])


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each row's peak relative to B = 1 in the same settings, and the difference to the plan.

    Adds ``ratio`` (of the planned peaks), ``ideal_ratio`` (1/B) and, where a row was measured,
    ``measured_ratio`` and ``difference`` ((measured − planned)/planned).
    """
    # The settings that only block-wise training has do not separate it from B = 1.
    apart = ("method", "blocks", "layers_per_block", "resident", "optimizer_state")

    def settings(row: dict[str, Any]) -> tuple:
        names = [name for name in POINT_COLUMNS if name not in apart]
        return tuple(row[name] for name in names)

    whole = {settings(row): row for row in rows if row["blocks"] == 1}
    completed = []
    for row in rows:
        base = whole.get(settings(row))
        extra: dict[str, Any] = {
            "ideal_ratio": 1 / row["blocks"],
            "ratio": row["planned_bytes"] / base["planned_bytes"] if base else None,
        }
        if "formula_bytes" in row:
            extra["formula_ratio"] = row["formula_bytes"] / base["formula_bytes"] if base else None
        if "measured_bytes" in row:
            planned, measured = row["planned_bytes"], row["measured_bytes"]
            known = measured is not None
            whole_measured = base["measured_bytes"] if base else None
            extra["difference"] = (measured - planned) / planned if known else None
            extra["measured_ratio"] = (
                measured / whole_measured if known and whole_measured else None
            )
        completed.append(row | extra)
    return completed


POINT_COLUMNS = (
    "model,layers,width,heads,patch,image_size,channels,classes,method,blocks,layers_per_block,"
    "batch_size,accumulation,precision,checkpointing,optimizer,optimizer_state,resident"
).split(",")


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same columns as CSV; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_rows(rows: Sequence[dict[str, Any]], csv_path: Path | None, json_path: Path | None):
    """Write rows where a file is named."""
    if csv_path is not None:
        write_text(csv_path, csv_text(rows))
    if json_path is not None:
        write_json(json_path, list(rows))


def _cell(name: str, value: Any, unit: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return f"{value / UNITS[unit]:.3f}"
    if name in ("difference",):
        return f"{100 * value:+.2f} %"
    if isinstance(value, float):
        return f"{value:.3g}" if name.startswith("seconds") else f"{value:.3f}"
    return str(value)


def text(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as an aligned text table: settings that vary, then the named columns that exist.

    Bytes are in GiB, or in MiB where all are below 1 GiB.
    """
    varied = [n for n in SETTINGS if n in rows[0] and len({row[n] for row in rows}) > 1]
    varied = [n for n in varied if n not in columns]
    shown = [n for n in columns if any(row.get(n) is not None for row in rows)]
    most = max((row[n] or 0 for row in rows for n in shown if n.endswith("_bytes")), default=0)
    unit = "GiB" if most >= UNITS["GiB"] else "MiB"
    head = [n.removesuffix("_bytes").replace("_", " ") for n in (*varied, *shown)]
    body = [[_cell(n, row.get(n), unit) for n in (*varied, *shown)] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in [head, *body]]
    same = ", ".join(
        f"{n.replace('_', ' ')} {_cell(n, rows[0][n], unit)}"
        for n in ("model", *SETTINGS)
        if n in rows[0] and n not in varied
    )
    return "\n".join([f"{same}; sizes in {unit}", *lines])
