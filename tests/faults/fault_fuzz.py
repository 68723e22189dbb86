"""Any input gives a valid result or the one-line error: settings, the maths, every file reader."""

import contextlib
import json
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import PRESET, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusionblocks.blocks import Assembled
from diffusionblocks.config import Preset, RunConfig, load_preset, validated
from diffusionblocks.data.images import load_split
from diffusionblocks.errors import LONGEST, UserError
from diffusionblocks.evaluation.digits_cnn import load_digits_cnn
from diffusionblocks.evaluation.features import read_state
from diffusionblocks.evaluation.fidelity import reference_features
from diffusionblocks.files import read_json
from diffusionblocks.ledger import load_ledger
from diffusionblocks.manifest import assemble
from diffusionblocks.noise import GRIDS, TruncatedLogNormal
from diffusionblocks.partition import STRATEGIES, owner, partition
from diffusionblocks.records import DATASET, FLOOR, SAMPLED, SCORES, STATE, TRAINED, read_record
from diffusionblocks.report import read_setting, read_table
from diffusionblocks.report.compare import compare
from diffusionblocks.report.tables import read_curve, write_tables
from diffusionblocks.sampling import SOLVERS, guided, routed
from diffusionblocks.status import status
from diffusionblocks.tensors import load_samples, load_tensors
from diffusionblocks.training.checkpoint import load_checkpoint
from diffusionblocks.training.step import new_state

#: Examples of every property; the same ones in every run.
fuzz = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def one_line():
    """A UserError is an answer; anything else that is raised is not."""
    try:
        yield
    except UserError as error:
        line = str(error)
        assert line.isprintable() and 0 < len(line) <= LONGEST + 10, line


@pytest.fixture
def fuzzed(faults):
    """fuzzed(target, test): the test under hypothesis, its examples counted in the table."""

    def run(target: str, test: Callable) -> None:
        with faults("random input", target, "valid result or one line") as row:

            def counted(*values):
                row["times"] += 1
                test(*values)

            test.__wrapped_with__(counted)()

    return run


def under(*strategies):
    """Marks a function as to be fed by these strategies."""

    def mark(test):
        def feed(counted):
            @fuzz
            @given(st.tuples(*strategies))
            def every(values):
                counted(*values)

            return every

        test.__wrapped_with__ = feed
        return test

    return mark


# --------------------------------------------------------------------------------------- settings

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from([0, -1, 1e308, 10**30, math.nan, math.inf, "", "..", "\x1b[31m", "9" * 5000])
)
trees = st.recursive(
    scalars,
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=8), t, max_size=3),
    max_leaves=6,
)


