"""Latent data sets: encoding, its cache, training and sampling through the autoencoder."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from papers import CLASSES, autoencoder, image_folder, tiny_latents
from PIL import Image

from diffusionblocks import jobs
from diffusionblocks.blocks import Assembled
from diffusionblocks.config import load_preset
from diffusionblocks.data import latents as module
from diffusionblocks.data.autoencoder import decode, load_autoencoder
from diffusionblocks.data.imagenet import SIDE, centre, open_images, spread
from diffusionblocks.data.latents import channels, load_latents, scaled, statistics, unscaled
from diffusionblocks.data.sources import LatentSource
from diffusionblocks.errors import UserError
from diffusionblocks.evaluation.validation import validation_losses
from diffusionblocks.files import write_json
from diffusionblocks.manifest import assemble
from diffusionblocks.randomness import stream
from diffusionblocks.tensors import load_tensors

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="the extra latents is not installed"
)


def quiet(*_):
    return lambda *progress: None


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def file(tmp_path_factory, images, weights):
    return tiny_latents(tmp_path_factory.mktemp("preset"), images, weights)[0]


@pytest.fixture(scope="module")
def preset(file):
    return load_preset(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory, preset):
    folder = tmp_path_factory.mktemp("data")
    jobs.prepare_data(preset, folder)
    jobs.encode_latents(preset, folder, quiet)
    return folder


def test_the_middle_of_an_image_at_the_shorter_side():
    ramp = np.zeros((512, 1024, 3), np.uint8)
    ramp[:, 256:768, 0] = 200
    found = centre(Image.fromarray(ramp))
    assert found.shape == (3, SIDE, SIDE) and found.dtype == np.uint8
    # 512 × 1024 shrinks to 256 × 512, of which columns 128 … 383 stay: all of the bright part.
    assert (found[0, :, 4:-4] == 200).all() and not found[1:].any()
    grey = centre(Image.new("L", (100, 300), 7))
    assert grey.shape == (3, SIDE, SIDE) and (grey == 7).all()


def test_scored_images_are_spread_over_a_sorted_set():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 10).tolist() == [0, 1, 2]


def test_the_cache_holds_what_the_autoencoder_says(preset, data, weights):
    split = load_latents(data, "train", 0.5)
    table = open_images(preset.data, "train")
    assert split.moments.shape == (6, 8, 32, 32) and split.classes == len(CLASSES)
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    pixels = torch.from_numpy(centre(table[4]["image"]))[None].float() / 127.5 - 1
    with torch.inference_mode():
        latent = load_autoencoder(str(weights), torch.device("cpu")).encode(pixels).latent_dist
    expected = torch.cat([latent.mean, latent.std], 1)[0]
    assert torch.allclose(split.moments[4].float(), expected, rtol=2e-3, atol=2e-3)


def test_scaled_latents_have_deviation_sigma_data(data):
    split = load_latents(data, "train", 0.5)
    source = LatentSource(split, "auto", torch.device("cpu"))
    assert source.shape == (4, 32, 32)
    index = torch.arange(source.count).repeat(20)
    y, label = source.examples(index, stream("cpu", "draws"))
    assert torch.equal(label, split.labels[index])
    assert y.mean((0, 2, 3)).abs().max() < 0.02
    assert (y.std((0, 2, 3)) - 0.5).abs().max() < 0.02
    assert not torch.equal(y[0], y[source.count]), "every visit draws anew"
    own = channels(split.space, "cpu")
    assert torch.allclose(unscaled(scaled(y, *own, 0.5), *own, 0.5), y, atol=1e-5)


def test_channel_statistics_are_those_of_draws():
    rng = np.random.default_rng(1)
    mean = rng.normal(3, 2, (4, 2, 5, 5))
    std = rng.uniform(0.1, 1, (4, 2, 5, 5))
    found = statistics(np.concatenate([mean, std], 1).astype(np.float16))
    draws = mean + std * rng.standard_normal((20000, *mean.shape))
    np.testing.assert_allclose(found[0], draws.mean((0, 1, 3, 4)), atol=0.01)
    np.testing.assert_allclose(found[1], draws.std((0, 1, 3, 4)), atol=0.01)


def test_encoding_goes_on_where_it_was_stopped(tmp_path, preset, data, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(module, "RECORD_EVERY", 2)
    real, calls = module.encode, []

    def failing(model, batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(module, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        jobs.encode_latents(preset, tmp_path, quiet)
    assert not (tmp_path / "latents.json").exists()
    assert not list(tmp_path.glob("train_*.npy")), "half a cache must not look whole"
    jobs.encode_latents(preset, tmp_path, quiet)
    # Two of three batches of the first split were kept; then one of it and three of the other.
    assert len(calls) == 3 + 1 + 3
    for split in ("train", "test"):
        ours, whole = (load_latents(folder, split, 0.5) for folder in (tmp_path, data))
        assert torch.allclose(ours.moments.float(), whole.moments.float(), atol=1e-3)
        assert torch.equal(ours.labels, whole.labels)
    assert not list(tmp_path.glob(".*"))


def test_progress_of_another_autoencoder_is_not_gone_on_with(tmp_path, preset, monkeypatch):
    (tmp_path / ".train_latents.json").write_text(json.dumps({"identity": "other", "done": 6}))
    for kind, shape in (("latents", (6, 8, 32, 32)), ("latent_labels", (6,))):
        dtype = np.float16 if kind == "latents" else np.int64
        with (tmp_path / f".train_{kind}.npy.unfinished").open("wb") as file:
            np.save(file, np.full(shape, 5, dtype))
    jobs.encode_latents(preset, tmp_path, quiet)
    assert load_latents(tmp_path, "train", 0.5).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_damaged_cache_is_refused(tmp_path, data):
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "test_latents.npy"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(UserError, match="differs from its digest"):
        load_latents(tmp_path, "test", 0.5)


def train_and_assemble(preset, run, data, folder):
    for part in run.parts:
        output = folder / f"{part}.safetensors"
        assert jobs.train_part(run, part, data, output, folder / "state" / part, lambda *a: None)
    write_json(folder / "manifest.json", assemble(run, folder))
    return folder / "manifest.json"


def test_from_latents_to_pictures(tmp_path, preset, data, weights):
    run = preset.run("independent-B2-equal_mass-overlap0-s0")
    manifest = train_and_assemble(preset, run, data, tmp_path)
    output = tmp_path / "samples.safetensors"
    assert jobs.sample_run(manifest, preset.sampling["plain"], output, lambda *a: None)
    samples = load_tensors(output)
    assert samples["images"].shape == (6, 3, SIDE, SIDE)
    assert samples["images"].dtype == torch.uint8
    model = Assembled(manifest, torch.device("cpu"))
    assert model.image_shape == (4, 32, 32)
    rows = validation_losses(model, load_latents(data, "test", 0.5), preset.evaluation)
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) for row in rows)
    # The decoder gets latents in its own units: a mean image decodes as the channels' means do.
    own = channels(model.manifest["images"]["latents"], "cpu")
    network = load_autoencoder(str(weights), torch.device("cpu"))
    undo = jobs.image_decoder(model.manifest["images"], 0.5, torch.device("cpu"))
    flat = own[0].expand(1, 4, 32, 32)
    assert torch.equal(undo(torch.zeros(1, 4, 32, 32)), decode(network, flat))


def test_another_autoencoder_is_refused_at_sampling(tmp_path, preset, data):
    run = preset.run("end_to_end-s0")
    manifest = train_and_assemble(preset, run, data, tmp_path)
    record = json.loads(manifest.read_text())
    record["images"]["latents"]["autoencoder_sha256"] = "0" * 64
    manifest.write_text(json.dumps(record))
    with pytest.raises(UserError, match="other weights than the latents were"):
        jobs.sample_run(manifest, preset.sampling["plain"], tmp_path / "s.safetensors", quiet)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="need the package diffusers"):
        load_autoencoder("anything", torch.device("cpu"))


def test_weights_that_are_none_are_one_line(tmp_path):
    with pytest.raises(UserError, match="data.autoencoder: cannot load"):
        load_autoencoder(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.autoencoder=null", "imagenet256 needs autoencoder"),
        ("data.scored_images=null", "imagenet256 needs scored_images"),
        ("network.patch=3", "patch 3 does not divide"),
    ],
)
def test_settings_of_latents_are_checked(file, override, says):
    with pytest.raises(UserError, match=says):
        load_preset(file, [override])


def test_a_missing_folder_is_one_line(tmp_path, preset):
    elsewhere = preset.data.model_copy(update={"path": tmp_path})
    with pytest.raises(UserError, match="train does not exist; expected train and val"):
        open_images(elsewhere, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError):
        open_images(elsewhere, "train")


def test_pixels_have_no_latents(tmp_path, tiny):
    with pytest.raises(UserError, match="digits is trained on pixels"):
        jobs.encode_latents(tiny(), tmp_path, quiet)
