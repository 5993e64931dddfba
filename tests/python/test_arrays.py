"""Tensors of every kind: of other libraries by DLPack, of odd strides, empty, and those that cannot be read."""
import gc
import threading

import numpy
import pytest

import mla
from mla import flash_mla
from reference import attention, close, close_decode, numbers, torch

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
TABLE, LENGTHS = numpy.array([[2, 0], [1, 1]], numpy.int32), numpy.array([7, 3], numpy.int32)


class Foreign:
    """A tensor of a library that speaks DLPack and nothing else, and exports copies that it does not keep."""

    def __init__(self, values, library=None):
        self._values, self._library = values, library
        if library is not None:
            self.__class__ = ForeignWithLibrary

    def __dlpack__(self, **_):
        copy = self._values.clone() if torch is not None and isinstance(self._values, torch.Tensor) else self._values.copy()
        return copy.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


class ForeignWithLibrary(Foreign):
    def __array_namespace__(self):
        return self._library


def dense(seed=0):
    random = numpy.random.default_rng(seed)
    return [(random.standard_normal(shape, numpy.float32) / 10) for shape in ((2, 2, 6, 40), (3, 4, 2, 40))]


def decode(q, cache, table=TABLE, lengths=LENGTHS, d_v=24, **options):
    return flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, d_v, flash_mla.get_mla_metadata()[0], **options)


def varlen(q, k, v, cu_q, cu_k, **options):
    return flash_mla.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 0, 0, **options)


def test_what_a_library_lends_is_kept_while_it_is_read():
    q, cache = dense()
    big = numpy.repeat(cache, 4000, 0)  # 15 MB: freed memory of that size is gone from the process
    table = numpy.array([[8000, 11999], [4000, 0]], numpy.int32)
    expected = decode(q, big, table)
    gc.collect()
    for result, values in zip(decode(q, Foreign(big), Foreign(table), Foreign(LENGTHS)), expected):
        assert type(result) is numpy.ndarray and (result == values).all()


def test_results_are_of_the_callers_library():
    q, cache = dense()
    expected = decode(q, cache)
    for result, values in zip(decode(Foreign(q), Foreign(cache)), expected):
        assert type(result) is numpy.ndarray and (result == values).all()
    if torch is None:
        return
    narrow = torch.from_numpy(q).bfloat16()
    expected = decode(narrow, cache)
    for result, values in zip(decode(Foreign(narrow, torch), Foreign(cache)), expected):
        assert isinstance(result, torch.Tensor) and torch.equal(result, values)
    with pytest.raises(TypeError, match="^q: found Foreign"):
        decode(Foreign(narrow), cache)


def test_other_libraries_everywhere():
    random = numpy.random.default_rng(1)
    q, kv = (random.standard_normal(s).astype(numpy.float32) for s in ((5, 4, 16), (5, 2, 24)))
    cu = numpy.int32([0, 2, 5])
    plain = varlen(q, kv[..., :16], kv[..., 16:], cu, cu)
    packed = flash_mla.flash_attn_varlen_kvpacked_func(Foreign(q), Foreign(kv), Foreign(cu), Foreign(cu), 0, 0, 16)
    assert all((a == b).all() for a, b in zip(packed, plain))
    if torch is not None:
        qkv = torch.from_numpy(random.standard_normal((5, 2, 40)).astype(numpy.float32)).bfloat16()
        same = flash_mla.flash_attn_varlen_qkvpacked_func(qkv, torch.from_numpy(cu), 0, 16)
        found = flash_mla.flash_attn_varlen_qkvpacked_func(Foreign(qkv, torch), Foreign(cu), 0, 16)
        assert all(isinstance(a, torch.Tensor) and torch.equal(a, b) for a, b in zip(found, same))
    rows = numpy.zeros((3, 4, 1, 656), numpy.uint8)
    q = numpy.ones((2, 1, 4, 576), numpy.float32)
    out, lse = decode(Foreign(q), Foreign(rows), Foreign(TABLE), Foreign(LENGTHS), 512, is_fp8_kvcache=True)
    assert (out == 0).all() and numpy.allclose(lse[:, 0, 0], numpy.log(LENGTHS))


@pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")
def test_bf16_of_numpy():
    q, cache = (x.astype(ml_dtypes.bfloat16) for x in dense())
    out, lse = decode(q, cache)
    assert out.dtype == q.dtype and lse.dtype == numpy.float32
    for i, n in enumerate(LENGTHS):
        rows = cache[TABLE[i]].reshape(-1, 2, 40)[:n].astype(float)
        expected, expected_lse, _ = attention(q[i].astype(float), rows, rows[..., :24], 40 ** -0.5)
        close_decode(out[i].astype(float), lse[i].T, expected, expected_lse)
    strided = numpy.zeros((*q.shape, 2), q.dtype)
    strided[..., 0] = q
    assert (decode(strided[..., 0], cache)[0] == out).all()


@pytest.mark.parametrize("kind", ["numpy"] + ["torch"] * (torch is not None))
def test_caches_without_a_row(kind):
    give = torch.from_numpy if kind == "torch" else lambda x: x
    nothing = numpy.zeros(2, numpy.int32)
    q, wide = numpy.ones((2, 2, 6, 40), numpy.float32), numpy.ones((2, 1, 4, 576), numpy.float32)
    indices = numpy.zeros((2, 1, 3), numpy.int32)
    fp8 = dict(table=None, lengths=None, d_v=512, is_fp8_kvcache=True, indices=give(indices))
    results = [decode(give(q), give(numpy.zeros((0, 4, 2, 40), numpy.float32)), give(TABLE), give(nothing)),
               decode(give(wide), give(numpy.zeros((0, 4, 1, 656), numpy.uint8)), **fp8),
               flash_mla.flash_mla_sparse_fwd(give(wide[:, 0]), give(numpy.zeros((0, 1, 576), numpy.float32)), give(indices), 1.0)[::2]]
    for out, lse in results:
        assert (numbers(out) == 0).all() and numpy.isposinf(numbers(lse)).all()


def test_no_queries():
    out, lse = decode(numpy.zeros((2, 0, 6, 40), numpy.float32), dense()[1])
    assert out.shape == (2, 0, 6, 24) and lse.shape == (2, 6, 0)
    fp8 = numpy.zeros((3, 4, 1, 656), numpy.uint8)
    out, lse = decode(numpy.zeros((2, 0, 4, 576), numpy.float32), fp8, None, None, 512, is_fp8_kvcache=True,
                      indices=numpy.zeros((2, 0, 8), numpy.int32), topk_length=numpy.int32([3, 8]))
    assert out.shape == (2, 0, 4, 512) and lse.shape == (2, 4, 0)


@pytest.mark.parametrize("kind", ["numpy"] + ["torch"] * (torch is not None))
def test_tokens_and_rows_behind_the_last_sequence(kind):
    """As in padded batches: such tokens see nothing, and nothing sees such rows."""
    random = numpy.random.default_rng(2)
    q, k, v = (random.standard_normal(s).astype(numpy.float32) for s in ((30, 4, 16), (40, 2, 16), (40, 2, 8)))
    cu_q, cu_k = numpy.int32([0, 9, 20]), numpy.int32([0, 11, 33])
    k[33:] = v[33:] = numpy.nan
    if kind == "numpy":
        out, lse = varlen(q, k, v, cu_q, cu_k, causal=True)
        short = varlen(q[:20], k[:33], v[:33], cu_q, cu_k, causal=True)
    else:
        leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
        out, lse = varlen(*leaves, torch.from_numpy(cu_q), torch.from_numpy(cu_k), causal=True)
        out.square().sum().backward()
        few = [torch.from_numpy(x[:n]).requires_grad_() for x, n in ((q, 20), (k, 33), (v, 33))]
        short = varlen(*few, torch.from_numpy(cu_q), torch.from_numpy(cu_k), causal=True)
        short[0].square().sum().backward()
        for whole, part in zip(leaves, few):
            assert torch.equal(whole.grad[:len(part)], part.grad) and (whole.grad[len(part):] == 0).all()
    assert (numbers(out)[:20] == numbers(short[0])).all() and (numbers(lse)[:20] == numbers(short[1])).all()
    assert (numbers(out)[20:] == 0).all() and numpy.isposinf(numbers(lse)[20:]).all()


