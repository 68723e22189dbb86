"""The report as a static site: verdicts first, a page a run, method and limits.

Every page is one HTML file with its style and charts inside and pictures beside it; none asks for
anything from another machine, and none needs a script. Reads finished results, runs nothing.
"""

import math
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..claims import CONTRADICTED, INCONCLUSIVE, SUPPORTED, VERDICTS
from ..config import Preset, RunConfig
from ..errors import UserError
from ..files import read_json, write_text
from . import RATE, read_setting, read_table
from .charts import DASHES, curves, effect_strip
from .compare import flat
from .statistics import (
    CONFIDENCE,
    METRIC_NAMES,
    NOT_TESTED,
    describe,
    sampling_names,
    setting_sentences,
)
from .verdicts import amount, interval

#: A verdict's sign, so that none is told by colour alone.
SYMBOLS = {SUPPORTED: "✓", CONTRADICTED: "✗", INCONCLUSIVE: "≈", NOT_TESTED: "–"}
NOTEBOOKS = {
    "verdict": "verdict",
    "image_quality": "image quality",
    "memory": "memory",
    "language_quality": "language",
}
#: Where the notebooks leave their figures, below the results.
FIGURE_FOLDERS = ("figures", "memory/figures", "verdict/figures", "language/figures")
MEASURES = METRIC_NAMES | {
    "trajectories_per_second": "images sampled per second",
    "total_seconds": "seconds of training, all jobs together",
    "gradient_tail": "gradient norm: 99th percentile over median",
    "loss_spike_share": "share of training with a loss spike",
    "seed_spread": "relative distance from the mean over seeds",
    "diverged": "diverged (1) or not (0)",
    "planned_bytes": "peak memory in bytes, planned",
    "mauve": "MAUVE",
    "likelihood_bound": "bound on the negative log-likelihood, nats a token",
    "generative_perplexity_matched": "judged perplexity at equal diversity",
    "accuracy_percent": "accuracy in %",
}
FIGURES = {
    "published_vs_measured": "Fréchet distance relative to end to end, measured and published",
    "score_vs_blocks": "Fréchet distance against the number of blocks",
    "overlap": "Fréchet distance against the overlap of neighbouring ranges",
    "sampling_cost": "Sampling speed against the number of blocks",
    "ratio": "Memory of a block alone relative to the whole network, against B",
    "learning_rates": "Divergence, loss spikes and gradient tails against the learning rate",
    "training_curves": "Loss and gradient norm of every block over training",
    "likelihood": "Likelihood of held-out text against the number of blocks",
    "mauve": "MAUVE against the number of blocks",
    "judged_perplexity": "Judged perplexity against the number of blocks",
}
GRID_SCALE = 4


def number(value: float) -> str:
    """Four significant digits, empty for NaN."""
    return "" if value != value else f"{value:.4g}"


def snakemake_command(target: Path, preset: str, overrides: Iterable[str]) -> str:
    """The command line that makes one file of a sweep."""
    command = (
        f"snakemake {shlex.quote(str(target))} --cores all --config preset={shlex.quote(preset)}"
    )
    changed = " ".join(overrides)
    return command + (f" set={shlex.quote(changed)}" if changed else "")


def sentence(row: Mapping[str, Any]) -> str:
    """What a claim's numbers say, in words."""
    if not row["n_seeds"]:
        here = f"Not run here: {row['reason']}."
    else:
        seeds = f"{row['n_seeds']} seeds" if row["n_seeds"] > 1 else "one seed"
        seeds = "counted, so without seeds" if row["exact"] else seeds
        between = f" (95 % interval {interval(row)}, {seeds})" if interval(row) else f" ({seeds})"
        how = "the treatment is" if row["expected_ratio"] != 1 else "the treatment differs by"
        of = " the baseline" if row["expected_ratio"] != 1 else ""
        here = (
            f"Here {how} {amount(row, row['effect'])}{of}{between}: "
            f"{number(row['treatment_mean'])} against {number(row['baseline_mean'])} on average."
        )
        if row["expected_ratio"] != 1:
            here += f" The claim predicts ×{row['expected_ratio']:.3g}."
        here += f" Verdict: {row['verdict']}; {row['reason']}."
    paper = amount(row, row["published_effect"])
    printed = f" The paper: {paper} ({row['published_source']})." if paper else ""
    return here + (printed or " The paper prints no number for it.")


