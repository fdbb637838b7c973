"""The counter against closed forms, and the timing protocol."""

from __future__ import annotations

import gc
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reference_impls.accounting import timing
from reference_impls.accounting.count import OUTSIDE, Tally, count
from reference_impls.accounting.timing import repeat, speed_up, wall_time

GRADIENT_MODES: list[Callable[[], AbstractContextManager[None]]] = [
    torch.enable_grad,
    torch.no_grad,
    torch.inference_mode,
]
in_every_gradient_mode = pytest.mark.parametrize("mode", GRADIENT_MODES, ids=lambda mode: mode.__name__)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def tally_of(run: Callable[[], object]) -> Tally:
    with count() as tally:
        run()
    return tally


def macs(run: Callable[[], object]) -> int:
    return tally_of(run).macs


def flop_counter(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


# Convolution


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


CONVOLUTIONS = [
    (dims, groups, kernel, stride, padding, dilation, transposed)
    for dims, groups, (kernel, stride, padding, dilation), transposed in itertools.product(
        (1, 2, 3), (1, 2, 4), ((1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 2, 2), (2, 2, 0, 1)), (False, True)
    )
]


@pytest.mark.parametrize(("dims", "groups", "kernel", "stride", "padding", "dilation", "transposed"), CONVOLUTIONS)
def test_convolution_equals_its_closed_form(dims, groups, kernel, stride, padding, dilation, transposed):
    batch, c_in, c_out = 2, 4, 8
    sizes = [9, 8, 7][:dims]
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    conv = getattr(nn, name)(c_in, c_out, kernel, stride, padding, groups=groups, dilation=dilation)
    x = torch.randn(batch, c_in, *sizes, requires_grad=True)
    if transposed:
        expected = batch * math.prod(sizes) * c_in * (c_out // groups) * kernel**dims
    else:
        positions = math.prod(conv_size(n, kernel, stride, padding, dilation) for n in sizes)
        expected = batch * positions * c_out * (c_in // groups) * kernel**dims

    for mode in GRADIENT_MODES:
        with mode():
            assert macs(lambda: conv(x)) == expected
    assert macs(lambda: conv(x).sum().backward()) == 3 * expected
    assert macs(lambda: conv(x.detach()).sum().backward()) == 2 * expected, "no gradient of the input is asked for"
    assert flop_counter(lambda: conv(x)) == expected
    if groups == 1:
        assert flop_counter(lambda: conv(x).sum().backward()) == 3 * expected


def test_convolution_of_one_image_without_batch_and_with_padding_by_name():
    x, weight = torch.randn(3, 8, 8), torch.randn(5, 3, 3, 3)
    assert macs(lambda: F.conv2d(x, weight, padding="same")) == 8 * 8 * 5 * 3 * 9


def test_normalisation_is_no_operation_folded_or_not():
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
    x = torch.randn(2, 3, 10, 10)
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
    apart = tally_of(lambda: norm(conv(x)))
    assert apart.macs == macs(lambda: folded(x)) == 2 * 8 * 8 * 8 * 3 * 9
    assert len(apart.uncounted) == 1
    assert "batch_norm" in next(iter(apart.uncounted))


# Matrix products


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1, 4, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_closed_form(shape, bias):
    layer = nn.Linear(7, 5, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    expected = math.prod(shape[:-1]) * 7 * 5
    for mode in GRADIENT_MODES:
        with mode():
            assert macs(lambda: layer(x)) == expected
    assert macs(lambda: layer(x).sum().backward()) == 3 * expected
    if len(shape) > 1:
        assert flop_counter(lambda: layer(x)) == expected


B, M, K, N = 3, 4, 5, 6
PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], int]] = {
    "mm": (torch.mm, [(M, K), (K, N)], M * K * N),
    "matmul of matrices": (torch.matmul, [(M, K), (K, N)], M * K * N),
    "matmul of vectors": (torch.matmul, [(K,), (K,)], K),
    "matmul with a vector": (torch.matmul, [(B, M, K), (K,)], B * M * K),
    "matmul, broadcast": (torch.matmul, [(B, 1, M, K), (2, K, N)], B * 2 * M * K * N),
    "bmm": (torch.bmm, [(B, M, K), (B, K, N)], B * M * K * N),
    "mv": (torch.mv, [(M, K), (K,)], M * K),
    "dot": (torch.dot, [(K,), (K,)], K),
    "addmm": (torch.addmm, [(M, N), (M, K), (K, N)], M * K * N),
    "addmv": (torch.addmv, [(M,), (M, K), (K,)], M * K),
    "addr": (torch.addr, [(M, N), (M,), (N,)], M * N),
    "baddbmm": (torch.baddbmm, [(B, M, N), (B, M, K), (B, K, N)], B * M * K * N),
    "addbmm": (torch.addbmm, [(M, N), (B, M, K), (B, K, N)], B * M * K * N),
    "einsum bmk,bkn": (lambda a, b: torch.einsum("bmk,bkn->bmn", a, b), [(B, M, K), (B, K, N)], B * M * K * N),
    "einsum bmk,bnk": (lambda a, b: torch.einsum("bmk,bnk->bmn", a, b), [(B, M, K), (B, N, K)], B * M * K * N),
    "einsum, broadcast": (lambda a, b: torch.einsum("bmk,kn->bnm", a, b), [(B, M, K), (K, N)], B * M * K * N),
    "einsum, inner": (lambda a, b: torch.einsum("bk,bk->b", a, b), [(B, K), (B, K)], B * K),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 2), [(B, M, K), (M, K, N)], B * M * K * N),
    "@": (lambda a, b: a @ b, [(B, M, K), (B, K, N)], B * M * K * N),
}


