"""Runs every file of fault tests, two at a time, and joins their tables into one.

Each file is a pytest process of its own, so that both cores of a small machine are used.
"""

import csv
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "results/faults.csv"
#: The longest first, so that the last minutes use both cores; those not named come after.
LONGEST = ["workflow", "kills", "damage", "security", "disks", "memory"]


def files() -> list[Path]:
    """Every file of tests, the longest first."""
    found = sorted(Path(__file__).parent.glob("fault_*.py"))
    names = [path.stem.removeprefix("fault_") for path in found]
    order = {name: i for i, name in enumerate(LONGEST)}
    return sorted(found, key=lambda p: order.get(names[found.index(p)], len(order)))


def run(path: Path) -> tuple[int, Path, str]:
    """Exit code, table and report of one file."""
    table = TABLE.parent / "faults" / f"{path.stem.removeprefix('fault_')}.csv"
    table.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"DIFFUSIONBLOCKS_FAULTS": str(table), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(f"{path.name}: {time.monotonic() - began:.0f} s, exit code {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-5_000:], flush=True)
    return done.returncode, table, done.stdout


def join(tables: list[Path]) -> list[dict[str, str]]:
    """Write the one table; returns its rows."""
    rows = []
    for table in tables:
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def summary(rows: list[dict[str, str]]) -> str:
    """The table that the README quotes, in Markdown: a line a kind of fault, and their sum.

    What was not injected (no root, say) or failed stands in the last column with its row's words.
    """
    lines = ["| injected | places | times | lost | afterwards |", "| --- | --- | --- | --- | --- |"]
    for fault in [*dict.fromkeys(row["fault"] for row in rows), "all"]:
        these = [row for row in rows if fault in ("all", row["fault"])]
        cells = [
            fault,
            str(len({row["injected_into"] for row in these})),
            f"{sum(int(row['times']) for row in these):,}",
            ", ".join(sorted({row["lost"] for row in these})),
            "; ".join(dict.fromkeys(row["outcome"] for row in these)) if fault != "all" else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run everything; 1 where a file failed."""
    began = time.monotonic()
    (TABLE.parent / "faults").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(run, files()))
    rows = join([table for _, table, _ in done])
    total = sum(int(row["times"]) for row in rows)
    failed = [code for code, *_ in done if code]
    minutes = (time.monotonic() - began) / 60
    print(summary(rows))
    print(f"{total:,} faults in {minutes:.1f} minutes, {len(failed)} of {len(done)} files failed")
    print(f"table: {TABLE.relative_to(ROOT)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
