"""`attend` on every kernel path equals the formula of the paper, and so do its gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.core import attention
from qkv.core.attention import attend, attention_weights

pytestmark = pytest.mark.processor

PATHS = ["fused", "gradient", "long"]  # the last two are special only in bf16
NEVER = torch.tensor(-torch.inf, dtype=torch.float64)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-8}


def formula(q, k, v, *, bias=None, causal=False, scale=None, cap=None):
    """Equation 1 of 1706.03762 in float64; a row that may look nowhere gives zeros, and a gradient of zero."""
    q, (k, v) = q.double(), (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores if not causal else scores.where(torch.ones_like(scores).tril(k.shape[-2] - q.shape[-2]) > 0, NEVER)
    if bias is not None:
        scores = scores.where(bias, NEVER) if bias.dtype is torch.bool else scores + bias
    raised = torch.exp(scores - scores.detach().amax(-1, keepdim=True).clamp_min(-1e300))
    return raised / raised.sum(-1, keepdim=True).clamp_min(1e-300) @ v


def tolerance(q, k, bias=None, scale=None, **_):
    """A score that is rounded moves its weight by as much as the score is large: bf16's plain formula rounds them."""
    size = q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() * (scale or q.shape[-1] ** -0.5)
    added = 0 if bias is None or bias.dtype is torch.bool else bias.double().nan_to_num(0, neginf=0).abs().max()
    return TOLERANCE[q.dtype] * float(4 + (size + added).detach())


@contextmanager
def path(name: str) -> Iterator[None]:
    """Sends bf16 down one path; the others run as they do."""
    chunk = mock.patch.object(attention, "SCORES", 20)
    long = mock.patch.object(attention, "LONG", 1 if name == "long" else 10**6)
    with chunk, long, torch.set_grad_enabled(name == "gradient"):
        yield


@st.composite
def cases(draw):
    B, G, group, T, more = (draw(st.integers(1, most)) for most in (2, 3, 3, 8, 5))
    S = T + more - 1 if draw(st.booleans()) else more
    K = draw(st.sampled_from([4, 8, 10, 40]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q, k, v = (torch.randn(B, heads, rows, K, generator=generator) for heads, rows in ((G * group, T), (G, S), (G, S)))
    shape = [*(size if draw(st.booleans()) else 1 for size in (B, G * group, T)), S]
    bias = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["none", "bool", "float", "-inf"]))
    bias = {"none": None, "bool": bias > 0, "float": bias, "-inf": bias.masked_fill(bias > 0, -torch.inf)}[kind]
    settings = {"bias": bias, "causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.3]))}
    return q, k, v, settings | {"cap": draw(st.sampled_from([None, None, 0.7]))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PATHS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_path_equals_the_formula(name, dtype, case):
    q, k, v, options = case
    q, k, v = (x.to(dtype).requires_grad_(name == "gradient") for x in (q, k, v))
    if options["bias"] is not None and options["bias"].dtype is not torch.bool:
        options["bias"] = options["bias"].to(dtype)
    with path(name):
        got = attend(q, k, v, **options)
        weights = attention_weights(q, k, **options)
    expected = formula(q, k, v, **options)
    assert got.dtype is dtype
    assert got.shape == expected.shape
    for result in (got, weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)):
        assert (result.double() - expected).abs().max() <= tolerance(q, k, **options) * v.double().abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_gradient_equals_float64(dtype, case):
    q, k, v, options = case
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    generator = torch.Generator().manual_seed(0)
    pull = torch.randn(q.shape, generator=generator)
    if options["bias"] is not None and options["bias"].dtype is not torch.bool:
        options["bias"] = options["bias"].to(dtype)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    got = torch.autograd.grad((attend(*ours, **options) * pull.to(dtype)).sum(), ours)
    expected = torch.autograd.grad((formula(*theirs, **options) * pull.to(dtype).double()).sum(), theirs)
    size = max(float(x.abs().max()) for x in expected)
    for ours_, theirs_ in zip(got, expected):
        assert ours_.isfinite().all()
        assert (ours_.double() - theirs_).abs().max() <= 2 * tolerance(q, k, **options) * max(size, 1)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    q, k, v, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4), (1, 4, 3, 5))
    )
    assert torch.autograd.gradcheck(lambda *x: attend(*x[:3], bias=x[3], causal=True, scale=0.4), (q, k, v, bias))
    assert torch.autograd.gradcheck(lambda *x: attend(*x), (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: attend(*x[:3], bias=x[3], cap=0.5), (q, k, v, bias))


@pytest.mark.parametrize("causal", [False, True])
def test_equals_torch(causal):
    q, k, v = torch.randn(3, 2, 6, 9, 16).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(attend(q, k, v, causal=causal), expected)
    few = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(attend(q, k[:, :2], v[:, :2], causal=causal), few)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("as_float", [False, True])
def test_rows_that_may_look_nowhere_give_zeros(dtype, name, as_float):
    q, k, v = (x.to(dtype).requires_grad_(name == "gradient") for x in torch.randn(3, 1, 2, 4, 8).unbind())
    bias = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    bias[..., 1, :] = False
    bias[..., 3, :2] = False
    bias = torch.zeros(1, 1, 4, 4).masked_fill(~bias, -torch.inf) if as_float else bias
    with path(name):
        out = attend(q, k, v, bias=bias)
        late = attend(q, k[..., :2, :], v[..., :2, :], causal=True)  # two queries came before the first key
    assert (out[..., 1, :] == 0).all()
    assert (out[..., [0, 2, 3], :] != 0).any(-1).all()
    assert (late[..., :2, :] == 0).all()
    assert (attention_weights(q, k, bias=bias).sum(-1)[..., 1] == 0).all()
    if name == "gradient":
        for gradient in torch.autograd.grad((out + late).sum(), (q, k, v)):
            assert gradient.isfinite().all()
            assert gradient.any()


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("fused", "scaled_dot_product_attention"), ("gradient", "attention_weights"), ("long", "_by_chunks")],
)
def test_the_paths_are_what_this_file_thinks(name, kernel):
    q, k, v = (x.bfloat16().requires_grad_(name == "gradient") for x in torch.randn(3, 1, 2, 7, 8).unbind())
    where = F if name == "fused" else attention
    with path(name), mock.patch.object(where, kernel, wraps=getattr(where, kernel)) as ran:
        attend(q, k, v)
    assert ran.call_count == 1


def test_a_cap_is_chunked_as_long_texts_are():
    """Capped scores have no kernel of PyTorch's: a few rows at a time, so that memory does not grow by S squared."""
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    shapes = []
    with path("fused"), mock.patch.object(attention, "_softmax", lambda x: shapes.append(x.shape) or x.softmax(-1)):
        attend(q, k, v, causal=True, cap=2.0)
    assert max(shape.numel() for shape in shapes) <= 20 * torch.get_num_threads()


@pytest.mark.parametrize("T", [1, 3, 7])
def test_causal_looks_the_same_with_earlier_keys(T):
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind()
    whole = attend(q, k, v, causal=True)
    torch.testing.assert_close(attend(q[..., -T:, :], k, v, causal=True), whole[..., -T:, :])
