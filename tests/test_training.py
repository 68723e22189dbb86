"""What the three methods promise, bit for bit."""

import itertools
import subprocess
import sys
import time

import pytest
import torch

from diffusionblocks.errors import UserError
from diffusionblocks.manifest import layer_evaluations
from diffusionblocks.parts import Part, part_of
from diffusionblocks.randomness import batch_indices
from diffusionblocks.training.adamw import AdamW
from diffusionblocks.training.checkpoint import load_checkpoint, save_checkpoint
from diffusionblocks.training.loop import schedule_of, train
from diffusionblocks.training.schedule import ema_decay, interleaved_block, learning_rate
from diffusionblocks.training.step import new_state, train_step


def run_named(preset, start):
    return next(r for r in preset.runs() if r.name.startswith(start))


@pytest.fixture
def train_in(task_of, tmp_path):
    """train_in(run, part, folder name, stop_after) → Trained."""

    def go(run, name, folder="state", stop_after=None):
        def report(done, total, loss):
            if stop_after is not None and done >= stop_after:
                raise KeyboardInterrupt

        task = task_of(run)
        return train(
            run, part_of(run, name), task, task.ranges, tmp_path / folder, time.monotonic, report
        )

    return go


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_one_block_is_the_undivided_denoiser(tiny, task_of, train_in, tmp_path):
    """B = 1: running the block's range of layers, or simply the network, gives the same bits."""
    run = run_named(tiny(), "end_to_end")
    task = task_of(run)
    assert [(r.train_lo, r.train_hi) for r in task.ranges] == [(0.002, 80.0)]
    whole = train_in(run, "block0").ema
    sliced = Part("block0", [0], {0: range(0, 6)}, 6)
    again = train(
        run, sliced, task, task.ranges, tmp_path / "again", time.monotonic, lambda *a: None
    ).ema
    assert same(whole, again)


def test_independent_jobs_build_their_own_layers_only(tiny, train_in):
    run = run_named(tiny(), "independent-B3")
    for name in run.parts:
        ema = train_in(run, name, name).ema
        layers = {key.split(".")[1] for key in ema if key.startswith("layers.")}
        assert layers == {"0", "1"}


def test_independent_blocks_in_any_order_give_the_same_bits(tiny, train_in):
    run = run_named(tiny(), "independent-B3")
    orders = list(itertools.permutations(run.parts))[::5]
    results = [
        {name: train_in(run, name, f"{i}-{name}").ema for name in order}
        for i, order in enumerate(orders)
    ]
    for name in run.parts:
        assert same(results[0][name], results[1][name])
    assert not torch.equal(results[0]["block0"]["head.bias"], results[0]["block1"]["head.bias"])


def test_stepping_one_block_leaves_the_others_bit_identical(tiny, task_of):
    """Weights, moments and EMA of the layers of other blocks do not move; the shared ends do."""
    run = run_named(tiny(), "interleaved-B3")
    part, task = part_of(run, "all"), task_of(run)
    state = new_state(task.network(6, "all"), (0.9, 0.999), 0.01)

    def step(block, iteration):
        batch = task.batch(block, iteration)
        loss = lambda: task.loss(state.network, batch, part.layers[block])  # noqa: E731
        train_step(state, [loss], 1e-2, 0.9, 1.0)

    for warm in range(2):
        for block in range(3):
            step(block, warm)

    def snapshot():
        moments = {
            f"{key}.{name}": value.clone()
            for name, moments in state.optimizer.moments.items()
            for key, value in moments.items()
        }
        weights = {n: p.detach().clone() for n, p in state.network.named_parameters()}
        return weights, moments, {n: e.clone() for n, e in state.ema.items()}

    before = snapshot()
    step(1, 2)
    after = snapshot()
    for old, new in zip(before, after, strict=True):
        for name in old:
            layer = name.split("layers.")[-1].split(".")[0] if "layers." in name else None
            if layer is not None and int(layer) not in part.layers[1]:
                assert torch.equal(old[name], new[name]), f"{name} moved"
    assert not torch.equal(before[0]["layers.2.adaln.bias"], after[0]["layers.2.adaln.bias"])
    assert not torch.equal(before[0]["head.bias"], after[0]["head.bias"])
    assert not torch.equal(before[2]["head.bias"], after[2]["head.bias"])


def test_interleaved_rounds_visit_every_block_once():
    B = 4
    for round_ in range(20):
        visited = [interleaved_block(7, round_ * B + i, B) for i in range(B)]
        assert sorted(b for b, _ in visited) == list(range(B))
        assert {k for _, k in visited} == {round_}
    first = [interleaved_block(7, round_ * B, B)[0] for round_ in range(400)]
    counts = torch.bincount(torch.tensor(first), minlength=B)
    assert (counts - 100).abs().max() < 40, "each place in a round is uniform over blocks"


