"""The language sweep: settings, text on disk, training, continuations and scores."""

import json
import math
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from languages import LANGUAGE, write_preset

from diffusionblocks.cli import main
from diffusionblocks.config import TextDataConfig, load_preset
from diffusionblocks.data.text import (
    EVERY,
    LOADERS,
    SPLITS,
    load_text,
    prepare_text,
    split_by_characters,
    unigram,
)
from diffusionblocks.data.tokenizers import Characters, load_tokenizer, save_tokenizer, train_bpe
from diffusionblocks.errors import UserError
from diffusionblocks.evaluation.text_scoring import bounded_rows, exact_rows, held_out
from diffusionblocks.files import read_json
from diffusionblocks.language_jobs import complete
from diffusionblocks.manifest import assemble, layer_evaluations, write_json
from diffusionblocks.parts import part_of
from diffusionblocks.report.language_tables import matched_rows, read_scores, shared_target
from diffusionblocks.tasks import TASKS
from diffusionblocks.tasks.language import measured_sigma_data
from diffusionblocks.tensors import load_tensors, save_tensors
from diffusionblocks.text_generate import choose, continue_prompts, layer_passes_per_token
from diffusionblocks.text_model import TextModel
from diffusionblocks.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def language_file(tmp_path):
    return write_preset(tmp_path / "tiny.yaml")


@pytest.fixture
def language(language_file):
    return lambda *overrides: load_preset(language_file, overrides).language


@pytest.fixture(scope="session")
def topics(tmp_path_factory):
    """Folder of the prepared embedded text."""
    folder = tmp_path_factory.mktemp("topics")
    file = write_preset(folder / "tiny.yaml")
    prepare_text(load_preset(file).language, folder / "data")
    return folder / "data"


def run_named(language, start):
    return next(r for r in language.runs() if r.name.startswith(start))


def trained(run, name, data, state, stop_after=None):
    def report(done, total, loss):
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    task = TASKS[run.task](run, data, CPU)
    return train(run, part_of(run, name), task, task.ranges, state, time.monotonic, report)


@pytest.fixture(scope="session")
def models(topics, tmp_path_factory):
    """model(start of a run's name, one_block) of runs trained for a few iterations."""
    root = tmp_path_factory.mktemp("runs")
    file = write_preset(root / "tiny.yaml")
    select = ["--preset", str(file)]
    language = load_preset(file).language
    paths = {}

    def path(start):
        if start not in paths:
            run = run_named(language, start)
            folder = root / run.name
            for part in run.parts:
                assert main(["language", "train", *select, "--run", run.name, "--part", part,
                             "--data", str(topics), "--output", str(folder / f"{part}.safetensors"),
                             "--state", str(root / "state" / run.name / part)]) == 0  # fmt: skip
            assert main(["language", "assemble", *select, "--run", run.name, "--parts",
                         str(folder), "--output", str(folder / "manifest.json")]) == 0  # fmt: skip
            paths[start] = folder / "manifest.json"
        return paths[start]

    return path


# ------------------------------------------------------------------------------- settings


def test_a_preset_without_language_is_unchanged(tiny):
    assert tiny().language is None
    assert "language" not in tiny().runs()[0].model_dump(mode="json")


def test_names_are_unique_and_methods_apart(language):
    names = [r.name for r in language().runs()]
    assert names == [
        "end_to_end-s0",
        "end_to_end-x2-s0",
        "independent-B2-equal_mass-overlap0-frozen-s0",
        "independent-B3-equal_mass-overlap0-frozen-s0",
        "interleaved-B3-equal_mass-overlap0-frozen-s0",
        "interleaved-B3-equal_mass-overlap0-joint-s0",
    ]


