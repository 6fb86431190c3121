"""The structures of every pattern of the zoo, by hand, and what cutting them does."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import CASES, Lambda, image
from decayprune.structures import FIXED, StructureMap, trace
from reference.cut import cut, error, run, tensors, zeroed

# (first layer, structures, indices per structure) of each group, and the layers left alone
EXPECTED: dict[str, tuple[list[tuple[str, int, int]], list[str]]] = {
    "chain": ([("0", 6, 1), ("3", 5, 1)], ["7"]),
    "flatten": ([("0", 6, 1), ("4", 7, 1)], ["6"]),
    "residual": ([("stem.0", 6, 1), ("a.0", 4, 1)], ["head"]),
    "preactivation": ([("stem", 6, 1), ("a", 4, 1)], ["head"]),
    "concat": ([("a.0", 4, 1), ("b", 6, 1), ("c", 5, 1)], ["head"]),
    "dense": ([("stem", 4, 1), ("a", 3, 1), ("b", 3, 1)], ["head"]),
    "split": ([("stem.0", 4, 2), ("a", 3, 1), ("b", 2, 1)], ["head"]),
    "depthwise": ([("0.0", 6, 1), ("4.0", 4, 1)], ["7"]),
    "depthwise_multiplier": ([("0", 5, 1), ("3", 4, 1)], ["6"]),
    "grouped": ([("0.0", 3, 2), ("2.0", 4, 2)], ["6"]),
    # the shuffle ties i to i + 4, the grouped convolution 0 to 2, 4 to 6, 1 to 3, 5 to 7
    "channel_shuffle": ([("stem.0", 2, 4), ("a", 2, 2)], ["head"]),
    "squeeze_excite": ([("stem.0", 6, 1), ("down", 3, 1), ("out.0", 4, 1)], ["head"]),
    "prelu": ([("0", 6, 1), ("2", 4, 1)], ["5"]),
    "sigmoid": ([("0", 6, 1), ("2", 4, 1)], ["5"]),
    "no_affine": ([("0", 6, 1), ("3", 4, 1)], ["5"]),
    "transposed": ([("0", 6, 1), ("2", 2, 2), ("4", 3, 1)], ["6"]),
    "instance_norm": ([("0", 6, 1), ("3", 4, 1)], ["7"]),
    "mixing_norms": ([("stem", 3, 2), ("up", 9, 1)], ["head"]),
    "layer_scale": ([("stem", 6, 1)], ["head"]),
    "padded_shortcut": ([("stem.0", 4, 1)], ["a.0", "head"]),
    "pixel_shuffle": ([("0", 3, 4)], ["3"]),
    "conv_1d_and_3d": ([("a1", 5, 1), ("a3", 4, 1)], ["head"]),
    "frozen_statistics": ([("a", 6, 1), ("b", 4, 1)], ["head"]),
    "bias_table": ([("qkv", 4, 6)], ["head"]),
    "shared": ([("stem", 6, 1)], ["head"]),
    "tied": ([("embed", 6, 1), ("up", 8, 1)], ["embed"]),
    "keywords": ([("a", 6, 1)], ["b", "head"]),
    "auxiliary": ([("stem.0", 6, 1), ("a.0", 4, 1)], ["head", "aux"]),
    "attention_sdpa": ([("attention.q", 4, 3), ("up", 10, 1)], ["attention.out", "down", "head"]),
    "attention_matmul": ([("attention.q", 4, 3), ("up", 10, 1)], ["attention.out", "down", "head"]),
    "attention_grouped": (
        [("attention.q", 2, 6), ("up", 10, 1)],
        ["attention.out", "down", "head"],
    ),
    "attention_module": (
        [("0.self_attn", 2, 12), ("0.linear1", 12, 1)],
        ["0.linear2", "1", "0.self_attn.out_proj"],
    ),
    "attention_bias": ([("q", 4, 3)], ["head"]),
    "attention_rotary": ([("q", 2, 8)], ["head"]),
    "attention_fused": ([("attention", 4, 6), ("up", 10, 1)], ["attention.out", "down", "head"]),
    "shifted_windows": ([("stem", 12, 1), ("a.qkv", 4, 9), ("b.qkv", 2, 18)], ["head"]),
    "shifted_windows_2": (
        [
            ("stem", 12, 1),
            ("a.cpb_mlp.0", 512, 1),
            ("a.cpb_mlp.2", 4, 1),
            ("b.cpb_mlp.0", 512, 1),
            ("b.cpb_mlp.2", 2, 1),
        ],
        ["head"],
    ),
    "windows": ([("a", 4, 1), ("b", 3, 2)], ["head"]),
    "split_by_attribute": ([("stem", 4, 2), ("a", 4, 1)], ["head"]),
    "stacked": ([("a", 6, 1)], ["head"]),
    "bag": ([("bag", 6, 1), ("", 5, 1)], ["head"]),
    "message_passing": ([("own", 6, 1)], ["head"]),
    "gated_mlp": ([("gate", 6, 1)], ["down"]),
    "tokens": ([("patch", 6, 1)], ["head"]),
    "recurrent": ([("a", 6, 1), ("lstm", 5, 4), ("b", 7, 1)], ["head"]),
    "moved_weights": (
        [("", 6, 1), ("", 6, 2), ("", 6, 1), ("b", 5, 1), ("c", 7, 1)],
        ["head"],
    ),
    "experts": ([("stem", 6, 1), ("", 5, 2)], ["head", "router"]),
    "einsums": ([("stem", 8, 1), ("", 2, 1)], ["", "head"]),
    "generator": ([("first", 6, 4), ("up", 5, 1), ("second", 3, 4)], ["head"]),
    "token_mixer": ([("stem", 6, 1), ("up", 8, 1)], ["tokens", "head"]),
    "learned_queries": ([("stem", 6, 1)], ["head"]),
    "l2_norms": ([("a", 6, 1), ("b", 5, 1), ("c", 4, 1)], ["head"]),
    "picked": ([("a", 6, 1), ("b", 6, 1)], ["head"]),
    "other_operators": ([("a", 6, 1), ("b", 5, 1)], ["head"]),
    "norms_of_their_own": ([("stem", 8, 1), ("up", 12, 1)], ["head"]),
    "standardised": ([("stem", 4, 2), ("bare", 3, 2)], ["head"]),
    "response_norms": ([("stem", 8, 1), ("up", 12, 1), ("down", 8, 1)], ["head"]),
    "counting_norms": (
        [("stem", 8, 1), ("a", 6, 1), ("up", 9, 1), ("b", 7, 1), ("c", 5, 1)],
        ["head"],
    ),
    "vision_transformer": (
        [
            ("patch", 8, 1),
            ("blocks.0.self_attn", 4, 6),
            ("blocks.0.linear1", 12, 1),
            ("blocks.1.self_attn", 4, 6),
            ("blocks.1.linear1", 12, 1),
        ],
        ["head"],
    ),
    "padded_encoder": (
        [
            ("embed", 8, 1),
            ("encoder.layers.0.self_attn", 4, 6),
            ("encoder.layers.0.linear1", 12, 1),
            ("encoder.layers.1.self_attn", 4, 6),
            ("encoder.layers.1.linear1", 12, 1),
        ],
        ["head"],
    ),
    "cross_attention": (
        [
            ("k", 6, 1),
            ("v", 7, 1),
            ("q", 8, 1),
            ("separate", 4, 2),
            ("separate.out_proj", 8, 1),
            ("packed", 2, 12),
        ],
        ["head"],
    ),
    "attention_unbatched": (
        [("stem", 6, 1), ("a", 3, 6), ("a.out_proj", 6, 1), ("b.out_proj", 6, 1)],
        ["b", "head"],
    ),
}

# per group: the (parameter, dim) whose scaling scales the function
CARRIERS: dict[str, list[set[tuple[str, int]]]] = {
    "chain": [{("1.weight", 0), ("1.bias", 0)}, {("3.weight", 0), ("3.bias", 0)}],
    "residual": [
        {("stem.1.weight", 0), ("stem.1.bias", 0), ("b.1.weight", 0), ("b.1.bias", 0)},
        {("a.1.weight", 0), ("a.1.bias", 0)},
    ],
    "preactivation": [
        {("n1.weight", 0), ("n1.bias", 0), ("n3.weight", 0), ("n3.bias", 0)},
        {("n2.weight", 0), ("n2.bias", 0)},
    ],
    "concat": [
        {("a.1.weight", 0), ("a.1.bias", 0)},
        {("b.weight", 0), ("b.bias", 0)},
        {("c.weight", 0), ("c.bias", 0)},
    ],
    "dense": [
        {(f"n{i}.{leaf}", 0) for i in (1, 2, 3) for leaf in ("weight", "bias")},
        {(f"n{i}.{leaf}", 0) for i in (2, 3) for leaf in ("weight", "bias")},
        {("n3.weight", 0), ("n3.bias", 0)},
    ],
    "depthwise": [{("2.1.weight", 0), ("2.1.bias", 0)}, {("4.1.weight", 0), ("4.1.bias", 0)}],
    "depthwise_multiplier": [
        {("0.weight", 0), ("0.bias", 0), ("1.bias", 0)},
        {("3.weight", 0), ("3.bias", 0)},
    ],
    "squeeze_excite": [
        {("stem.1.weight", 0), ("stem.1.bias", 0)},
        {("down.weight", 0), ("down.bias", 0)},
        {("out.1.weight", 0), ("out.1.bias", 0)},
    ],
    "sigmoid": [{("2.weight", 1)}, {("2.weight", 0), ("2.bias", 0)}],
    "no_affine": [{("3.weight", 1)}, {("3.weight", 0), ("3.bias", 0)}],
    "layer_scale": [{("stem.weight", 0), ("stem.bias", 0), ("gamma", 0)}],
    "message_passing": [{("own.weight", 0), ("own.bias", 0), ("send.weight", 0), ("send.bias", 0)}],
    "gated_mlp": [{("up.weight", 0), ("up.bias", 0)}],
    "attention_sdpa": [
        {("attention.v.weight", 0), ("attention.v.bias", 0)},
        {("up.weight", 0), ("up.bias", 0)},
    ],
    "tokens": [{("norm.weight", 0), ("norm.bias", 0)}],
    # what is normalised carries beside the norm: a norm alone would leave its share of the mean
    "mixing_norms": [
        {
            *(("stem.weight", 0), ("stem.bias", 0), ("gn.weight", 0), ("gn.bias", 0)),
            *(("ln.weight", 0), ("ln.bias", 0), ("down.weight", 0), ("down.bias", 0)),
        },
        {("up.weight", 0), ("up.bias", 0)},
    ],
    "attention_module": [
        {("0.self_attn.out_proj.weight", 1)},
        {("0.linear1.weight", 0), ("0.linear1.bias", 0)},
    ],
    "pixel_shuffle": [{("0.weight", 0), ("0.bias", 0)}],
}


def half_of(structures: StructureMap, seed: int = 0) -> set[int]:
    """Half of each group, at random."""
    draw = random.Random(seed)
    removed: set[int] = set()
    for group in structures.groups:
        removed |= set(draw.sample(range(group.start, group.stop), group.size // 2))
    return removed


@pytest.fixture(params=CASES, scope="module")
def zoo(request: pytest.FixtureRequest) -> tuple[str, nn.Module, object, StructureMap]:
    model, inputs = CASES[request.param]()
    model.train()
    return request.param, model, inputs, trace(model, inputs)


def test_groups_are_those_found_by_hand(zoo) -> None:
    name, _, _, structures = zoo
    groups, refused = EXPECTED[name]
    assert [(g.layer, g.size, g.width) for g in structures.groups] == groups
    assert sorted(r.layer for r in structures.refusals) == sorted(refused)


def test_every_case_has_an_expectation() -> None:
    assert set(EXPECTED) == set(CASES)


def test_a_cut_equals_zeroing(zoo) -> None:
    _, model, inputs, structures = zoo
    removed = half_of(structures)
    small = cut(model, structures, removed)
    assert error(run(zeroed(model, structures, removed), inputs), run(small, inputs)) < 1e-10
    count = sum(p.numel() for p in small.parameters())
    assert count < sum(p.numel() for p in model.parameters())


def test_zeros_pass_through_pinned_structures(zoo) -> None:
    """Where an all-zero structure is pinned, rows and affine alone silence it."""
    _, model, inputs, structures = zoo
    removed = {s for s in half_of(structures) if not structures.unpinned[s]}
    expected = run(zeroed(model, structures, removed), inputs)
    found = run(zeroed(model, structures, removed, ("row", "affine")), inputs)
    assert error(expected, found) < 1e-10


def test_carriers_alone_silence_a_pinned_structure(zoo) -> None:
    _, model, inputs, structures = zoo
    removed = {s for s in half_of(structures) if not structures.unpinned[s]}
    expected = run(zeroed(model, structures, removed), inputs)
    found = run(zeroed(model, structures, removed, carriers_only=True), inputs)
    assert error(expected, found) < 1e-10


def test_every_structure_has_a_carrier(zoo) -> None:
    structures = zoo[3]
    carried = torch.zeros(structures.num_structures, dtype=torch.bool)
    for item in structures.slices:
        assert item.role != "buffer" or not item.carrier.any()
        carried[item.structure[item.carrier]] = True
    assert bool(carried.all())


@pytest.mark.parametrize("name", CARRIERS)
def test_carriers_are_those_found_by_hand(name: str) -> None:
    structures = trace(*CASES[name]())
    for group, expected in zip(structures.groups, CARRIERS[name], strict=True):
        found = set()
        for item in structures.slices:
            own = (item.structure >= group.start) & (item.structure < group.stop)
            assert not (item.carrier & own).any() or bool((item.carrier == own)[own].all())
            if (item.carrier & own).any():
                found.add((item.name, item.dim))
        assert found == expected, group.layer


def test_the_map_is_consistent(zoo) -> None:
    _, model, _, structures = zoo
    keys = [(item.name, item.dim) for item in structures.slices]
    assert len(set(keys)) == len(keys)
    assert [g.start for g in structures.groups] == [0, *(g.stop for g in structures.groups)][:-1]
    assert structures.index.numel() == structures.num_structures == structures.groups[-1].stop
    known = tensors(model)
    for item in structures.slices:
        assert item.width == known[item.name].shape[item.dim]
        assert int(item.structure.min()) >= FIXED
    for group in structures.groups:
        row = next(
            s for s in structures.slices if s.role == "row" and (s.structure == group.start).any()
        )
        for s in range(group.start, group.stop):
            assert int(row.structure[structures.index[s]]) == s
        assert list(structures.index[group.start : group.stop]) == sorted(
            structures.index[group.start : group.stop]
        )


def test_tracing_changes_nothing(zoo) -> None:
    _, model, inputs, _ = zoo
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(tensors(model))
    random_state = torch.get_rng_state()
    trace(model, inputs)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in tensors(model).items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tracing_twice_gives_the_same_map(zoo) -> None:
    _, model, inputs, structures = zoo
    assert trace(model, inputs).fingerprint == structures.fingerprint


def test_what_maps_zero_elsewhere_is_unpinned() -> None:
    structures = trace(*CASES["sigmoid"]())
    assert structures.unpinned.tolist() == [True] * 6 + [False] * 4
    assert not trace(*CASES["residual"]()).unpinned.any()


def test_roles() -> None:
    structures = trace(*CASES["depthwise"]())
    roles = {(item.name, item.dim): item.role for item in structures.slices}
    assert roles[("0.0.weight", 0)] == "row"
    assert roles[("2.0.weight", 0)] == "affine"
    assert roles[("2.1.weight", 0)] == "affine"
    assert roles[("2.1.running_var", 0)] == "buffer"
    assert roles[("4.0.weight", 1)] == "column"


def test_isomorphic_groups_share_a_family() -> None:
    structures = trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(2, 4))
    families = [group.family for group in structures.groups]
    assert len(set(families)) == 1
    assert len({g.family for g in trace(*CASES["dense"]()).groups}) == 3


# ---- reasons ---------------------------------------------------------------------------------


def reason_of(structures: StructureMap, layer: str) -> str:
    return next(r.reason for r in structures.refusals if r.layer == layer)


def test_ignored_layers_by_name_glob_and_module() -> None:
    model, inputs = CASES["residual"]()
    for ignored in (["a"], ["a.0"], ["a*"], [model.a], [model.a[0]], "a"):
        structures = trace(model, inputs, ignored)
        assert [g.layer for g in structures.groups] == ["stem.0"]
        assert reason_of(structures, "a.0") == "ignored"
    assert [g.layer for g in trace(model, inputs, ["b"]).groups] == ["a.0"]  # b meets the stem


def test_an_ignored_layer_that_matches_nothing_is_an_error() -> None:
    model, inputs = CASES["residual"]()
    with pytest.raises(ValueError, match=r"'steam'.*matches nothing.*Did you mean 'stem"):
        trace(model, inputs, ["steam"])
    with pytest.raises(ValueError, match="not part of it"):
        trace(model, inputs, [nn.Linear(2, 2)])


def test_a_frozen_parameter_fixes_its_structures() -> None:
    model, inputs = CASES["residual"]()
    model.a[1].bias.requires_grad_(False)
    structures = trace(model, inputs)
    assert [g.layer for g in structures.groups] == ["stem.0"]
    assert "frozen (`a.1.bias`" in reason_of(structures, "a.0")


def test_an_unknown_operator_is_named() -> None:
    model = Lambda(
        lambda m, x: m.b(torch.linalg.qr(m.a(x).mT)[0].mT), a=nn.Linear(4, 6), b=nn.Linear(6, 3)
    )
    structures = trace(model, torch.randn(2, 4))
    assert structures.num_structures == 0
    assert reason_of(structures, "a").startswith("unknown operator `linalg_qr` (")


def test_a_parametrised_weight_is_left_alone_and_listed() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 6)), nn.Linear(6, 5), nn.Linear(5, 2)
    )
    structures = trace(model, torch.randn(2, 4))
    assert [g.layer for g in structures.groups] == ["1"]
    assert "its weight is computed by Orthogonal" in reason_of(structures, "0")


def test_an_autograd_function_does_not_slip_through() -> None:
    """A call that the protocol does not show yields a tensor without labels: all it meets stays."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

    model = Lambda(lambda m, x: m.b(Double.apply(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    structures = trace(model, torch.randn(2, 4))
    removed = half_of(structures)
    assert (
        error(
            run(zeroed(model, structures, removed), torch.ones(2, 4)),
            run(cut(model, structures, removed), torch.ones(2, 4)),
        )
        < 1e-5
    )


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.b(m.a(x).softmax(-1)), "softmax over the channels"),
        (
            lambda m, x: m.b(m.a(x) + torch.ones(6)),
            "meets a tensor of shape 6 that keeps its size in add",
        ),
        (lambda m, x: m.b(torch.cat([m.a(x)[:, 1:], m.a(x)[:, :1]], 1)), "sliced at fixed places"),
        (lambda m, x: m.b(m.a(x).roll(1, 1)), "roll along the width"),
        (
            lambda m, x: m.b(m.a(x) * (m.a(x).sigmoid() @ m.a(x).sigmoid().mT)[:1, :1]),
            "where a channel of zeros is not zero",
        ),
        (lambda m, x: m.b(torch.fft.fft(m.a(x)).real), "fft_fft over the width"),
        (lambda m, x: m.b(m.a(x).sort(1)[0]), "sort over the width"),
        (lambda m, x: m.b(m.a(x).gather(1, torch.zeros(2, 6).long())), "picked by numbers"),
        (
            lambda m, x: m.b(F.pad(m.a(x).unsqueeze(1), (1, 1), "circular")[..., 1:-1].squeeze(1)),
            "padded by circular",
        ),
        (lambda m, x: m.b(x.new_zeros(2, 6).copy_(m.a(x))), "written in place"),
        (
            lambda m, x: m.b(m.a(x) * float(m.a(x).mean().item())),
            "mean over the channels",
        ),
        (lambda m, x: m.b(torch.from_numpy(m.a(x).numpy())), "unknown operator `numpy`"),
        (lambda m, x: m.b(m.a(x)[:, torch.randperm(6)]), "sliced at fixed places"),
        (
            lambda m, x: m.b(F.linear(m.a(x), m.b.weight + m.b.weight).repeat(1, 2)),
            "weight that is computed",
        ),
    ],
)
def test_what_cannot_follow_a_cut_is_left_alone(forward, reason: str) -> None:
    model = Lambda(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    structures = trace(model, torch.randn(2, 4))
    assert structures.num_structures == 0
    assert reason in reason_of(structures, "a")


def test_in_place_writes_into_a_labelled_tensor() -> None:
    def forward(m, x):
        a, b = m.a(x), m.b(x)
        a[:] = a + b
        a.mul_(2)
        a.copy_(a + b)
        return m.head(a)

    model = Lambda(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 6), head=nn.Linear(6, 3)).double()
    inputs = torch.randn(2, 4, dtype=torch.float64)
    structures = trace(model, inputs)
    assert [(g.layer, g.size, g.layers) for g in structures.groups] == [
        ("a", 6, ("a", "b", "head"))
    ]
    removed = half_of(structures)
    found = run(cut(model, structures, removed), inputs)
    assert error(run(zeroed(model, structures, removed), inputs), found) < 1e-10


