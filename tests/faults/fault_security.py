"""Hostile input: nothing is unpickled, no value becomes a command or leaves its folder."""

import ast
import itertools
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import types
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fault_damage import READ, mend
from harness import PRESET, ROOT
from pydantic import BaseModel

from diffusionblocks.config import Preset, load_preset, validated
from diffusionblocks.errors import LONGEST, UserError
from diffusionblocks.evaluation.features import read_state
from diffusionblocks.ledger import Ledger

# ------------------------------------------------------------------------------- no pickle at all

#: Modules that run code found in a file, and calls that do unless told otherwise.
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SAFE = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
    ("np", "save"): ("allow_pickle", False),
    ("subprocess", "*"): ("shell", None),
}
FORBIDDEN = {
    ("pd", "read_pickle"), ("pandas", "read_pickle"), ("torch", "save"), ("torch.hub", "load"),
    ("torch.jit", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system"),
    ("os", "popen"), ("builtins", "eval"), ("builtins", "exec"),
}  # fmt: skip


def sources() -> dict[str, str]:
    """Every piece of Python that the suite runs, tests apart: modules and cells of notebooks."""
    found = {}
    for folder in ("src", "benchmarks", "envs"):
        found |= {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        lines = "\n".join(code).splitlines()
        found[path.name] = "\n".join(x for x in lines if not x.lstrip().startswith(("%", "!")))
    return found


def unsafe(code: str) -> list[str]:
    """Lines of Python that may run what a file or a setting says."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [ast.unparse(node) for name in names if name.split(".")[0] in PICKLERS]
        if isinstance(node, ast.Call):
            module, _, name = ast.unparse(node.func).rpartition(".")
            options = {k.arg: getattr(k.value, "value", ...) for k in node.keywords}
            if (module or "builtins", name) in FORBIDDEN:
                found.append(ast.unparse(node))
            key, wanted = SAFE.get((module, name), SAFE.get((module, "*"), (None, None)))
            if key is not None and options.get(key) is not wanted:
                found.append(ast.unparse(node))
            # Only our own loader, which is a SafeLoader.
            if (module, name) == ("yaml", "load") and ast.unparse(node.args[1]) != "_Loader":
                found.append(ast.unparse(node))
    return found


def test_no_source_unpickles_or_calls_a_shell():
    found = {name: unsafe(code) for name, code in sources().items()}
    assert len(found) > 60
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
    ],
)
def test_the_scan_sees_what_is_unsafe(line):
    assert unsafe(line)


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def poisons(trap: Path, scratch: Path) -> list[bytes]:
    """A trap as a plain pickle, as PyTorch's archive, and as an array of objects."""
    torch.save({"network": Trap(trap)}, scratch / "state.pt")
    np.save(scratch / "array.npy", np.array([Trap(trap)], dtype=object), allow_pickle=True)
    files = [(scratch / name).read_bytes() for name in ("state.pt", "array.npy")]
    return [pickle.dumps(Trap(trap), protocol=protocol) for protocol in (0, 5)] + files


@pytest.mark.parametrize(("name", "file"), READ)
def test_a_poisoned_file_is_refused(sweep, faults, tmp_path, name, file):
    trap, (path,) = tmp_path / "sprung", sweep.root.glob(file)
    with faults("file that holds a pickle", f"{path.name}, read by {name}") as row:
        for poison in poisons(trap, tmp_path):
            path.write_bytes(poison)
            sweep.remove(name)
            done = sweep.run(name)
            assert done.code == 2, done.text
            row.hit(done.line)
            assert not trap.exists() and not sweep.contents(name)
            # Even where the digest beside an array vouches for it.
        mend(done.line, sweep.root)
        sweep.finish()
        row["lost"] = sweep.lost(name)
    pickle.loads(poison) if poison[:1] == b"\x80" else pickle.loads(poisons(trap, tmp_path)[0])
    assert trap.exists(), "the trap itself does not work"


def test_poisoned_data_with_a_digest_that_vouches_for_it(sweep, faults, tmp_path):
    from diffusionblocks.files import sha256

    trap, name, description = tmp_path / "sprung", "train block0", sweep.root / "data/dataset.json"
    path = sweep.root / "data/train_images.npy"
    with faults("file that holds a pickle", "train_images.npy with its digest") as row:
        for poison in poisons(trap, tmp_path):
            path.write_bytes(poison)
            record = json.loads(description.read_text())
            record["splits"]["train"]["images_sha256"] = sha256(path)
            description.write_text(json.dumps(record))
            sweep.remove(name)
            done = sweep.run(name)
            assert done.code == 2, done.text
            row.hit(done.line)
            assert not trap.exists()
        mend(done.line, sweep.root)
        sweep.finish()
        row["lost"] = sweep.lost(name)


def test_poisoned_weights_of_an_extractor(faults, tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "weights.pth"
    with faults("file that holds a pickle", "weights of an extractor", REFUSED) as row:
        for poison in poisons(trap, tmp_path):
            path.write_bytes(poison)
            with pytest.raises(UserError) as caught:
                read_state(path)
            row.hit(str(caught.value))
            assert not trap.exists()


# ------------------------------------------------------------------- hostile values in every key

HARMLESS = "refused in one line, or harmless"
REFUSED = "refused in one line"

HOSTILE = [
    "; rm -rf x",
    "$(touch sprung)",
    "`touch sprung`",
    "a && touch sprung",
    "a | touch sprung",
    "a > sprung",
    "'; touch sprung; '",
    '"; touch sprung; "',
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "line\nbreak",
    "line\r\nbreak",
    "nul\0byte",
    "bell\x07and\x1b[31mred",
    "right\u202eto left",
    "zero\u200bwidth",
    "line\u2028separator",
    "{wildcard}",
    "{input}",
    "--option",
    "-x",
    "~",
    "$HOME",
    "*",
    "a b",
    "%s%n",
    "ａｂｃ",
    "x" * 5000,
    "",
    " ",
    ".",
    "..",
]
#: What names of folders, files and wildcards may be made of.
SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def keys(model: type[BaseModel], tree: object = None, above: tuple = ()) -> list[tuple]:
    """Paths of every setting of a schema; "*" stands for an index or a name that a user chooses."""
    found = []
    for name, field in model.model_fields.items():
        found += _of_type(field.annotation, (*above, name))
    return found


def _of_type(annotation, path: tuple) -> list[tuple]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return keys(annotation, above=path)
    if origin is typing.Annotated:
        return _of_type(inner[0], path)
    if origin in (typing.Union, types.UnionType):
        return list(dict.fromkeys(p for a in inner for p in _of_type(a, path)))
    if origin is dict:
        return [(*path, "NAME"), *_of_type(inner[1], (*path, "*"))]
    if origin in (tuple, list):
        return [path, *_of_type(inner[0], (*path, "*"))]
    return [path]


def put(tree: dict, path: tuple, value: str) -> dict:
    """A copy of the tree with a value at a path; what the path needs and lacks is made."""
    tree = json.loads(json.dumps(tree))
    node = tree
    for key, following in itertools.pairwise(path):
        if isinstance(node, list):
            if following == "*" and not isinstance(node[0], list):
                node[0] = [None]
            node = node[0]
            continue
        if key == "*":
            key = next(iter(node))
        empty = [] if following == "*" and key in LISTS else {}
        if node.get(key) in (None, [], {}) or not isinstance(node[key], dict | list):
            node[key] = [{}] if empty == [] else {}
        node = node[key]
    if isinstance(node, list):
        node[0] = value
    elif path[-1] == "NAME":
        node[value] = next(iter(node.values()), {})
    elif path[-1] == "*":
        node[next(iter(node))] = value
    else:
        node[path[-1]] = value
    return tree


def lists_of(model: type[BaseModel]) -> set[str]:
    """Names of the settings that are lists."""
    return {
        path[i - 1]
        for path in keys(model)
        for i, key in enumerate(path)
        if key == "*" and (*path[:i], "NAME") not in keys(model)
    }


LISTS = lists_of(Preset) | lists_of(Ledger)
FULL = PRESET | {
    "memory": {
        "crossings": ["preset"],
        "sweeps": {"plan": {"model": "DiT-S/2", "batch_sizes": [8]}},
    },
    "language": load_preset(ROOT / "workflow/config/presets/smoke.yaml").language.model_dump(
        mode="json", exclude_unset=True
    ),
}
PRESET_KEYS = [path for path in keys(Preset) if path[-1] != "*" or path[-2] in LISTS]


def accepted(path: tuple) -> list[tuple[str, Preset]]:
    """Hostile values that a key takes, with the presets they make; the others are one line."""
    found = []
    for value in HOSTILE:
        try:
            found.append((value, validated(Preset, put(FULL, path, value), "hostile.yaml")))
        except UserError as error:
            line = str(error)
            assert line.isprintable() and "Traceback" not in line and len(line) <= LONGEST + 10
    return found


#: Settings that take any text, where it goes and so why it may.
FREE_TEXT = {("description",)}


@pytest.mark.parametrize("path", PRESET_KEYS, ids=".".join)
def test_hostile_settings(faults, path):
    """Of every key of the schema, new ones included: refused in one line, or harmless."""
    with faults("hostile value", f"preset: {'.'.join(path)}", HARMLESS) as row:
        for value, preset in accepted(path):
            if path in FREE_TEXT:
                continue
            names = [run.name for run in preset.runs()]
            names += [part for run in preset.runs() for part in run.parts]
            names += [*preset.sampling, *preset.memory.sweeps, *map(str, preset.memory.crossings)]
            assert all(SAFE_NAME.fullmatch(name.replace("/", "")) for name in names), (value, names)
            assert not any(name.startswith("-") or ".." in name for name in names)
            for text in strings(preset.model_dump(mode="json", exclude={"description"})):
                assert text.isprintable() and not set(text) & set("{}"), (value, text)
                assert not text.startswith("-")
        row["times"] = len(HOSTILE)


def strings(value) -> list[str]:
    """Every text in a tree, keys included."""
    if isinstance(value, dict):
        return [*value, *(s for v in value.values() for s in strings(v))]
    if isinstance(value, list | tuple):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


def test_every_key_of_the_schema_is_covered():
    named = {key for path in PRESET_KEYS for key in path} - {"*", "NAME"}
    fields, sections = set(), [Preset]
    while sections:
        section = sections.pop()
        for name, field in section.model_fields.items():
            fields.add(name)
            sections += [s for s in _sections(field.annotation) if s is not section]
    assert fields == named
    for path in PRESET_KEYS:
        assert put(FULL, path, "found me") != FULL
        assert "found me" in strings(put(FULL, path, "found me")), path


def _sections(annotation) -> list[type]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for a in typing.get_args(annotation) for s in _sections(a)]


def test_a_key_that_takes_any_text_would_be_seen():
    """The test above can fail: a run's name made of free text is not safe."""
    assert len(accepted(("description",))) == len(HOSTILE)
    assert not any(map(SAFE_NAME.fullmatch, HOSTILE[:12]))


def ledger_keys() -> list[tuple]:
    return [path for path in keys(Ledger) if "*" in path and path[-1] not in ("*", "NAME")]


@pytest.mark.parametrize("path", ledger_keys(), ids=".".join)
def test_hostile_claims(faults, path):
    tree = yaml.safe_load((ROOT / "workflow/config/claims.yaml").read_text())
    with faults("hostile value", f"ledger: {'.'.join(path)}", HARMLESS) as row:
        for value in HOSTILE:
            row["times"] += 1
            try:
                ledger = validated(Ledger, put(tree, path, value), "claims.yaml")
            except UserError as error:
                assert str(error).isprintable()
                continue
            assert all(SAFE_NAME.fullmatch(c.id) for c in ledger.claims), value
            assert all(SAFE_NAME.fullmatch(c.figure or "x") for c in ledger.claims), value


# --------------------------------------------------------------------------- what reaches a shell

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "1"]
#: Everything a shell obeys, in one value.
WORST = "x';touch sprung;\"$(touch sprung)`touch sprung`&touch sprung|touch sprung>sprung #"


def dry(tmp_path, *config: str) -> subprocess.CompletedProcess:
    command = [*SNAKEMAKE, "-n", "-p", "--config", f"results={tmp_path}/results", *config]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def set_to(value: str) -> str:
    """`set=` in a form that Snakemake takes literally: it strips quotes, then reads YAML."""
    return f"set= {json.dumps(value)} "


def test_paths_of_a_preset_reach_the_shell_quoted(faults, tmp_path):
    """The words of every planned command are those that were meant, the worst value among them."""
    worst = tmp_path / WORST
    worst.touch()  # Snakemake plans with files that are there
    settings = {"data.path": str(worst), "evaluation.extractor_weights": str(worst)}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    with faults("hostile value", "commands of every job", HARMLESS) as row:
        done = dry(tmp_path, "preset=cifar10_small", set_to(shlex.join(overrides)))
        assert done.returncode == 0, done.stderr[-2000:]
        commands = [x.strip() for x in done.stdout.splitlines() if "-m diffusionblocks" in x]
        assert len(commands) > 5
        for command in commands:
            lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            # One redirection, two descriptors, nothing else that a shell obeys.
            assert [w for w in words if set(w) <= set("();<>|&")] == [">", ">&"], command
            if "--set" in words:
                assert overrides[0] in words
            row["times"] += 1
        # The weights go to the floor and the evaluations as they are, in --set as YAML.
        assert sum(WORST in " ".join(shlex.split(c)) for c in commands) >= 4


def test_a_hostile_path_runs_nothing(faults, tmp_path):
    """The same value, in a job that really starts."""
    sprung = ROOT / "sprung"
    with faults("hostile value", "a job that really starts", HARMLESS) as row:
        override = f"data.path={json.dumps(f'{tmp_path}/{WORST}')}"
        command = [*SNAKEMAKE, "data", "--config", f"results={tmp_path}/results",
                   "preset=cifar10_small", set_to(shlex.quote(override))]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        row.hit(next(x for x in done.stdout.splitlines() + done.stderr.splitlines()
                     if "diffusionblocks: data.path" in x).strip())  # fmt: skip
        assert done.returncode == 1 and not sprung.exists()


@pytest.mark.parametrize("key", ["preset", "results", "set", "other"])
def test_hostile_words_on_the_command_line_of_snakemake(faults, tmp_path, key):
    # Each start of Snakemake takes seconds, so one value of every kind.
    values = ["; touch sprung", "../../x y", "a\nb", "$(touch sprung)", "\x1b[31m", "-x"]
    with faults("hostile value", f"--config {key}=", HARMLESS) as row:
        for value in values:
            command = [*SNAKEMAKE, "-n", "--config", f"{key}={json.dumps(value)}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
            lines = [x for x in done.stderr.splitlines() if x.startswith("diffusionblocks: ")]
            assert done.returncode == 2 and len(lines) == 1, (value, done.stderr[-1000:])
            assert lines[0].isprintable() and "Traceback" not in done.stderr
            row.hit(lines[0])
            assert not (ROOT / "sprung").exists()


def test_notebooks_come_from_the_repository_only():
    """Every notebook that is run is a literal path under notebooks/, and no setting names one."""
    rules = {p.name: p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk")}
    runs = [line for text in rules.values() for line in text.splitlines() if "-m papermill" in line]
    named = [line for text in rules.values() for line in text.splitlines() if ".ipynb" in line]
    inputs = [line.strip() for line in named if re.search(r"notebook=local\(\"", line)]
    assert runs and all("-m papermill {input.notebook} {output.notebook}" in line for line in runs)
    literal = [
        re.fullmatch(r'notebook=local\("(notebooks/\w+\.ipynb)"\),', line) for line in inputs
    ]
    assert len(inputs) == len(runs) and all(literal)
    tracked = subprocess.run(
        ["git", "ls-files", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {m[1] for m in literal} <= set(tracked)
    assert not [path for path in PRESET_KEYS if any("notebook" in key for key in path)]


# --------------------------------------------------------------------------------------- the hub


def test_the_hub_is_pinned_by_revision_and_digest():
    from diffusionblocks.data.images import CIFAR10_DIGESTS

    for path in (ROOT / "workflow/config/presets").glob("*.yaml"):
        data = load_preset(path).data
        if data.name != "digits":
            assert re.fullmatch(r"[0-9a-f]{40}", data.revision or ""), path
        if data.name == "cifar10":
            assert {*CIFAR10_DIGESTS[data.revision]} == {"train", "test"}, path
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "src/diffusionblocks/data/images.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hf_hub_download"
    ]
    assert calls and all(any(k.arg == "revision" for k in call.keywords) for call in calls)


def test_a_hub_file_of_another_digest_is_refused(faults, tmp_path, monkeypatch):
    import huggingface_hub

    from diffusionblocks.data.images import CIFAR10_DIGESTS, _hub_file

    other = tmp_path / "train.parquet"
    other.write_bytes(b"another data set")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(other))
    with faults("hub file with another digest", "data", REFUSED) as row:
        for revision in CIFAR10_DIGESTS:
            with pytest.raises(UserError, match="differs from its published digest") as caught:
                _hub_file("train", revision, str(tmp_path))
            row.hit(str(caught.value))
