"""flash_mla_with_kvcache over dense caches, on a thinned grid of FlashMLA's tests/test_flash_mla_dense_decoding.py."""
import itertools
import os

import numpy
import pytest

import mla
from mla import flash_mla
from reference import attention, close_decode, numbers, torch

FULL = os.environ.get("MLA_TEST_GRID") == "full"
KINDS = ["numpy f32", "numpy f16"] + (["torch bf16", "torch f16", "torch f32"] if torch else [])


class Problem:
    """Shuffled pages, NaN wherever no row is, table entries of nonsense wherever no page is."""

    def __init__(self, kind, b, s_q, s_k, h_q, h_kv, varied, page=64, d=576, d_v=512, zero=False, seed=0):
        random = numpy.random.default_rng(seed)
        self.d_v, self.page = d_v, page
        self.lengths = numpy.full(b, s_k, numpy.int32)
        if varied:
            self.lengths = numpy.maximum(random.normal(s_k, s_k / 2, b), s_q).astype(numpy.int32)
        if zero:
            self.lengths[random.random(b) < 0.5] = 0
        per_sequence = max(-(-int(self.lengths.max()) // 256) * 256, 256) // page + 1
        self.table = random.permutation(b * per_sequence).astype(numpy.int32).reshape(b, per_sequence)
        cache = numpy.clip(random.standard_normal((b * per_sequence, page, h_kv, d), numpy.float32) / 10, -1, 1)
        q = numpy.clip(random.standard_normal((b, s_q, h_q, d), numpy.float32) / 10, -1, 1)
        for i, n in enumerate(self.lengths):
            used = -(-n // page)
            cache[self.table[i, used:]] = numpy.nan
            if n % page:
                cache[self.table[i, used - 1], n % page:] = numpy.nan
            self.table[i, used:] = 2147480000
        self.kind, self.q, self.cache = kind, make(kind, q), make(kind, cache)

    def run(self, causal, **options):
        integers = (lambda x: torch.from_numpy(x)) if "torch" in self.kind else (lambda x: x)
        metadata, splits = flash_mla.get_mla_metadata()
        return flash_mla.flash_mla_with_kvcache(self.q, self.cache, integers(self.table), integers(self.lengths), self.d_v,
                                                metadata, splits, causal=causal, **options)

    def check(self, causal, answer):
        out, lse = answer
        assert type(out) is type(self.q) and out.dtype == self.q.dtype
        q, cache = numbers(self.q), numbers(self.cache)
        for i, n in enumerate(self.lengths):
            rows = cache[self.table[i, :-(-n // self.page)]].reshape(-1, *cache.shape[2:])[:n]
            expected, expected_lse, _ = attention(q[i], rows, rows[..., :self.d_v], q.shape[-1] ** -0.5, causal)
            close_decode(numbers(out)[i], numbers(lse)[i].T, expected, expected_lse)


def make(kind, x):
    library, dtype = kind.split()
    if library == "torch":
        return torch.from_numpy(x).to({"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype])
    return x.astype({"f16": numpy.float16, "f32": numpy.float32}[dtype])


def grid():
    every = [(b, s_q, s_k, h_q, h_kv, varied, causal)
             for b, s_q, s_k, h_q, h_kv, varied, causal in itertools.product(
                 [1, 2, 6, 64], [1, 2, 4], [20, 140, 4096], [1, 3, 9, 63, 64, 126, 128], [1, 2, 3, 8], [False, True], [False, True])
             if h_q % h_kv == 0]
    if FULL:
        return list(itertools.product(KINDS, every))
    small = [c for c in every if c[0] * c[1] * c[2] * max(c[3], 64 * c[4]) <= 4096 * 64]
    return [(KINDS[i % len(KINDS)], case) for i, case in enumerate(small[::7])]


@pytest.mark.parametrize("kind, case", grid(), ids=str)
def test_equals_its_definition(kind, case):
    b, s_q, s_k, h_q, h_kv, varied, causal = case
    problem = Problem(kind, b, s_q, s_k, h_q, h_kv, varied)
    problem.check(causal, problem.run(causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("page", [1, 2, 16, 61, 64, 300])
def test_any_page_size_and_sequences_of_no_rows(page, causal):
    problem = Problem(KINDS[-1], 7, 2, 150, 9, 3, True, page, zero=True)
    assert (problem.lengths == 0).any() and (problem.lengths > 0).any()
    out, lse = problem.run(causal)
    problem.check(causal, (out, lse))
    empty = problem.lengths == 0
    assert (numbers(out)[empty] == 0).all() and numpy.isposinf(numbers(lse)[empty]).all()


@pytest.mark.parametrize("d, d_v", [(576, 512), (512, 512), (288, 256), (80, 64), (7, 3)])
def test_other_widths(d, d_v):
    problem = Problem(KINDS[0], 3, 2, 100, 5, 1, True, 16, d, d_v)
    problem.check(True, problem.run(True))


def test_same_bits_at_any_thread_count_and_batch():
    problem = Problem(KINDS[2 if torch else 0], 5, 2, 700, 16, 1, True)
    out, lse = (numbers(x) for x in problem.run(True))
    before = mla.threads()
    for count in (1, 2, 3):
        mla.set_threads(count)
        assert all((numbers(a) == b).all() for a, b in zip(problem.run(True), (out, lse)))
    mla.set_threads(before)
    order = numpy.array([3, 0, 4, 2])
    problem.q, problem.table, problem.lengths = problem.q[order], problem.table[order].copy(), problem.lengths[order]
    assert all((numbers(a) == b[order]).all() for a, b in zip(problem.run(True), (out, lse)))


def test_inputs_may_have_gaps_and_metadata_is_kept():
    from reference import strided
    problem = Problem(KINDS[2 if torch else 0], 2, 2, 100, 6, 2, True)
    out, lse = (numbers(x) for x in problem.run(True))
    problem.q, problem.cache = strided(problem.q), strided(problem.cache)
    assert all((numbers(a) == b).all() for a, b in zip(problem.run(True), (out, lse)))


def test_the_scale_is_used():
    problem = Problem(KINDS[0], 1, 1, 50, 4, 1, False)
    rows = numbers(problem.cache)[problem.table[0, 0]][:50]
    out, lse = problem.run(False, softmax_scale=0.5)
    expected, expected_lse, _ = attention(numbers(problem.q)[0], rows, rows[..., :512], 0.5)
    close_decode(numbers(out)[0], numbers(lse)[0].T, expected, expected_lse)