def _label(row: Mapping[str, Any]) -> str:
    """What the strip of a claim shows, for readers who do not see it."""
    here = amount(row, row["effect"]) or "not measured"
    between = f", interval {interval(row)}" if interval(row) else ""
    paper = amount(row, row["published_effect"]) or "no number"
    return f"Here {here}{between}; paper {paper}"


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels, from its header."""
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")


class Site:
    """A sweep's results, and the pages made of them."""

    def __init__(self, preset: Preset, name: str, overrides: list[str], results: Path):
        self.preset, self.name, self.overrides, self.results = preset, name, overrides, results
        tables = results / "tables"
        self.setting = read_setting(tables)
        self.scores = read_table(tables, "scores", every_rate=True)
        self.floors = read_table(tables, "floors")
        self.training = read_table(tables, "training", every_rate=True)
        self.curves = read_table(tables, "curves", every_rate=True)
        self.claims = read_table(tables, "claims")
        self.evidence = read_table(tables, "evidence")
        self.stability = read_table(tables, "stability")
        self.scale = self.claims["scale"].iloc[0]
        self.runs = preset.runs()
        templates = PackageLoader("diffusionblocks.report")
        self.pages = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)

    def render(self, template: str, root: str, **values: Any) -> str:
        """One page; ``root`` leads from it to the report's folder."""
        notebooks = [
            {"file": f"{name}.html", "title": title}
            for name, title in NOTEBOOKS.items()
            if (self.results / "report" / f"{name}.html").is_file()
        ]
        shared = {"preset": self.name, "setting": self.setting, "scale": self.scale}
        return self.pages.get_template(template).render(
            **shared, root=root, notebooks=notebooks, symbols=SYMBOLS, **values
        )

    # ---------------------------------------------------------------- the first page

    def index(self) -> str:
        """The verdict table with every claim's evidence, what was run, and the list of runs."""
        rows = [self._claim(row) for row in self.claims.to_dict("records")]
        counts = self.claims["verdict"].value_counts()
        tested = [row for row in rows if row["verdict"] != NOT_TESTED]
        others = [row for row in rows if row["verdict"] == NOT_TESTED]
        title = "Not tested at this scale" if tested else ""
        groups = [{"title": "", "claims": tested}, {"title": title, "claims": others}]
        return self.render(
            "index.html",
            "",
            title=f"DiffusionBlocks replicated: the verdict ({self.name})",
            here="index",
            tested=bool(tested),
            counts=[(name, int(counts.get(name, 0))) for name in VERDICTS],
            groups=[group for group in groups if group["claims"]],
            command=self.command("tables/claims.csv"),
            setting_lines=setting_sentences(self.setting, self.scores[self.scores[RATE] == 1]),
            runs=[self._listed(run) for run in self.runs],
            pages={run.name for run in self.runs},
        )

    def command(self, target: str) -> str:
        """The command line that makes one file of this sweep."""
        return snakemake_command(self.results / target, self.name, self.overrides)

    def figure(self, name: str) -> Path | None:
        """The PNG of one of the notebooks' figures, if it was drawn."""
        found = (self.results / folder / f"{name}.png" for folder in FIGURE_FOLDERS)
        return next((path for path in found if name and path.is_file()), None)

    def _claim(self, row: dict[str, Any]) -> dict[str, Any]:
        numbers = self.evidence[self.evidence["claim"] == row["claim"]]
        numbers = numbers.sort_values(["seed", "side", "run"], ascending=[True, False, True])
        png = self.figure(row["figure"])
        # A claim without numbers would show a figure that says nothing about it.
        shows = png is not None and len(numbers)
        width, height = png_size(png) if png and shows else (0, 0)
        return row | {
            "here": amount(row, row["effect"]),
            "interval": interval(row),
            "paper": amount(row, row["published_effect"]),
            "strip": effect_strip(row, _label(row)),
            "sentence": sentence(row),
            "picture": FIGURES.get(row["figure"], row["figure"]) if shows else "",
            # Saved at 160 dots an inch, shown at 96.
            "size": (round(width * 0.6), round(height * 0.6)),
            "metric_name": MEASURES.get(row["metric"], row["metric"]),
            "evidence": [r | {"value": number(r["value"])} for r in numbers.to_dict("records")],
        }

    def _listed(self, run: RunConfig) -> dict[str, Any]:
        scores, training = (t[t["run"] == run.name] for t in (self.scores, self.training))
        fid = scores[(scores["metric"] == "fid") & (scores["split"] == "test")]["value"]
        jobs = training.drop_duplicates("part")
        return {
            "name": run.name,
            "words": self._words(run),
            "seed": run.seed,
            "fid": number(fid.iloc[0]) if len(fid) else "",
            "seconds": f"{jobs['seconds'].sum():.1f}",
        }

    @staticmethod
    def _words(run: RunConfig) -> str:
        words = describe(run.identity())
        rate = run.learning_rate_scale
        return words if rate == 1 else f"{words}, learning rate ×{rate:g}"

    # ---------------------------------------------------------------- a page a run

    def run_page(self, run: RunConfig, pictures: Mapping[str, Path]) -> str:
        """Samples, scores, curves, commands, configuration and provenance of one run.

        Args:
            pictures: sampling → PNG beside the page.
        """
        folder = self.results / "runs" / run.name
        parts = [read_json(folder / f"{part}.json") for part in run.parts]
        names = sampling_names(self.scores)
        samples = []
        for sampling, path in pictures.items():
            width, height = png_size(path)
            size = (GRID_SCALE * width, GRID_SCALE * height)
            samples.append({"file": path.name, "words": names[sampling], "size": size})
        lines = self.curves[self.curves["run"] == run.name]
        return self.render(
            "run.html",
            "../",
            title=f"{run.name} ({self.name})",
            here="run",
            run={
                "name": run.name,
                "words": self._words(run),
                "seed": run.seed,
                "hash": parts[0]["config_hash"],
            },
            samples=samples,
            scores=self._scores(run),
            blocks=self._blocks(parts),
            loss=curves(_series(lines, "loss"), "iteration", "loss"),
            norms=curves(_series(lines, "grad_norm"), "iteration", "norm of the gradient"),
            stability=self._stability(run),
            command=self.command(f"runs/{run.name}/scores.json"),
            jobs="\n".join(self._jobs(run)),
            config=_pairs(parts[0]["config"]),
            provenance=_pairs(parts[0]["provenance"]),
        )

    def _scores(self, run: RunConfig) -> list[dict[str, Any]]:
        keys = ["metric", "split", "extractor", "samples", "reference_samples"]
        floors = self.floors[[*keys, "value"]].rename(columns={"value": "floor"})
        scores = self.scores[self.scores["run"] == run.name].merge(floors, on=keys, how="left")
        return [
            row
            | {"value": number(row["value"]), "floor": number(row["floor"])}
            | {"metric": METRIC_NAMES.get(row["metric"], row["metric"])}
            for row in scores.to_dict("records")
        ]

    @staticmethod
    def _blocks(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "index": block["block"],
                "layers": block["layers"],
                "low": number(block["sigma_lo"]),
                "high": number(block["sigma_hi"]),
                "seconds": f"{part['seconds']:.1f}",
                "dash": DASHES[block["block"] % len(DASHES)],
            }
            for part in parts
            for block in part["blocks"]
        ]

    def _stability(self, run: RunConfig) -> str:
        rows = self.stability[self.stability["run"] == run.name]
        found = dict(zip(rows["metric"], rows["value"], strict=True))
        if not found:
            return ""
        ended = "It diverged." if found.get("diverged") else "It did not diverge."
        return (
            f"Loss spikes in {100 * found['loss_spike_share']:.1f} % of training; the 99th "
            f"percentile of the gradient norm is {found['gradient_tail']:.2f} times its median. "
            + ended
        )

    def _jobs(self, run: RunConfig) -> Iterable[str]:
        sets = " --set " + " ".join(map(shlex.quote, self.overrides)) if self.overrides else ""
        for part in run.parts:
            yield (
                f"diffusionblocks train --preset {shlex.quote(self.name)}{sets} --run {run.name} "
                f"--part {part} --data {self._quoted('data')} "
                f"--state {self._quoted('state', run.name, f'{part}-{run.hash}')} "
                f"--output {self._quoted('runs', run.name, f'{part}.safetensors')}"
            )

    def _quoted(self, *names: str) -> str:
        return shlex.quote(str(self.results.joinpath(*names)))

    def method(self) -> str:
        """Method and limits in plain words."""
        whole = self.training[self.training["method"] == "end_to_end"]["parameters"]
        return self.render(
            "method.html",
            "",
            title="Method and limits",
            here="method",
            confidence=f"{CONFIDENCE:.0%}".replace("%", " %"),
            alpha=f"{1 - CONFIDENCE:.2g}",
            parameters=f"{int(whole.iloc[0]):,}" if len(whole) else "",
        )


