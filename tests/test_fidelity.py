"""Scores against closed forms, direct computations and torch-fidelity's own front door."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch_fidelity import calculate_metrics

from diffusionblocks.data.images import load_split
from diffusionblocks.errors import UserError
from diffusionblocks.evaluation import fidelity
from diffusionblocks.evaluation.digits_cnn import DigitsCNN, save_digits_cnn
from diffusionblocks.evaluation.fidelity import (
    KID_SUBSETS,
    ImageDataset,
    Score,
    features,
    frechet_distance,
    reference_features,
    scores,
)
from diffusionblocks.evaluation.nearest import nearest_distances


def normal(count: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def by_name(rows: list[Score]) -> dict[str, float]:
    return {row.metric: row.value for row in rows}


def frechet(mean1, cov1, mean2, cov2) -> float:
    """The Fréchet distance between two Gaussians, by a symmetric square root."""
    root = linalg.sqrtm(cov1)
    cross = linalg.sqrtm(root @ cov2 @ root)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * cross).real)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained digits CNN: its features are as good for arithmetic as any."""
    path = tmp_path_factory.mktemp("weights") / "digits_cnn.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_digits_cnn(path, DigitsCNN().state_dict())
    return path


@pytest.fixture(scope="module")
def images(digits):
    """Two sets of real digits that differ: 200 as they are, 150 darkened."""
    real = load_split(digits, "train").images
    return real[:200], real[200:350] // 2


def test_fid_is_the_formula():
    one, two = normal(80, 12, 0), normal(90, 12, 1) * 1.5 + 0.3
    moments = [
        m for x in (one, two) for m in (x.double().numpy().mean(0), np.cov(x.double().T.numpy()))
    ]
    assert frechet_distance(one, two) == pytest.approx(frechet(*moments), rel=1e-9)


def test_fid_of_gaussians_approaches_its_closed_form():
    """Diagonal covariances: |μ₁ − μ₂|² + Σ (s₁ − s₂)²."""
    means = torch.tensor([0.0, 1.0, -2.0, 0.5])
    scales = torch.tensor([1.0, 2.0, 0.5, 1.5])
    exact = (means**2).sum() + ((scales - 1) ** 2).sum()
    estimate = frechet_distance(normal(40000, 4, 0), normal(40000, 4, 1) * scales + means)
    assert estimate == pytest.approx(exact.item(), rel=0.02)


def test_fid_of_a_set_with_itself_is_zero_even_without_full_rank():
    assert frechet_distance(normal(300, 20, 0), normal(300, 20, 0)) == pytest.approx(0, abs=1e-6)
    rank_deficient = normal(50, 200, 0)
    assert frechet_distance(rank_deficient, rank_deficient) == pytest.approx(0, abs=1e-3)


def test_scores_agree_with_calculate_metrics(images, weights):
    """The same extractor, by its registered name, through torch-fidelity's front door."""
    one, two = images
    ours = by_name(
        scores(features(one, "digits_cnn", weights), features(two, "digits_cnn", weights), seed=7)
    )
    theirs = calculate_metrics(
        input1=ImageDataset(one, "digits_cnn"),
        input2=ImageDataset(two, "digits_cnn"),
        feature_extractor="digits_cnn",
        feature_extractor_weights_path=str(weights),
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=150,
        kid_subsets=KID_SUBSETS,
        rng_seed=7,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=0.01)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=0.01)
    assert ours["fid"] > 1e-3


def test_kid_is_unbiased_and_fid_is_not():
    """Over pairs of draws from one distribution KID averages 0; FID never falls below it."""
    pairs = [by_name(scores(normal(60, 8, 2 * i), normal(60, 8, 2 * i + 1), i)) for i in range(40)]
    kid = np.array([p["kid"] for p in pairs])
    assert abs(kid.mean()) < 3 * kid.std(ddof=1) / np.sqrt(len(kid))
    assert kid.min() < 0 < kid.max()
    assert min(p["fid"] for p in pairs) > 0.1


def test_kid_matches_the_direct_sum():
    """Where a subset is the whole of both sets: mean k(x, x') + mean k(y, y') − 2 mean k(x, y)."""
    x, y = normal(40, 6, 0).double(), normal(40, 6, 1).double() + 0.5

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
    exact = within - 2 * kernel(x, y).mean()
    assert by_name(scores(x, y, 0))["kid"] == pytest.approx(exact.item(), rel=1e-9)


