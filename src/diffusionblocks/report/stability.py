"""How steadily runs train: loss spikes, tails of the gradient norm, divergence, spread over seeds.

Everything is computed per run from ``curves.csv`` (averages of consecutive iterations, so a spike
shorter than one average is dampened alike for every method) and ``scores.csv``.
"""

import numpy as np
import pandas as pd

#: Rows of a curve that the running median of the loss spans.
WINDOW = 11
#: A spike lies this many robust deviations above the running median of ln loss.
SPIKE = 6.0
#: A median absolute deviation of 1 is a standard deviation of 1.4826 for normal values.
TO_DEVIATION = 1.4826
#: Share of training at its start that is left out of tails, and that a final loss is held against.
EDGE = 0.1
IDENTITY = (
    "run,task,dataset,method,blocks,partition,overlap,layers_per_block,seed,learning_rate_scale"
).split(",")


def spike_share(loss: np.ndarray) -> float:
    """Share of a loss curve that stands more than SPIKE deviations above its running median.

    The first tenth is left out: a loss that falls steeply stands above its median without a spike.

    Args:
        loss: positive, in order of iteration. A value that is not finite counts as a spike.
    """
    log = pd.Series(np.log(np.where(np.isfinite(loss) & (loss > 0), loss, np.nan)))
    residual = log - log.rolling(WINDOW, center=True, min_periods=1).median()
    deviation = TO_DEVIATION * (residual - residual.median()).abs().median()
    high = residual > SPIKE * deviation if deviation > 0 else residual > 0
    return float((high | log.isna())[int(EDGE * len(loss)) :].mean())


def gradient_tail(norms: np.ndarray) -> float:
    """99th percentile of the gradient norm over its median, after the first tenth of training.

    Norms that are not finite are left out: they count as divergence. NaN where none remain.
    """
    kept = norms[int(EDGE * len(norms)) :]
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return float("nan")
    return float(np.quantile(kept, 0.99) / np.median(kept))


def diverged(loss: np.ndarray) -> float:
    """1 if the mean loss of the last tenth is not below that of the first, or is not finite."""
    n = max(1, int(EDGE * len(loss)))
    return float(not loss[-n:].mean() < loss[:n].mean())


def seed_spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Every run's relative distance from the mean Fréchet distance (test split) of its seeds."""
    fid = scores[(scores["metric"] == "fid") & (scores["split"] == "test")]
    fid = fid[fid["sampling"] == fid["sampling"].iloc[0]] if len(fid) else fid
    keys = [k for k in IDENTITY if k not in ("run", "seed")]
    mean = fid.groupby(keys)["value"].transform("mean")
    spread = fid[IDENTITY].assign(metric="seed_spread", value=(fid["value"] / mean - 1).abs())
    # One seed has no spread to speak of.
    return spread[fid.groupby(keys)["seed"].transform("nunique") > 1]


def stability(curves: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Every run's measures of stability.

    A run's spike share and gradient tail are means over its blocks; it diverged if a block did.

    Returns:
        the columns that name a run, metric and value.
    """
    rows = []
    for names, run in curves.groupby(IDENTITY, sort=False):
        blocks = [b.sort_values("iteration") for _, b in run.groupby("block")]
        losses = [b["loss"].to_numpy(float) for b in blocks]
        norms = [b["grad_norm"].to_numpy(float) for b in blocks]
        values = {
            "loss_spike_share": np.mean([spike_share(x) for x in losses]),
            "gradient_tail": np.mean([gradient_tail(x) for x in norms]),
            "diverged": max(diverged(x) for x in losses),
        }
        named = dict(zip(IDENTITY, names, strict=True))
        known = {m: float(v) for m, v in values.items() if np.isfinite(v)}
        rows += [{**named, "metric": m, "value": v} for m, v in known.items()]
    columns = [*IDENTITY, "metric", "value"]
    return pd.concat([pd.DataFrame(rows, columns=columns), seed_spread(scores)], ignore_index=True)
