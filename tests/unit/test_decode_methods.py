"""The decode room's methods: the papers' worked numbers, and identities that hold exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.decode.room import Combined, Step
from interfuse.decode.routing import npmi
from interfuse.decode.steering import (
    FAMILIES,
    add_vector,
    family_of,
    record,
    routed_layers,
    scale_experts,
    self_test,
    steer,
)
from interfuse.kit.logits import leaders, log_partitions


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def logs(*probs: float) -> torch.Tensor:
    return row(*probs).log()


def run(slug: str, step: Step, **params: Any) -> Combined:
    method = load(slug, room="decode")
    own = {n: p.default for n, p in method.params.items() if n in method.target.__kwdefaults__}
    return method.target(step, **{**own, **params})


def close(made: Combined, probs: list[float], atol: float = 2e-4) -> None:
    torch.testing.assert_close(made.scores.softmax(dim=1), row(*probs), atol=atol, rtol=0)


def draws(*shape: int, scale: float = 2.0, seed: int = 1) -> torch.Tensor:
    return torch.tensor(Ctx(seed=seed).rng("draws").normal(0, scale, shape), dtype=torch.float32)


# ------------------------------------------------------------------------------------------------ dynamic logits fusion

GIANT = Step(row(2, 1, 0), row(1, 1, 0), [row(1, 2, 0)])


def test_dynamic_worked_example() -> None:
    made = run("dynamic-logits-fusion", GIANT)
    assert made.trace["alpha"].tolist() == [1.0]
    assert float(made.trace["loss"]) == pytest.approx(0.000295, abs=1e-6)
    close(made, [0.468311, 0.468311, 0.063379], 1e-5)
    for alpha, loss in ((0.0, 0.029512), (0.5, 0.018290), (1.0, 0.000295), (1.5, 0.039072), (2.0, 0.230329)):
        one = run("dynamic-logits-fusion", GIANT, alphas=[alpha])
        assert float(one.trace["loss"]) == pytest.approx(loss, abs=2e-6)


def test_dynamic_identities() -> None:
    large, small, one, two = draws(4, 6, 50)
    same = run("dynamic-logits-fusion", Step(small, small, [one]))
    torch.testing.assert_close(same.trace["alpha"], torch.ones(6))
    torch.testing.assert_close(same.scores.softmax(dim=1), one.softmax(dim=1), atol=1e-5, rtol=1e-4)
    idle = run("dynamic-logits-fusion", Step(large, small, [small + 3.0]))
    torch.testing.assert_close(idle.scores.softmax(dim=1), large.softmax(dim=1), atol=1e-6, rtol=1e-5)
    single = run("dynamic-logits-fusion", Step(large, small, [one]))
    copies = run("dynamic-logits-fusion", Step(large, small, [one] * 3))
    assert torch.equal(single.scores, copies.scores)
    proxy = run("proxy-tuning", Step(large, small, [one]))
    only = run("dynamic-logits-fusion", Step(large, small, [one]), alphas=[1.0])
    torch.testing.assert_close(only.scores.softmax(dim=1), proxy.scores.softmax(dim=1), atol=1e-6, rtol=1e-4)
    both = run("dynamic-logits-fusion", Step(large, small, [one, two]))
    assert set(both.trace["expert"].tolist()) <= {0, 1, 2}
    narrow = run("dynamic-logits-fusion", Step(large, small, [one, two]), limits=[0.3, 2.0])
    assert all(
        a <= 0.3 + 1e-6
        for a, e in zip(narrow.trace["alpha"].tolist(), narrow.trace["expert"].tolist(), strict=True)
        if e == 1
    )


@pytest.mark.parametrize("scale", [0.5, 6.0, 60.0])
def test_log_partitions_in_both_forms(scale: float) -> None:
    """One product of exponentials per strength, or logarithms: the same numbers, whatever the size of the change."""
    large, d = draws(2, 3, 400, scale=1.0)
    d = d * scale
    p = large.softmax(dim=1)
    d = d - (p * d).sum(dim=1, keepdim=True)
    even = [i / 10 for i in range(21)]
    parts, means = log_partitions(large.log_softmax(dim=1), p, d, even)
    tilted = (
        large.double().log_softmax(dim=1)[None] + torch.tensor(even, dtype=torch.float64)[:, None, None] * d.double()
    )
    wanted = tilted.logsumexp(dim=2)
    torch.testing.assert_close(parts.double(), wanted, atol=2e-5 * max(1, scale), rtol=1e-5)
    mean = ((tilted - wanted[..., None]).exp() * d.double()).sum(dim=2)
    torch.testing.assert_close(means.double(), mean, atol=1e-4 * max(1, scale), rtol=1e-4)
    odd, _ = log_partitions(large.log_softmax(dim=1), p, d, [0.0, 0.1, 0.35, 2.0])
    torch.testing.assert_close(odd[[0, 1, 3]], parts[[0, 1, 20]], atol=2e-5 * max(1, scale), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ two prompts

PLUG = Step(logs(0.4, 0.45, 0.1, 0.05), plain=logs(0.7, 0.2, 0.05, 0.05))


@pytest.mark.parametrize(
    ("alpha", "probs"),
    [(0.0, [0.0982, 0.3865, 0.3436, 0.1718]), (0.25, [0.1941, 0.3966, 0.2567, 0.1526]), (0.5, [0.3431, 0.3640, 0.1716, 0.1213]),
     (0.75, [0.5268, 0.2900, 0.0995, 0.0837]), (1.0, [0.7, 0.2, 0.05, 0.05]), ("auto", [0.3851, 0.3495, 0.1528, 0.1126])],
)  # fmt: skip
def test_ck_plug_worked_example(alpha: Any, probs: list[float]) -> None:
    made = run("ck-plug", PLUG, alpha=alpha)
    close(made, probs)
    assert float(made.trace["gain"]) == pytest.approx(-0.2348, abs=1e-4)
    assert float(made.trace["intervened"]) == 1.0
    if alpha == "auto":
        assert float(made.trace["alpha"]) == pytest.approx(0.559371, abs=1e-5)


def test_ck_plug_identities() -> None:
    r, p = draws(2, 8, 60)
    assert torch.equal(run("ck-plug", Step(r, plain=p), gate="never").scores, r)
    assert torch.equal(run("ck-plug", Step(r, plain=r)).scores, r), "no gain, no change"
    memory = run("ck-plug", Step(r, plain=p), alpha=1.0, gate="always").scores
    head = torch.isfinite(memory)
    torch.testing.assert_close(
        memory.softmax(dim=1), p.masked_fill(~head, -math.inf).softmax(dim=1), atol=1e-6, rtol=1e-4
    )
    half = run("ck-plug", Step(r, plain=p), alpha=0.5, gate="always").scores
    assert torch.equal(half.argmax(dim=1), r.argmax(dim=1))
    assert int(head.sum(dim=1).min()) >= 10
    strict = run("ck-plug", Step(r, plain=p), gate="never", restrict="always").scores
    assert torch.equal(strict.argmax(dim=1), r.argmax(dim=1))
    fires = [
        float(run("ck-plug", Step(r, plain=p), gate=g).trace["intervened"].mean())
        for g in ("never", "absolute", "relative", "always")
    ]
    assert fires == sorted(fires)


def test_context_baselines_identities() -> None:
    r, p = draws(2, 8, 60)
    assert torch.equal(run("cad", Step(r, plain=p), alpha=0.0).scores, r)
    assert torch.equal(run("adacad", Step(r, plain=r)).scores, r)
    far = run("adacad", Step(row(30, 0), plain=row(0, 30)))
    assert float(far.trace["alpha"]) == pytest.approx(1.0, abs=1e-4), "disjoint distributions differ by one bit"
    strong = run("contrastive", Step(r, base=r), plausible=1e-9)
    torch.testing.assert_close(strong.scores.softmax(dim=1), r.softmax(dim=1))


def test_mixture_identities() -> None:
    a, b, c = draws(3, 5, 40)
    assert torch.equal(run("mixture", Step(a)).scores, a)
    for kind in ("linear", "geometric"):
        torch.testing.assert_close(
            run("mixture", Step(a, experts=[a, a]), kind=kind).scores.softmax(dim=1), a.softmax(dim=1)
        )
        alone = run("mixture", Step(a, experts=[b, c]), kind=kind, weights=[0.0, 1.0, 0.0])
        torch.testing.assert_close(alone.scores.softmax(dim=1), b.softmax(dim=1), atol=1e-6, rtol=1e-4)
    sure = run("mixture", Step(a * 20, experts=[b * 0.01]), weights="entropy", tau=0.05)
    assert float(sure.trace["weight 0"].min()) > 0.99
    with pytest.raises(InterfuseError, match="2 models"):
        run("mixture", Step(a, experts=[b]), weights=[1.0])


def test_arithmetic_identities() -> None:
    m, s, e = draws(3, 5, 40)
    assert torch.equal(run("static-arithmetic", Step(m, s, [e, e]), alpha=0.0).scores, m)
    assert torch.equal(run("proxy-tuning", Step(m, s, [e]), alpha=0.0).scores, m)
    two = run("static-arithmetic", Step(m, s, [e, e]), alpha=[0.3, 0.7]).scores
    torch.testing.assert_close(two, run("proxy-tuning", Step(m, s, [e])).scores, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ mixtures of experts

SIZES: dict[str, Any] = {
    "vocab_size": 26, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2, "num_experts_per_tok": 2,
}  # fmt: skip
MLA = {"moe_intermediate_size": 12, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
       "qk_nope_head_dim": 4, "v_head_dim": 8, "topk_group": 1}  # fmt: skip
MOES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 12, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "deepseek_v2": {**MLA, "n_routed_experts": 4, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1},
    "deepseek_v3": {**MLA, "n_routed_experts": 4, "q_lora_rank": 8, "n_group": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "head_dim": 8,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoe": {"num_local_experts": 4},
}


def moe(kind: str) -> Any:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **{**SIZES, **MOES[kind]})
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    return model


def test_every_known_family_is_tried() -> None:
    assert set(MOES) == set(FAMILIES)


@pytest.mark.parametrize("kind", MOES)
def test_steering_of_a_family(kind: str) -> None:
    """Strength 1, no experts and experts that are not selected leave every bit; the export equals the hooks; hooks go, counts add up."""
    model, ids = moe(kind), torch.arange(3, 15)[None]
    layers = routed_layers(model)
    with torch.no_grad(), record(model) as routes:
        plain = model(input_ids=ids).logits
    last = layers[-1].layer
    picked = routes[last][0]
    assert picked.shape == (12, 2)
    chosen = [(last, int(picked[3, 0]))]
    with torch.no_grad():
        for same, beta in ((chosen, 1.0), ([], 8.0)):
            with steer(model, same, beta):
                assert torch.equal(model(input_ids=ids).logits, plain)
        never = [e for e in range(4) if e not in picked]
        if never:
            with steer(model, [(last, never[0])], 8.0):
                assert torch.equal(model(input_ids=ids).logits, plain)
        with steer(model, chosen, 3.0):
            steered = model(input_ids=ids).logits
        assert float((steered - plain).abs().max()) > 1e-3
        with pytest.raises(RuntimeError, match="stop"), steer(model, chosen, 3.0):
            raise RuntimeError("stop")
        assert torch.equal(model(input_ids=ids).logits, plain), "hooks are gone after an error"
        two = ids.repeat(2, 1)
        with steer(model, chosen, torch.tensor([1.0, 3.0])):
            mixed = model(input_ids=two).logits
        torch.testing.assert_close(mixed[0], plain[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mixed[1], steered[0], atol=1e-5, rtol=1e-4)
        assert self_test(model, ids) > 0
        scale_experts(model, chosen, 3.0)
        torch.testing.assert_close(model(input_ids=ids).logits, steered, atol=1e-5, rtol=1e-4)


def test_steered_block_is_the_equation() -> None:
    """``y = sum_i beta^[i in S] g_i E_i(x)``, written out over the experts of one block."""
    model = moe("qwen3_moe")
    block, x = model.model.layers[0].mlp, draws(5, 16)
    with torch.no_grad(), steer(model, [(0, 1), (0, 2)], 5.0):
        ours = block(x[None])[0]
    gates = (x @ block.gate.weight.T).softmax(dim=-1)
    with torch.no_grad():
        for i in range(5):
            top = gates[i].topk(2)
            shares = top.values / (top.values.sum() if block.gate.norm_topk_prob else 1.0)
            total = torch.zeros(16)
            for g, e in zip(shares, top.indices.tolist(), strict=True):
                gate, up = (block.experts.gate_up_proj[e] @ x[i]).chunk(2)
                out = block.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)
                total += (5.0 if e in (1, 2) else 1.0) * g * out
            torch.testing.assert_close(ours[i], total, atol=1e-5, rtol=1e-4)


def test_a_bypassed_hook_is_noticed() -> None:
    """A block that computes its experts without calling their module, as fused kernels do."""
    model = moe("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.experts.__class__.__call__  # noqa: B018
        layer.mlp.forward = lambda hidden, mlp=layer.mlp: (
            lambda flat: mlp.experts.forward(flat, mlp.gate(flat)[2], mlp.gate(flat)[1]).view_as(hidden)
        )(hidden.view(-1, hidden.shape[-1]))
    with pytest.raises(InterfuseError) as caught:
        self_test(model, torch.arange(3, 9)[None])
    assert caught.value.code == "needs.capability"


def test_npmi_worked_numbers() -> None:
    assert npmi(8, 100, 10, 1000) == pytest.approx(0.430677, abs=1e-6)
    assert npmi(10, 10, 10, 1000) == pytest.approx(1.0)
    assert npmi(1, 100, 10, 1000) == pytest.approx(0.0, abs=1e-12)
    assert npmi(0, 100, 10, 1000) == -1.0


def test_refusals_of_steering() -> None:
    import transformers

    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **{k: v for k, v in SIZES.items() if "exp" not in k})
    )
    with pytest.raises(InterfuseError, match="dense"):
        routed_layers(dense)
    with pytest.raises(InterfuseError, match="not known"):
        family_of({"model_type": "jetmoe", "num_local_experts": 4}, "x")
    model = moe("mixtral")
    for chosen, beta in (([(0, 1)], 0.0), ([(0, 9)], 2.0), ([(7, 0)], 2.0)):
        with pytest.raises(InterfuseError) as caught, steer(model, chosen, beta):
            pass
        assert caught.value.code == "param.value"


def test_added_vector() -> None:
    """A zero vector and a zero coefficient leave every bit; others move the layer's output by just that."""
    model, ids = moe("mixtral"), torch.arange(3, 9)[None].repeat(2, 1)
    vector = draws(16)
    inputs: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_pre_hook(lambda layer, args: inputs.append(args[0].clone()))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for nothing, strength in ((torch.zeros(16), 3.0), (vector, 0.0)):
            with add_vector(model, 0, nothing, strength):
                assert torch.equal(model(input_ids=ids).logits, plain)
        with add_vector(model, 0, vector, torch.tensor([0.0, 2.0])):
            moved = model(input_ids=ids).logits
        torch.testing.assert_close(inputs[-1][1] - inputs[0][1], (2 * vector).expand(6, -1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(moved[0], plain[0])
        assert float((moved[1] - plain[1]).abs().max()) > 1e-3
        assert torch.equal(model(input_ids=ids).logits, plain)
    handle.remove()
    with pytest.raises(InterfuseError, match="layers of width"), add_vector(model, 2, vector):
        pass


@pytest.mark.parametrize("size", [3, 64, 65, 1000, 4096])
@pytest.mark.parametrize("k", [1, 10, 70])
def test_leaders_are_found_without_sorting_a_vocabulary(size: int, k: int) -> None:
    rng = torch.Generator().manual_seed(size * 100 + k)
    logits = 3 * torch.randn(2, size, generator=rng)
    logits[0, :: max(size // 7, 1)] = float(logits[0].max())  # ties for the first place
    logits[1, 1::2] = -math.inf
    for share in (1.0, 0.01):
        places = leaders(logits, k, share)
        assert places.tolist() == sorted(set(places.tolist()))
        for row in logits:
            least = min(float(row.topk(min(k, size)).values[-1]), float(row.max()) + math.log(share))
            assert set((row >= least).nonzero().squeeze(1).tolist()) <= set(places.tolist())
    assert size < 4096 or len(leaders(logits, 1, 1.0)) < size // 8