def test_precision_and_recall_at_their_ends():
    real = normal(100, 5, 0)
    same = by_name(scores(real, real, 0))
    assert same["precision"] == same["recall"] == 1
    far = by_name(scores(real + 100, real, 0))
    assert far["precision"] == far["recall"] == 0
    # A few real images repeated: every sample is real, most real images are missed.
    collapsed = by_name(scores(real[:5].repeat(20, 1), real, 0))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.2


def test_scores_state_what_they_rest_on():
    rows = scores(normal(30, 50, 0), normal(20, 50, 1), seed=0)
    assert [row.metric for row in rows] == ["fid", "kid", "precision", "recall"]
    assert [row.better for row in rows] == ["lower", "lower", "higher", "higher"]
    assert {(r.samples, r.reference_samples, r.dimensions) for r in rows} == {(30, 20, 50)}
    assert rows[0].note == "covariances of rank ≤ 19"
    assert rows[1].note == f"mean of {KID_SUBSETS} subsets of 20"
    assert rows == scores(normal(30, 50, 0), normal(20, 50, 1), seed=0)


def test_too_few_or_broken_features_are_refused():
    with pytest.raises(UserError, match="at least 4"):
        scores(normal(3, 5, 0), normal(30, 5, 0), 0)
    broken = normal(30, 5, 0)
    broken[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        scores(broken, normal(30, 5, 0), 0)
    with pytest.raises(UserError, match="reference images"):
        scores(normal(30, 5, 0), broken, 0)


def test_reference_features_are_computed_once(images, weights, tmp_path, monkeypatch):
    one, two = images
    first = reference_features(tmp_path, one, "digits_cnn", weights)
    assert torch.equal(first, features(one, "digits_cnn", weights))
    other = reference_features(tmp_path, two, "digits_cnn", weights)
    assert len(list(tmp_path.iterdir())) == 2

    def never(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(fidelity, "features", never)
    assert torch.equal(reference_features(tmp_path, one, "digits_cnn", weights), first)
    assert torch.equal(reference_features(tmp_path, two, "digits_cnn", weights), other)
    # A part of the images, or other weights, are another key.
    with pytest.raises(AssertionError, match="computed again"):
        reference_features(tmp_path, one[:-1], "digits_cnn", weights)
    retrained = tmp_path / "retrained.safetensors"
    save_digits_cnn(retrained, DigitsCNN().state_dict())
    with pytest.raises(AssertionError, match="computed again"):
        reference_features(tmp_path, one, "digits_cnn", retrained)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_cache_is_computed_again(images, weights, tmp_path, kept):
    first = reference_features(tmp_path, images[0], "digits_cnn", weights)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert torch.equal(reference_features(tmp_path, images[0], "digits_cnn", weights), first)
    assert path.read_bytes() == whole


def test_a_cache_of_another_key_is_computed_again(images, weights, tmp_path):
    expected = reference_features(tmp_path / "a", images[0], "digits_cnn", weights)
    reference_features(tmp_path / "b", images[1], "digits_cnn", weights)
    (right,), (wrong,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    right.write_bytes(wrong.read_bytes())
    found = reference_features(tmp_path / "a", images[0], "digits_cnn", weights)
    assert torch.equal(found, expected)


def test_nearest_distance_is_brute_force(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 20, 20), dtype=torch.uint8, generator=generator)
    queries, references = images[:20], images[20:].clone()
    references[3] = queries[5]  # a copy
    references[4] = queries[6]
    references[4, 0, 0, 0] ^= 1  # one value in 1,200 differs by one
    differences = queries[:, None].double() / 255 - references[None].double() / 255
    expected = differences.square().mean((2, 3, 4)).sqrt().amin(1)
    for size in (7, 1000):
        monkeypatch.setattr("diffusionblocks.evaluation.nearest.QUERIES", size)
        monkeypatch.setattr("diffusionblocks.evaluation.nearest.REFERENCES", size)
        found = nearest_distances(queries, references)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert found[5] == 0
    assert found[6].item() == pytest.approx(1 / 255 / 1200**0.5, rel=1e-6)


def test_nearest_distance_of_black_and_white_is_one():
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert nearest_distances(black, black + 255).item() == 1