def places(tree, above=()) -> list[tuple]:
    """Every place of a tree, inner ones too."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in pairs:
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += places(value, (*above, key))
    return found


def replaced(tree, place: tuple, value):
    """A copy of the tree with another value at a place."""
    tree = json.loads(json.dumps(tree))
    node = tree
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return tree


def check_preset(tree) -> None:
    """What the rest of the suite takes for granted of a preset that was accepted."""
    with one_line():
        preset = validated(Preset, tree, "fuzzed.yaml")
        runs = preset.runs()
        assert len({run.name for run in runs}) == len(runs) == len({run.hash for run in runs}) > 0
        for run in runs[:20]:
            again = RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json"))))
            assert again == run and again.hash == run.hash
            layers = [layer for r in run.layer_ranges() for layer in r]
            assert layers == list(range(run.network.layers))
            ranges = partition(run.partition or "equal_mass", law_of(run), run.blocks, run.overlap)
            check_ranges(ranges, law_of(run))


def law_of(run) -> TruncatedLogNormal:
    noise = run.noise
    return TruncatedLogNormal(noise.P_mean, noise.P_std, noise.sigma_min, noise.sigma_max)


def check_ranges(ranges, law) -> None:
    """They tile the whole range from high to low, and training covers what sampling visits."""
    assert ranges[0].sigma_hi == law.sigma_max and ranges[-1].sigma_lo == law.sigma_min
    for above, below in zip(ranges, ranges[1:], strict=False):
        assert above.sigma_lo == below.sigma_hi
    for r in ranges:
        assert law.sigma_min <= r.train_lo <= r.sigma_lo <= r.sigma_hi <= r.train_hi
        assert r.train_hi <= law.sigma_max
        assert all(map(math.isfinite, vars(r).values()))


@pytest.mark.parametrize("section", [*Preset.model_fields])
def test_any_value_in_any_place_of_a_preset(fuzzed, section):
    shipped = validated(Preset, PRESET, "x").model_dump(mode="json", exclude_unset=False)
    known = [p for p in places(shipped) if p[0] == section]

    @under(st.sampled_from(known), trees)
    def place_and_value(place, value):
        check_preset(replaced(shipped, place, value))

    fuzzed(f"preset, section {section}", place_and_value)


def test_any_noise_and_sweep(fuzzed):
    """Numbers that are near valid ones, where rules meet each other."""

    @under(
        st.floats(-60, 60), st.floats(1e-6, 60), st.floats(1e-300, 1e300), st.floats(1e-300, 1e300),
        st.integers(1, 13), st.integers(1, 13), st.floats(0, 10), st.sampled_from([*STRATEGIES]),
    )  # fmt: skip
    def numbers(mean, std, lo, hi, blocks, layers, overlap, strategy):
        tree = replaced(PRESET, ("network", "layers"), layers)
        tree["noise"] = {"P_mean": mean, "P_std": std, "sigma_min": lo, "sigma_max": hi}
        method = "end_to_end" if blocks == 1 else "blockwise_independent"
        variant = {"method": method, "blocks": blocks, "overlap": overlap, "partition": strategy}
        tree["sweep"]["variants"] = [variant]
        check_preset(tree)

    fuzzed("preset, noise against sweep", numbers)


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_any_file_as_a_preset_or_a_ledger(fuzzed, tmp_path, kind):
    file = tmp_path / "fuzzed.yaml"
    anything = st.binary(max_size=300) if kind == "bytes" else st.text(max_size=200).map(str.encode)

    @under(anything, st.text(max_size=40))
    def content(data, override):
        file.write_bytes(data)
        for read in (load_preset, load_ledger):
            with one_line():
                read(file)
        with one_line():
            load_preset(ROOT / "workflow/config/presets/smoke.yaml", [override])

    fuzzed(f"any {kind} as a preset, a ledger or an override", content)


@pytest.mark.parametrize("path", ["presets/smoke.yaml", "claims.yaml"])
def test_damaged_yaml(fuzzed, tmp_path, path):
    whole, file = (ROOT / "workflow/config" / path).read_bytes(), tmp_path / "fuzzed.yaml"
    read = load_ledger if path == "claims.yaml" else load_preset

    @under(st.integers(0, 2**32))
    def damage(seed):
        file.write_bytes(damaged(whole, seed))
        with one_line():
            read(file)

    fuzzed(f"damaged {Path(path).name}", damage)


# -------------------------------------------------------------------------------------- the maths

laws = st.builds(
    lambda mean, std, lo, width: (mean, std, math.exp(lo), math.exp(lo + width)),
    st.floats(-3, 3), st.floats(0.3, 3), st.floats(-8, 0), st.floats(0.05, 12),
)  # fmt: skip


def law_or_none(parameters) -> TruncatedLogNormal | None:
    """The law, or None where its range lies too far out in a tail, which it says."""
    try:
        return TruncatedLogNormal(*parameters)
    except ValueError as error:
        assert "widen the range" in str(error)
        return None


def test_any_partition(fuzzed):
    @under(laws, st.integers(1, 64), st.sampled_from([*STRATEGIES]), st.floats(0, 10), st.floats())
    def cut(parameters, B, strategy, overlap, sigma):
        law = law_or_none(parameters)
        if law is None:
            return
        ranges = partition(strategy, law, B, overlap)
        assert len(ranges) == B
        check_ranges(ranges, law)
        if strategy == "equal_mass":
            masses = [float(law.cdf(r.sigma_hi) - law.cdf(r.sigma_lo)) for r in ranges]
            assert max(abs(m - 1 / B) for m in masses) < 1e-6
        assert 0 <= owner(ranges, sigma) < B
        inside = min(max(sigma, law.sigma_min), law.sigma_max)
        if math.isfinite(sigma) and inside > law.sigma_min:
            r = ranges[owner(ranges, inside)]
            assert r.sigma_lo < inside <= r.sigma_hi

    fuzzed("partition maths", cut)


@pytest.mark.parametrize("solver", [*SOLVERS])
def test_any_sampler(fuzzed, solver):
    """For data that is one point the ODE is linear: every solver ends in the point exactly."""

    @under(laws, st.integers(1, 40), st.sampled_from([*GRIDS]), st.integers(1, 8),
           st.floats(-1, 1), st.floats(0, 5), st.integers(0, 99))  # fmt: skip
    def walk(parameters, steps, grid, B, point, scale, seed):
        law = law_or_none(parameters)
        if law is None:
            return
        sigmas = GRIDS[grid](law, steps)
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() <= 0).all()
        ranges = partition("equal_mass", law, B)
        seen = []

        def block(b):
            def denoise(z, sigma):
                seen.append((b, sigma))
                return torch.full_like(z, point)

            return denoise

        denoise = routed([block(b) for b in range(B)], ranges)
        start = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).double()
        end = SOLVERS[solver](guided(denoise, denoise, scale), start * sigmas[0], sigmas)
        assert end.shape == start.shape and torch.allclose(end, torch.full_like(end, point))
        # Noise only falls, so a block that was left is never entered again.
        assert [b for b, _ in seen] == sorted(b for b, _ in seen)
        calls = steps if solver == "euler" else 2 * steps - 1
        assert len(seen) == calls * (1 if scale == 1 else 2)

    fuzzed(f"sampler {solver}", walk)


# ------------------------------------------------------------------------------------ file readers


def damaged(whole: bytes, seed: int) -> bytes:
    """Bytes changed, cut, repeated, put elsewhere, or others altogether."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice([0, 1, 1, 4, 40, len(data)]))
        kind = rng.randrange(5)
        if kind == 0:
            data[at:to] = b""
        elif kind == 1:
            data[at:to] = rng.randbytes(to - at)
        elif kind == 2:
            data[at:at] = data[at:to][:200]
        elif kind == 3:
            data[at:to] = rng.choice([b"-1", b"null", b"1e999", b"NaN", b"[]", b"{}", b'"', b"\0",
                                      b"\xff\xfe", b"\n", b"9" * 30, b"true"])  # fmt: skip
        elif data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