def test_a_layer_nobody_calls_is_listed() -> None:
    model, inputs = CASES["chain"]()
    model.spare = nn.Linear(3, 2)
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    assert reason_of(trace(model, inputs), "spare") == "not reached by the example inputs"


def test_a_width_nothing_reads_is_left_alone() -> None:
    def forward(m, x):
        m.a(x)
        return m.head(x)

    structures = trace(Lambda(forward, a=nn.Linear(4, 6), head=nn.Linear(4, 3)), torch.randn(2, 4))
    assert reason_of(structures, "a") == "nothing reads it"


def test_outputs_in_any_container_protect_themselves() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Out:
        hidden: list

    model = Lambda(lambda m, x: Out([{"h": m.a(x)}]), a=nn.Linear(4, 6))
    assert reason_of(trace(model, torch.randn(2, 4)), "a") == "the model's output"


# ---- bad inputs ------------------------------------------------------------------------------


def test_inputs_of_the_wrong_shape_or_dtype() -> None:
    model, _ = CASES["chain"]()
    with pytest.raises(
        ValueError, match=r"\(2, 5\) torch.float64.*first layer is `0`: Conv2d\(3, 6"
    ):
        trace(model, torch.randn(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"torch.float32 on cpu.*in torch.float64"):
        trace(model, image().float())
    with pytest.raises(ValueError, match="use a dict for keyword arguments"):
        trace(model, {"x": image()})


def test_inputs_on_another_device() -> None:
    model, _ = CASES["chain"]()
    with pytest.raises(ValueError, match=r"model's device cpu, found a tensor on meta"):
        trace(model, image().to("meta"))


def test_a_failed_trace_restores_the_model() -> None:
    model, _ = CASES["chain"]()
    with pytest.raises(ValueError, match="does not run"):
        trace(model, torch.randn(2, 5))
    assert all(m.training and not m._forward_hooks for m in model.modules())
