"""The decoder: equal to Llama, tight masks, caches that change nothing."""

import pytest
import torch

from diffusionblocks.losses import next_token_loss, next_token_nats, token_denoising_loss
from diffusionblocks.networks.gpt import (
    DenoisingGPT,
    GPTShape,
    NextTokenGPT,
    denoising_mask,
    rotary_table,
    rotate,
)
from diffusionblocks.preconditioning import Preconditioning

SHAPE = GPTShape(vocabulary=11, context_length=12, width=32, heads=4, mlp_width=48)


def build(kind, layers=3, seed=0, **options):
    network = kind(SHAPE, layers, **options)
    generator = torch.Generator().manual_seed(seed)
    network.initialise(generator)
    with torch.no_grad():
        # Away from adaLN's start without effect, and from small weights that hide faults.
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def noisy_inputs(n=2, length=12, seed=3):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, length, SHAPE.width, generator=generator)
    clean = torch.randn(n, length, SHAPE.width, generator=generator)
    return z, torch.randn(n, generator=generator), clean


def test_plain_form_is_llama():
    """Logits equal Hugging Face transformers' Llama for the same weights."""
    transformers = pytest.importorskip("transformers")
    ours = build(NextTokenGPT)
    config = transformers.LlamaConfig(
        vocab_size=SHAPE.vocabulary, hidden_size=SHAPE.width, intermediate_size=SHAPE.mlp_width,
        num_hidden_layers=3, num_attention_heads=SHAPE.heads, max_position_embeddings=12,
        rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    weights = {
        "model.embed_tokens.weight": ours.embedding.weight,
        "model.norm.weight": ours.norm.weight,
        "lm_head.weight": ours.head.weight,
    }
    for i, layer in enumerate(ours.layers):
        q, k, v = layer.attention.qkv.weight.chunk(3)
        gate, up = layer.mlp.gate_up.weight.chunk(2)
        named = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": layer.attention.out.weight, "mlp.gate_proj": gate,
            "mlp.up_proj": up, "mlp.down_proj": layer.mlp.down.weight,
            "input_layernorm": layer.attention_norm.weight,
            "post_attention_layernorm": layer.mlp_norm.weight,
        }  # fmt: skip
        weights |= {f"model.layers.{i}.{name}.weight": value for name, value in named.items()}
    theirs.load_state_dict(weights)  # strict: nothing is left over on either side
    tokens = torch.randint(0, SHAPE.vocabulary, (4, 12))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-5
        assert ours(tokens).std() > 0.1


def test_no_biases_but_in_the_conditioning():
    plain = build(NextTokenGPT)
    assert not [name for name, _ in plain.named_parameters() if "bias" in name]
    denoising = build(DenoisingGPT, trained_embedding=False)
    biased = {name.split(".")[-2] for name, _ in denoising.named_parameters() if "bias" in name}
    assert biased == {"adaln", "head_adaln", "0", "2"}


def test_mask_by_hand():
    rows = ["0000 1000", "1000 0100", "1100 0010", "1110 0001"]
    wanted = torch.tensor([[c == "1" for c in row.replace(" ", "")] for row in rows])
    assert torch.equal(denoising_mask(4), wanted)


def test_next_token_logits_do_not_see_the_future():
    network = build(NextTokenGPT)
    tokens = torch.randint(0, SHAPE.vocabulary, (2, 12))
    with torch.no_grad():
        before = network(tokens)
        for i in range(1, 12):
            changed = tokens.clone()
            changed[:, i] = (changed[:, i] + 1) % SHAPE.vocabulary
            after = network(changed)
            assert torch.equal(after[:, :i], before[:, :i])
            assert not torch.allclose(after[:, i:], before[:, i:])


@pytest.mark.parametrize("length", [12, 7])
def test_a_noisy_position_sees_the_clean_past_and_itself_only(length):
    """Changing clean i or anything later must not move noisy i; changing the past must."""
    network = build(DenoisingGPT, trained_embedding=False)
    z, c_noise, clean = noisy_inputs(length=length)
    with torch.no_grad():
        before = network(z, c_noise, clean)
        for i in range(length):
            moved = clean.clone()
            moved[:, i] += 1
            after = network(z, c_noise, moved)
            assert torch.equal(after[:, : i + 1], before[:, : i + 1]), f"clean {i} leaks"
            for later in range(i + 1, length):
                assert not torch.allclose(after[:, later], before[:, later]), "the past is unseen"
            moved = z.clone()
            moved[:, i] += 1
            after = network(moved, c_noise, clean)
            others = [j for j in range(length) if j != i]
            assert torch.equal(after[:, others], before[:, others]), f"noisy {i} leaks"
            assert not torch.allclose(after[:, i], before[:, i])


def test_a_mask_that_leaks_is_noticed():
    """The test above can fail: with clean ≤ i visible to noisy i, clean i moves noisy i."""
    network = build(DenoisingGPT, trained_embedding=False)
    network.mask[:, :12] |= torch.eye(12, dtype=torch.bool)
    z, c_noise, clean = noisy_inputs()
    moved = clean.clone()
    moved[:, 5] += 1
    with torch.no_grad():
        assert not torch.allclose(
            network(z, c_noise, moved)[:, 5], network(z, c_noise, clean)[:, 5]
        )