@pytest.mark.parametrize("name", PRODUCTS)
@in_every_gradient_mode
def test_matrix_products_equal_their_closed_forms(name, mode):
    product, shapes, expected = PRODUCTS[name]
    operands = [torch.randn(shape) for shape in shapes]
    with mode():
        assert macs(lambda: product(*operands)) == expected


@pytest.mark.parametrize("name", ["mm", "bmm", "addmm", "baddbmm", "matmul, broadcast", "einsum bmk,bnk"])
def test_matrix_products_agree_with_torch(name):
    product, shapes, _ = PRODUCTS[name]
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    assert macs(lambda: product(*operands)) == flop_counter(lambda: product(*operands))
    assert macs(lambda: product(*operands).sum().backward()) == flop_counter(
        lambda: product(*operands).sum().backward()
    )


def test_products_in_place_into_out_and_of_integers():
    a, b, into = torch.randn(M, K), torch.randn(K, N), torch.zeros(M, N)
    assert macs(lambda: into.addmm_(a, b)) == M * K * N
    assert macs(lambda: torch.mm(a, b, out=into)) == M * K * N
    assert macs(lambda: torch.mm(a.long(), b.long())) == M * K * N
    assert macs(lambda: torch.mm(a.bfloat16(), b.bfloat16())) == M * K * N


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_operand_multiplies_its_stored_elements_only():
    dense = torch.diag(torch.arange(1.0, 7.0))
    for sparse in (dense.to_sparse(), dense.to_sparse_csr()):
        for mode in GRADIENT_MODES:
            with mode():
                assert macs(lambda sparse=sparse: sparse @ torch.ones(6, N)) == 6 * N


# Attention

ATTENTIONS = [
    # B, heads, heads of key and value, N, M, E, E_v
    (2, 4, 4, 5, 5, 8, 8),
    (1, 4, 4, 1, 9, 8, 8),
    (2, 4, 4, 7, 3, 16, 16),
    (2, 4, 2, 5, 6, 8, 8),
    (2, 4, 1, 5, 6, 8, 8),
    (2, 3, 3, 5, 6, 8, 12),
]


