"""Presets: every mistake is one line that names the key, what was found and the mend."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffusionblocks.config import PARTITIONS, Preset, RunConfig, load_preset
from diffusionblocks.errors import UserError

PRESETS = sorted((Path(__file__).parent.parent / "workflow/config/presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_shipped_presets_are_valid(path):
    preset = load_preset(path)
    assert preset.runs()


def test_the_default_preset_covers_the_papers_grid():
    (path,) = [p for p in PRESETS if p.stem == "default"]
    preset = load_preset(path)
    found = {(r.method, r.blocks, r.partition, r.overlap) for r in preset.runs()}
    wanted = {("end_to_end", 1, None, 0.0)}
    for B in (2, 3, 4, 6):
        for partition in ("equal_mass", "uniform_log_sigma"):
            wanted.add(("blockwise_independent", B, partition, 0.0))
    wanted.add(("blockwise_independent", 3, "uniform_sigma", 0.0))
    wanted |= {("blockwise_independent", 3, "equal_mass", g) for g in (0.05, 0.1)}
    wanted.add(("blockwise_interleaved", 3, "equal_mass", 0.0))
    assert wanted <= found
    assert len(preset.sweep.seeds) >= 3
    assert preset.network.layers == 12


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.iteration=5", "training.iteration: unknown key; did you mean 'iterations'"),
        ("trainig.iterations=5", "trainig: unknown key; did you mean 'training'"),
        ("network.depth=5", "network.depth: unknown key"),
        ("training.iterations=0", "training.iterations: found 0; "),
        ("training.iterations=many", "training.iterations: found 'many'"),
        ("training.learning_rate=.nan", "training.learning_rate: found nan"),
        ("training.accumulation=3", "accumulation"),
        ("training.label_dropout=1", "training.label_dropout"),
        ("evaluation.extractor=clip", "evaluation.extractor: found 'clip'"),
        ("noise.sigma_min=90", "sigma_min 90.0 is not below sigma_max 80.0; swap them"),
        ("data.name=mnist", "data.name: found 'mnist'"),
        ("data.path=/x", "digits are embedded and take no path"),
        ("network.heads=5", "must be a multiple of heads 5"),
        ("network.patch=3", "patch 3 does not divide the 8 pixels of digits"),
        ("sweep.seeds=[]", "sweep.seeds"),
        ("sweep.seeds=[-1]", "sweep.seeds.0: found -1"),
        ("sampling={}", "sampling"),
        ("sampling={'a b': {samples: 3}}", "sampling"),
        ("sampling.plain.solver=rk4", "sampling.plain.solver: found 'rk4'"),
        ("sampling.plain.guidence=2", "did you mean 'guidance'"),
        ("compute.device=tpu", "compute.device"),
        ("task=audio", "task: found 'audio'"),
    ],
)
def test_wrong_settings_are_named(tiny, override, says):
    with pytest.raises(UserError) as caught:
        tiny(override)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ({"method": "blockwise"}, "sweep.variants.0.method: found 'blockwise'"),
        ({"method": "end_to_end", "blocks": 3}, "one block is end_to_end"),
        ({"method": "blockwise_independent", "blocks": 1}, "one block is end_to_end"),
        ({"method": "blockwise_independent", "blocks": 12}, "lower blocks"),
        ({"method": "blockwise_independent", "blocks": 4}, "do not divide"),
        (
            {"method": "blockwise_independent", "blocks": 3, "layers_per_block": [1, 2, 4]},
            "adds up to 7",
        ),
        (
            {"method": "blockwise_independent", "blocks": 2, "partition": "equal_maas"},
            "unknown partition 'equal_maas'; did you mean 'equal_mass'",
        ),
        (
            {"method": "blockwise_independent", "blocks": 2, "overlap": -0.1},
            "overlap.0: found -0.1",
        ),
        ({"method": "blockwise_independent", "block": 2}, "did you mean 'blocks'"),
    ],
)
def test_wrong_sweeps_are_named(tiny_file, variant, says):
    tree = yaml.safe_load(tiny_file.read_text())
    tree["sweep"]["variants"] = [variant]
    tiny_file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as caught:
        load_preset(tiny_file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_preset(tmp_path):
    (tmp_path / "smoke.yaml").write_text("{}")
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        load_preset(tmp_path / "smoek.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_preset(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="holds no settings"):
        load_preset(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("description: x")
    with pytest.raises(UserError, match="this key is missing; add it"):
        load_preset(tmp_path / "empty.yaml")


@pytest.mark.parametrize("override", ["=3", "a b=3", "../x=1", "training.iterations", "a..b=1"])
def test_overrides_have_a_form(tiny, override):
    with pytest.raises(UserError, match="section.key=value"):
        tiny(override)


def test_overrides_that_cut_through_a_value(tiny):
    with pytest.raises(UserError, match="holds a value"):
        tiny("task.name=1")
    with pytest.raises(UserError, match="not YAML"):
        tiny("training.iterations=[")


@given(st.text(max_size=60))
def test_any_override_is_valid_or_one_line(text):
    path = PRESETS[0]
    try:
        assert isinstance(load_preset(path, [text]), Preset)
    except UserError as error:
        assert "\n" not in str(error)


def test_names_are_unique_and_safe_for_folders(tiny):
    runs = tiny().runs()
    names = [r.name for r in runs]
    assert len(set(names)) == len(names)
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyzB0123456789_.-") for n in names)
    assert tiny().run(names[0]) == runs[0]
    with pytest.raises(UserError, match="did you mean 'end_to_end-s0'"):
        tiny().run("end_to_end-s1")


def test_the_hash_changes_with_every_setting_of_a_run(tiny):
    base = tiny().runs()[1]
    changed = {
        tiny(o).runs()[1].hash
        for o in ("training.iterations=9", "network.width=32", "noise.P_std=1.3", "sweep.seeds=[1]")
    }
    assert len(changed) == 4 and base.hash not in changed
    # How a run is sampled or scored does not touch what was trained.
    assert tiny("sampling.plain.steps=9").runs()[1].hash == base.hash
    assert RunConfig.model_validate(base.model_dump(mode="json")).hash == base.hash


def test_uneven_layers_and_products_of_lists(tiny_file):
    tree = yaml.safe_load(tiny_file.read_text())
    tree["sweep"]["variants"] = [
        {
            "method": "blockwise_independent",
            "blocks": 3,
            "partition": list(PARTITIONS[:2]),
            "overlap": [0, 0.05],
            "layers_per_block": [None, [1, 4, 1]],
        }
    ]
    tiny_file.write_text(yaml.safe_dump(tree))
    runs = load_preset(tiny_file).runs()
    assert len(runs) == 8
    assert {r.identity()["layers_per_block"] for r in runs} == {"2-2-2", "1-4-1"}
