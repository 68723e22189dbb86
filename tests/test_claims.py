"""The ledger: verdicts on simulated truth, rates of error, and what changes a verdict."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sweeps
import yaml

from diffusionblocks import claims as cl
from diffusionblocks.cli import main
from diffusionblocks.errors import UserError
from diffusionblocks.ledger import Claim, Ledger, cells, load_ledger
from diffusionblocks.report import read_table
from diffusionblocks.report.measures import sources
from diffusionblocks.report.verdicts import text_table

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "workflow/config/claims.yaml"
PUBLISHED = ROOT / "workflow/config/published.csv"

PLAIN = {
    "id": "c",
    "title": "t",
    "wording": "w",
    "task": "images",
    "source": "scores",
    "metric": "fid",
    "treatment": {"method": "blockwise_independent", "blocks": 3},
    "baseline": {"method": "end_to_end"},
    "direction": "lower",
    "comparison": "better",
    "matters": 0.05,
}


def claim(**changes):
    return Claim.model_validate(PLAIN | changes)


def ledger(*claims):
    return Ledger(claims=claims)


def verdict(effects, **changes):
    one = claim(**changes)
    return cl.judge(ledger(one), {"c": effects})["c"].verdict


def published():
    return read_table(PUBLISHED.parent, "published", text=True).fillna("")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return sweeps.write_sweep(tmp_path_factory.mktemp("sweep"))


# ------------------------------------------------------------------------------ error rates

#: True effects of the simulated claims, positive as claimed, in deviations of one seed.
NULL, HELPS, HARMS = 0.0, 3.0, -3.0


def simulated_ledgers(truths, n_seeds, repeats, rng):
    """Verdicts on ledgers of `better` claims with those true effects, ledger by ledger."""
    book = ledger(*(claim(id=f"c{i}", scale="difference") for i in range(len(truths))))
    for _ in range(repeats):
        drawn = rng.normal(truths, 1.0, (n_seeds, len(truths)))
        # Lower is claimed, so an effect in the claim's favour is negative.
        yield [
            j.verdict for j in cl.judge(book, dict(zip(_ids(book), -drawn.T, strict=True))).values()
        ]


def _ids(book):
    return [c.id for c in book.claims]


def false_verdict(truth, found):
    return (found == cl.SUPPORTED and truth <= 0) or (found == cl.CONTRADICTED and truth >= 0)


ALL_NULL, MIXED = [NULL] * 12, [NULL] * 6 + [HELPS] * 3 + [HARMS] * 3


@pytest.mark.parametrize(
    ("truths", "n_seeds"), [(ALL_NULL, 3), (ALL_NULL, 5), (MIXED, 3), (MIXED, 5), (MIXED, 10)]
)
def test_a_whole_ledger_holds_a_false_verdict_at_most_once_in_twenty(truths, n_seeds, capsys):
    repeats = 250
    rng = np.random.default_rng(n_seeds)
    wrong = right = decidable = 0
    for found in simulated_ledgers(truths, n_seeds, repeats, rng):
        pairs = list(zip(truths, found, strict=True))
        wrong += any(false_verdict(*pair) for pair in pairs)
        right += sum(t != 0 and v in (cl.SUPPORTED, cl.CONTRADICTED) for t, v in pairs)
        decidable += sum(t != 0 for t in truths)
    # 250 ledgers estimate a rate of 5 % to within ± 1.4 points (one deviation).
    assert wrong / repeats <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / repeats)
    if decidable:
        with capsys.disabled():
            print(f"\n  power at {n_seeds} seeds, effect of 3 deviations: {right / decidable:.0%}")
        assert right / decidable >= {3: 0.02, 5: 0.5, 10: 0.99}[n_seeds]


@pytest.mark.parametrize("comparison", ["no_worse", "near"])
@pytest.mark.parametrize("side", [-1, 1])
def test_claims_with_a_margin_err_seldom_at_the_margin(comparison, side):
    one = claim(comparison=comparison, scale="difference", matters=1.0, direction="higher")
    rng = np.random.default_rng(4)
    edge = -1.0 if comparison == "no_worse" else side * 1.0
    found = [
        cl.judge(ledger(one), {"c": rng.normal(edge, 0.3, 5)})["c"].verdict for _ in range(500)
    ]
    # On the margin itself either verdict is a false one.
    assert np.mean([v != cl.INCONCLUSIVE for v in found]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


# ------------------------------------------------------------------------------ single verdicts


@pytest.mark.parametrize(
    ("effects", "changes", "expected"),
    [
        ([-0.30, -0.31, -0.32], {}, cl.SUPPORTED),
        ([0.30, 0.31, 0.32], {}, cl.CONTRADICTED),
        ([0.30, 0.31, 0.32], {"direction": "higher"}, cl.SUPPORTED),
        ([-0.9, 0.1, 0.4], {}, cl.INCONCLUSIVE),
        ([-0.010, -0.011, -0.012], {}, cl.INCONCLUSIVE),  # shown, but smaller than matters
        ([0.010, 0.011, 0.012], {"comparison": "no_worse"}, cl.SUPPORTED),
        ([0.30, 0.31, 0.32], {"comparison": "no_worse"}, cl.CONTRADICTED),
        ([0.010, 0.011, 0.012], {"comparison": "near"}, cl.SUPPORTED),
        ([-0.30, -0.31, -0.32], {"comparison": "near"}, cl.CONTRADICTED),
        ([-0.3, -0.3, -0.3], {}, cl.INCONCLUSIVE),  # no spread, as counts often have none
        ([-0.30, -0.31], {}, cl.NOT_TESTED),
        ([], {}, cl.NOT_TESTED),
        ([-0.3], {"exact": True, "min_seeds": 1}, cl.SUPPORTED),
        ([0.3], {"exact": True, "min_seeds": 1}, cl.CONTRADICTED),
        ([], {"exact": True, "min_seeds": 1}, cl.NOT_TESTED),
    ],
)
def test_a_verdict_follows_from_the_effects(effects, changes, expected):
    assert verdict(effects, **changes) == expected


def test_more_claims_need_more_evidence():
    effects = [-0.20, -0.28, -0.25]
    alone = cl.judge(ledger(claim()), {"c": effects})["c"]
    others = [claim(id=f"o{i}") for i in range(9)]
    noise = {c.id: [-0.9, 0.1, 0.4] for c in others}
    among = cl.judge(ledger(claim(), *others), {"c": effects} | noise)["c"]
    assert alone.p_value == among.p_value
    assert among.p_holm == pytest.approx(10 * alone.p_holm)
    assert (alone.verdict, among.verdict) == (cl.SUPPORTED, cl.INCONCLUSIVE)


# ------------------------------------------------------------------------------ from tables


def test_effects_pair_by_seed_and_average_over_cells():
    rows = []
    for seed in (0, 1):
        for blocks, value in ((1, 10.0), (2, 5.0), (3, 20.0)):
            method = "end_to_end" if blocks == 1 else "blockwise_independent"
            rows.append(
                {"task": "images", "metric": "fid", "method": method, "blocks": blocks}
                | {"seed": seed, "run": f"{blocks}-{seed}", "value": value * (1 + seed)}
            )
    wanted = {"method": "blockwise_independent", "blocks": [2, 3]}
    seen = cl.evidence(claim(treatment=wanted), pd.DataFrame(rows))
    # ln of the geometric mean of 5 and 20 over 10 is 0, whatever a seed multiplies both by.
    assert seen.effects == pytest.approx([0, 0])
    assert len(seen.rows) == 6
    missing = cl.evidence(claim(treatment=wanted | {"blocks": [2, 4]}), pd.DataFrame(rows))
    assert len(missing.effects) == 0 and "B = 4" in missing.missing


def test_runs_of_unequal_cost_are_not_compared():
    rows = [
        {"task": "images", "metric": "fid", "method": method, "blocks": blocks, "seed": seed}
        | {"run": f"{blocks}-{seed}", "value": 1.0 + seed, "layer_evaluations": cost}
        for seed, cost in ((0, 10), (1, 10), (2, 10))
        for method, blocks in (("end_to_end", 1), ("blockwise_independent", 3))
    ]
    rows[-1]["layer_evaluations"] = 20
    assert len(cl.evidence(claim(), pd.DataFrame(rows)).effects) == 2


@pytest.mark.parametrize(
    ("real", "base", "decided"),
    [(0.5, 0.1, True), (0.5, 0.02, False), (0.0201, 0.1, False)],
    ids=["sees", "the baseline is noise", "real text looks like noise"],
)
def test_a_measure_that_cannot_tell_text_from_noise_decides_nothing(real, base, decided):
    rows = pd.DataFrame(
        {"side": side, "value": value} | dict.fromkeys(("claim", "run", "seed"), "")
        for side, value in (("treatment", 0.09), ("baseline", base))
    )
    floors = pd.DataFrame(
        {"metric": ["mauve", "mauve", "other"], "kind": ["real", "shuffled", "real"],
         "value": [real, 0.02, 1.0]}
    )  # fmt: skip
    asked = claim(metric="mauve", direction="higher")
    given = cl.Evidence(rows, np.array([0.1, 0.2, 0.3]), "")
    seen = cl.sighted(asked, given, floors)
    assert (len(seen.effects) == 3) == decided == (not seen.missing)
    assert decided or "too near to tell apart" in seen.missing
    # Without both kinds of known text there is nothing to doubt the measure by.
    assert cl.sighted(claim(metric="other"), given, floors) == given


def test_the_ledger_finds_the_simulated_truth(sweep):
    _, _, results = sweep
    found, _ = cl.verdicts(
        load_ledger(LEDGER), sources(results / "tables", None), published(), "simulated"
    )
    verdicts = dict(zip(found["claim"], found["verdict"], strict=True))
    assert list(found.columns) == cl.COLUMNS
    for name in ("two_blocks", "few_blocks", "equal_mass", "image_quality", "sampling_speed"):
        assert verdicts[name] == cl.SUPPORTED, name
    for name in ("equal_mass_linear", "memory", "text_mauve", "learning_rates", "loss_spikes"):
        assert verdicts[name] == cl.NOT_TESTED, name
    row = found.set_index("claim").loc["equal_mass"]
    assert row["low"] < math.expm1(-0.5) < row["high"]
    # Table 7 of the paper: 38.03 against 43.53.
    assert row["published_effect"] == pytest.approx(38.03 / 43.53 - 1)


def test_memory_is_judged_without_seeds(tmp_path, sweep):
    _, _, results = sweep
    rows = [
        f"DiT-S/2,{method},{blocks},512,fp32,own,{checkpointing},{value}"
        for method, blocks, value in (("end_to_end", 1, 900), ("blockwise_independent", 3, 310))
        for checkpointing in (False, True)
    ]
    text = (
        "model,method,blocks,batch_size,precision,resident,checkpointing,planned_bytes\n"
        + "\n".join(rows)
    )
    (tmp_path / "plan.csv").write_text(text)
    # The same points in another table count once.
    (tmp_path / "again.csv").write_text(text)
    found, _ = cl.verdicts(
        load_ledger(LEDGER), sources(results / "tables", tmp_path), published(), "simulated"
    )
    row = found.set_index("claim").loc["memory"]
    assert row["verdict"] == cl.SUPPORTED
    assert row["effect"] == pytest.approx(310 / 300 - 1)
    assert math.isnan(row["low"]) and "×0.344" in text_table(found) and "exact" in text_table(found)


def judged(results, capsys):
    """Verdicts by claim, through the command line."""
    folder = results / "tables"
    arguments = ["--ledger", str(LEDGER), "--published", str(PUBLISHED), "--output", str(folder)]
    assert main(["claims", "--tables", str(results / "tables"), *arguments]) == 0
    shown = capsys.readouterr().out
    table = read_table(folder, "claims")
    assert shown == (folder / "claims.txt").read_text()
    assert all(title in shown for title in table["title"])
    return dict(zip(table["claim"], table["verdict"], strict=True))


def test_editing_a_metrics_file_flips_its_verdict_and_no_other(tmp_path, capsys):
    _, _, results = sweeps.write_sweep(tmp_path)
    before = judged(results, capsys)
    assert judged(results, capsys) == before
    file = results / "tables/scores.csv"
    scores = pd.read_csv(file, dtype={"layers_per_block": str})
    scores.loc[(scores["overlap"] == 0.05), "value"] *= 2
    scores.to_csv(file, index=False)
    after = judged(results, capsys)
    assert (before["image_quality"], after["image_quality"]) == (cl.SUPPORTED, cl.CONTRADICTED)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"image_quality", "overlap"}


def test_a_lost_seed_leaves_nothing_tested(tmp_path, capsys):
    _, _, results = sweeps.write_sweep(tmp_path)
    file = results / "tables/scores.csv"
    scores = pd.read_csv(file, dtype={"layers_per_block": str})
    scores[~((scores["method"] == "end_to_end") & (scores["seed"] > 1))].to_csv(file, index=False)
    assert judged(results, capsys)["image_quality"] == cl.NOT_TESTED


# ------------------------------------------------------------------------------ the ledger file


def test_every_claim_of_the_ledger_has_its_published_number():
    book = load_ledger(LEDGER)
    for one in book.claims:
        effect = cl.published_effect(one.published, published(), one)
        assert math.isnan(effect) == (one.published is None), one.id
    assert cl.published_effect(None, published(), claim()) != 0


def test_cells_cross_lists():
    assert cells({"a": [1, 2], "b": 3}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert cells({}) == [{}]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrik": "fid"}, "did you mean 'metric'"),
        ({"min_seeds": 1}, "an interval needs two seeds"),
        ({"comparison": "near", "matters": 0}, "set matters above 0"),
        ({"scale": "difference", "expected_ratio": 3}, "belongs to scale ratio"),
        ({"published": {"source": "x"}}, "expected either ratio"),
        ({"source": "guesses"}, "found 'guesses'"),
    ],
)
def test_a_mistake_in_the_ledger_is_one_line(tmp_path, changes, says):
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump({"claims": [PLAIN | changes]}))
    with pytest.raises(UserError, match=says):
        load_ledger(file)


def test_claims_of_one_name_are_refused(tmp_path):
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump({"claims": [PLAIN, PLAIN]}))
    with pytest.raises(UserError, match="c stands twice"):
        load_ledger(file)


@pytest.mark.parametrize("text", ["a: [", "- 1", None])
def test_a_ledger_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "claims.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError):
        load_ledger(file)


def test_a_published_row_that_is_not_there_is_named():
    wrong = {"source": "x", "treatment": {"table": "99"}, "baseline": {"table": "2"}}
    one = claim(published=wrong)
    with pytest.raises(UserError, match="no published row with table 99"):
        cl.published_effect(one.published, published(), one)


def test_ratios_refuse_numbers_that_have_none():
    rows = [
        {
            "task": "images",
            "metric": "fid",
            "method": m,
            "blocks": b,
            "seed": 0,
            "run": m,
            "value": 0,
        }
        for m, b in (("end_to_end", 1), ("blockwise_independent", 3))
    ]
    with pytest.raises(UserError, match="set its scale to difference"):
        cl.evidence(claim(), pd.DataFrame(rows))
