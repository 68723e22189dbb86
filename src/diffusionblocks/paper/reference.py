"""Reference results: a sweep's small tables kept with their provenance, and drawn again from there.

A reference folder holds ``tables/``, ``memory/`` and ``language/``, whichever were run, and
``provenance.json``; never weights. The notebooks and the claims ledger read it instead of a
sweep's results.
"""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_path, read_json, write_json, write_text

TABLES = "scores,floors,validation_loss,training,curves,sampling,setting".split(",")
#: What the sweep made of its tables, for readers without Python; rendering makes it anew.
VERDICT_FILES = ("claims.csv", "evidence.csv", "stability.csv", "claims.txt")
#: What every reference must say of where it comes from.
PROVENANCE = (
    "preset,runs,commits,clean,versions,python,devices,first,last,training_seconds,"
    "sampling_seconds,peak_memory_bytes,peak_memory_kind,extractor,dataset,dataset_note"
).split(",")
#: A reference is read in a browser and lives in the repository: bytes in all.
LARGEST = 20_000_000
#: Bytes of a table above which it is kept compressed: training curves, which nobody reads by eye.
LONG = 2**20
#: Turns a notebook into a page that asks no other machine for anything.
PAGE = (
    "nbconvert --to html --no-input --HTMLExporter.mathjax_url= --HTMLExporter.require_js_url="
).split()
#: What the page of memory reads.
MEMORY_FILES = ("tables/*.csv", "crossing-*.csv", "inference.csv")
#: What else is kept of a sweep where it was made.
KEPT = (
    "tables/samples/*.png",
    "summary/*.csv",
    *(f"memory/{name}" for name in (*MEMORY_FILES, "fixed.csv", "text.csv")),
    "language/tables/*.csv",
    "language/summary/*.csv",
    *(f"tables/{name}" for name in VERDICT_FILES),
)


def _records(results: Path) -> list[dict[str, Any]]:
    """Every JSON of a sweep's runs that says where it comes from."""
    runs = [*(results / "runs").glob("*/*.json"), *(results / "language/runs").glob("*/*.json")]
    found = [read_json(path) for path in sorted(runs)]
    return [record for record in found if "provenance" in record]


def has_images(results: Path) -> bool:
    """Whether a sweep ran its images; its language half may have been run alone."""
    return (results / "runs").is_dir()


def gather(results: Path, preset: str, extractor: str) -> dict[str, Any]:
    """Where a sweep's numbers come from, out of its runs' records, ready for JSON.

    Args:
        extractor: what made the features of its images, or of its texts if it has no images; so
            with sampling, peak memory and data set.

    Raises:
        UserError: there are no runs.
    """
    records = _records(results)
    if not records:
        raise UserError(f"{results}/runs holds no finished run; run the sweep first")
    origins = [record["provenance"] for record in records]
    trained = [r for r in records if "part" in r]
    if has_images(results):
        drawn, described = "trajectories", "data/dataset.json"
    else:
        drawn, described = "tokens", "language/data/text.json"
    sampled = [r for r in records if drawn in r]
    data = read_json(results / described)
    most = max(trained + sampled, key=lambda r: r["peak_memory_bytes"])
    times = sorted(origin["time"] for origin in origins)
    return {
        "preset": preset,
        "runs": len({record["run"]["run"] for record in records}),
        "commits": sorted({str(origin["commit"]) for origin in origins}),
        "clean": all(origin["clean"] for origin in origins),
        "versions": origins[0]["packages"],
        "python": origins[0]["python"],
        "devices": sorted({origin["device"] for origin in origins}),
        "first": times[0],
        "last": times[-1],
        "training_seconds": sum(r["seconds"] for r in trained),
        "sampling_seconds": sum(r["seconds"] for r in sampled),
        "peak_memory_bytes": most["peak_memory_bytes"],
        "peak_memory_kind": most["peak_memory_kind"],
        "extractor": extractor,
        "dataset": data["name"],
        "dataset_note": data["note"],
    }