@pytest.mark.parametrize("shape", ATTENTIONS, ids=str)
@pytest.mark.parametrize("variant", ["plain", "causal", "masked"])
@pytest.mark.parametrize("backend", ["any", "math"])
@in_every_gradient_mode
def test_attention_equals_its_closed_form(shape, variant, backend, mode):
    batch, heads, kv_heads, n, m, e, e_v = shape
    q, k, v = torch.randn(batch, heads, n, e), torch.randn(batch, kv_heads, m, e), torch.randn(batch, kv_heads, m, e_v)
    options = {
        "plain": {},
        "causal": {"is_causal": True},
        "masked": {"attn_mask": torch.ones(n, m, dtype=torch.bool).tril()},
    }[variant]

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads, **options)

    kernels = [SDPBackend.MATH] if backend == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with mode(), sdpa_kernel(kernels):
        tally = tally_of(attend)
    assert tally.macs == batch * heads * n * m * (e + e_v), "masked and causal scores count like the others"
    if backend == "any" and e == e_v:
        assert list(tally.by_operator) == ["aten._scaled_dot_product_flash_attention_for_cpu.default"]


def test_backward_pass_of_attention():
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    one = 2 * 4 * 6 * 6 * 8

    def train() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):
        assert macs(train) == (2 + 4) * one
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert macs(train) == (2 + 5) * one, "the fused kernel computes the scores again"


def attention_layer(batch: int, n: int, m: int, width: int) -> int:
    return batch * (2 * n + 2 * m) * width**2 + 2 * batch * n * m * width


ENCODER_LAYERS = list(itertools.product((1, 3), (1, 10), (16, 24), (4,), (16, 40)))


@pytest.mark.parametrize(("batch", "n", "width", "heads", "hidden"), ENCODER_LAYERS)
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer_equals_its_closed_form(batch, n, width, heads, hidden, norm_first):
    layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True, norm_first=norm_first)
    x = torch.randn(batch, n, width)
    expected = attention_layer(batch, n, n, width) + 2 * batch * n * width * hidden
    for mode, training in itertools.product(GRADIENT_MODES, (True, False)):
        with mode():
            tally = tally_of(lambda training=training: layer.train(training)(x))
        assert tally.macs == expected
        fused = "aten._transformer_encoder_layer_fwd.default" in tally.by_operator
        assert fused == (mode is not torch.enable_grad and not training)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_encoder_layer_on_padded_sequences_projects_real_tokens_and_attends_over_the_padding():
    width, hidden, lengths = 16, 32, (5, 3)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True), 2).eval()
    padding = torch.arange(5)[None] >= torch.tensor(lengths)[:, None]
    with torch.no_grad():
        tally = tally_of(lambda: encoder(torch.randn(2, 5, width), src_key_padding_mask=padding))
    layer = sum(lengths) * (4 * width**2 + 2 * width * hidden) + 2 * 2 * 5 * 5 * width
    assert tally.by_operator == {"aten._transformer_encoder_layer_fwd.default": 2 * layer}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 7)])
@in_every_gradient_mode
def test_multi_head_attention_equals_its_closed_form(need_weights, n, m, mode):
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x, memory = torch.randn(2, n, 16), torch.randn(2, m, 16)
    memory = x if n == m else memory
    with mode():
        tally = tally_of(lambda: layer(x, memory, memory, need_weights=need_weights))
    assert tally.macs == attention_layer(2, n, m, 16)
    fused = "aten._native_multi_head_attention.default" in tally.by_operator
    assert fused == (mode is not torch.enable_grad and n == m)


def test_torch_sees_neither_attention_nor_the_fused_layer_on_the_cpu():
    """Why the atlas counts for itself: if this fails, torch has learnt it, and the docstring of `count` must follow."""
    q = torch.randn(1, 2, 4, 8)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        assert flop_counter(lambda: F.scaled_dot_product_attention(q, q, q)) == 0
        assert flop_counter(lambda: layer(torch.randn(1, 4, 16))) == 0


# Recurrent layers


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@in_every_gradient_mode
def test_recurrent_layers_equal_their_closed_forms(kind, gates, layers, bidirectional, mode):
    width, hidden, batch, steps = 6, 5, 2, 7
    directions = 2 if bidirectional else 1
    layer = getattr(nn, kind)(width, hidden, layers, bidirectional=bidirectional)
    inputs = [width] + [hidden * directions] * (layers - 1)
    expected = directions * batch * steps * sum(gates * hidden * (i + hidden) for i in inputs)
    with mode():
        assert macs(lambda: layer(torch.randn(steps, batch, width))) == expected


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_backward_pass_of_recurrent_layers(kind, gates):
    layer = getattr(nn, kind)(6, 5)
    x = torch.randn(7, 2, 6, requires_grad=True)
    forward = macs(lambda: layer(x))
    first_state = (
        0 if kind == "LSTM" else gates * 2 * 5 * 5
    )  # needs no gradient; the fused LSTM computes it all the same
    assert macs(lambda: layer(x)[0].sum().backward()) == 3 * forward - first_state


