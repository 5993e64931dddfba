"""flash_attn_varlen_func and its packed forms, forward and backward (FlashMLA's tests/test_fmha_sm100.py, thinned)."""
import itertools
import os

import numpy
import pytest

from mla import flash_mla
from reference import attention, close, gradient, numbers, to_bf16, torch

FULL = os.environ.get("MLA_TEST_GRID") == "full"
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
CASES = list(itertools.product([4096, 8192] if FULL else [33, 300], [False, True], [(128, 128), (32, 4)] if FULL else [(4, 4), (6, 2), (1, 1)],
                               [(128, 128), (192, 128), (64, 64)], [False, True]))


def lengths(random, mean, varied, b=2):
    if not varied:
        return numpy.full(b, mean), numpy.full(b, mean)
    q = numpy.maximum(random.normal(mean, mean / 2, b), 1).astype(int)
    return q, numpy.maximum(random.normal(mean, mean / 2, b).astype(int), q)


def offsets(n):
    return numpy.concatenate([[0], numpy.cumsum(n)]).astype(numpy.int32)


def problem(case, seed=0):
    mean, varied, (h, h_kv), (d, d_v), causal = case
    random = numpy.random.default_rng(seed)
    n_q, n_k = lengths(random, mean, varied)
    q, k, v = (to_bf16(random.standard_normal(s) / 10) for s in ((n_q.sum(), h, d), (n_k.sum(), h_kv, d), (n_k.sum(), h_kv, d_v)))
    return q, k, v, offsets(n_q), offsets(n_k), (d + 100) ** -0.5, causal


def by_definition(q, k, v, cu_q, cu_k, scale, causal):
    parts = [attention(q[a:b], k[c:d], v[c:d], scale, causal)[:2] for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:])]
    return tuple(numpy.concatenate(x) for x in zip(*parts))