def _keep(path: Path, target: Path) -> None:
    """Copy a file, or compress a long table; an earlier export of the other kind goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = target.with_name(f"{target.name}.gz")
    if path.suffix == ".csv" and path.stat().st_size > LONG:
        with atomic_path(packed) as temporary:
            # Without a time in its head the same table is the same file.
            temporary.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        target.unlink(missing_ok=True)
    else:
        shutil.copyfile(path, target)
        packed.unlink(missing_ok=True)


def export(results: Path, preset: str, extractor: str, output: Path) -> None:
    """Copy a sweep's tables into a reference folder; provenance.json is written last.

    Tables above ``LONG`` bytes are compressed.

    Raises:
        UserError: a table is missing, or the tables are too large to be kept.
    """
    from ..report.language_tables import TABLES as TEXT_TABLES

    origin = gather(results, preset, extractor)
    if has_images(results):
        files = [results / "tables" / f"{name}.csv" for name in TABLES]
    else:
        files = [results / "language/tables" / f"{name}.csv" for name in TEXT_TABLES]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; build the sweep's tables first")
    files += [path for name in KEPT for path in sorted(results.glob(name)) if path not in files]
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST:
        raise UserError(
            f"the tables of {results} take {size} bytes; expected at most {LARGEST}: "
            "references are small, never weights or samples"
        )
    (output / "provenance.json").unlink(missing_ok=True)
    for path in files:
        _keep(path, output / path.relative_to(results))
    write_json(output / "provenance.json", origin)


def load_provenance(reference: Path) -> dict[str, Any]:
    """Where a reference comes from.

    Raises:
        UserError: it does not say, or leaves something out.
    """
    found = read_json(reference / "provenance.json")
    missing = [key for key in PROVENANCE if key not in found]
    if missing:
        raise UserError(
            f"{reference}/provenance.json lacks {', '.join(missing)}; export the reference again"
        )
    return found


def _notebook(name: str, notebooks: Path, output: Path, parameters: dict[str, str]) -> None:
    """Run a notebook with parameters and write it and its page."""
    made = output / f"{name}.ipynb"
    options = [word for key, value in parameters.items() for word in ("-p", key, value)]
    source = notebooks / f"{name}.ipynb"
    for command in (
        ["papermill", str(source), str(made), "--no-progress-bar", *options],
        [*PAGE, str(made)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{name}.ipynb cannot be drawn from these tables: {last}")


def _origin_in_words(reference: Path, origin: dict[str, Any]) -> str:
    hours = (origin["training_seconds"] + origin["sampling_seconds"]) / 3600
    return (
        f"{reference}: preset {origin['preset']}, {origin['runs']} runs on "
        f"{', '.join(origin['devices'])}, {origin['first']} to {origin['last']}, "
        f"{hours:.3g} hours of training and sampling, largest peak "
        f"{origin['peak_memory_bytes'] / 2**30:.3g} GiB ({origin['peak_memory_kind']}), "
        f"extractor {origin['extractor']}, {origin['dataset_note']}, commit "
        f"{', '.join(origin['commits'])}{'' if origin['clean'] else ' with changes'}"
    )


def render(
    reference: Path, output: Path, ledger: Path, published: Path, notebooks: Path
) -> list[Path]:
    """Judge the claims and draw the notebooks from a reference folder.

    Args:
        ledger: claims.yaml.
        published: published.csv.
        notebooks: folder of the notebooks.

    Returns:
        The pages, and the verdicts in words.

    Raises:
        UserError: the reference lacks provenance or a table.
    """
    from ..ledger import load_ledger
    from ..report.verdicts import write_verdicts

    origin = load_provenance(reference)
    preset, tables = origin["preset"], output / "tables"
    output.mkdir(parents=True, exist_ok=True)
    memory, text_tables = reference / "memory", reference / "language/tables"
    language = text_tables if list(text_tables.glob("*.csv")) else None
    # Without images there may still be verdicts beside where their tables would lie.
    images = reference / "tables" if (reference / "tables/scores.csv").is_file() else None
    text = write_verdicts(
        load_ledger(ledger), images, memory / "tables", language, published, tables
    )
    write_text(output / "verdicts.txt", _origin_in_words(reference, origin) + "\n\n" + text)
    drawn = {"verdict": {"tables": str(tables)}}
    if images is not None:
        drawn["image_quality"] = {
            "tables": str(images),
            "published": str(published),
            "summary_tables": str(output / "summary"),
        }
    # The page of memory reads them all; a sweep that made only some has none.
    if all([*memory.glob(name)] for name in MEMORY_FILES):
        drawn["memory"] = {"tables": str(memory), "summary_tables": str(output / "memory/summary")}
    if language is not None:
        drawn["language_quality"] = {
            "tables": str(language),
            "published": str(published),
            "summary_tables": str(output / "language/summary"),
        }
    pages = []
    for name, parameters in drawn.items():
        figures = output / ("figures" if name == "image_quality" else f"{name}/figures")
        figures.mkdir(parents=True, exist_ok=True)
        if "summary_tables" in parameters:
            Path(parameters["summary_tables"]).mkdir(parents=True, exist_ok=True)
        _notebook(name, notebooks, output, parameters | {"preset": preset, "figures": str(figures)})
        pages.append(output / f"{name}.html")
    return [*pages, output / "verdicts.txt"]
