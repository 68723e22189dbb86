"""The house style and the figures: what is drawn is the data, and nothing overlaps or is cut."""

import json
import math
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from diffusionblocks.errors import UserError
from diffusionblocks.noise import TruncatedLogNormal
from diffusionblocks.partition import partition
from diffusionblocks.report import figures as draw
from diffusionblocks.report import read_setting, read_table, style

ROOT = Path(__file__).resolve().parent.parent
LAYERS, ITERATIONS = 12, 100
SETTING = {
    "preset": "synthetic",
    "dataset": "digits",
    "layers": LAYERS,
    "width": 48,
    "P_mean": -1.2,
    "P_std": 1.2,
    "sigma_min": 0.002,
    "sigma_max": 80,
    "device": "cpu",
}
GRID = [("end_to_end", 1, "", 0.0)]
GRID += [
    ("blockwise_independent", B, strategy, 0.05)
    for strategy in ("equal_mass", "uniform_log_sigma")
    for B in (2, 3, 4, 6)
]
GRID += [
    ("blockwise_independent", 3, "uniform_sigma", 0.05),
    ("blockwise_independent", 3, "equal_mass", 0.0),
    ("blockwise_independent", 3, "equal_mass", 0.1),
    ("blockwise_interleaved", 3, "equal_mass", 0.05),
]
SPARSE = [("end_to_end", 1, "", 0.0), ("blockwise_independent", 3, "equal_mass", 0.0)]
METRICS = {
    "fid": ("lower", 1.0, 0.0),
    "kid": ("lower", 0.01, 0.0),
    "precision": ("higher", -0.02, 0.9),
    "recall": ("higher", -0.03, 0.8),
}