def _series(lines: pd.DataFrame, column: str) -> dict[str, tuple[list[float], list[float]]]:
    """Block → iterations and values of one column of the curves."""
    return {
        f"block {block}": (rows["iteration"].tolist(), rows[column].astype(float).tolist())
        for block, rows in lines.groupby("block")
        if not math.isnan(rows[column].astype(float).iloc[0])
    }


def _pairs(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Nested settings as dotted keys and values to show."""
    return [(key, "none" if value is None else value) for key, value in flat(tree).items()]


def _renew(folder: Path) -> Path:
    """An empty folder in the place of what a former sweep left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_site(preset: Preset, name: str, overrides: list[str], results: Path, output: Path):
    """Write index.html, method.html, runs/ and figures/ of a finished sweep.

    Args:
        name: what the preset is called.
        overrides: settings that were replaced, as on the command line.
        results: the sweep's results; its tables, claims and figures are read.
        output: the report's folder; the notebook's page lies there already.

    Raises:
        UserError: a table or a run's file is missing.
    """
    site = Site(preset, name, overrides, results)
    try:
        figures, runs = _renew(output / "figures"), _renew(output / "runs")
        for folder in reversed(FIGURE_FOLDERS):  # of one name, the first folder's is kept
            for path in sorted((results / folder).glob("*.*")):
                if path.suffix in (".svg", ".png", ".csv"):
                    shutil.copyfile(path, figures / path.name)
        for run in site.runs:
            pictures = {}
            for sampling in preset.sampling:
                source = results / "tables" / "samples" / f"{run.name}__{sampling}.png"
                pictures[sampling] = runs / source.name
                shutil.copyfile(source, pictures[sampling])
            write_text(runs / f"{run.name}.html", site.run_page(run, pictures))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; build the tables again") from None
    write_text(output / "method.html", site.method())
    # Last, so that a first page stands for a whole site.
    write_text(output / "index.html", site.index())
