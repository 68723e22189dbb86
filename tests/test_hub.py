"""What comes from the hub is named with its commit, and asked for with it."""

import ast
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from diffusionblocks.config import JudgeConfig, TokenizerConfig, load_preset
from diffusionblocks.errors import UserError
from diffusionblocks.hub import pinned

COMMIT = "0123456789" * 4


def test_a_name_is_pinned_or_a_path():
    assert pinned(f"owner/na-me.1@{COMMIT}") == ("owner/na-me.1", COMMIT)
    for path in ("/a/b", "./a", "../a@b"):
        assert pinned(path) == (path, None)
    for name in ("gpt2", "owner/name", f"owner/name@{COMMIT[:7]}", f"name@{COMMIT}", "a/b@main"):
        with pytest.raises(ValueError, match="owner/name@COMMIT"):
            pinned(name)
    with pytest.raises(ValueError, match="owner/name@COMMIT"):
        TokenizerConfig(kind="hub", name="owner/name")
    with pytest.raises(ValueError, match="owner/name@COMMIT"):
        JudgeConfig(name="gpt2-xl")


def test_models_are_asked_for_by_commit_and_without_pickle(monkeypatch):
    import torch
    import transformers

    from diffusionblocks.evaluation.text.featurizers import featuriser
    from diffusionblocks.evaluation.text.judge import hub_judge

    asked = []

    def refuse(name, **options):
        asked.append((name, options))
        raise OSError("no such thing")

    def have(name, **options):
        asked.append((name, options))
        return SimpleNamespace(bos_token_id=0)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", have)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    for load in (
        lambda: hub_judge(f"a/b@{COMMIT}", torch.device("cpu")),
        lambda: featuriser("gpt2-large"),
    ):
        asked.clear()
        with pytest.raises(UserError, match="cannot load"):
            load()
        (_, tokenizer), (name, model) = asked
        assert "@" not in name and len(tokenizer["revision"]) == len(model["revision"]) == 40
        assert model["use_safetensors"] and "local_files_only" not in model


def test_tokenisers_and_autoencoders_are_asked_for_by_commit(monkeypatch):
    import torch

    from diffusionblocks.data.autoencoder import load_autoencoder
    from diffusionblocks.data.tokenizers import hub_tokenizer

    asked = []

    class Loader:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append((name, options["revision"]))
            raise OSError("no such thing")

    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Loader))
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(AutoencoderKL=Loader))
    with pytest.raises(UserError, match="cannot load tokeniser"):
        hub_tokenizer(f"a/b@{COMMIT}")
    with pytest.raises(UserError, match="data.autoencoder: cannot load"):
        load_autoencoder(f"c/d@{COMMIT}", torch.device("cpu"))
    assert asked == [("a/b", COMMIT), ("c/d", COMMIT)]


def test_every_preset_loads_with_pinned_names_and_no_other_loader_is_called():
    for path in (ROOT / "workflow/config/presets").glob("*.yaml"):
        load_preset(path)  # its schema refuses a name without a commit
    callers = {
        path.name
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    assert callers == {"featurizers.py", "judge.py", "tokenizers.py", "autoencoder.py"}
