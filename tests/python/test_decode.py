"""flash_mla_with_kvcache over dense caches, on a thinned grid of FlashMLA's tests/test_flash_mla_dense_decoding.py."""
import itertools
import os
import subprocess
import sys

import numpy
import pytest

import mla
from mla import flash_mla
from reference import attention, close_decode, numbers, torch

FULL = os.environ.get("MLA_TEST_GRID") == "full"
KINDS = ["numpy f32", "numpy f16"] + (["torch bf16", "torch f16", "torch f32"] if torch else [])


class Problem:
    """Shuffled pages, NaN wherever no row is, table entries of nonsense wherever no page is.

    exact: the numbers are the same in all kinds, so that one reference serves several (`turn`).
    """

    def __init__(self, kind, b, s_q, s_k, h_q, h_kv, varied, page=64, d=576, d_v=512, zero=False, seed=0, exact=False):
        random = numpy.random.default_rng(seed)
        self.d_v, self.page = d_v, page
        self.lengths = numpy.full(b, s_k, numpy.int32)
        if varied:
            self.lengths = numpy.maximum(random.normal(s_k, s_k / 2, b), s_q).astype(numpy.int32)
        if zero:
            self.lengths[random.random(b) < 0.5] = 0
        used = -(-self.lengths // page)
        pages = random.permutation(used.sum() + b).astype(numpy.int32)
        self.table = numpy.full((b, used.max() + 2), 2147480000, numpy.int32)
        # Rows are drawn from some, the last of which is NaN: gigabytes of numbers of their own would take most of the time.
        rows = numpy.full((min(len(pages) * page * h_kv, 20011) + 1, d), numpy.nan, numpy.float32)
        rows[:-1] = draw(random, rows[:-1].shape, exact)
        chosen = random.integers(0, len(rows) - 1, (len(pages), page, h_kv))
        chosen[pages[used.sum():]] = -1
        for i, (n, first) in enumerate(zip(self.lengths, numpy.cumsum(used) - used)):
            self.table[i, :used[i]] = pages[first:first + used[i]]
            if n % page:
                chosen[self.table[i, used[i] - 1], n % page:] = -1
        self.drawn = draw(random, (b, s_q, h_q, d), exact), rows, chosen
        self.kind = None
        self.turn(kind)

    def turn(self, kind):
        if kind != self.kind:
            q, rows, chosen = self.drawn
            self.kind, self.cache = kind, None
            self.q, rows = make(kind, q), make(kind, rows)
            self.cache, self.exact_rows = rows[chosen], numbers(rows)
        return self

    def run(self, causal, **options):
        integers = (lambda x: torch.from_numpy(x)) if "torch" in self.kind else (lambda x: x)
        metadata, splits = flash_mla.get_mla_metadata()
        out, lse = flash_mla.flash_mla_with_kvcache(self.q, self.cache, integers(self.table), integers(self.lengths), self.d_v,
                                                    metadata, splits, causal=causal, **options)
        assert type(out) is type(self.q) and out.dtype == self.q.dtype
        return out, lse

    def rows(self, i):
        """[length, h_kv, d] of sequence i."""
        n = self.lengths[i]
        chosen = self.drawn[2][self.table[i, :-(-n // self.page)]]
        return self.exact_rows[chosen.reshape(-1, chosen.shape[-1])[:n]]

    def check(self, causal, *answers):
        for i in range(len(self.lengths)):
            rows = self.rows(i)
            expected, expected_lse, _ = attention(numbers(self.q[i]), rows, rows[..., :self.d_v], self.q.shape[-1] ** -0.5, causal)
            for out, lse in answers:
                close_decode(numbers(out[i]), numbers(lse[i]).T, expected, expected_lse)


def draw(random, shape, exact):
    """Normal numbers of deviation 0.1 as float32; exact: integers of 8 bits by 512, which every kind holds."""
    x = random.standard_normal(shape, numpy.float32)
    x *= 51.2 if exact else 0.1
    limit = 255 if exact else 1
    numpy.clip(x, -limit, limit, out=x)
    if exact:
        numpy.rint(x, out=x)
        x /= 512
    return x


def make(kind, x):
    library, dtype = kind.split()
    if library == "torch":
        return torch.from_numpy(x).to({"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype])
    return x.astype({"f16": numpy.float16, "f32": numpy.float32}[dtype], copy=False)


def grid():
    """(kinds, (b, s_q, s_k, h_q, h_kv, varied, causal, zero)); the whole one with all kinds for each."""
    heads = [(h_q, h_kv) for h_q in [1, 3, 9, 63, 64, 126, 128] for h_kv in [1, 2, 3, 8] if h_q % h_kv == 0]
    every = [(b, s_q, s_k, h_q, h_kv, varied, causal, False) for b, s_q, s_k, (h_q, h_kv), varied, causal in itertools.product(
        [1, 2, 6, 64], [1, 2, 4], [20, 140, 4096], heads, [False, True], [False, True])]
    if FULL:
        corners = [(128, 2, 4096, h_q, h_kv, True, causal, True) for (h_q, h_kv), causal in itertools.product(heads, [False, True])]
        return [(KINDS, case) for case in every + corners]
    small = [c for c in every if c[0] * c[1] * c[2] * max(c[3], 64 * c[4]) <= 4096 * 64]
    return [(KINDS[i % len(KINDS):][:1], case) for i, case in enumerate(small[::7])]


@pytest.mark.parametrize("kinds, case", grid(), ids=str)
def test_equals_its_definition(kinds, case):
    b, s_q, s_k, h_q, h_kv, varied, causal, zero = case
    problem = Problem(kinds[0], b, s_q, s_k, h_q, h_kv, varied, zero=zero, exact=len(kinds) > 1)
    problem.check(causal, *[problem.turn(kind).run(causal) for kind in kinds])


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


def said_by_a_process(lines, **environment):
    done = subprocess.run([sys.executable, "-c", lines], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("b, s_q", [(100, 3), (2, 200)])
@pytest.mark.parametrize("causal", [False, True])
def test_long_calls_are_the_bits_of_short_ones(b, s_q, causal):
    """A call goes through 64 MiB of memory in parts: here of 40 sequences, and of 120 tokens."""
    problem = Problem(KINDS[2 if torch else 0], b, s_q, 250, 128, 1, True)
    out, lse = (numbers(x) for x in problem.run(causal))
    q, table, lengths = problem.q, problem.table, problem.lengths
    for i in (0, 1, 39, 40, 99):
        if i < b:
            problem.q, problem.table, problem.lengths = q[i:i + 1], table[i:i + 1].copy(), lengths[i:i + 1]
            few = problem.run(causal)
            assert (numbers(few[0]) == out[i:i + 1]).all() and (numbers(few[1]) == lse[i:i + 1]).all()
            for first, end in ((0, 60), (60, 130), (130, 200)) if s_q == 200 and causal else ():
                problem.q, problem.lengths = q[i:i + 1, first:end], numpy.maximum(lengths[i:i + 1] - (200 - end), 0)
                few = problem.run(causal)
                assert (numbers(few[0]) == out[i:i + 1, first:end]).all() and (numbers(few[1]) == lse[i:i + 1, :, first:end]).all()


def test_threads_are_those_of_openmp():
    assert said_by_a_process("import mla; print(mla.threads())", OMP_NUM_THREADS="3") == ["3"]
    if torch:
        asked, libraries = said_by_a_process(
            "import torch, mla; torch.set_num_threads(5)\n"
            "print(mla.threads(), len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))", OMP_NUM_THREADS="3")
        assert asked == ("5" if libraries == "1" else "3")


def test_inputs_may_have_gaps_and_metadata_is_kept():
    from reference import strided
    problem = Problem(KINDS[2 if torch else 0], 2, 2, 100, 6, 2, True)
    out, lse = (numbers(x) for x in problem.run(True))
    problem.q, problem.cache = strided(problem.q), strided(problem.cache)
    assert all((numbers(a) == b).all() for a, b in zip(problem.run(True), (out, lse)))


@pytest.mark.parametrize("page", [64, 5, 1])
def test_heads_may_lie_in_pages_of_their_own(page):
    problem = Problem(KINDS[-1], 3, 2, 101, 6, 3, True, page=page)
    out, lse = (numbers(x) for x in problem.run(True))
    swap = lambda x: x.transpose(1, 2).contiguous().transpose(1, 2) if torch else x.swapaxes(1, 2).copy().swapaxes(1, 2)
    problem.cache = swap(problem.cache)
    assert all((numbers(a) == b).all() for a, b in zip(problem.run(True), (out, lse)))


def test_the_stride_of_a_single_value_means_nothing():
    problem = Problem(KINDS[0], 5, 1, 40, 4, 1, False)
    out, lse = problem.run(False)
    problem.table = numpy.lib.stride_tricks.as_strided(problem.table[:, :1].copy(), strides=(4, 5 << 40))
    assert all((numbers(a) == b).all() for a, b in zip(problem.run(False), (out, lse)))


def test_the_scale_is_used():
    problem = Problem(KINDS[0], 1, 1, 50, 4, 1, False)
    rows = problem.rows(0)
    out, lse = problem.run(False, softmax_scale=0.5)
    expected, expected_lse, _ = attention(numbers(problem.q)[0], rows, rows[..., :512], 0.5)
    close_decode(numbers(out)[0], numbers(lse)[0].T, expected, expected_lse)
