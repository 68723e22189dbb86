"""Speed of the language half against its targets; results/bench/language.csv.

Like bench.py: every value is a ratio of two things measured in turn within this run.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import call, paired, publish, row
from torch import Tensor, nn

from diffusionblocks.config import GenerationConfig, LanguageConfig, TextRun, load_preset
from diffusionblocks.networks.gpt import rotary_table
from diffusionblocks.tasks import TASKS
from diffusionblocks.text_generate import continue_prompts
from diffusionblocks.text_model import TextModel
from diffusionblocks.training.step import new_state, train_step

#: Sizes at which arithmetic outweighs bookkeeping, yet a step takes a second at most.
SIZES = [
    "language.network.width=192",
    "language.network.heads=6",
    "language.network.context_length=288",
    "language.training.batch_size=4",
    "language.training.iterations=1",
    "language.training.warmup_iterations=0",
    "language.generation={plain: {prompts: 1, prompt_length: 16, new_tokens: 16}}",
]
NEW_TOKENS = 256
#: One alone, where bookkeeping weighs as much as arithmetic, and a small batch.
PROMPTS = (1, 4)


class MinimalGPT(nn.Module):
    """A decoder and its step as one would write them in a page, for the same shapes."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int, context: int):
        super().__init__()
        self.heads, hidden = heads, -(-8 * width // 24) * 8
        self.embedding = nn.Embedding(vocabulary, width)
        self.register_buffer("rotation", rotary_table(context, width // heads))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.RMSNorm(width),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width, bias=False),
                    "mlp_norm": nn.RMSNorm(width),
                    "gate_up": nn.Linear(width, 2 * hidden, bias=False),
                    "down": nn.Linear(hidden, width, bias=False),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] → the mean loss of the next ones."""
        n, t = tokens.shape
        cos, sin = self.rotation[:, :t]

        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.embedding(tokens)
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm"](x)).view(n, t, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
            x = x + layer["out"](a.transpose(1, 2).reshape(n, t, -1))
            gate, up = layer["gate_up"](layer["mlp_norm"](x)).chunk(2, -1)
            x = x + layer["down"](F.silu(gate) * up)
        logits = self.head(self.norm(x))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def step_of(run: TextRun, data: Path) -> tuple[Callable[[], None], int]:
    """One training step of all layers of a run on one block's noise, and its vocabulary."""
    task = TASKS[run.task](run, data, torch.device("cpu"))
    network = task.network(run.network.layers, "bench").train()
    state = new_state(network, run.training.betas, run.training.weight_decay)
    batch = task.batch(0, 0)
    loss = partial(task.loss, network, batch, None)
    settings = run.training

    def step() -> None:
        train_step(state, [loss], settings.learning_rate, 0.9, settings.clip_norm)

    return step, task.vocabulary


def denoising_run(language: LanguageConfig) -> str:
    """The first block-wise run; its name tells settings that a preset may change."""
    named = (r.name for r in language.runs() if r.method == "blockwise_independent")
    return next(named)


def training_ratios(language: LanguageConfig, data: Path) -> list[dict]:
    """The baseline's step against one by hand, and the denoising step against the baseline's."""
    baseline, vocabulary = step_of(language.run("end_to_end-s0"), data)
    denoising, _ = step_of(language.run(denoising_run(language)), data)
    n, s = language.network, language.training
    plain = MinimalGPT(vocabulary, n.width, n.heads, n.layers, n.context_length)
    optimizer = torch.optim.AdamW(plain.parameters(), s.learning_rate, s.betas, fused=True)
    tokens = torch.randint(vocabulary, (s.batch_size, n.context_length))

    def by_hand() -> None:
        optimizer.zero_grad()
        plain(tokens).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), s.clip_norm)
        optimizer.step()

    work = {"by_hand": by_hand, "baseline": baseline, "denoising": denoising}
    found = paired(work, 8, 1)
    speed, cost = found["by_hand"] / found["baseline"], found["denoising"] / found["baseline"]
    return [
        row("gpt_tokens_per_second_to_hand_written", speed, "ratio", 0.95, "higher"),
        row("denoising_step_to_baseline_step", cost, "ratio", 2.3, "lower"),
    ]


def generation_ratios(name: str, language: LanguageConfig, data: Path, folder: Path) -> list[dict]:
    """Continuations with a cache against recomputing everything for every token."""
    rows, select = [], ["--preset", name, "--set", *SIZES]
    for kind, run in (
        ("next_token", "end_to_end-s0"),
        ("denoising", denoising_run(language)),
    ):
        parts = folder / run
        for part in language.run(run).parts:
            call("language", "train", *select, "--run", run, "--part", part, "--data", data,
                 "--output", parts / f"{part}.safetensors",
                 "--state", folder / "state")  # fmt: skip
        manifest = parts / "manifest.json"
        call("language", "assemble", *select, "--run", run, "--parts", parts, "--output", manifest)
        model = TextModel(manifest, torch.device("cpu"))
        for n in PROMPTS:
            settings = GenerationConfig(prompts=n, prompt_length=16, new_tokens=NEW_TOKENS, steps=4)
            prompts = torch.zeros(n, 16, dtype=torch.int64)
            work = {
                cached: partial(
                    continue_prompts,
                    model,
                    prompts,
                    settings.model_copy(update={"cache": cached}),
                    0,
                    0,
                )
                for cached in (True, False)
            }
            found = paired(work, 1, 1)
            ratio = found[False] / found[True]
            rows.append(row(f"cached_generation_{kind}_{n}_prompts", ratio, "ratio", 5, "higher"))
    return rows


def main() -> None:
    """Measure everything, print it, write it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = "default"
    language = load_preset(Path(f"workflow/config/presets/{name}.yaml"), SIZES).language
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        call("language", "data", "--preset", name, "--set", *SIZES, "--output", data)
        rows = training_ratios(language, data)
        rows += generation_ratios(name, language, data, Path(temporary))
    publish(rows, Path("results/bench/language.csv"))


if __name__ == "__main__":
    main()