def _identity(method, B, strategy, overlap, seed):
    return {
        "run": f"{method}-B{B}-{strategy}-{overlap:g}-s{seed}",
        "task": "images",
        "dataset": "digits",
        "method": method,
        "blocks": B,
        "partition": strategy,
        "overlap": overlap,
        "layers_per_block": "-".join([str(LAYERS // B)] * B),
        "seed": seed,
    }


def _score_rows(name, noise):
    """Scores under two ways of sampling; guidance makes the distances larger."""
    rows = []
    for sampling, guidance in (("plain", 1.0), ("guided", 2.0)):
        how = {"sampling": sampling, "solver": "euler", "steps": 50, "guidance": guidance}
        cost = {"extractor": "digits_cnn", "samples": 600, "layer_evaluations": 1000}
        level = (2 + 0.5 * name["blocks"] + noise) * guidance**2
        for split, count in (("train", 1200), ("test", 597)):
            for metric, (better, slope, start) in METRICS.items():
                value = {"metric": metric, "better": better, "value": start + slope * level}
                rows.append(
                    name | how | cost | value | {"split": split, "reference_samples": count}
                )
        for metric, value in (("label_accuracy", 0.9), ("nearest_train_distance_ratio", 1.1)):
            bare = {"metric": metric, "better": "higher", "split": "", "reference_samples": np.nan}
            rows.append(name | how | cost | bare | {"value": value + 0.01 * noise})
    return rows


def build_tables(folder, grid, seeds):
    """A table set of the documented columns, and a picture for every run, without training."""
    law = TruncatedLogNormal()
    bands = np.geomspace(law.sigma_min, law.sigma_max, 7)
    out = {name: [] for name in ("scores", "validation_loss", "training", "curves", "sampling")}
    (folder / "samples").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for method, B, strategy, overlap in grid:
        for seed in seeds:
            name = _identity(method, B, strategy, overlap, seed)
            noise = float(rng.normal(0, 0.1))
            out["scores"] += _score_rows(name, noise)
            for band, (lo, hi) in enumerate(zip(bands[:-1], bands[1:], strict=True)):
                loss = {"band": band, "sigma_lo": lo, "sigma_hi": hi, "loss": B**0.5 + 0.1 * noise}
                out["validation_loss"].append(name | loss)
            for b, r in enumerate(partition(strategy or "equal_mass", law, B, overlap)):
                out["training"].append(name | {"block": b} | vars(r))
                for step in (25, 50, 75, 100):
                    curve = {"iteration": step, "loss": (1 + b) / step, "grad_norm": 1 + noise}
                    out["curves"].append(name | {"block": b} | curve)
            for sampling, guidance in (("plain", 1.0), ("guided", 2.0)):
                how = {"sampling": sampling, "solver": "euler", "steps": 50, "guidance": guidance}
                speed = {"trajectories_per_second": 20.0 * B / guidance}
                out["sampling"].append(name | how | speed)
                pixels = rng.integers(0, 255, (32, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "samples" / f"{name['run']}__{sampling}.png")
    floor = {"dataset": "digits", "extractor": "digits_cnn", "samples": 600}
    out["floors"] = [
        floor | {"metric": "fid", "value": value, "better": "lower", "split": split}
        for split, value in (("train", 0.5), ("test", 0.9))
    ]
    out["setting"] = [{"key": key, "value": value} for key, value in SETTING.items()]
    for table, rows in out.items():
        pd.DataFrame(rows).to_csv(folder / f"{table}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return build_tables(tmp_path_factory.mktemp("full") / "tables", GRID, (0, 1, 2))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return build_tables(tmp_path_factory.mktemp("sparse") / "tables", SPARSE, (0,))


def figure_and_data(name, folder):
    """One figure of the report, drawn from the tables as the notebook does."""
    setting, scores = read_setting(folder), read_table(folder, "scores")
    if name == "noise_ranges":
        data = draw.noise_ranges_data(setting, read_table(folder, "training"))
        return draw.noise_ranges(data), data
    if name in ("score_vs_blocks", "other_scores"):
        metrics = draw.OTHER_METRICS if name == "other_scores" else ("fid",)
        data = draw.score_data(scores, read_table(folder, "floors"), metrics)
        return getattr(draw, name)(data, setting, scores), data
    if name in ("overlap", "methods"):
        data = getattr(draw, f"{name}_data")(scores)
        return getattr(draw, name)(data, setting, scores), data
    if name == "training_curves":
        data = draw.training_curves_data(read_table(folder, "curves"))
        return draw.training_curves(data), data
    if name == "sample_grid":
        data = draw.sample_grid_data(scores, folder / "samples")
        return draw.sample_grid(data, folder / "samples"), data
    if name == "sampling_cost":
        data = draw.sampling_cost_data(read_table(folder, "sampling"))
        return draw.sampling_cost(data, setting), data
    if name == "validation_ratio":
        data = draw.validation_ratio_data(read_table(folder, "validation_loss"))
        return draw.validation_ratio(data, setting), data
    published = read_table(ROOT / "workflow" / "config", "published")
    data = draw.published_vs_measured_data(scores, published, setting)
    return draw.published_vs_measured(data, setting, scores), data


FIGURES = [
    "noise_ranges",
    "score_vs_blocks",
    "other_scores",
    "overlap",
    "methods",
    "training_curves",
    "sample_grid",
    "sampling_cost",
    "validation_ratio",
    "published_vs_measured",
]


def texts_with_boxes(figure):
    """Every visible text of a figure with its box in pixels, tick labels and legends included."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = list(figure.texts)
    for legend in figure.legends:
        found += legend.get_texts()
    for ax in figure.axes:
        found += [ax.title, *ax.texts]
        if ax.axison:
            found += [ax.xaxis.label, ax.yaxis.label, *visible_ticks(ax)]
    boxes = []
    for text in found:
        if text.get_visible() and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))
    return boxes


def visible_ticks(ax):
    """Tick labels inside the limits of their axis."""
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high and tick.label1.get_visible():
                yield tick.label1


def overlapping(one, two):
    """Whether two boxes share more than a pixel's width and height."""
    wide = min(one.x1, two.x1) - max(one.x0, two.x0)
    high = min(one.y1, two.y1) - max(one.y0, two.y0)
    return wide > 1 and high > 1


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("tables", ["full", "sparse"])
def test_no_text_overlaps_another_or_leaves_the_figure(name, tables, request):
    figure, _ = figure_and_data(name, request.getfixturevalue(tables))
    boxes = texts_with_boxes(figure)
    clashes = [(a, b) for (a, i), (b, j) in combinations(boxes, 2) if overlapping(i, j)]
    assert not clashes
    width, height = figure.get_size_inches() * figure.dpi
    outside = [t for t, b in boxes if min(b.x0, b.y0) < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    assert not outside


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_says_what_it_shows(name, full):
    figure, _ = figure_and_data(name, full)
    for ax in figure.axes:
        if not ax.axison:
            continue
        place = ax.get_subplotspec()
        words = [tick.get_text() for tick in ax.get_xticklabels()]
        if place.is_last_row():
            assert ax.get_xlabel() or any(w.isidentifier() for w in words)
        if place.is_first_col():
            rows = [tick.get_text() for tick in ax.get_yticklabels()]
            assert ax.get_ylabel() or rows[0].startswith("B =")


@pytest.mark.parametrize("name", ["noise_ranges", "sampling_cost"])
def test_save_writes_svg_png_and_the_data_and_nothing_else(name, full, tmp_path):
    figure, data = figure_and_data(name, full)
    png = style.save(figure, data, tmp_path, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{k}" for k in ("csv", "png", "svg")
    ]
    assert Image.open(png).size[0] == int(figure.get_figwidth() * style.STYLE["savefig.dpi"])
    again = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=["nan"])
    assert list(again.columns) == list(data.columns) and len(again) == len(data)
    svg = (tmp_path / f"{name}.svg").read_bytes()
    style.save(figure_and_data(name, full)[0], data, tmp_path, name)
    assert (tmp_path / f"{name}.svg").read_bytes() == svg


def test_drawing_leaves_matplotlib_settings_alone(sparse):
    before = dict(mpl.rcParams)
    figure_and_data("score_vs_blocks", sparse)
    assert dict(mpl.rcParams) == before


def foot(figure):
    """The note under a figure as one line."""
    return " ".join(" ".join(t.get_text() for t in figure.texts).split())


def test_intervals_are_named_or_said_to_be_missing(full, sparse):
    assert "95 % t intervals over 3 seeds" in foot(figure_and_data("score_vs_blocks", full)[0])
    assert "One seed: no intervals" in foot(figure_and_data("score_vs_blocks", sparse)[0])
    assert style.interval_note([3, 1, 2]) == "Bars and bands: 95 % t intervals over 1 to 3 seeds."
    assert style.interval_note([]) == "Nothing was measured."


@pytest.mark.parametrize("name", ["overlap", "methods"])
def test_a_figure_without_runs_says_so(name, sparse):
    figure, data = figure_and_data(name, sparse)
    assert data.empty and not figure.axes
    assert "This preset has no" in foot(figure)


def test_figures_of_empty_tables_say_so(full):
    setting, scores = read_setting(full), read_table(full, "scores")
    nothing = scores.iloc[:0]
    published = draw.published_vs_measured_data(
        nothing, read_table(ROOT / "workflow" / "config", "published"), setting
    )
    assert set(published["source"]) == {"published"}
    empty = [
        draw.noise_ranges(draw.noise_ranges_data(setting, nothing)),
        draw.score_vs_blocks(
            draw.score_data(nothing, read_table(full, "floors").iloc[:0]), setting, nothing
        ),
        draw.training_curves(draw.training_curves_data(read_table(full, "curves").iloc[:0])),
        draw.sampling_cost(draw.sampling_cost_data(read_table(full, "sampling").iloc[:0]), setting),
        draw.validation_ratio(
            draw.validation_ratio_data(read_table(full, "validation_loss").iloc[:0]), setting
        ),
        draw.sample_grid(draw.sample_grid_data(nothing, full / "samples"), full / "samples"),
    ]
    for figure in empty:
        assert not figure.axes
        assert any(start in foot(figure) for start in ("This preset", "The tables folder"))


def test_noise_ranges_hold_the_density_they_claim(full):
    data = draw.noise_ranges_data(read_setting(full), read_table(full, "training"))
    equal = data[data["partition"] == "equal_mass"]
    assert equal["mass"].to_numpy() == pytest.approx(1 / equal["blocks"].to_numpy())
    for _, ranges in data.groupby(["partition", "blocks"]):
        assert ranges["mass"].sum() == pytest.approx(1)
        assert ranges["sigma_lo"].to_numpy()[:-1] == pytest.approx(
            ranges["sigma_hi"].to_numpy()[1:]
        )


def test_a_percentage_claims_neither_all_nor_nothing():
    found = [draw._percent(share) for share in (1.0, 0.99999, 0.5, 0.0007)]
    assert found == ["100 %", "> 99.9 %", "50 %", "0.07 %"]


def test_scores_are_drawn_at_their_means_with_their_intervals(full):
    figure, data = figure_and_data("score_vs_blocks", full)
    rows = data[
        (data["kind"] == "run") & (data["sampling"] == "plain") & (data["split"] == "train")
    ]
    bars = [c for c in figure.axes[0].containers if c.get_label() == "equal mass"]
    (drawn,) = bars
    line, _, (segments,) = drawn
    equal = rows[rows["partition"] == "equal_mass"].sort_values("blocks")
    assert line.get_ydata() == pytest.approx(equal["mean"].to_numpy())
    assert np.round(line.get_xdata()) == pytest.approx(equal["blocks"].to_numpy())
    ends = np.array([s[:, 1] for s in segments.get_segments()])
    assert ends == pytest.approx(equal[["low", "high"]].to_numpy())
    floor = data[(data["kind"] == "floor") & (data["split"] == "train")]
    heights = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
    assert heights["floor: real held-out images"] == floor["mean"].iloc[0] == 0.5
    whole = rows[rows["method"] == "end_to_end"]
    assert heights["end to end (B = 1)"] == pytest.approx(whole["mean"].iloc[0])


def test_scores_show_the_main_grid_only(full):
    data = draw.score_data(read_table(full, "scores"), read_table(full, "floors"))
    runs = data[data["kind"] == "run"]
    assert set(runs["method"]) == {"end_to_end", "blockwise_independent"}
    assert set(runs.loc[runs["blocks"] > 1, "overlap"]) == {0.05}


def test_overlap_and_methods_pick_what_differs_in_that_alone(full):
    scores = read_table(full, "scores")
    overlaps = draw.overlap_data(scores)
    assert set(overlaps["overlap"]) == {0.0, 0.05, 0.1}
    assert set(overlaps["partition"]) == {"equal_mass"} and set(overlaps["blocks"]) == {3}
    methods = draw.methods_data(scores)
    blockwise = methods[methods["method"] != "end_to_end"]
    assert set(blockwise["overlap"]) == {0.05} and set(blockwise["blocks"]) == {3}
    assert set(methods["method"]) == set(draw.METHOD_NAMES)


def test_speed_up_is_relative_to_the_same_way_of_sampling(full):
    data = draw.sampling_cost_data(read_table(full, "sampling"))
    ratio = data[data["quantity"] == "ratio"]
    assert ratio["mean"].to_numpy() == pytest.approx(ratio["blocks"].to_numpy(float))
    assert set(ratio["n_seeds"]) == {3}


def test_validation_loss_is_divided_by_end_to_end_of_the_same_seed_and_band(full):
    validation = read_table(full, "validation_loss")
    data = draw.validation_ratio_data(validation)
    of = validation[validation["overlap"].isin([0.05]) & (validation["partition"] == "equal_mass")]
    of = of[(of["blocks"] == 3) & (of["band"] == 2) & (of["method"] == "blockwise_independent")]
    whole = validation[(validation["blocks"] == 1) & (validation["band"] == 2)]
    ratios = of.set_index("seed")["loss"] / whole.set_index("seed")["loss"]
    row = data[(data["blocks"] == 3) & (data["band"] == 2) & (data["partition"] == "equal_mass")]
    assert row["mean"].iloc[0] == pytest.approx(ratios.mean())


def test_curves_hold_every_block_and_step(full):
    data = draw.training_curves_data(read_table(full, "curves"))
    counts = data.groupby(["quantity", "blocks"])["block"].nunique()
    assert (
        counts["loss"].to_dict() == counts["grad_norm"].to_dict() == {B: B for B in (1, 2, 3, 4, 6)}
    )
    row = data[(data["quantity"] == "loss") & (data["blocks"] == 6) & (data["block"] == 5)].iloc[0]
    assert (row["iteration"], row["mean"]) == (25, pytest.approx(6 / 25))


def test_samples_come_from_the_first_seed_end_to_end_first(full):
    data = draw.sample_grid_data(read_table(full, "scores"), full / "samples")
    assert data["label"].iloc[0] == "end to end"
    assert all(run.endswith("-s0") for run in data["run"])
    assert len(data) == 2 * len(GRID)


def test_a_broken_picture_is_named(full, tmp_path):
    data = draw.sample_grid_data(read_table(full, "scores"), full / "samples").iloc[:1]
    (tmp_path / data["file"].iloc[0]).write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not a whole PNG"):
        draw.sample_grid(data, tmp_path)


@pytest.fixture(scope="module")
def published():
    return draw.published_data(read_table(ROOT / "workflow" / "config", "published"))


def test_published_ratios_are_to_the_end_to_end_network_of_the_same_table(published):
    main = published[(published["table"] == "2") & (published["dataset"] == "CIFAR-10")]
    ratios = main.set_index("split")["ratio"]
    assert ratios["test"] == pytest.approx(37.20 / 39.83)
    assert ratios["train"] == pytest.approx(30.59 / 32.84)
    assert set(main["overlap"]) == {0.05} and set(main["layers_per_block"]) == {"4-4-4"}
    # Table 7 prints no end-to-end row; the one of the same network stands in table 2.
    ablation = published[(published["table"] == "7") & (published["partition"] == "equal_mass")]
    even = ablation[ablation["layers_per_block"] == "4-4-4"]
    assert even["ratio"].iloc[0] == pytest.approx(38.03 / 39.83)
    assert set(ablation["overlap"]) == {0.0}


def test_published_markers_are_hollow_and_measured_ones_filled(full):
    figure, _ = figure_and_data("published_vs_measured", full)
    kinds = {"published": set(), "measured": set()}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            line = handle[0] if label.startswith("measured") else handle
            if label.split(":")[0].split(",")[0] in kinds:
                kinds[label.split(":")[0].split(",")[0]].add(str(line.get_markerfacecolor()))
    assert kinds["published"] == {"none"}
    assert kinds["measured"] and "none" not in kinds["measured"]
    title = " ".join(figure._suptitle.get_text().split())
    assert "Inception" in title and "DiT 12×48 on digits, digits_cnn features" in title


def test_measured_ratios_are_paired_by_seed(full):
    scores = read_table(full, "scores")
    data = draw.measured_data(scores, read_setting(full))
    fid = scores[(scores["metric"] == "fid") & (scores["split"] == "test")]
    fid = fid[fid["sampling"] == "plain"]
    two = fid[(fid["blocks"] == 2) & (fid["partition"] == "equal_mass")].set_index("seed")["value"]
    one = fid[fid["blocks"] == 1].set_index("seed")["value"]
    row = data[(data["blocks"] == 2) & (data["partition"] == "equal_mass")]
    row = row[(row["split"] == "test") & (row["sampling"] == "plain")]
    assert row["ratio"].iloc[0] == pytest.approx((two / one).mean())


# Machado, Oliveira and Fernandes 2009, severity 1: what linear RGB becomes to such eyes.
DEFICIENCIES = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(linear):
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", [None, *DEFICIENCIES])
def test_strategies_can_be_told_apart_by_any_eyes(eyes):
    matrix = np.array(DEFICIENCIES[eyes]) if eyes else np.eye(3)
    names = ["end_to_end", "equal_mass", "uniform_log_sigma", "uniform_sigma", "uniform"]
    seen = {}
    for name in names:
        linear = np.power((np.array(to_rgb(style.LOOK[name][0])) + 0.055) / 1.055, 2.4)
        seen[name] = lab(np.clip(matrix @ linear, 0.001, 1))
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(names, 2))
    # About 2.3 is just noticeable side by side; six times that is plain across a figure.
    assert nearest > 14
    markers = [style.LOOK[n][1] for n in names]
    assert len(set(markers)) == len(markers)


@pytest.mark.parametrize(
    "name,expected",
    [
        ("image_quality", {"tables", "preset", "published", "figures", "summary_tables"}),
        ("memory", {"tables", "preset", "figures", "summary_tables"}),
        ("verdict", {"tables", "preset", "figures"}),
        (
            "language_quality",
            {"tables", "preset", "published", "figures", "summary_tables"},
        ),
    ],
)
def test_notebooks_are_kept_stripped_with_their_parameters(name, expected):
    notebook = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    (parameters,) = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    names = {line.split(" = ")[0] for line in "".join(parameters["source"]).splitlines()}
    assert names == expected
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_log_ticks_are_plain_numbers_inside_the_data():
    figure = mpl.figure.Figure()
    ax = figure.subplots()
    ax.set_yscale("log")
    ax.set_ylim(0.8, 1.6)
    style.log_axis(ax.yaxis, [0.8, 1.6])
    shown = [t for t in ax.get_yticks() if 0.8 <= t <= 1.6]
    assert len(shown) >= 4 and any(math.isclose(t, 1) for t in shown)
    assert ax.yaxis.get_major_formatter()(1.2, 0) == "1.2"