def test_twice_the_iterations_cost_what_denoising_costs(language):
    """A denoising step passes clean and noisy positions; the baseline catches up with x2."""
    cost = {r.name: layer_evaluations(r) for r in language().runs()}
    assert cost["end_to_end-s0"] == 6 * 4 * 24 * 6
    assert {v for k, v in cost.items() if k != "end_to_end-s0"} == {2 * cost["end_to_end-s0"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"sweep": {"seeds": [0], "variants": [
                {"method": "blockwise_independent", "blocks": 3, "embedding": "joint"}]}},
            "cannot be chained",
        ),
        (
            {"sweep": {"seeds": [0], "variants": [
                {"method": "blockwise_interleaved", "blocks": 3, "embedding": "from_checkpoint"}]}},
            "embedding_checkpoint",
        ),
        ({"data": {"name": "parquet"}}, "needs a path"),
        ({"tokenizer": {"kind": "bpe"}}, "needs vocabulary"),
        ({"tokenizer": {"kind": "characters", "name": "./gpt2"}}, "takes no name"),
        ({"network": {"layers": 6, "width": 18, "heads": 6, "context_length": 24}}, "even number"),
        (
            {"generation": {"plain": {"prompts": 1, "prompt_length": 20, "new_tokens": 9}}},
            "exceed context_length 24",
        ),
        ({"evaluation": {"judge": {}}}, "either name or iterations"),
    ],
)  # fmt: skip
def test_impossible_settings_are_one_line(tmp_path, capsys, change, said):
    file = write_preset(tmp_path / "bad.yaml", **change)
    assert main(["language", "runs", "--preset", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# ------------------------------------------------------------------------------- text


def test_documents_never_straddle_splits():
    documents = {f"d{i}": chr(97 + i % 26) * (40 + 13 * i) for i in range(40)}
    splits = split_by_characters(documents)
    assert sorted(t for texts in splits.values() for t in texts) == sorted(documents.values())
    total = sum(map(len, documents.values()))
    for name, share in (("train", 0.6), ("judge", 0.2), ("validation", 0.1), ("test", 0.1)):
        assert abs(sum(map(len, splits[name])) / total - share) < 0.05


def test_embedded_text_is_whole(topics):
    """Every topic stands in one split, as it is, between ends of documents."""
    from pydoc_data.topics import topics as source

    description = read_json(topics / "text.json")
    assert len(description["text_sha256"]) == 64
    tokenizer = load_tokenizer(topics / "tokenizer.json", description["tokenizer_sha256"])
    found = []
    for split in SPLITS:
        tokens = load_text(topics, split, 24).tokens
        assert tokens[-1] == tokenizer.end
        found += tokenizer.decode(tokens).split("␄")[:-1]
    known = set(tokenizer.alphabet)
    expected = ["".join(c if c in known else "\ufffd" for c in text) for text in source.values()]
    assert sorted(found) == sorted(expected)


def test_windows_lie_side_by_side(topics):
    split = load_text(topics, "test", 24)
    rows = split.windows(torch.arange(split.count(24)), 24)
    assert torch.equal(
        rows.flatten(), torch.from_numpy(split.tokens[: rows.numel()].astype(np.int64))
    )


def test_bpe_round_trips_and_is_stored(tmp_path):
    text = "naïve “quotes” — and\n\ttabs; the theory of the thing " * 20
    tokenizer = train_bpe([text], 300)
    assert 257 < tokenizer.vocabulary <= 300
    save_tokenizer(tmp_path / "tokenizer.json", tokenizer)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    strange = "日本 and the ünseen"
    for t in (text, strange):
        assert again.encode(t) == tokenizer.encode(t)
        assert again.decode(again.encode(t)) == t
    assert len(again.encode(text)) < len(text) / 2
    assert again.end == tokenizer.end


def parquet(folder, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def test_parquet_text(tmp_path):
    texts = [f"book {i} " + "word " * 50 for i in range(20)]
    folder = parquet(tmp_path / "books", {"body": texts})
    data = {"name": "parquet", "path": str(folder), "column": "body"}
    bpe = {"kind": "bpe", "vocabulary": 270}
    file = write_preset(tmp_path / "p.yaml", data=data, tokenizer=bpe)
    assert main(["language", "data", "--preset", str(file), "--output", str(tmp_path / "d")]) == 0
    tokenizer = load_tokenizer(tmp_path / "d/tokenizer.json")
    found = {}
    for split in SPLITS:
        tokens = np.array(load_text(tmp_path / "d", split, 24).tokens)
        ends = np.flatnonzero(tokens == tokenizer.end) + 1
        found[split] = [tokenizer.decode(d[:-1]) for d in np.split(tokens, ends)[:-1]]
    assert found["judge"] == [texts[9], texts[19]]
    assert found["train"] == [t for t in texts if t not in found["judge"]]
    assert found["test"] == texts


@pytest.mark.parametrize("pinned", [None, "b" * 40])
def test_a_hub_set_is_read_at_one_commit_which_its_note_names(monkeypatch, pinned):
    """Four streams that met different states of a set would leak documents between splits."""
    import datasets
    import huggingface_hub

    asked = []

    class Hub:
        def dataset_info(self, name):
            asked.append(name)
            return SimpleNamespace(sha="a" * 40)

    def load_dataset(name, split, streaming, revision):
        assert streaming and revision == (pinned or "a" * 40)
        return [{"text": f"{split} {i}"} for i in range(2 * EVERY)]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, dealt in (("lm1b", 2), ("openwebtext", 3)):
        asked.clear()
        corpus = LOADERS[name](TextDataConfig(name=name, revision=pinned))
        texts = {split: [*corpus.documents[split]()] for split in SPLITS}
        assert len(asked) == (pinned is None) and (pinned or "a" * 40) in corpus.note
        assert len(texts["train"]) == 2 * (EVERY - dealt) and len(texts["judge"]) == 2
        assert len({t for split in texts.values() for t in split}) == sum(map(len, texts.values()))
    with pytest.raises(ValueError, match="takes no revision"):
        TextDataConfig(name="pydoc_topics", revision="b" * 40)


def test_bad_text_is_one_line(tmp_path, capsys):
    def refused(columns, said, **sections):
        folder = parquet(tmp_path / "in", columns) if columns else tmp_path / "nothing"
        data = {"name": "parquet", "path": str(folder)}
        file = write_preset(tmp_path / "bad.yaml", data=data, **sections)
        out = tmp_path / "out"
        assert main(["language", "data", "--preset", str(file), "--output", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
        assert not (out / "text.json").exists() and not list(tmp_path.rglob("*.part"))

    refused({"body": ["a"]}, "expected 'text'")
    refused({"text": ["short"] * 20}, "fewer than one context of 240",
            network={"layers": 6, "width": 16, "heads": 2, "context_length": 240})  # fmt: skip
    refused(None, "does not exist")
    (tmp_path / "nothing").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "nothing" / f"{split}.parquet").write_bytes(b"no parquet")
    refused(None, "not a whole parquet file")
    refused({"text": ["long enough " * 20] * 20}, "cannot load tokeniser",
            tokenizer={"kind": "hub", "name": str(tmp_path / "none.json")})  # fmt: skip


def test_an_altered_text_is_noticed(topics, tmp_path):
    copy = shutil.copytree(topics, tmp_path / "copy")
    tokens = np.fromfile(copy / "test.bin", "<u2")
    tokens[3] += 1
    tokens.tofile(copy / "test.bin")
    with pytest.raises(UserError, match="differs from its digest"):
        load_text(copy, "test", 24)
    with pytest.raises(UserError, match="fewer than one context"):
        load_text(topics, "test", 10**6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("vocabulary"), "vocabulary is missing"),
        (lambda d: d.update(dtype="<f4"), "dtype is no token type"),
        (lambda d: d["splits"]["test"].update(tokens="9"), "splits.test.tokens is no count"),
        (lambda d: d["splits"].pop("judge"), "splits.judge is missing"),
        (lambda d: d.update(dtype="<u4"), "differs from its digest"),
    ],
)
def test_a_damaged_record_of_a_text_is_one_line(topics, tmp_path, change, said):
    copy = shutil.copytree(topics, tmp_path / "copy")
    record = json.loads((copy / "text.json").read_text())
    change(record)
    (copy / "text.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=said) as caught:
        load_text(copy, "test", 24)
    assert "\n" not in str(caught.value)


def test_scores_without_a_generation_are_refused(language, tmp_path):
    score = {
        "metric": "distinct_2", "sampling": "plain", "value": 0.5, "error": None, "better": "",
        "split": "", "extractor": "", "samples": 1, "reference_samples": 0, "note": "",
    }  # fmt: skip
    whole = {
        "iterations": 1,
        "layer_evaluations": 1,
        "scores": [score, score | {"metric": "generative_perplexity"}],
        "bound_curve": [],
        "samples": [],
    }
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(whole))
    assert read_scores(language(), path) == whole
    for damaged, said in (
        (whole | {"scores": [score]}, "no generative_perplexity of generation 'plain'"),
        (whole | {"scores": [score | {"value": "high"}]}, "scores.0.value is no number or none"),
        ({**whole, "samples": None}, "samples is no list"),
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=said):
            read_scores(language(), path)


def test_a_token_outside_the_vocabulary_is_refused():
    tokenizer = Characters("abc")
    assert tokenizer.decode(tokenizer.encode("cab")) == "cab"
    with pytest.raises(UserError, match="token 5 is outside the vocabulary of 5"):
        tokenizer.decode([2, 5])
    with pytest.raises(UserError, match="character 'z'"):
        tokenizer.encode("az", strict=True)


# ------------------------------------------------------------------------------- training


def test_sigma_data_is_the_embedded_text_s_own(language, topics):
    run = run_named(language(), "independent-B3")
    task = TASKS["language"](run, topics, CPU)
    assert torch.allclose(task.table.norm(dim=1), torch.ones(task.vocabulary))
    tokens = torch.from_numpy(np.array(task.train.tokens).astype(np.int64))
    embedded = F.embedding(tokens, task.table)
    direct = embedded.var(0, correction=0).mean().sqrt()
    assert task.preconditioning.sigma_data == pytest.approx(float(direct), rel=1e-4)
    assert abs(task.preconditioning.sigma_data - 1 / 4) < 0.02  # 1/√width
    even = torch.full((task.vocabulary,), 1 / task.vocabulary).double()
    assert measured_sigma_data(task.table, even) != task.preconditioning.sigma_data
    assert float(unigram(task.train).sum()) == pytest.approx(1)


def test_blocks_share_a_frozen_space_and_nothing_else(language, topics, tmp_path):
    run = run_named(language(), "independent-B3")
    emas = {p: trained(run, p, topics, tmp_path / p).ema for p in run.parts}
    start = TASKS["language"](run, topics, CPU).table
    for ema in emas.values():
        assert torch.equal(ema["embedding.weight"], start)
        assert {k.split(".")[1] for k in ema if k.startswith("layers.")} == {"0", "1"}
    assert not torch.equal(emas["block0"]["head.weight"], emas["block1"]["head.weight"])


def test_joint_trains_the_space(language, topics, tmp_path):
    run = run_named(language(), "interleaved-B3-equal_mass-overlap0-joint")
    start = TASKS["language"](run, topics, CPU).table
    assert not torch.equal(trained(run, "all", topics, tmp_path).ema["embedding.weight"], start)


def test_the_space_of_a_checkpoint_is_taken_over(models, topics, tmp_path):
    weights = models("end_to_end-s0").with_name("block0.safetensors")
    variant = {"method": "blockwise_independent", "blocks": 3, "embedding": "from_checkpoint"}
    sweep = {"seeds": [0], "variants": [variant]}
    file = write_preset(tmp_path / "p.yaml", sweep=sweep, embedding_checkpoint=str(weights))
    (run,) = load_preset(file).language.runs()
    table = TASKS["language"](run, topics, CPU).table
    assert torch.equal(table, F.normalize(load_tensors(weights)["embedding.weight"], dim=1))
    save_tensors(tmp_path / "other.safetensors", {"embedding.weight": torch.ones(3, 16)}, {})
    file = write_preset(
        tmp_path / "q.yaml", sweep=sweep, embedding_checkpoint=str(tmp_path / "other.safetensors")
    )
    (run,) = load_preset(file).language.runs()
    with pytest.raises(UserError, match=r"shape \(3, 16\)"):
        TASKS["language"](run, topics, CPU)


@pytest.mark.parametrize("start", ["end_to_end-s0", "independent-B2", "interleaved-B3"])
def test_training_learns(language, topics, tmp_path, start):
    run = run_named(language("language.training.iterations=40"), start)
    history = trained(run, run.parts[0], topics, tmp_path).history[:, 0]
    assert history[-10:].mean() < history[:3].mean() - 0.5


@pytest.mark.parametrize("start", ["end_to_end-s0", "independent-B3", "interleaved-B3"])
def test_a_stopped_job_resumes_to_the_same_bits(language, topics, tmp_path, start):
    run = run_named(language(), start)
    whole = trained(run, run.parts[0], topics, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(run, run.parts[0], topics, tmp_path / "cut", stop_after=3)
    resumed = trained(run, run.parts[0], topics, tmp_path / "cut")
    assert torch.equal(resumed.history, whole.history)
    assert all(torch.equal(resumed.ema[k], v) for k, v in whole.ema.items())


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_bits(language_file, topics, tmp_path):
    """SIGKILL, with no chance to tidy up, as a machine that loses power."""
    run = run_named(load_preset(language_file).language, "independent-B3")
    settings = ["language.training.iterations=60"]

    def command(folder):
        return [
            sys.executable, "-m", "diffusionblocks", "language", "train",
            "--preset", str(language_file), "--set", *settings, "--run", run.name,
            "--part", "block1", "--data", str(topics),
            "--output", str(folder / "block1.safetensors"), "--state", str(folder / "s"),
        ]  # fmt: skip

    folders = [tmp_path / "whole", tmp_path / "killed"]
    victim = subprocess.Popen(command(folders[1]))
    deadline = time.monotonic() + 120
    while not (folders[1] / "s/state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.kill()
    victim.wait()
    assert not (folders[1] / "block1.json").exists(), "it ended before it was killed"
    for folder in folders:
        subprocess.run(command(folder), check=True)
    first, second = (load_tensors(f / "block1.safetensors") for f in folders)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ------------------------------------------------------------------------------- the assembled


def test_blocks_of_different_spaces_are_not_chained(models, tmp_path):
    import shutil

    folder = shutil.copytree(models("independent-B3").parent, tmp_path / "run")
    weights = load_tensors(folder / "block1.safetensors")
    weights["embedding.weight"] = weights["embedding.weight"].flip(0)
    save_tensors(folder / "block1.safetensors", weights, {})
    record = read_json(folder / "manifest.json")
    from diffusionblocks.files import sha256

    record["blocks"][1]["sha256"] = sha256(folder / "block1.safetensors")
    write_json(folder / "manifest.json", record)
    with pytest.raises(UserError, match="different token tables"):
        TextModel(folder / "manifest.json", CPU)


def test_parts_trained_on_different_text_are_not_joined(models, language, tmp_path):
    import shutil

    folder = shutil.copytree(models("independent-B3").parent, tmp_path / "run")
    record = read_json(folder / "block2.json")
    record["language"]["tokenizer_sha256"] = "0" * 64
    write_json(folder / "block2.json", record)
    with pytest.raises(UserError, match="other data than block0"):
        assemble(run_named(language(), "independent-B3"), folder)


@pytest.mark.parametrize("start", ["independent-B3", "interleaved-B3"])
def test_every_sequence_goes_to_the_block_that_owns_its_noise(models, start):
    model = TextModel(models(start), CPU)
    tokens = torch.randint(0, model.vocabulary, (4, 9))
    clean = model.embed(tokens)
    z, sigma = torch.randn_like(clean), torch.tensor([40.0, 0.3, 0.01, 2.0])
    with torch.no_grad():
        found = model.denoiser(z, sigma, clean)
        for row, b in enumerate([0, 1, 2, 0]):
            i = slice(row, row + 1)
            alone = model.block_logits(b, z[i], sigma[i], clean[i])
            assert torch.allclose(found[i], alone, atol=1e-5)


# ------------------------------------------------------------------------------- continuations


def settings(language, **changes):
    return language().generation["plain"].model_copy(update=changes)


@pytest.mark.parametrize("start", ["end_to_end-s0", "independent-B3", "interleaved-B3"])
def test_cached_continuations_equal_recomputed_ones(models, language, start):
    model = TextModel(models(start), CPU)
    prompts = torch.randint(0, model.vocabulary, (5, 8))
    cached = continue_prompts(model, prompts, settings(language), 0, 0)
    again = continue_prompts(model, prompts, settings(language, cache=False), 0, 0)
    assert torch.equal(cached, again) and torch.equal(cached[:, :8], prompts)
    assert cached.shape == (5, 18)
    other = continue_prompts(model, prompts, settings(language), 0, 1)
    assert not torch.equal(cached, other)


@pytest.mark.parametrize("start", ["end_to_end-s0", "independent-B3"])
def test_a_continuation_does_not_depend_on_its_batch(models, language, start):
    model = TextModel(models(start), CPU)
    prompts = torch.randint(0, model.vocabulary, (4, 8))
    whole = continue_prompts(model, prompts, settings(language), 0, 0)
    last = continue_prompts(model, prompts[3:], settings(language), 3, 0)
    assert torch.equal(whole[3:], last)


def test_one_block_on_the_device_at_a_time(models, language):
    model = TextModel(models("independent-B3"), CPU, one_block=True)
    resident = TextModel(models("independent-B3"), CPU)
    moves = []
    for b, network in enumerate(model.blocks):
        network.to = lambda device, b=b: moves.append((b, str(device)))
    prompts = torch.randint(0, model.vocabulary, (2, 8))
    found = continue_prompts(model, prompts, settings(language, residency="one_block"), 0, 0)
    assert torch.equal(found, continue_prompts(resident, prompts, settings(language), 0, 0))
    here = set()
    for b, device in moves:
        # The device is the CPU here, so leaving and arriving alternate.
        here ^= {b}
        assert len(here) <= 1, device


def test_layer_passes_of_a_token(models, language):
    assert layer_passes_per_token(TextModel(models("end_to_end-s0"), CPU), settings(language)) == 6
    model = TextModel(models("independent-B3"), CPU)
    # Six levels of two layers each, then the clean token through the six layers of all blocks.
    assert layer_passes_per_token(model, settings(language, steps=6)) == 6 * 2 + 6
    # One level, at σ_max: only the first block is ever used.
    assert layer_passes_per_token(model, settings(language, steps=1)) == 2 + 2


def test_choices_follow_the_probabilities():
    p = torch.tensor([0.1, 0.6, 0.05, 0.25])
    u = (torch.arange(20000) + 0.5) / 20000
    logits = p.log().expand(20000, 4)

    def shares(temperature, top_p):
        drawn = choose(logits, u, temperature, top_p)
        return torch.bincount(drawn, minlength=4) / len(u)

    assert torch.allclose(shares(1.0, 1.0), p, atol=1e-3)
    assert torch.allclose(shares(0.5, 1.0), p**2 / (p**2).sum(), atol=1e-3)
    kept = torch.tensor([0.0, 0.6, 0.0, 0.25])
    assert torch.allclose(shares(1.0, 0.8), kept / kept.sum(), atol=1e-3)
    assert torch.allclose(shares(1.0, 0.6 - 1e-6), torch.tensor([0.0, 1, 0, 0]))
    edge = choose(logits[:1], torch.tensor([1 - 2**-24]), 1.0, 1.0)
    assert int(edge) == 2


def test_prompts_of_a_user(models, topics, language, capsys):
    found = complete(models("independent-B3"), topics, ["The ", "An if ", "For "],
                     settings(language), 0)  # fmt: skip
    assert [t.startswith(p) for t, p in zip(found, ["The ", "An if ", "For "], strict=True)]
    alone = complete(models("independent-B3"), topics, ["The "], settings(language), 0)
    assert found[0] == alone[0]
    for prompt, said in (("", "a prompt is empty"), ("日", "outside the vocabulary"),
                         ("a" * 20, "exceed")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            complete(models("independent-B3"), topics, ["fine", prompt], settings(language), 0)


def test_another_tokeniser_is_refused(models, topics, language_file, tmp_path, capsys):
    import shutil

    other = shutil.copytree(topics, tmp_path / "other")
    save_tokenizer(other / "tokenizer.json", Characters("abc"))
    output = tmp_path / "out.safetensors"
    code = main(["language", "generate", "--preset", str(language_file), "--manifest",
                 str(models("independent-B3")), "--data", str(other), "--generation", "plain",
                 "--output", str(output)])  # fmt: skip
    assert code == 2 and not output.exists()
    assert "was trained with tokeniser" in capsys.readouterr().err


def test_a_prompt_outside_the_vocabulary_is_refused(models, language):
    model = TextModel(models("independent-B3"), CPU)
    with pytest.raises(UserError, match=f"token {model.vocabulary}"):
        continue_prompts(model, torch.full((1, 3), model.vocabulary), settings(language), 0, 0)


def test_the_verb_generate(models, topics, language_file, tmp_path):
    output = tmp_path / "samples-plain.safetensors"
    assert main(["language", "generate", "--preset", str(language_file), "--manifest",
                 str(models("independent-B2")), "--data", str(topics), "--generation", "plain",
                 "--output", str(tmp_path)]) == 0  # fmt: skip
    assert load_tensors(output)["tokens"].shape == (6, 2, 18)
    record = read_json(output.with_suffix(".json"))
    assert record["tokens"] == 6 * 2 * 10 and record["tokens_per_second"] > 0
    assert record["layer_passes_per_token"] == 4 * 3 + 6


# -------------------------------------------------------------------------------- scores


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary(topics):
    tokenizer = load_tokenizer(topics / "tokenizer.json")
    tokens = torch.arange(2 * 7).view(2, 7) + 2  # characters, each a token

    def ignorant(tokens):
        return torch.full(tokens[:, 1:].shape, -math.log(tokenizer.vocabulary))

    rows = {row["metric"]: row for row in exact_rows(ignorant, tokens, tokenizer)}
    assert rows["next_token_cross_entropy"]["value"] == pytest.approx(
        math.log(tokenizer.vocabulary)
    )
    assert rows["bits_per_character"]["value"] == pytest.approx(math.log2(tokenizer.vocabulary))
    assert rows["likelihood_bound"]["value"] == rows["next_token_cross_entropy"]["value"]


def test_the_bound_starts_from_the_first_block_at_the_highest_noise(models, topics, language):
    model = TextModel(models("independent-B3"), CPU)
    rows, curve = bounded_rows(model, language(), topics, load_tokenizer(topics / "tokenizer.json"))
    found = {row["metric"]: row["value"] for row in rows}
    last = [line for line in curve if line["split"] == "test"][-1]
    assert last["sigma_0"] == pytest.approx(model.run.noise.sigma_max)
    assert last["cross_entropy"] == found["next_token_cross_entropy"]
    # Unit vectors: the prior term is 1/(2σ_max²), and nothing else is left at the last cut.
    assert last["bound"] - last["cross_entropy"] == pytest.approx(0.5 / last["sigma_0"] ** 2)
    cuts = [line["sigma_0"] for line in curve if line["split"] == "test"]
    assert found["bound_sigma_0"] in cuts
    for r in model.ranges:
        assert min(abs(math.log(r.sigma_lo / cut)) for cut in cuts) < 1e-9


def test_held_out_windows_are_whole_contexts_of_their_split(topics, language):
    own = held_out(language(), topics, "validation")
    assert own.shape == (8, 24)
    text = load_text(topics, "validation", 24).tokens.tolist()
    assert own[0].tolist() == text[:24]
    assert not any(row in own.tolist() for row in held_out(language(), topics, "test").tolist())


@pytest.mark.parametrize(
    ("ranges", "wanted", "target"),
    [
        ([(0.1, 0.5), (0.2, 0.6)], 0.3, 0.3),
        ([(0.1, 0.5), (0.2, 0.6)], 0.9, 0.5),
        ([(0.1, 0.5), (0.2, 0.6)], 0.0, 0.2),
        ([(0.1, 0.2), (0.3, 0.6)], 0.25, None),
    ],
)
def test_the_diversity_that_every_run_reaches(ranges, wanted, target):
    assert shared_target(ranges, wanted) == target


def test_runs_are_compared_where_they_are_equally_varied(language):
    """ln perplexity is linear in diversity, so interpolation must find it exactly."""
    plain = LANGUAGE["generation"]["plain"]
    both = language(f"language.generation.cold={plain | {'temperature': 0.5}}")

    def scores(slope):
        return {
            "scores": [
                {"sampling": name, "metric": metric, "value": value, "extractor": "own",
                 "samples": 6}
                for name, diversity in (("plain", 0.8), ("cold", 0.2))
                for metric, value in (("distinct_2", diversity),
                                      ("generative_perplexity", math.exp(slope * diversity)))
            ]
        }  # fmt: skip

    rows = matched_rows(both, {"a": scores(1.0), "b": scores(2.0)}, real=0.65)
    assert rows["a"]["value"] == pytest.approx(math.exp(0.65))
    assert rows["b"]["value"] == pytest.approx(math.exp(1.3))
    assert rows["a"]["note"] == "distinct_2=0.65"