# Bytes


def test_bytes_of_products_and_pointwise_operators():
    a, b = torch.randn(M, K), torch.randn(K, N)
    assert tally_of(lambda: a @ b).bytes == 4 * (M * K + K * N + M * N)
    assert tally_of(lambda: a + a).bytes == 4 * 2 * M * K, "the same tensor is read once"
    assert tally_of(lambda: a + a.clone()).bytes == 4 * 5 * M * K
    assert tally_of(lambda: a.double()).bytes == (4 + 8) * M * K
    assert tally_of(lambda: a + torch.randn(K).expand(M, K)).bytes == 4 * (2 * M * K + K + K), "expanded rows: once"


def test_bytes_in_place_and_into_out():
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    one = 4 * 64
    assert tally_of(lambda: x.add_(y)).bytes == 3 * one
    assert tally_of(lambda: x.copy_(y)).bytes == 2 * one
    assert tally_of(lambda: x.zero_()).bytes == one
    assert tally_of(lambda: torch.add(x, y, out=torch.empty(8, 8))).bytes == 3 * one
    assert tally_of(lambda: torch.zeros(8, 8)).bytes == one
    assert tally_of(lambda: torch.zeros_like(x)).bytes == one
    assert tally_of(lambda: torch.empty(8, 8)).bytes == 0


@in_every_gradient_mode
def test_views_are_free(mode):
    x = torch.randn(4, 6)

    def views() -> None:
        x.t(), x[1:, ::2], x.reshape(2, 12), x.chunk(2), x.unbind(0), x.expand(3, 4, 6), x[:, None], x.contiguous()
        x.detach(), F.dropout(x, training=False), x.flatten(), x.unfold(0, 2, 1), x.clone().squeeze_().t_

    with mode():
        assert tally_of(views).bytes == 2 * 4 * 24, "the clone only"
        assert tally_of(lambda: x.t().reshape(24)).bytes == 2 * 4 * 24, "this reshape copies"


def test_bytes_of_gathers_and_scatters_follow_what_they_touch():
    table, rows = torch.randn(1000, 8), torch.tensor([1, 5, 7])
    index, picked = 3 * 8, 3 * 8 * 4
    for gather in (lambda: table[rows], lambda: table.index_select(0, rows), lambda: F.embedding(rows, table)):
        assert tally_of(gather).bytes == index + 2 * picked
    values = torch.randn(3, 8)
    assert tally_of(lambda: table.index_put_((rows,), values)).bytes == index + 2 * picked
    assert tally_of(lambda: table.index_copy_(0, rows, values)).bytes == index + 2 * picked
    assert tally_of(lambda: table.index_add_(0, rows, values)).bytes == index + 3 * picked
    assert tally_of(lambda: table.index_put_((rows,), values, accumulate=True)).bytes == index + 3 * picked
    assert tally_of(lambda: table.index_put_((rows,), torch.tensor(0.0))).bytes == index + picked + 4
    mask = torch.zeros(1000, dtype=torch.bool).index_fill(0, rows, True)
    assert tally_of(lambda: table.index_put_((mask,), values)).bytes == 1000 + 2 * picked


# What has no formula