def typed(whole: bytes, seed: int) -> bytes:
    """JSON that is whole and holds another value in one place."""
    rng = random.Random(seed)
    tree = json.loads(whole)
    value = rng.choice(
        [None, True, -1, 0, 1.5, 2**63, 10**40, "", "../x", "x", [], {}, [[]], 1e308]
    )
    return json.dumps(replaced(tree, rng.choice(places(tree)), value)).encode()


RUNS = "runs/*"
#: what it is → (the file under the sweep's root, how it is read: (sweep, path) → anything)
READERS = {
    "dataset.json": ("data/dataset.json", lambda s, p: load_split(p.parent, "train")),
    "array of images": ("data/train_images.npy", lambda s, p: load_split(p.parent, "train")),
    "digits CNN": ("data/digits_cnn.safetensors", lambda s, p: load_digits_cnn(p)),
    "part.json": (f"{RUNS}/block0.json", lambda s, p: assemble(s.config, p.parent)),
    "part.json in tables": (f"{RUNS}/block0.json", lambda s, p: read_record(p, TRAINED)),
    "weights": (f"{RUNS}/block0.safetensors", lambda s, p: load_tensors(p)),
    "manifest": (f"{RUNS}/manifest.json", lambda s, p: Assembled(p, torch.device("cpu"))),
    "manifest in compare": (f"{RUNS}/manifest.json", lambda s, p: compare(p.parent, p.parent)),
    "samples": (f"{RUNS}/samples-plain.safetensors", lambda s, p: load_samples(p)),
    "samples.json": (f"{RUNS}/samples-plain.json", lambda s, p: read_record(p, SAMPLED)),
    "scores": (f"{RUNS}/scores.json", lambda s, p: read_record(p, SCORES)),
    "scores in tables": (
        f"{RUNS}/scores.json",
        lambda s, p: write_tables(s.parsed, "x", s.root, s.root / "tables"),
    ),
    "scores in compare": (f"{RUNS}/scores.json", lambda s, p: compare(p.parent, p.parent)),
    "curve": (f"{RUNS}/block0-curve.csv", lambda s, p: read_curve(p)),
    "floor": ("data/floor.json", lambda s, p: read_record(p, FLOOR)),
    "any record": ("data/floor.json", lambda s, p: read_json(p)),
    "dataset record": ("data/dataset.json", lambda s, p: read_record(p, DATASET)),
    "status": (f"{RUNS}/scores.json", lambda s, p: status(s.parsed, s.root, 2)),
    "status of parts": (f"{RUNS}/block1.json", lambda s, p: status(s.parsed, s.root, 2)),
    "table": ("tables/scores.csv", lambda s, p: read_table(p.parent, "scores")),
    "setting": ("tables/setting.csv", lambda s, p: read_setting(p.parent)),
    "cache of features": ("cache/*", lambda s, p: cached(s)),
    "PyTorch weights": ("state.pt", lambda s, p: read_state(p)),
    "state.json": ("state/block0/state.json", lambda s, p: read_record(p, STATE)),
    "checkpoint": ("state/block0/step*", lambda s, p: load_checkpoint(p.parent, s.fresh(), "x")),
}