@needs_torch
def test_gradients_under_activation_checkpointing():
    from torch.utils.checkpoint import checkpoint
    cu = torch.tensor([0, 3, 8], dtype=torch.int32)
    x, same = (torch.linspace(-1, 1, 8 * 2 * 16).reshape(8, 2, 16).requires_grad_() for _ in range(2))
    run = lambda t: varlen(t, t * 2, t * 3, cu, cu, causal=True)[0]
    for reentrant in (False, True):
        x.grad = None
        checkpoint(run, x, use_reentrant=reentrant).square().sum().backward()
        same.grad = None
        run(same).square().sum().backward()
        assert torch.equal(x.grad, same.grad)


@needs_torch
def test_gradients_of_gradients_are_refused():
    cu = torch.tensor([0, 4], dtype=torch.int32)
    x = torch.ones(4, 2, 16, requires_grad=True)
    grad, = torch.autograd.grad(varlen(x, x, x, cu, cu)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_torch
def test_a_default_device_is_not_ours():
    q, cache = (torch.from_numpy(x) for x in dense())
    expected = decode(q, cache)
    cu = torch.tensor([0, 2], dtype=torch.int32)
    x = torch.ones(2, 6, 40, requires_grad=True)
    torch.set_default_device("meta")
    try:
        assert all(torch.equal(a, b) for a, b in zip(decode(q, cache), expected))
        varlen(x, x, x, cu, cu)[0].sum().backward()
    finally:
        torch.set_default_device(None)
    assert x.grad.device.type == "cpu"


@needs_torch
def test_offsets_of_numpy_with_tensors_of_torch():
    x = torch.ones(5, 2, 16, requires_grad=True)
    cu = numpy.int32([0, 2, 5])
    out, _ = varlen(x, x, x, cu, Foreign(cu))
    out.sum().backward()
    close(numbers(out), numpy.ones((5, 2, 16)), 1e-6, 1e-6)
    for name, arrays in (("k", (x, numpy.ones((5, 2, 16), numpy.float32), x)), ("v", (x, x, Foreign(x.detach()))),
                         ("k", (numpy.ones((5, 2, 16), numpy.float32), x, x))):
        with pytest.raises(TypeError, match=f"^{name}: found"):
            varlen(*arrays, cu, cu)


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_read():
    from torch._subclasses.fake_tensor import FakeTensorMode
    q, cache = (torch.from_numpy(x) for x in dense())
    with FakeTensorMode():
        fake = torch.zeros(2, 2, 6, 40)
    for kind, wrong in ((TypeError, fake), (TypeError, q.to_sparse()), (ValueError, torch.complex(q, q).conj().imag)):
        with pytest.raises(kind, match="^q: found"):
            decode(wrong, cache)
    with pytest.raises(TypeError, match="^q: found"):
        torch.vmap(lambda x: decode(x, cache)[0])(q[None])


def test_strides_that_are_no_multiple_of_a_value():
    packed = numpy.zeros((2, 2, 6, 40), numpy.dtype([("x", "<f4"), ("y", "i1")]))
    with pytest.raises(ValueError, match="^q: found strides"):
        decode(packed["x"], dense()[1])


def test_a_conversation_may_end_while_its_fork_is_fed():
    model = mla.Model()
    ids = (model.tokenize("In the beginning God created the heaven and the earth. ") * 40)[:370]
    first = model.session(1000)
    first.feed(ids[:70])
    plain = model.session(1000)
    expected = [plain.feed(ids[:70])] + [plain.feed(ids[70:]) for _ in range(3)]
    worker = threading.Thread(target=lambda: [first.feed(ids[70:]) for _ in range(3)])
    forks = [first.fork() for _ in range(50)]
    worker.start()
    while worker.is_alive() and forks:
        forks.pop()
        assert 70 <= len(first) <= 70 + 3 * len(ids[70:])
    worker.join()
    forks.clear()
    assert len(first) == len(plain) and first.cache_bytes == plain.cache_bytes
    assert (first.feed([5]) == plain.feed([5])).all() and expected
