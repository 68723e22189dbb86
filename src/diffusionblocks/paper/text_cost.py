"""What the language half of a preset costs; the counterpart of :mod:`.cost`, in its terms.

Counted are training (an own judge's too) and generation. Scoring is not, nor what it takes from
the hub, whose networks are not ours to count; nor is the text on disk, whose length only the text
tells (two bytes a token). PyTorch counts causal attention as if every position saw every other:
the kernels of a GPU skip up to half of it, which matters where the context is long.
"""

from ..config import GenerationConfig, LanguageConfig, TextRun
from ..errors import UserError
from ..memory.plan import plan
from ..memory.text_point import TextPoint
from ..tasks.language import gpt_shape
from .cost import FLOAT, Cost, parameters, step_flops

#: Tokens of tokenisers of the hub, which is not asked here: the one that the recipes name
#: (Llama 2's; Touvron et al. 2023, section 2.2).
HUB_VOCABULARIES = {"hf-internal-testing/llama-tokenizer": 32_000}


def vocabulary_of(language: LanguageConfig) -> int:
    """Tokens of a preset's tokeniser, as far as the preset tells.

    Raises:
        UserError: it has the characters of its text, or is one that is not known here.
    """
    tokenizer = language.tokenizer
    if tokenizer.kind == "bpe":
        return tokenizer.vocabulary
    name = (tokenizer.name or "").partition("@")[0]
    if name not in HUB_VOCABULARIES:
        raise UserError(
            f"cost: found tokenizer {name or tokenizer.kind}, whose number of tokens the preset "
            "does not tell; set language.tokenizer={kind: bpe, vocabulary: NUMBER} to count"
        )
    return HUB_VOCABULARIES[name]


def _smallest(run: TextRun) -> TextRun:
    """The run with one sequence a step, in proportion to which arithmetic grows."""
    training = run.training.model_copy(update={"batch_size": 1, "accumulation": 1})
    return run.model_copy(update={"training": training})


def _jobs(language: LanguageConfig, trained: list[TextRun]) -> dict[str, int]:
    """Number of jobs by stage; joining parts, which takes no time, is not one."""
    runs = len(language.runs())
    return {
        "data": 1,
        "train": sum(len(run.parts) for run in trained),
        "generate": runs,
        "evaluate": runs + 1,  # and real text
        "report": 2,
    }


def generation_flops(run: TextRun, generation: GenerationConfig, vocabulary: int) -> float:
    """Operations of a run's continuations with a cache: two for every weight that a token meets.

    Attention over the cache is left out, and the prompt is taken to be read like new tokens.
    """
    shape, layers = gpt_shape(run, vocabulary), run.network.layers
    per_layer = 4 * shape.width**2 + 3 * shape.width * shape.mlp_width
    head = shape.width * vocabulary
    rows = generation.prompts * generation.continuations
    new = rows * generation.new_tokens
    read = (rows * generation.prompt_length + new) * layers * per_layer
    if run.method == "end_to_end":
        return 2 * (read + new * head)
    # At every noise level one block denoises and the head reads; a mean embedding goes on.
    steps = generation.steps
    return 2 * (read + new * (steps * layers / run.blocks * per_layer + (2 * steps - 1) * head))


def text_cost(language: LanguageConfig) -> Cost:
    """What a language half costs; blocks of uneven depth are counted as their deepest.

    Raises:
        UserError: the preset does not tell the size of its vocabulary.
    """
    vocabulary, judge = vocabulary_of(language), language.judge()
    trained = [*language.runs(), *([judge] if judge else [])]
    known: dict[tuple, tuple[int, int, int]] = {}
    planned: dict[int, int] = {}
    weights = checkpoints = 0
    training = generation = 0.0
    for run in trained:
        # Seeds, rates and lengths of training change none of these.
        kind = (run.method, run.blocks, run.layers_per_block, run.embedding)
        if kind not in known:
            single = TextPoint(_smallest(run), vocabulary)
            peak = plan(TextPoint(run, vocabulary)).peak
            known[kind] = peak, step_flops(single), parameters(single)
        peak, flops, numbers = known[kind]
        planned[run.blocks] = max(planned.get(run.blocks, 0), peak)
        weights += FLOAT * numbers * len(run.parts)
        checkpoints = max(checkpoints, 4 * FLOAT * numbers)
        training += run.training.iterations * run.training.batch_size * run.blocks * flops
        if run is not judge:
            drawn = language.generation.values()
            generation += sum(generation_flops(run, g, vocabulary) for g in drawn)
    positions = sum(
        g.prompts * g.continuations * (g.prompt_length + g.new_tokens)
        for g in language.generation.values()
    )
    disk = {
        "weights": weights,
        "continuations": 4 * positions * len(language.runs()),
        "a checkpoint": checkpoints,
    }
    flops = {"training": training, "generation": generation}
    return Cost(_jobs(language, trained), planned, disk, flops, "text")
