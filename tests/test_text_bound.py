"""The likelihood bound on a source whose entropy and exact denoiser have closed forms.

A Markov chain over V tokens embedded as unit vectors. Given the clean past the posterior of token
i under z = e + σε is softmax(ln p(· | previous token) + z·e/σ²): the exact denoiser.
"""

import math

import pytest
import torch
from torch import nn

from diffusionblocks.errors import UserError
from diffusionblocks.evaluation.text.bound import (
    bound_samples,
    choose_cut,
    curve,
    cut_grid,
    quoted_bound,
)
from diffusionblocks.evaluation.text.estimate import bits_per_character, mean_estimate
from diffusionblocks.evaluation.text.likelihood import (
    denoising_nats,
    next_token_log_probs,
    sequence_nats,
    token_nats,
)
from diffusionblocks.randomness import stream

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
V, D = 3, 4
TABLE = torch.nn.functional.normalize(torch.randn(V, D, generator=stream("cpu", "table")), dim=1)
LONG_RUN = torch.linalg.matrix_power(P.double(), 200)[0]
ENTROPY = float(-(LONG_RUN[:, None] * P.double() * P.double().log()).sum())
CUTS = cut_grid([0.1, 0.4, 2.0, 80.0], 2)


def text(n, length, *key):
    """n sequences of the chain, from its long-run law: int64 [n, length]."""
    generator = stream("cpu", "text", *key)
    tokens = torch.multinomial(LONG_RUN.float(), n, True, generator=generator)[:, None]
    for _ in range(length - 1):
        step = torch.multinomial(P[tokens[:, -1]], 1, generator=generator)
        tokens = torch.cat([tokens, step], 1)
    return tokens


def previous(clean):
    """The token before each position, out of the clean vectors; 0 before the first."""
    tokens = (clean @ TABLE.T).argmax(-1)
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)


def exact(z, sigma, clean):
    return P[previous(clean)].log() + z @ TABLE.T / sigma.view(-1, 1, 1) ** 2


