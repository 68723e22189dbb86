"""The claims under test as validated data: what workflow/config/claims.yaml may say.

A claim names two sides, *treatment* and *baseline*, each a selection of runs, and one number to
compare them by. Nothing here reads results.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from .config import Name, _Section, parse_yaml, validated
from .errors import UserError

Value = int | float | str
#: Column → the values that select a row; a list asks for every one of its values.
Selection = dict[str, Value | list[Value]]
Source = Literal["scores", "sampling", "training", "stability", "memory", "language"]


class Published(_Section):
    """The paper's number for a claim: two selections of published.csv, or a ratio in its text."""

    treatment: Selection | None = None
    baseline: Selection | None = None
    ratio: PositiveFloat | None = None
    source: str = Field(description="where in the paper it stands, in words")

    @model_validator(mode="after")
    def _one_way(self):
        if (self.ratio is None) == (self.treatment is None) or (self.treatment is None) != (
            self.baseline is None
        ):
            raise ValueError("expected either ratio, or treatment and baseline; correct it")
        return self


class Claim(_Section):
    """One claim of the paper, put so that data can decide it."""

    id: Name
    title: str = Field(description="the claim in one short line")
    wording: str = Field(description="what exactly is tested, in plain words")
    task: str
    source: Source = Field(description="the table that decides")
    metric: str
    where: Selection = Field({}, description="rows of the source that count, on both sides")
    treatment: Selection
    baseline: Selection
    scale: Literal["ratio", "difference"] = "ratio"
    direction: Literal["lower", "higher"] = Field(description="where the claim puts the treatment")
    comparison: Literal["better", "no_worse", "near"]
    matters: NonNegativeFloat = Field(
        description="smallest effect that matters: a relative change, or in the metric's units"
    )
    expected_ratio: PositiveFloat = Field(
        1.0, description="the ratio the claim predicts; the effect is measured relative to it"
    )
    min_seeds: PositiveInt = 3
    exact: bool = Field(False, description="the number is counted, not drawn: no seeds, no spread")
    figure: Name | None = Field(None, description="a figure of the notebook that shows it")
    published: Published | None = None

    @model_validator(mode="after")
    def _coherent(self):
        if not self.exact and self.min_seeds < 2:
            raise ValueError("an interval needs two seeds; set min_seeds to 2 or more")
        if self.comparison != "better" and self.matters == 0:
            raise ValueError(f"comparison {self.comparison} needs a margin; set matters above 0")
        if self.scale == "difference" and self.expected_ratio != 1:
            raise ValueError("expected_ratio belongs to scale ratio; remove one of them")
        return self


class Ledger(_Section):
    """Every claim, and how often a verdict may be wrong."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self):
        names = [claim.id for claim in self.claims]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"claim {min(twice)} stands twice; rename one")
        return self


def cells(selection: Selection) -> list[dict[str, Value]]:
    """Every combination of a selection's values: {a: [1, 2], b: 3} → [{a: 1, b: 3}, {a: 2, …}]."""
    found: list[dict[str, Any]] = [{}]
    for column, wanted in selection.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        found = [cell | {column: value} for cell in found for value in values]
    return found


def load_ledger(path: Path) -> Ledger:
    """Read and validate a ledger.

    Raises:
        UserError: the file is missing, not YAML, or breaks a rule; names the key and the mend.
    """
    try:
        tree = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no ledger {path}; expected claims.yaml: restore it") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML ({error}); mend it") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no claims; expected the key claims: add it")
    return validated(Ledger, tree, Path(path).name)
