"""Verdicts on disk and in words: claims.csv, what stands behind it, and a table for a terminal."""

from pathlib import Path

import pandas as pd

from ..claims import VERDICTS, verdicts
from ..files import atomic_path, write_text
from ..ledger import Ledger
from . import read_setting, read_table
from .measures import sources
from .stability import IDENTITY
from .statistics import measured_on, signed


def percent(value: float) -> str:
    """A relative change in words: "−6.6 %"; empty for NaN."""
    if value != value:
        return ""
    return signed(100 * value, "+.1f" if abs(value) < 10 else "+.0f") + " %"


def amount(row: dict, value: float) -> str:
    """An effect of a verdict in its own unit; empty for NaN.

    A claim that predicts a ratio is told the ratio found, "×2.7", any other the change.
    """
    if value != value:
        return ""
    if row["expected_ratio"] != 1:
        return f"×{row['expected_ratio'] * (1 + value):.3g}"
    return percent(value) if row["unit"] == "relative change" else signed(value, "+.3f")


def interval(row: dict) -> str:
    """The interval of a verdict: "−9.0 % to −4.1 %"; empty where there is none."""
    if row["low"] != row["low"]:
        return ""
    return f"{amount(row, row['low'])} to {amount(row, row['high'])}"


def scale_of(tables: Path) -> str:
    """At what scale a sweep's images were run, in words."""
    setting = read_setting(tables)
    scores = read_table(tables, "scores")
    measured = measured_on(setting, scores[scores["metric"] == "fid"])
    return f"{measured}, {setting.get('iterations', '?')} iterations a block"


def language_scale(tables: Path) -> str:
    """At what scale a language sweep was run, in words."""
    s = read_setting(tables)
    return (
        f"{s['dataset']}, {s['layers']} layers of width {s['width']}, {s['iterations']} iterations "
        "a block"
    )


def text_table(claims: pd.DataFrame) -> str:
    """The verdict table for a terminal: verdict, claim, effect with interval, the paper's."""
    rows = claims.to_dict("records")
    table = [("verdict", "claim", "here", "95 % interval", "seeds", "paper")]
    for row in rows:
        here = amount(row, row["effect"])
        seeds = "exact" if row["exact"] else str(row["n_seeds"])
        seeds = seeds if row["n_seeds"] else ""
        paper = amount(row, row["published_effect"])
        table.append((row["verdict"], row["title"], here, interval(row), seeds, paper))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in table]
    counts = claims["verdict"].value_counts()
    total = ", ".join(f"{counts.get(v, 0)} {v}" for v in VERDICTS)
    scale = "; ".join(dict.fromkeys(row["scale"] for row in rows))
    return "\n".join([f"At this scale: {scale}", "", *lines, "", f"{total}."]) + "\n"


def write_verdicts(
    ledger: Ledger,
    tables: Path | None,
    memory: Path | None,
    language: Path | None,
    published: Path,
    output: Path,
) -> str:
    """Judge every claim from a sweep's tables.

    Args:
        tables: folder of its images' tables; may be absent.
        memory: folder of its memory tables; may be absent.
        language: folder of its language tables; may be absent.
        published: published.csv.
        output: folder for claims.csv, evidence.csv, stability.csv and claims.txt.

    Returns:
        the table for a terminal.
    """
    found = sources(tables, memory, language)
    paper = read_table(published.parent, published.stem, text=True).fillna("")
    scales = {} if language is None else {"language": language_scale(language)}
    floors = {} if language is None else {"language": read_table(language, "floors")}
    scale = "no images" if tables is None else scale_of(tables)
    claims, evidence = verdicts(ledger, found, paper, scale, scales, floors)
    for name, frame in (
        ("claims", claims),
        ("evidence", evidence),
        ("stability", found.get("stability", pd.DataFrame(columns=[*IDENTITY, "metric", "value"]))),
    ):
        with atomic_path(output / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    text = text_table(claims)
    write_text(output / "claims.txt", text)
    return text