class Learner(nn.Module):
    """A denoiser that could become exact: a table of priors and a scale that depends on σ."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(V, V))
        self.scale = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, z, sigma, clean):
        scale = self.scale(sigma.log()[:, None]).exp().unsqueeze(2)
        return self.prior[previous(clean)] + scale * (z @ TABLE.T)


def test_exact_denoiser_is_flat_and_at_the_entropy():
    samples = bound_samples(exact, TABLE, text(1500, 9, 0), CUTS, draws=6, seed=1)
    rows = curve(samples)
    assert [row["sigma_0"] for row in rows] == CUTS.tolist()
    for row in rows:
        assert row["bound"] == pytest.approx(ENTROPY, abs=3.5 * row["bound_error"])
        assert row["excess"] == pytest.approx(0, abs=max(3.5 * row["excess_error"], 1e-12))
        assert 0 < row["bound_error"] < 0.02
    # The parts move by far more than their errors while the sum stays.
    assert rows[0]["integral"] > 0.5 and rows[0]["cross_entropy"] < 0.3
    assert rows[-1]["integral"] == 0 and rows[-1]["excess_error"] == 0


def overconfident_low(z, sigma, clean):
    """Exact above σ = 1 and too sure of itself below."""
    return torch.where(sigma < 1, 3.0, 1.0).view(-1, 1, 1) * exact(z, sigma, clean)


def test_a_wrong_denoiser_is_not_flat():
    rows = curve(bound_samples(overconfident_low, TABLE, text(300, 9, 0), CUTS, draws=3, seed=1))
    wrong, right = rows[3], rows[4]  # the cuts on either side of σ = 1
    assert wrong["excess"] > 5 * wrong["excess_error"]
    assert abs(right["excess"]) < 3.5 * right["excess_error"]
    assert all(row["bound"] > ENTROPY - 3.5 * row["bound_error"] for row in rows)


def test_bound_closes_to_the_entropy_with_training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = Learner()
    tokens, held_out = text(2000, 9, "train"), text(600, 9, "held out")
    own = sequence_nats(lambda t: P.log()[t[:, :-1], t[:, 1:]], held_out)

    def gaps():
        samples = bound_samples(learner, TABLE, held_out, CUTS, draws=3, seed=2)
        # Against the exact model on the same text: less noise than against the entropy.
        return [mean_estimate(column) for column in (samples.nats - own[:, None]).T]

    before = gaps()
    optimiser = torch.optim.Adam(learner.parameters(), 0.03)
    generator = stream("cpu", "training")
    for _ in range(400):
        batch = tokens[torch.randint(len(tokens), (128,), generator=generator)]
        low, high = math.log(CUTS[0]), math.log(CUTS[-1])
        sigma = (low + (high - low) * torch.rand(128, generator=generator)).exp()
        e = TABLE[batch]
        z = e + sigma.view(-1, 1, 1) * torch.randn(e.shape, generator=generator)
        loss = nn.functional.cross_entropy(learner(z, sigma, e).flatten(0, 1), batch.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for gap_before, gap in zip(before, gaps(), strict=True):
        assert gap_before.value > 0.1
        assert -3.5 * gap.error < gap.value < 0.15 * gap_before.value


def test_standard_errors_cover():
    scores = []
    for repeat in range(60):
        tokens = text(40, 5, "repeat", repeat)
        row = curve(bound_samples(exact, TABLE, tokens, CUTS[::3], draws=2, seed=repeat))[0]
        scores.append((row["bound"] - ENTROPY) / row["bound_error"])
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 0.5
    assert 0.7 < float(scores.std()) < 1.35


def test_batches_do_not_change_the_numbers():
    tokens = text(7, 6, 3)
    one, many = (
        bound_samples(exact, TABLE, tokens, CUTS[::3], draws=2, seed=5, batch_size=b)
        for b in (7, 2)
    )
    assert torch.allclose(one.nats, many.nats, rtol=1e-5)
    other = bound_samples(exact, TABLE, tokens, CUTS[::3], draws=2, seed=6)
    assert not torch.allclose(one.nats, other.nats, rtol=1e-3)


def test_first_position_is_not_scored():
    def lost_at_first(z, sigma, clean):
        logits = exact(z, sigma, clean).clone()
        logits[:, 0] = -50 * torch.arange(V)
        return logits

    tokens = text(20, 4, 4)
    a, b = (denoising_nats(d, TABLE, tokens, 80.0, seed=0) for d in (exact, lost_at_first))
    assert torch.equal(a, b)


def test_cross_entropy_at_sigma_max_is_that_of_the_past_alone():
    tokens = text(300, 9, 5)
    denoised = denoising_nats(exact, TABLE, tokens, 80.0, seed=0)
    own = sequence_nats(lambda t: P.log()[t[:, :-1], t[:, 1:]], tokens)
    assert torch.allclose(denoised, own, atol=0.02)
    assert float((denoised - own).abs().mean()) < 5e-3


def test_cut_grid_holds_every_boundary():
    edges = [0.002, 0.17962, 0.50504, 80.0]
    cuts = cut_grid(edges, 3)
    assert len(cuts) == 10 and set(edges) <= set(cuts.tolist())
    assert torch.allclose(cuts[:4].log().diff(), cuts[1:4].log().diff()[0].expand(3))


def test_the_cut_is_chosen_on_validation_and_quoted_on_test():
    validation, test = (
        bound_samples(overconfident_low, TABLE, text(100, 5, name), CUTS, 2, seed=3)
        for name in ("validation", "test")
    )
    sigma, estimate = quoted_bound(validation, test)
    k = choose_cut(validation)
    assert sigma == float(CUTS[k]) and sigma > 0.4
    assert estimate == mean_estimate(test.nats[:, k])
    other = bound_samples(exact, TABLE, text(5, 5, 0), CUTS[1:], 1, seed=3)
    with pytest.raises(UserError, match="one grid"):
        quoted_bound(validation, other)


def test_next_token_log_probs_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    found = next_token_log_probs(logits, torch.tensor([[1, 0, 1]]))
    expected = [2 - math.log(math.exp(2) + 1), 1 - math.log(math.e + 1)]
    assert found[0].tolist() == pytest.approx(expected)


def test_bits_per_character_of_a_uniform_model():
    tokens = torch.arange(12).view(2, 6)
    nats = token_nats(lambda t: torch.full((len(t), 5), -math.log(16)), tokens, batch_size=1)
    estimate = bits_per_character(mean_estimate(nats.mean(1)), tokens=10, characters=40)
    assert estimate.value == pytest.approx(1.0) and estimate.error == pytest.approx(0)
    assert estimate.n == 2
    assert math.isnan(mean_estimate(torch.ones(1)).error)
    with pytest.raises(UserError, match="0 characters"):
        bits_per_character(estimate, 10, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([[0, 3]])}, "token 3; expected numbers from 0 to 2"),
        ({"tokens": torch.tensor([[0, -1]])}, "token -1"),
        ({"tokens": torch.zeros(2, 1, dtype=torch.long)}, "at least 1 of 2"),
        ({"tokens": torch.zeros(0, 4, dtype=torch.long)}, "0 sequences"),
        ({"tokens": torch.zeros(4)}, "shape"),
        ({"cuts": [0.5, 0.5]}, "rising"),
        ({"cuts": [0.0, 0.5]}, "positive"),
        ({"draws": 0}, "0 draws"),
        ({"denoiser": lambda z, s, c: z[..., :V] * math.nan}, "not finite"),
    ],
)
def test_bad_input_gives_one_line(change, message):
    arguments = {"denoiser": exact, "table": TABLE, "tokens": text(2, 4, 0), "cuts": CUTS}
    with pytest.raises(UserError, match=message) as error:
        bound_samples(**(arguments | {"draws": 1, "seed": 0} | change))
    assert "\n" not in str(error.value)


def test_bad_levels_and_models_give_one_line():
    with pytest.raises(UserError, match="noise level 0"):
        denoising_nats(exact, TABLE, text(2, 4, 0), 0.0, seed=0)
    with pytest.raises(UserError, match="0 cuts a block"):
        cut_grid([0.1, 1.0], 0)
    with pytest.raises(UserError, match="not finite"):
        token_nats(lambda t: torch.full((len(t), 3), -math.inf), text(2, 4, 0))