def test_arithmetic_without_a_formula_is_listed_and_movement_is_not():
    x = torch.randn(4, 6)
    arithmetic = tally_of(lambda: (x.softmax(-1), x + 1, x.sort(), x.amax(), x > 0, F.layer_norm(x, (6,))))
    assert set(arithmetic.uncounted) == {
        "aten._softmax.default",
        "aten.add.Tensor",
        "aten.sort.default",
        "aten.amax.default",
        "aten.gt.Scalar",
        "aten.native_layer_norm.default",
    }
    assert tally_of(lambda: (x + 1, x + 2)).uncounted == {"aten.add.Tensor": 2}

    rows = torch.tensor([0, 2])
    moved = tally_of(
        lambda: (
            torch.cat([x, x]), torch.stack([x, x]), x[rows], x.gather(0, rows[:, None]), x.t().contiguous(), x.half(),
            x.roll(1), x.flip(0), F.pad(x, (1, 1)), torch.where(x.bool(), x, 0.0), x.repeat(2, 2), x.new_zeros(3),
            torch.randn(3), x.clone().index_put_((rows,), x[rows]), x.view_as(x), x.to(torch.float64), x[0, 0].item(),
            x.clone().scatter_(0, rows[:, None], 1.0), rows + 1, F.unfold(x[None, None], 2),
            x.tril(), x.masked_fill(rows[0] > 0, 0.0),
        )
    )  # fmt: skip
    assert not moved.uncounted
    assert moved.bytes > 0
    assert tally_of(lambda: x.scatter_reduce(0, rows[:, None], x, "sum")).uncounted
    assert tally_of(lambda: x.clone().index_put_((rows,), x[rows], accumulate=True)).uncounted


def test_a_library_operator_without_formula_is_listed():
    @torch.library.custom_op("atlas_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    assert "atlas_test.twice.default" in tally_of(lambda: twice(torch.ones(3))).uncounted


@in_every_gradient_mode
def test_macs_are_attributed_to_modules(mode):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            self.head = nn.Linear(8, 2)
            self.scale = nn.Parameter(torch.ones(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x)) @ self.scale

    net, x = Net(), torch.randn(3, 4)
    with mode(), count(net) as tally:
        y = net(x)
        net.head(torch.randn(1, 8))
        x @ x.t()
    assert y.shape == (3, 2)
    assert tally.by_module == {"stem.0": 3 * 32, "head": 4 * 16, "": 3 * 4, OUTSIDE: 36}
    assert sum(tally.by_module.values()) == sum(tally.by_operator.values()) == tally.macs


def test_counting_a_model_keeps_its_fused_path_and_leaves_no_hook():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    before = dict(nn.modules.module._global_forward_hooks), dict(nn.modules.module._global_forward_pre_hooks)
    with torch.no_grad(), count(layer) as tally:
        layer(torch.randn(1, 4, 16))
    assert list(tally.by_operator) == ["aten._transformer_encoder_layer_fwd.default"]
    assert list(tally.by_module) == [""]
    assert before == (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)


# The block itself


def test_an_error_inside_the_block_passes_and_ends_the_count():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), count() as tally:
        model(torch.randn(2, 4))
    assert tally.macs == 2 * 16
    model[0](torch.randn(2, 4))
    assert tally.macs == 2 * 16


def test_blocks_may_be_nested_and_results_are_unchanged():
    x = torch.randn(2, 5, 16)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    with torch.inference_mode():
        plain = layer(x)
        with count() as outer:
            layer(x)
            with count() as inner:
                counted = layer(x)
    assert torch.equal(plain, counted)
    assert outer.macs == 2 * inner.macs


@in_every_gradient_mode
def test_the_kernels_that_run_are_torchs_own(mode):
    """In inference mode too, where composite operators reach the counter whole."""
    x = torch.randn(1, 3, 8, 8)
    resize = lambda: F.interpolate(x, scale_factor=2.0, mode="bilinear")  # noqa: E731
    with mode():
        tally = tally_of(resize)
    assert list(tally.uncounted) == ["aten.upsample_bilinear2d.default"]


