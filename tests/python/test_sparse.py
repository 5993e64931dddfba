"""Sparse decoding over fp8 caches and sparse prefill, on thinned grids of FlashMLA's tests of the same names."""
import itertools
import os

import numpy
import pytest

from mla import flash_mla
from reference import attention, close, close_decode, fp8_584, fp8_656, numbers, to_bf16, torch, with_sinks

FULL = os.environ.get("MLA_TEST_GRID") == "full"
NONSENSE = numpy.array([-2147483648, -123456, -1, 2147480000, 2147483647], numpy.int64)


class Cache:
    """Pages of fp8 rows, of which `indices` [b, s_q, topk] name some, not all of them rows."""

    def __init__(self, random, d, page, rows, b, s_q, topk, has_lengths, all_invalid=False):
        count = -(-rows // page) * page
        values = numpy.clip(random.standard_normal((count, d)) / 10, -1, 1).astype(numpy.float32)
        if d == 576:
            raw, self.values = fp8_656(values)
            self.cache = raw.reshape(count // page, page, 1, 656)
        else:
            self.cache, self.values = fp8_584(values, page)
        self.indices = random.integers(0, count, (b, s_q, topk)).astype(numpy.int64)
        invalid = random.random(self.indices.shape) < (1 if all_invalid else 0.1)
        self.indices[invalid] = random.choice(numpy.append(NONSENSE, count), invalid.sum())
        self.indices = self.indices.astype(numpy.int32)
        self.lengths = random.integers(0, topk + 1, b).astype(numpy.int32) if has_lengths else None

    def seen(self, b, s):
        indices = self.indices[b, s, :None if self.lengths is None else self.lengths[b]]
        return self.values[indices[(indices >= 0) & (indices < len(self.values))]]


def decode_grid():
    every = list(itertools.product([576, 512], [(64, 61), (576, 2), (2048, 576)], [1, 64, 128], [4, 74], [1, 3],
                                   [False, True], [False, True], [False, True]))
    if FULL:
        return every
    return [c for c in every if c[1][0] * c[2] * c[3] * c[4] <= 128 * 3 * 576 * 4][::5]


@pytest.mark.parametrize("case", decode_grid(), ids=str)
def test_decode_equals_its_definition(case):
    d, (topk, page), h_q, b, s_q, has_extra, has_lengths, has_sinks = case
    random = numpy.random.default_rng(1)
    q = to_bf16(random.standard_normal((b, s_q, h_q, d)).clip(-1, 1))
    cache = Cache(random, d, page, 700, b, s_q, topk, has_lengths)
    extra = Cache(random, d, 69, 512, b, s_q, 64, has_lengths) if has_extra else None
    sinks = random.standard_normal(h_q).astype(numpy.float32) if has_sinks else None
    if has_sinks:
        sinks[::3], sinks[1::5] = numpy.inf, -numpy.inf
    scale = d ** -0.55
    metadata, splits = flash_mla.get_mla_metadata()
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, cache.cache, None, None, 512, metadata, splits, scale, False, True, cache.indices, sinks,
        extra.cache if extra else None, extra.indices if extra else None, cache.lengths, extra.lengths if extra else None)
    for i, s in itertools.product(range(min(b, 6)), range(s_q)):
        rows = numpy.concatenate([c.seen(i, s) for c in (cache, extra) if c])[:, None, :]
        expected, expected_lse, _ = attention(q[i, s:s + 1], rows, rows[..., :512], scale)
        if has_sinks:
            expected = with_sinks(expected, expected_lse, sinks)
        close_decode(out[i, s:s + 1], lse[i, :, s][None], expected, expected_lse)


def test_decode_without_a_valid_row():
    random = numpy.random.default_rng(2)
    cache = Cache(random, 576, 64, 512, 3, 2, 64, False, all_invalid=True)
    q = random.standard_normal((3, 2, 64, 576)).astype(numpy.float32)
    sinks = numpy.array([numpy.inf, -numpy.inf] * 32, numpy.float32)
    out, lse = flash_mla.flash_mla_with_kvcache(q, cache.cache, None, None, 512, flash_mla.get_mla_metadata()[0],
                                                is_fp8_kvcache=True, indices=cache.indices, attn_sink=sinks)
    assert (out == 0).all() and numpy.isposinf(lse).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [576, 512])