def test_clean_stream_does_not_depend_on_noise():
    """Otherwise its keys and values could not be cached."""
    network = build(DenoisingGPT, trained_embedding=False)
    z, c_noise, clean = noisy_inputs()
    seen = []
    network.layers[-2].register_forward_hook(lambda m, a, out: seen.append(out[:, 0]))
    with torch.no_grad():
        network(z, c_noise, clean)
        network(2 * z, c_noise + 1, clean)
    assert torch.equal(*seen)


def test_a_fresh_denoising_layer_computes_what_a_plain_one_does():
    fresh = DenoisingGPT(SHAPE, 3, trained_embedding=False)
    fresh.initialise(torch.Generator().manual_seed(0))
    plain = NextTokenGPT(SHAPE, 3)
    plain.load_state_dict(fresh.state_dict(), strict=False)
    x, c = torch.randn(2, 1, 12, SHAPE.width), torch.randn(2, 1, SHAPE.width)
    with torch.no_grad():
        a = fresh.run(x, c, fresh.rotation)
        b = plain.run(x[:, 0], None, plain.rotation)
    assert torch.allclose(a[:, 0], b, atol=1e-6)


def test_two_streams_are_one_sequence_under_one_mask():
    """Both streams at once, and the noisy one alone, against the dense mask of the method."""
    attention = build(DenoisingGPT, trained_embedding=False).layers[0].attention
    rotation = rotary_table(12, SHAPE.width // SHAPE.heads)
    x = torch.randn(3, 2, 12, SHAPE.width)
    clean = torch.cat([torch.ones(12, 12).tril().bool(), torch.zeros(12, 12).bool()], 1)
    mask = denoising_mask(12)
    with torch.no_grad():
        q, k, v = (
            y.view(3, 24, SHAPE.heads, -1).transpose(1, 2)
            for y in attention.qkv(x).flatten(1, 2).chunk(3, -1)
        )
        both = torch.cat([rotation, rotation], 1)
        score = rotate(q, both) @ rotate(k, both).mT / (SHAPE.width // SHAPE.heads) ** 0.5
        weights = score.masked_fill(~torch.cat([clean, mask]), -torch.inf).softmax(-1)
        dense = attention.out((weights @ v).transpose(1, 2).flatten(2)).view_as(x)
        assert torch.allclose(attention.both(x, rotation, mask), dense, atol=1e-5)
        assert torch.allclose(attention.noisy(x, rotation, mask), dense[:, 1:], atol=1e-5)


def test_next_token_cache_changes_nothing():
    network = build(NextTokenGPT)
    tokens = torch.randint(0, SHAPE.vocabulary, (2, 12))
    with torch.no_grad():
        whole = network(tokens)
        caches = network.caches(2)
        pieces = [network(tokens[:, :5], caches=caches)]
        pieces += [network(tokens[:, i : i + 1], caches=caches) for i in range(5, 12)]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def test_denoising_cache_changes_nothing():
    network = build(DenoisingGPT, trained_embedding=False)
    z, c_noise, clean = noisy_inputs()
    with torch.no_grad():
        whole = network(z, c_noise, clean)
        caches = network.caches(2)
        level, known = network.modulation(c_noise), network.modulation(None)
        network.read(clean[:, :4], known, caches)
        for i in range(4, 12):
            for _ in range(2):  # a second look: the first must leave nothing behind
                found = network.next(z[:, i], level, caches)
                assert torch.allclose(found, whole[:, i], atol=1e-5)
            network.read(clean[:, i : i + 1], known, caches)


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for recompute in (False, True):
        network = build(
            DenoisingGPT, trained_embedding=True, activation_checkpointing=recompute
        ).train()
        network(*noisy_inputs()).square().mean().backward()
        grads.append(network.layers[0].mlp.down.weight.grad)
    assert torch.allclose(*grads)


def test_losses_of_tokens_by_hand():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[0, 1, 2, 3, 4], [6, 6, 6, 6, 6], [5, 0, 5, 0, 5]])
    nats = -logits.log_softmax(2)
    after = torch.tensor([[nats[n, i, tokens[n, i + 1]] for i in range(4)] for n in range(3)])
    assert torch.allclose(next_token_loss(logits, tokens), after.mean(1))
    assert torch.equal(next_token_nats(logits, tokens)[:, -1], torch.zeros(3))
    sigma, unit = torch.tensor([0.5, 1.0, 9.0]), Preconditioning(0.5)
    own = torch.tensor([[nats[n, i, tokens[n, i]] for i in range(5)] for n in range(3)]).mean(1)
    wanted = 0.25 * unit.weight(sigma) * own
    found = token_denoising_loss(logits, tokens, sigma, unit)
    assert torch.allclose(found, wanted, rtol=1e-5)