def test_an_interleaved_block_sees_what_the_independent_one_sees(tiny, task_of):
    independent = task_of(run_named(tiny(), "independent-B3"))
    interleaved = task_of(run_named(tiny(), "interleaved-B3"))
    for a, b in zip(independent.batch(1, 5), interleaved.batch(1, 5), strict=True):
        assert torch.equal(a, b)


def test_batches_depend_on_seed_block_and_iteration_only(tiny, task_of):
    run = run_named(tiny(), "independent-B2")
    fresh, used = task_of(run), task_of(run)
    for i in range(4):
        used.batch(0, i)
    for a, b in zip(fresh.batch(1, 9), used.batch(1, 9), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(fresh.batch(1, 9).eps, fresh.batch(0, 9).eps)
    assert not torch.equal(fresh.batch(1, 9).eps, fresh.batch(1, 8).eps)
    other = task_of(run.model_copy(update={"seed": 5}))
    assert not torch.equal(fresh.batch(1, 9).sigma, other.batch(1, 9).sigma)


def test_batches_stay_in_the_blocks_training_range_and_drop_labels(tiny, task_of):
    preset = tiny("training.batch_size=512", "training.label_dropout=0.25")
    task = task_of(run_named(preset, "independent-B3"))
    for block, own in enumerate(task.ranges):
        batch = task.batch(block, 0)
        assert batch.sigma.min() >= own.train_lo * (1 - 1e-6)
        assert batch.sigma.max() <= own.train_hi * (1 + 1e-6)
        dropped = (batch.label == 10).float().mean().item()
        assert dropped == pytest.approx(0.25, abs=0.06)


def test_every_epoch_shows_every_example_once():
    n, batch = 50, 16
    seen = torch.cat([batch_indices(3, 0, i, batch, n) for i in range(25)])
    for epoch in range(8):
        assert seen[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))
    assert not torch.equal(seen[:n], seen[n : 2 * n])
    assert batch_indices(3, 0, 0, 120, 50).shape == (120,)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny, task_of):
    run = run_named(tiny(), "end_to_end")
    task = task_of(run)
    batch = task.batch(0, 0)
    gradients = []
    for parts in (1, 4):
        state = new_state(task.network(6, "x"), (0.9, 0.999), 0.0)
        chunks = [type(batch)(*m) for m in zip(*(t.chunk(parts) for t in batch), strict=True)]
        losses = [lambda c=c, s=state: task.loss(s.network, c, None) for c in chunks]
        loss, norm = train_step(state, losses, 1e-3, 0.9, 1e9)
        gradients.append((loss.item(), norm.item()))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


def test_clipping_bounds_the_norm_of_the_update(tiny, task_of):
    task = task_of(run_named(tiny(), "end_to_end"))
    state = new_state(task.network(6, "x"), (0.9, 0.999), 0.0)
    batch = task.batch(0, 0)
    _, norm = train_step(state, [lambda: task.loss(state.network, batch, None)], 1e-3, 0.9, 0.01)
    clipped = torch.stack([p.grad.norm() for p in state.network.parameters()]).norm()
    assert norm > 0.01 and clipped.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["end_to_end", "interleaved-B3"])
@pytest.mark.parametrize("stop_after", [3, 6])
def test_killed_and_resumed_gives_the_same_bits(tiny, train_in, monkeypatch, name, stop_after):
    monkeypatch.setattr("diffusionblocks.training.loop.LOOK_EVERY", 1)
    run = run_named(tiny(), name)
    part = run.parts[0]
    straight = train_in(run, part, "straight")
    with pytest.raises(KeyboardInterrupt):
        train_in(run, part, "killed", stop_after=stop_after + 1)
    resumed = train_in(run, part, "killed")
    assert same(straight.ema, resumed.ema)
    assert torch.equal(straight.history, resumed.history)


def test_a_foreign_checkpoint_is_refused(tiny, train_in, task_of, tmp_path):
    run = run_named(tiny(), "end_to_end")
    task = task_of(run)
    state = new_state(task.network(6, "block0"), (0.9, 0.999), 0.0)
    save_checkpoint(tmp_path / "state", state, 3, torch.zeros(3, 2), 1.0, "another")
    with pytest.raises(UserError, match="made with configuration another"):
        train_in(run, "block0")


def test_a_corrupt_checkpoint_is_refused(tiny, task_of, tmp_path):
    run = run_named(tiny(), "end_to_end")
    state = new_state(task_of(run).network(6, "block0"), (0.9, 0.999), 0.0)
    save_checkpoint(tmp_path, state, 3, torch.zeros(3, 2), 1.0, run.hash)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="differs from its digest.*delete"):
        load_checkpoint(tmp_path, state, run.hash)
    file.write_bytes(whole)
    assert load_checkpoint(tmp_path, state, run.hash).step == 3


def test_only_the_newest_checkpoint_is_kept(tiny, task_of, tmp_path):
    run = run_named(tiny(), "end_to_end")
    state = new_state(task_of(run).network(6, "block0"), (0.9, 0.999), 0.0)
    (tmp_path / ".step-000000001.safetensors.99.part").write_text("left by a killed job")
    for step in (3, 6):
        save_checkpoint(tmp_path, state, step, torch.zeros(step, 2), 1.0, run.hash)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "state.json",
        "step-000000006.safetensors",
    ]