def test_fp8_without_indices_goes_by_the_block_table(d, causal):
    random = numpy.random.default_rng(3)
    cache = Cache(random, d, 64, 64 * 9, 1, 1, 1, False)
    table = numpy.array([[8, 1, 7, 2147480000], [0, 2147480000, -1, -7], [5, 4, 3, 2]], numpy.int32)
    lengths = numpy.array([130, 1, 256], numpy.int32)
    q = to_bf16(random.standard_normal((3, 3, 20, d)) / 4)
    out, lse = flash_mla.flash_mla_with_kvcache(q, cache.cache, table, lengths, 512, flash_mla.get_mla_metadata()[0],
                                                causal=causal, is_fp8_kvcache=True)
    for i, n in enumerate(lengths):
        rows = numpy.concatenate([cache.values[64 * t:64 * t + 64] for t in table[i, :-(-n // 64)]])[:n, None, :]
        expected, expected_lse, _ = attention(q[i], rows, rows[..., :512], d ** -0.5, causal)
        close_decode(out[i], lse[i].T, expected, expected_lse)


PREFILL_KINDS = ["numpy", "torch"] if torch else ["numpy"]


def prefill_grid():
    every = list(itertools.product([576, 512], [64, 128], [(128, 128), (592, 128), (1521, 512), (95, 128), (114, 384)], [1, 62, 213],
                                   [False, True], [False, True]))
    if FULL:
        return list(itertools.product(PREFILL_KINDS, every))
    return [(PREFILL_KINDS[i % len(PREFILL_KINDS)], c) for i, c in enumerate([c for c in every if c[3] < 213][::4])]


@pytest.mark.parametrize("kind, case", prefill_grid(), ids=str)
def test_prefill_equals_its_definition(kind, case):
    d, h_q, (s_kv, topk), s_q, has_sinks, has_lengths = case
    random = numpy.random.default_rng(4)
    q, kv = (to_bf16(random.standard_normal(shape) / 10 + 0.02) for shape in ((s_q, h_q, d), (s_kv, 1, d)))
    indices = numpy.full((s_q, 1, topk), s_kv, numpy.int32)
    for i in range(s_q):
        chosen = random.permutation(s_kv)[:topk]
        indices[i, 0, :len(chosen)] = chosen
        indices[i, 0, len(chosen):] = random.choice(NONSENSE, topk - len(chosen))
    sinks = random.standard_normal(h_q).astype(numpy.float32) if has_sinks else None
    lengths = random.integers(0, topk + 1, s_q).astype(numpy.int32) if has_lengths else None
    if kind == "torch":
        give = lambda x: None if x is None else torch.from_numpy(x)
        out, largest, lse = flash_mla.flash_mla_sparse_fwd(give(q).bfloat16(), give(kv).bfloat16(), give(indices), 0.5, 512,
                                                           give(sinks), give(lengths))
        assert out.dtype == torch.bfloat16
    else:
        out, largest, lse = flash_mla.flash_mla_sparse_fwd(q, kv, indices, 0.5, 512, sinks, lengths)
    for i in range(0, s_q, 7):
        chosen = indices[i, 0, :None if lengths is None else lengths[i]]
        rows = kv[chosen[(chosen >= 0) & (chosen < s_kv)]]
        expected, expected_lse, expected_largest = attention(q[i:i + 1], rows, rows[..., :512], 0.5)
        if has_sinks:
            expected = with_sinks(expected, expected_lse, sinks)
        close(numbers(out)[i:i + 1], expected, 8e-4, 3.01 / 128, 7e-6)
        close(numbers(largest)[i:i + 1], expected_largest, 1e-6, 2.01 / 65536)
        close(numbers(lse)[i:i + 1], expected_lse, 1e-6, 2.01 / 65536)


def test_long_calls_are_the_bits_of_short_ones():
    """A call goes through 64 MiB of memory in parts: here of 120 tokens."""
    random = numpy.random.default_rng(6)
    q, kv = (random.standard_normal(shape).astype(numpy.float32) for shape in ((270, 128, 576), (40, 1, 576)))
    indices, lengths = random.integers(-1, 41, (270, 1, 5)).astype(numpy.int32), random.integers(0, 6, 270).astype(numpy.int32)
    sinks = random.standard_normal(128).astype(numpy.float32)
    cuts = [slice(0, 100), slice(100, 200), slice(200, 270)]
    whole = flash_mla.flash_mla_sparse_fwd(q, kv, indices, 0.05, 512, sinks, lengths)
    short = [flash_mla.flash_mla_sparse_fwd(q[c], kv, indices[c], 0.05, 512, sinks, lengths[c]) for c in cuts]
    for found, pieces in zip(whole, zip(*short)):
        assert (found == numpy.concatenate(pieces)).all()
    cache = Cache(random, 576, 64, 640, 90, 3, 5, True)
    decode = lambda c: flash_mla.flash_mla_with_kvcache(
        q.reshape(90, 3, 128, 576)[c], cache.cache, None, None, 512, flash_mla.get_mla_metadata()[0], is_fp8_kvcache=True,
        indices=cache.indices[c], attn_sink=sinks, topk_length=cache.lengths[c])
    cuts = [slice(0, 30), slice(30, 60), slice(60, 90)]
    for found, pieces in zip(decode(slice(0, 90)), zip(*map(decode, cuts))):
        assert (found == numpy.concatenate(pieces)).all()