def cached(sweep):
    """Features of the reference images, from the cache where it is whole."""
    split = load_split(sweep.root / "data", "test")
    found = reference_features(
        sweep.root / "cache", split.images[:20], "digits_cnn",
        sweep.root / "data/digits_cnn.safetensors",
    )  # fmt: skip
    assert found.shape == (20, 64) and found.isfinite().all()


@pytest.fixture(scope="module")
def readable(whole, tmp_path_factory):
    """A sweep with one of every file that something reads."""
    from diffusionblocks.training.checkpoint import save_checkpoint

    sweep = whole.copy(tmp_path_factory.mktemp("readable") / "results")
    sweep.parsed = load_preset(sweep.preset)
    sweep.config = sweep.parsed.runs()[0]
    for old in (sweep.root / "cache").iterdir():
        old.unlink()
    cached(sweep)
    torch.save({"a": torch.zeros(2)}, sweep.root / "state.pt")
    sweep.fresh = lambda: new_state(torch.nn.Linear(3, 2), (0.9, 0.999), 0.0, False)
    save_checkpoint(sweep.root / "state/block0", sweep.fresh(), 1, torch.zeros(1, 2), 0.0, "x")
    return sweep


@pytest.mark.parametrize("reader", [*READERS])
def test_any_damage_to_any_file(fuzzed, readable, reader):
    pattern, read = READERS[reader]
    (path,) = readable.root.glob(pattern)
    whole = path.read_bytes()
    read(readable, path)
    kinds = [damaged, typed] if path.suffix == ".json" else [damaged]

    @under(st.integers(0, 2**32), st.sampled_from(kinds))
    def damage(seed, kind):
        path.write_bytes(kind(whole, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with one_line():
                read(readable, path)

    try:
        fuzzed(f"reader: {reader}", damage)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("error", [UserError(""), ValueError("x"), KeyError("x")])
def test_what_is_no_one_line_error_would_be_seen(error):
    with pytest.raises((AssertionError, ValueError, KeyError)), one_line():
        raise error