def test_a_loss_that_is_not_finite_names_step_and_range_and_keeps_the_checkpoint(
    tiny, task_of, tmp_path
):
    run = run_named(tiny("training.iterations=8"), "independent-B2")
    task = task_of(run)
    healthy = task.loss

    def loss(network, batch, layers):
        values = healthy(network, batch, layers)
        return values / 0 if torch.equal(batch.eps, task.batch(1, 4).eps) else values

    task.loss = loss
    with pytest.raises(
        UserError, match=r"not finite at step 4 \(block 1, iteration 4, σ from 0.002"
    ):
        train(
            run, part_of(run, "block1"), task, task.ranges, tmp_path, time.monotonic,
            lambda *a: None,
        )  # fmt: skip
    state = new_state(task.network(3, "block1"), (0.9, 0.999), 0.0)
    assert load_checkpoint(tmp_path, state, run.hash).step == 3


def test_a_diverged_job_that_records_ends_with_the_last_good_weights(tiny, task_of, tmp_path):
    run = run_named(
        tiny("training.iterations=8", "training.on_divergence=record"), "independent-B2"
    )
    task = task_of(run)
    healthy = task.loss

    def loss(network, batch, layers):
        values = healthy(network, batch, layers)
        return values / 0 if torch.equal(batch.eps, task.batch(1, 4).eps) else values

    task.loss = loss
    part = part_of(run, "block1")
    trained = train(
        run, part, task, task.ranges, tmp_path, time.monotonic, lambda *a: None
    )  # fmt: skip
    assert trained.diverged_at == 4 and len(trained.history) == 5
    assert not torch.isfinite(trained.history[-1]).all()
    state = new_state(task.network(3, "block1"), (0.9, 0.999), 0.0)
    load_checkpoint(tmp_path, state, run.hash)
    assert all(torch.equal(trained.ema[name], value) for name, value in state.ema.items())


def test_unknown_part_is_refused(tiny):
    run = run_named(tiny(), "independent-B2")
    with pytest.raises(UserError, match="block0"):
        part_of(run, "block2")


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "foreach"])
def test_the_optimiser_is_pytorchs_adamw(fused):
    """Five updates of our functional AdamW and of ``torch.optim.AdamW`` give the same bits."""
    generator = torch.Generator().manual_seed(0)
    ours = {n: torch.randn(7, 3, generator=generator).requires_grad_() for n in "ab"}
    theirs = {n: p.detach().clone().requires_grad_() for n, p in ours.items()}
    settings = {"betas": (0.8, 0.95), "weight_decay": 0.1}
    reference = torch.optim.AdamW(
        theirs.values(), lr=0.01, fused=fused, foreach=not fused, **settings
    )
    optimizer = AdamW(fused=fused, **settings)
    for _ in range(5):
        for name in ours:
            ours[name].grad = torch.randn(7, 3, generator=generator)
            theirs[name].grad = ours[name].grad.clone()
        reference.step()
        optimizer.update(ours, 0.01)
    assert same(ours, theirs)


def test_a_job_does_not_load_the_compiler(tiny_file, digits, tmp_path):
    """Two seconds at the start of every job; the compiler is for those who ask for it."""
    script = (
        "import sys; from diffusionblocks.cli import main; main(sys.argv[1:]);"
        "print('torch._dynamo' in sys.modules)"
    )
    arguments = ["train", "--preset", tiny_file, "--run", "end_to_end-s0", "--part", "block0",
                 "--data", digits, "--output", tmp_path / "block0.safetensors",
                 "--state", tmp_path / "state"]  # fmt: skip
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_every_method_costs_the_same_layer_evaluations(tiny, train_in):
    for run in tiny().runs():
        counted = 0
        for name in run.parts:
            part = part_of(run, name)
            for step in range(run.training.iterations * len(part.blocks)):
                block, _ = schedule_of(run, part, step)
                counted += run.training.batch_size * len(run.layer_ranges()[block])
        assert counted == layer_evaluations(run) == 8 * 16 * 6


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(i, 100, 1.0, 10, "cosine") for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] < 0.001
    assert {learning_rate(i, 100, 1.0, 0, "constant") for i in range(100)} == {1.0}


def test_ema_forgets_half_in_a_half_life():
    decays = [ema_decay(i, 32, 320) for i in range(10_000, 10_010)]
    assert torch.tensor(decays).prod().item() == pytest.approx(0.5)
    assert ema_decay(0, 32, 320) < 1e-6, "the random start is forgotten at once"


def test_bf16_and_checkpointing_train(tiny, train_in):
    preset = tiny("training.precision=bf16", "training.activation_checkpointing=true")
    trained = train_in(run_named(preset, "independent-B3"), "block0")
    assert torch.isfinite(trained.history).all()
    assert all(value.dtype == torch.float32 for value in trained.ema.values())