class Sample:
    """The KV heads and their query heads to compare: all, or three of a whole-size problem (heads know nothing of each other)."""

    def __init__(self, case):
        mean, _, (h, h_kv), *_ = case
        kv = numpy.arange(h_kv) if mean < 4096 else numpy.array([0, h_kv // 2, h_kv - 1])
        self.kv, self.q = kv, (kv[:, None] * (h // h_kv) + numpy.arange(h // h_kv)).ravel()

    def of(self, q, *keys_and_values):
        return [x[:, heads].astype(float) for x, heads in zip((q, *keys_and_values), (self.q, self.kv, self.kv))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_of_numpy(case):
    q, k, v, cu_q, cu_k, scale, causal = problem(case)
    out, lse = flash_mla.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 0, 0, softmax_scale=scale, causal=causal)
    sample = Sample(case)
    expected, expected_lse = by_definition(*sample.of(q, k, v), cu_q, cu_k, scale, causal)
    close(out[:, sample.q], expected, 1e-4, 1e-3, 1e-9)
    close(lse[:, sample.q], expected_lse, 1e-6, 2.01 / 65536)


@needs_torch
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward_of_torch(case):
    q, k, v, cu_q, cu_k, scale, causal = problem(case)
    tensors = [torch.from_numpy(x).bfloat16().requires_grad_() for x in (q, k, v)]
    offsets_of = [torch.from_numpy(x) for x in (cu_q, cu_k)]
    out, lse = flash_mla.flash_attn_varlen_func(*tensors, *offsets_of, 0, 0, softmax_scale=scale, causal=causal)
    sample = Sample(case)
    few_q, few_k, few_v = sample.of(q, k, v)
    expected, expected_lse = by_definition(few_q, few_k, few_v, cu_q, cu_k, scale, causal)
    close(numbers(out)[:, sample.q], expected, 1e-3, 8.01 / 128, 7e-6)
    close(numbers(lse)[:, sample.q], expected_lse, 1e-6, 2.01 / 65536)
    d_out = to_bf16(numpy.random.default_rng(1).standard_normal(out.shape) / 10)
    out.backward(torch.from_numpy(d_out).bfloat16())
    few_out, = sample.of(d_out)
    parts = [gradient(few_q[a:b], few_k[c:d], few_v[c:d], few_out[a:b], scale, causal)
             for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:])]
    for tensor, heads, expected in zip(tensors, (sample.q, sample.kv, sample.kv), (numpy.concatenate(x) for x in zip(*parts))):
        close(numbers(tensor.grad)[:, heads], expected, 1e-3, 8.01 / 128, 7e-6)


@needs_torch
def test_packed_forms_and_repeats_are_the_same_bits():
    q, k, v, cu_q, cu_k, scale, _ = problem((100, False, (4, 4), (64, 64), True))
    q, k, v = (torch.from_numpy(x).bfloat16() for x in (q, k, v))
    cu = torch.from_numpy(cu_q)
    out, lse = flash_mla.flash_attn_varlen_func(q, k, v, cu, cu, 100, 100, causal=True)
    for again in (flash_mla.flash_attn_varlen_func(q, k, v, cu, cu, 100, 100, causal=True, deterministic=True),
                  flash_mla.flash_attn_varlen_kvpacked_func(q, torch.cat((k, v), -1), cu, cu, 100, 100, 64, causal=True),
                  flash_mla.flash_attn_varlen_qkvpacked_func(torch.cat((q, k, v), -1), cu, 100, 64, causal=True)):
        assert torch.equal(again[0], out) and torch.equal(again[1], lse)


@pytest.mark.parametrize("kind", ["f32"] + ["bf16"] * (torch is not None))
def test_lengths_of_all_remainders(kind):
    """Few tokens and many, of several heads, over numbers of rows that are no multiple of anything."""
    # (Values a tenth in size, as in FlashMLA's tests, whose tolerances count on it: weights are rounded to bf16 there.)
    random = numpy.random.default_rng(6)
    n_q, n_k = numpy.array([1, 2, 3, 7, 8, 9, 21, 5]), numpy.array([5, 6, 7, 9, 10, 11, 33, 8])
    q, k, v = (to_bf16(random.standard_normal(s)) for s in ((n_q.sum(), 6, 40), (n_k.sum(), 3, 40), (n_k.sum(), 3, 24)))
    cu_q, cu_k = offsets(n_q), offsets(n_k)
    v = to_bf16(v / 10)
    expected, expected_lse = by_definition(*(x.astype(float) for x in (q, k, v)), cu_q, cu_k, 0.2, True)
    arrays = (q, k, v, cu_q, cu_k)
    if kind == "bf16":
        arrays = [torch.from_numpy(x) for x in arrays]
        arrays[:3] = [x.bfloat16() for x in arrays[:3]]
    out, lse = flash_mla.flash_attn_varlen_func(*arrays, 0, 0, softmax_scale=0.2, causal=True)
    close(numbers(out), expected, *((1e-5, 1e-4, 1e-9) if kind == "f32" else (1e-3, 8.01 / 128, 7e-6)))
    close(numbers(lse), expected_lse, 1e-6, 2.01 / 65536)


@needs_torch
def test_heads_of_large_calls_are_those_of_small_ones():
    """A call goes through 256 MiB of memory in parts: here of about 13 heads."""
    random = numpy.random.default_rng(7)
    cu_q, cu_k = torch.tensor([0, 9, 20], dtype=torch.int32), torch.tensor([0, 9000, 20000], dtype=torch.int32)
    q, k, v, d_out = (torch.from_numpy(random.random((n, heads, d), numpy.float32) - 0.5)
                      for n, heads, d in ((20, 64, 192), (20000, 32, 192), (20000, 32, 64), (20, 64, 64)))

    def results(first, end):
        inputs = [q[:, 2 * first:2 * end], k[:, first:end], v[:, first:end]]
        inputs = [x.bfloat16().requires_grad_() for x in inputs]
        out, lse = flash_mla.flash_attn_varlen_func(*inputs, cu_q, cu_k, 0, 0, softmax_scale=2.0, causal=True)
        out.backward(d_out[:, 2 * first:2 * end].bfloat16())
        return (out, lse, *(x.grad for x in inputs))
    whole = results(0, 32)
    for first, end in ((0, 1), (12, 15), (27, 32)):
        for all_heads, some in zip(whole, results(first, end)):
            each = all_heads.shape[1] // 32
            assert torch.equal(all_heads[:, each * first:each * end], some)


def test_sequences_without_tokens_or_rows():
    random = numpy.random.default_rng(5)
    q, k, v = (random.standard_normal((n, 2, 16)).astype(numpy.float32) for n in (5, 4, 4))
    out, lse = flash_mla.flash_attn_varlen_func(q, k, v, numpy.int32([0, 0, 3, 5]), numpy.int32([0, 4, 4, 4]), 3, 4)
    assert (out == 0).all() and numpy.isposinf(lse).all()