def test_counting_on_shapes_alone():
    layer = nn.Linear(1000, 1000, device="meta")
    tally = tally_of(lambda: layer(torch.empty(64, 1000, device="meta")))
    assert tally.macs == 64 * 10**6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
)
@pytest.mark.parametrize("causal", [False, True])
@in_every_gradient_mode
def test_attention_on_cuda_equals_its_closed_form(backend, causal, mode):
    q, k, v = (torch.randn(2, 4, n, 64, device="cuda", dtype=torch.float16) for n in (16, 24, 24))
    with mode(), sdpa_kernel(backend):
        tally = tally_of(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    assert tally.macs == 2 * 4 * 16 * 24 * 128


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_layers_on_cuda_equal_their_closed_forms():
    x = torch.randn(2, 10, 16, device="cuda")
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, device="cuda").eval()
    lstm = nn.LSTM(16, 8, batch_first=True, device="cuda")
    with torch.no_grad():
        assert macs(lambda: layer(x)) == attention_layer(2, 10, 10, 16) + 2 * 20 * 16 * 32
        assert macs(lambda: lstm(x)) == 20 * 4 * 8 * (16 + 8)
    forward = macs(lambda: lstm(x))
    assert macs(lambda: lstm(x.requires_grad_())[0].sum().backward()) == 3 * forward


# Timing


def test_rounds_are_interleaved_and_rotated():
    calls: list[str] = []
    variants = {label: (lambda label=label: calls.append(label)) for label in "abc"}
    times = repeat(variants, repetitions=4, warmup=2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab", "abc"], "two rounds of warm-up, then four"
    assert {label: len(samples) for label, samples in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(sample >= 0 for samples in times.values() for sample in samples)


def test_threads_and_garbage_collector_are_restored():
    torch.set_num_threads(2)
    seen: list[tuple[int, bool]] = []

    def work() -> None:
        seen.append((torch.get_num_threads(), gc.isenabled()))

    repeat({"work": work}, repetitions=2, warmup=1, threads=1)
    assert seen == [(1, False)] * 3
    assert (torch.get_num_threads(), gc.isenabled()) == (2, True)

    with pytest.raises(ZeroDivisionError):
        repeat({"broken": lambda: 1 / 0}, threads=1)
    assert (torch.get_num_threads(), gc.isenabled()) == (2, True)


def test_times_are_in_milliseconds(monkeypatch):
    clock = itertools.count(0, 6_000_000)  # nanoseconds: every call takes 6 ms
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(clock))
    times = repeat({"dense": lambda: None, "r=13": lambda: None}, repetitions=15)
    assert list(times) == ["dense", "r=13"]
    assert all(samples == [6.0] * 15 for samples in times.values())


def test_percentiles_of_wall_time():
    summary = wall_time([float(n) for n in range(101)])
    assert (summary.median, summary.p10, summary.p90, summary.p99) == (50, 10, 90, 99)
    assert summary.n == 101


def test_speed_up_compares_within_rounds():
    drift = [1.0, 5.0, 2.0, 9.0, 3.0, 4.0, 8.0, 1.5, 2.5, 7.0, 6.0, 3.5, 2.2, 1.1, 4.4]
    exact = speed_up([2 * t for t in drift], drift)
    assert (exact.value, exact.low, exact.high, exact.n) == (2.0, 2.0, 2.0, 15), "a drift of the machine cancels out"

    noisy = speed_up([2 * t * (1 + 0.1 * (-1) ** i) for i, t in enumerate(drift)], drift)
    assert 1.8 <= noisy.low <= noisy.value <= noisy.high <= 2.2
    assert noisy == speed_up([2 * t * (1 + 0.1 * (-1) ** i) for i, t in enumerate(drift)], drift), "deterministic"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: repeat({}), "no variants"),
        (lambda: repeat({"a": int}, repetitions=0), "repetitions must be at least 1"),
        (lambda: repeat({"a": int}, warmup=-1), "warmup must be at least 0"),
        (lambda: speed_up([1.0], [1.0, 2.0]), "paired repetitions"),
        (lambda: speed_up([], []), "paired repetitions"),
    ],
)
def test_wrong_use_of_the_timing_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the memory of a process")
def test_the_peak_of_a_call_is_what_it_holds_at_once():
    # In a fresh process, as it asks for: what else ran in this one may hold memory back, or give it free meanwhile.
    program = """
import torch
from reference_impls.accounting.memory import peak_beyond

def hold():
    for _ in range(2):
        torch.ones(200 * 2**18)  # written, so that it is resident; freed at once

print(peak_beyond(hold), peak_beyond(lambda: None))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak, other = map(int, done.stdout.split())
    assert 190 < peak / 2**20 < 260
    assert other < 20 * 2**20
