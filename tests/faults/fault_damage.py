"""Files cut short, emptied or altered: the reader names them, and the mend that it names works."""

import random
import re
import shutil
from pathlib import Path

import pytest
from harness import moments

#: (what reads it, the file under the sweep's root)
READ = [
    ("train block0", "data/train_images.npy"),
    ("train block0", "data/train_labels.npy"),
    ("train block0", "data/dataset.json"),
    ("assemble", "runs/*/block0.safetensors"),
    ("assemble", "runs/*/block1.json"),
    ("sample", "runs/*/block1.safetensors"),
    ("sample", "runs/*/manifest.json"),
    ("score", "runs/*/samples-plain.safetensors"),
    ("score", "data/digits_cnn.safetensors"),
    ("tables", "runs/*/scores.json"),
    ("tables", "runs/*/block0-curve.csv"),
    ("tables", "runs/*/samples-plain.json"),
    ("tables", "data/floor.json"),
]


def damages(whole: bytes, seed: str) -> list[bytes]:
    """Cut at a random place, emptied, all zeros, with one byte changed."""
    rng = random.Random(seed)
    place = rng.randrange(len(whole) // 2, len(whole))
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    return [whole[: rng.randrange(1, len(whole))], b"", bytes(len(whole)), changed]


def mend(line: str, root: Path) -> None:
    """Do what a message says: delete the file or folder that it names."""
    named = re.search(r"delete (/\S+)", line) or re.search(
        r"(/\S+?):? (is|does|holds|differs)", line
    )
    path = Path(named[1])
    assert path.is_relative_to(root), line
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "file"), READ)
def test_a_damaged_file(sweep, faults, name, file):
    (path,) = sweep.root.glob(file)
    whole = path.read_bytes()
    found = damages(whole, file)
    # JSON carries no digest of its own: one changed character may be another valid number.
    kinds = found[:3] if path.suffix == ".json" else found
    with faults("damaged file", f"{path.name}, read by {name}") as row:
        for damaged in kinds:
            path.write_bytes(damaged)
            sweep.remove(name)
            done = sweep.run(name)
            assert done.code == 2, (len(damaged), done.text)
            row.hit(done.line)
            assert not sweep.contents(name), "something was made of a damaged file"
            mend(done.line, sweep.root)
            sweep.finish()
            row["lost"] += sweep.lost(name) + sweep.lost("tables")
            assert path.exists()


def test_a_damaged_cache_is_computed_again(sweep, faults):
    with faults("damaged file", "cache of features, read by score") as row:
        for file in (sweep.root / "cache").iterdir():
            whole = file.read_bytes()
            for damaged in damages(whole, file.name):
                file.write_bytes(damaged)
                for output in sweep.stage("score").outputs:
                    output.unlink(missing_ok=True)
                assert sweep.run("score").code == 0
                row.hit()
                assert file.read_bytes() == whole
                row["lost"] += sweep.lost("score")


@pytest.mark.parametrize("file", ["state.json", "step-*.safetensors"])
def test_a_damaged_checkpoint(sweep, faults, file):
    """The message names the folder to delete; the part is then trained from its start."""
    name, state = "train block0", sweep.root / "state/block0"
    with faults("damaged file", f"{file.replace('-*', '')}, a checkpoint") as row:
        for seed in moments(file, 3, 1.0):
            sweep.remove(name)
            process = sweep.start(name)
            while not (state / "state.json").exists():
                pass
            process.kill(), process.wait()
            (path,) = state.glob(file)
            path.write_bytes(damages(path.read_bytes(), str(seed))[0])
            done = sweep.run(name)
            assert done.code == 2, done.text
            row.hit(done.line)
            assert not sweep.contents(name)
            mend(done.line, sweep.root)
            assert sweep.run(name).code == 0
            row["lost"] += sweep.lost(name)
