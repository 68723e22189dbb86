"""The DiT's sizes, symmetries and start."""

import pytest
import torch

from diffusionblocks.networks.dit import DiT, DiTShape, sincos_positions

SMALL = DiTShape(image_size=8, channels=3, classes=5, width=32, heads=4, patch=2)


def build(shape=SMALL, layers=4, seed=0, **options):
    network = DiT(shape, layers, **options)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def wake(network, seed=1):
    """Move every weight off adaLN-Zero's start, where layers do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network


def inputs(n=3, shape=SMALL):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(n, shape.channels, shape.image_size, shape.image_size, generator=generator)
    return z, torch.randn(n, generator=generator), torch.arange(n) % shape.classes


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"),
    [(12, 384, 6, 33.0), (24, 1024, 16, 458.0)],
    ids=["DiT-S/2", "DiT-L/2"],
)
def test_published_sizes(layers, width, heads, millions):
    """Peebles & Xie (2023), Table 1: 33 M and 458 M parameters on ImageNet latents."""
    shape = DiTShape(32, 4, 1000, width, heads, 2)
    with torch.device("meta"):
        network = DiT(shape, layers)
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_patchify_and_back():
    network = build()
    z, _, _ = inputs()
    tokens = network.patchify(z)
    assert tokens.shape == (3, 16, 12)
    assert torch.equal(network.unpatchify(tokens), z)
    # The second token is the patch to the right of the first.
    assert torch.equal(tokens[0, 1].view(3, 2, 2), z[0, :, 0:2, 2:4])


def test_starts_at_zero_output():
    assert torch.equal(build()(*inputs()), torch.zeros(3, 3, 8, 8))


def test_every_input_matters_once_awake():
    network = wake(build())
    z, c_noise, label = inputs()
    base = network(z, c_noise, label)
    assert base.shape == z.shape
    assert not torch.allclose(base, network(z + 0.1, c_noise, label))
    assert not torch.allclose(base, network(z, c_noise + 0.1, label))
    assert not torch.allclose(base, network(z, c_noise, label * 0 + network.no_label))


def test_close_noise_levels_are_told_apart_smoothly():
    network = build()
    c = torch.tensor([-0.5, -0.499, -0.4])
    e = network.noise(c)
    assert 0 < (e[0] - e[1]).norm() < (e[0] - e[2]).norm()


def test_running_slices_of_layers_composes():
    """The layers of an interleaved run are the same objects that a slice runs."""
    network = wake(build(layers=4))
    z, c_noise, label = inputs()
    whole = network(z, c_noise, label)
    assert torch.equal(whole, network(z, c_noise, label, range(0, 4)))
    assert not torch.allclose(whole, network(z, c_noise, label, range(0, 2)))
    halves = network(z, c_noise, label, range(2, 4))
    del network.layers[:2]
    assert torch.equal(halves, network(z, c_noise, label))


def test_checkpointing_changes_memory_not_gradients():
    plain, checkpointed = wake(build()), wake(build(activation_checkpointing=True))
    for network in (plain, checkpointed):
        network.train()
        network(*inputs()).square().sum().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_positions_tell_rows_from_columns():
    positions = sincos_positions(4, 16).view(4, 4, 16)
    assert torch.equal(positions[0, :, :8], positions[0, :1, :8].expand(4, 8))
    assert torch.equal(positions[:, 0, 8:], positions[:1, 0, 8:].expand(4, 8))
    assert positions.view(16, 16).unique(dim=0).shape[0] == 16


def test_initial_weights_are_a_function_of_the_generator():
    a, b, c = build(seed=0), build(seed=0), build(seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.patches.weight, c.patches.weight)
