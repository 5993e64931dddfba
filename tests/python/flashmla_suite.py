#!/usr/bin/env python3
"""Runs FlashMLA's own test files, from a checkout of it, on this package: only the device is changed.

    python tests/python/flashmla_suite.py FLASHMLA_DIR [--only dense,sparse-decode,sparse-prefill,fmha] [--every N] [--first N]
                                                       [--until N] [--above G] [--limit G] [--memory GIB]

--every N takes each N-th case, --first N begins with the N-th, counted from 0, --until N ends before the N-th, --above and --limit
leave cases of up to and of more than so many 10^9 multiply-adds out, --memory those that take more (what the machine has, less 3,
unless given). Counts of what passed and of what was left out are printed, now and then on the way, and also if it is ended before
(SIGTERM). Their timing of GPU kernels is left out: cases meant for it are checked as the others where they check anything. What a
CPU is slow at is done otherwise, to the same end: random numbers, and quantised rows, are made once and handed out from random
places, and their reference and their comparison are called for a part at a time (a few sequences or rows, or one KV head), so that
the part stays in the caches and the case in the memory.

Two at once with OMP_NUM_THREADS=1 take two cores better than one; what each needs is about the --memory of its largest case.
"""
import argparse
import contextlib
import dataclasses
import io
import math
import os
import signal
import sys
import time
import traceback
import types

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's memory in huge pages
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two of these side by side: threads that wait leave the cores to the other
import torch
import torch._dynamo  # looks for triton when it is loaded, and must not find ours
import torch._inductor.config

from mla import flash_mla

FILES = {"dense": "test_flash_mla_dense_decoding.py", "sparse-decode": "test_flash_mla_sparse_decoding.py",
         "sparse-prefill": "test_flash_mla_sparse_prefill.py", "fmha": "test_fmha_sm100.py"}


def without_a_gpu():
    """torch.cuda and triton do nothing."""
    nothing = lambda *args, **kwargs: None
    for name in ("synchronize", "empty_cache", "set_device", "manual_seed", "manual_seed_all"):
        setattr(torch.cuda, name, nothing)
    torch.cuda.is_available = lambda: False
    torch.cuda.get_device_capability = lambda *args: (9, 0)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.set_num_threads = nothing  # they ask for 32
    time.sleep = nothing  # they let the card cool down
    triton = types.ModuleType("triton")
    triton.jit = lambda function: function
    triton.testing = types.SimpleNamespace(do_bench=lambda *args, **kwargs: 1.0)
    sys.modules["triton"] = triton
    sys.modules["flash_mla"] = flash_mla


def drawn_once():
    """torch.randn hands out what was drawn once, from a random place on. The length is prime: no two rows of a tensor are alike.

    More than half a GiB, which they divide and so copy, is a view: each block, row and head of it begins a prime number of values
    behind the one before. The primes fall, so that torch lays the copy out in the usual order.
    """
    pool = torch.randn(33554393, dtype=torch.float32)
    pools = {torch.float32: pool, torch.bfloat16: pool.bfloat16(), torch.float16: pool.half()}
    draw = torch.randn

    def view(pool, shape):
        for prime in (1601, 751, 199, 67, 37, 17):
            strides = (prime, 13, 7, 1)
            if len(shape) == 4 and sum((count - 1) * stride for count, stride in zip(shape, strides)) < len(pool):
                return pool.as_strided(shape, strides)
        return None

    def randn(*shape, dtype=None, device=None):
        shape = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        size = math.prod(shape)
        if size < 1 << 20:
            return draw(shape, dtype=dtype)
        pool = pools[dtype or torch.get_default_dtype()]
        overlapping = view(pool, shape) if size > 1 << 28 else None
        if overlapping is not None:
            return overlapping
        numbers = torch.empty(size, dtype=pool.dtype)
        source, at = int(torch.randint(len(pool), ())), 0
        while at < size:
            count = min(size - at, len(pool) - source)
            numbers[at:at + count] = pool[source:source + count]
            source, at = 0, at + count
        return numbers.view(shape)
    torch.randn = randn


def parts(count, bytes_each):
    """Ranges of about 8 MiB."""
    step = max(1, (8 << 20) // bytes_each)
    return ((first, min(first + step, count)) for first in range(0, count, step))


def joined(pieces, dims):
    return tuple(torch.cat(part, dim) for part, dim in zip(zip(*pieces), dims))


def dense_in_parts(reference):
    """Their reference_torch, called for one KV head at a time, whose heads are queries of one head where none hides rows from another."""
    def one(cache_seqlens, block_table, q, blocked_k, dv, is_causal):
        b, s_q, heads, d = q.shape
        if is_causal and s_q > 1:
            return reference(cache_seqlens, block_table, q, blocked_k, dv, True)
        out, lse = reference(cache_seqlens, block_table, q.reshape(b, s_q * heads, 1, d), blocked_k, dv, False)
        return out.view(b, s_q, heads, dv), lse.view(b, s_q, heads).transpose(1, 2)

    def run(cache_seqlens, block_table, q, blocked_k, dv, is_causal):
        group = q.size(2) // blocked_k.size(2)
        return joined([one(cache_seqlens, block_table, q[:, :, h * group:(h + 1) * group], blocked_k[:, :, h:h + 1], dv, is_causal)
                       for h in range(blocked_k.size(2))], (2, 1))
    return run


def decode_in_parts(reference):
    """Their ref_sparse_attn_decode, called for a few sequences at a time."""
    def run(p, t):
        def some(first, last):
            rows = torch.arange(first, last)
            scopes = [scope and scope.apply_perm(rows) for scope in (t.kv_scope, t.extra_kv_scope)]
            few = dataclasses.replace(p, decode=dataclasses.replace(p.decode, b=last - first))
            return reference(few, dataclasses.replace(t, p=few, q=t.q[first:last], kv_scope=scopes[0], extra_kv_scope=scopes[1]))
        each = p.s_q * (p.topk + (p.decode.extra_topk or 0)) * p.d_qk * 4
        return joined([some(*part) for part in parts(p.decode.b, each)], (0, 0))
    return run


class Pool:
    """Rows of a cache of fp8 latents, made once by their functions: drawn, quantised, widened again; the last holds NaN."""
    def __init__(self, quant, layout, width):
        drawn = torch.randn(20012, 1, 1, width, dtype=torch.bfloat16) / 10  # that is a prime number of rows, and one
        drawn.clamp_(min=-1.0, max=1.0)
        drawn[-1] = float("nan")
        quantized = quant.quantize_k_cache(drawn, layout)
        self.count = len(drawn) - 1
        self.quantized = quantized.view(torch.uint8).view(len(drawn), -1).contiguous()
        self.widened = quant.dequantize_k_cache(quantized, layout).view(-1, width)


class Rows:
    """A cache of latents as they make it, [.., width], each row one of a pool's. What they do to numbers was done to the pool."""
    def __init__(self, pool, rows, shape):
        self.pool, self.rows, self.shape = pool, rows, shape

    def __truediv__(self, divisor):
        assert divisor == 10
        return self

    def clamp_(self, **range):
        assert range == {"min": -1.0, "max": 1.0}

    def view(self, *shape):
        return Rows(self.pool, self.rows, (len(self.rows) // math.prod(shape[1:-1]), *shape[1:]))

    def size(self, dim):
        return self.shape[dim]

    def __setitem__(self, places, value):
        assert math.isnan(value)
        self.rows[places[0]] = self.pool.count

    def index_select(self, dim, index):
        return self.pool.widened.index_select(0, self.rows.index_select(0, index))


class Caches:
    """Their gen_non_contiguous_randn_tensor, quantize_k_cache and dequantize_k_cache, for caches of a pool's rows.

    So a cache needs memory for its quantised rows alone. A case has two caches, whose rows lie in two pieces of memory by turns,
    which the next case overwrites: fresh pages would take more time than the rows.
    """
    def __init__(self, quant):
        layouts = quant.FP8KVCacheLayout
        self.pools = {576: Pool(quant, layouts.V32_FP8Sparse, 576), 512: Pool(quant, layouts.MODEL1_FP8Sparse, 512)}
        self.model1 = layouts.MODEL1_FP8Sparse
        self.memory = [None, None]

    def draw(self, shape):
        pool = self.pools[shape[-1]]
        return Rows(pool, torch.randint(pool.count, (math.prod(shape[:-1]),), dtype=torch.int32), shape)

    def quantize(self, cache, layout):
        """Blocks of [656] per row and an unused row between them, or of [576] per row, then [8], a multiple of 576 bytes apart."""
        blocks, size = cache.shape[:2]
        width = cache.pool.quantized.size(1)
        apart = -(-size * width // 576) * 576 if layout == self.model1 else (size + 1) * width
        result = self.take(blocks * apart).view(blocks, apart)[:, :size * width]
        pieces = (width - 8, 8) if layout == self.model1 else (width,)
        for first, last in parts(blocks, size * width):
            rows = cache.pool.quantized.index_select(0, cache.rows[first * size:last * size]).split(pieces, 1)
            result[first:last] = torch.cat([piece.reshape(last - first, -1) for piece in rows], 1)
        quantized = result.view(torch.float8_e4m3fn).view(blocks, size, 1, width)
        self.last = cache, quantized
        return quantized

    def take(self, size):
        self.memory.reverse()
        if self.memory[0] is None or len(self.memory[0]) < size:
            self.memory[0] = None
            self.memory[0] = torch.empty(size, dtype=torch.uint8)
        return self.memory[0][:size]

    def dequantize(self, rows, layout):
        cache, quantized = self.last
        assert rows is quantized  # they widen what they just quantised
        return cache


def compare_in_parts(compare):
    """Their check_is_allclose, called for a few rows at a time: if the cosine distance of each part is small, so is that of all."""
    def run(name, answer, reference, **tolerances):
        assert answer.shape == reference.shape
        each = reference[0].numel() * 4 if len(reference) else 1
        return (all(compare(name, answer[first:last], reference[first:last], quiet=True, **tolerances)
                    for first, last in parts(len(reference), each)) or compare(name, answer, reference, **tolerances))
    return run


def prefill_in_parts(reference):
    """Their ref_sparse_attn_fwd, called for a few queries at a time."""
    def run(p, t):
        def some(first, last):
            few = dataclasses.replace(p, s_q=last - first)
            length = t.topk_length if t.topk_length is None else t.topk_length[first:last]
            return reference(few, dataclasses.replace(t, p=few, q=t.q[first:last], indices=t.indices[first:last], topk_length=length))
        return joined([some(*part) for part in parts(p.s_q, p.topk * p.d_qk * 4)], (0, 0, 0, 0))
    return run


def fmha_in_parts(sdpa):
    """Their sdpa, called for one KV head at a time and again for its gradient, in place of their checkpoint of all heads."""
    class Head(torch.autograd.Function):
        @staticmethod
        def forward(context, q, k, v, options):
            context.save_for_backward(q, k, v)
            context.options = options
            return sdpa(q, k, v, **options)

        @staticmethod
        def backward(context, d_out, d_lse):
            inputs = [x.detach().requires_grad_() for x in context.saved_tensors]
            with torch.enable_grad():
                results = sdpa(*inputs, **context.options)
            return *torch.autograd.grad(results, inputs, (d_out, d_lse)), None

    def run(q, k, v, **options):
        heads = k.size(1)
        return joined([Head.apply(*part, options) for part in zip(*(x.split(x.size(1) // heads, 1) for x in (q, k, v)))], (0, 0))
    return run


def work(name, arguments):
    """Multiply-adds of a case in 10^9, backward not counted."""
    if name == "fmha":
        b, s_q, s_k, _, h, _, d, d_v = arguments[:8]
        return b * s_q * s_k * h * (d + d_v) / 1e9
    p = arguments[0]
    if name == "dense":
        return p.b * (p.s_q * p.s_k * p.h_q + p.s_k * p.h_kv * 64) * 1088 / 1e9  # making caches takes time too
    batch = p.decode.b if p.decode else 1
    extra = p.decode.extra_topk or 0 if p.decode else 0
    return batch * p.s_q * p.h_q * (p.topk + extra) * 1088 / 1e9 + batch * p.s_kv * 576 * (64 if p.decode else 1) / 1e9


def memory(name, arguments):
    """About the GiB of a case's caches, or of its tensors, or of comparing a prefill's output."""
    if name == "fmha":
        b, s_q, s_k, varied, h, h_k, d, d_v = arguments[:8]
        tensors = b * (s_q * h + s_k * h_k) * (d + d_v) * 2 * (1.2 if varied else 1)  # q, k, v and d_out
        return tensors * (7 if arguments[-1] else 4) / 2 ** 30  # the leaves and two gradients; theirs too where they compare
    p = arguments[0]
    if name == "sparse-prefill":
        tensors = 2 * (p.d_qk + 128 + 2 * p.d_v + 128)  # q and d_out as they copy them, out or d_out
        return p.s_q * p.h_q * max(tensors, 17 * 4 * p.d_v if p.check_correctness else 0) / 2 ** 30
    b = p.decode.b if name != "dense" else p.b

    def one(length, varied, width):
        longest = length * (1 + math.sqrt(2 * math.log(b)) / 2) if varied and b > 1 else length  # lengths are normal
        return b * longest * p.h_kv * width / 2 ** 30
    if name == "dense":
        return one(p.s_k, p.is_varlen, 2 * p.d)
    return one(p.s_kv, p.decode.is_varlen, 660) + one(p.decode.extra_s_k or 0, p.decode.is_varlen, 660)


class Ended(BaseException):
    """SIGTERM came."""


def end(*_):
    raise Ended


class Suite:
    def __init__(self, name, folder, options):
        self.name, self.options = name, options
        self.passed, self.failed, self.left_out = 0, 0, 0
        self.next_word = time.time() + 30
        with open(os.path.join(folder, FILES[name])) as file:
            self.source = file.read().replace("cuda:0", "cpu")

    def case(self, function):
        """Their function of one case, counted."""
        def run(*arguments):
            index = self.passed + self.failed + self.left_out
            amount = work(self.name, arguments)
            if (index < self.options.first or index >= self.options.until or index % self.options.every or amount <= self.options.above
                    or amount > self.options.limit or memory(self.name, arguments) > self.options.memory):
                self.left_out += 1
                return self.verdict(True)
            if self.name == "dense":
                arguments = (dataclasses.replace(arguments[0], test_performance=False),)
            elif self.name != "fmha":
                arguments = (dataclasses.replace(arguments[0], num_runs=0),)
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said):
                    result = function(*arguments)
                ok = result if isinstance(result, bool) else getattr(result, "is_correct", True)
            except Exception:
                ok = False
                traceback.print_exc()
            self.passed += ok
            self.failed += not ok
            if not ok:
                print(f"{said.getvalue()}{self.name}: case {index} failed", flush=True)
            if time.time() > self.next_word:
                self.next_word = time.time() + 30
                print(f"{self.name}: {self.passed} passed, {self.failed} failed, at case {index}", file=sys.stderr, flush=True)
            return self.verdict(ok)
        return run

    def verdict(self, ok):
        if self.name == "sparse-decode":
            return self.module["Result"](True, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # counted here; theirs would stop at the first
        return ok

    def run(self):
        """Their file, with its function of one case replaced before its main part runs."""
        torch.set_default_dtype(torch.bfloat16)
        start = time.time()
        definitions, main = self.source.split("\nif __name__ ==", 1)
        self.module = {"__name__": FILES[self.name][:-3]}
        sys.modules[self.module["__name__"]] = types.ModuleType(self.module["__name__"])  # dataclasses look it up
        exec(compile(definitions, FILES[self.name], "exec"), self.module)
        if self.name == "dense":
            self.module["reference_torch"] = dense_in_parts(self.module["reference_torch"])
        if self.name == "fmha":
            self.module["sdpa_checkpoint"] = fmha_in_parts(self.module["sdpa"])
        for function in ("test_flash_mla", "run_test", "test_flash_attention"):
            if function in self.module:
                self.module[function] = self.case(self.module[function])
        sys.argv = sys.argv[:1]
        ended = ""
        try:
            with contextlib.redirect_stdout(io.StringIO()) if not self.options.verbose else contextlib.nullcontext():
                exec(compile("if '__main__' ==" + main, FILES[self.name], "exec"), self.module)
        except Ended:
            ended = f", ended before case {self.passed + self.failed + self.left_out}"
        print(f"{self.name}: {self.passed} passed, {self.failed} failed, {self.left_out} left out, "
              f"{time.time() - start:.0f} s{ended}", flush=True)
        return self.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--only", default=",".join(FILES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--until", type=int, default=sys.maxsize)
    parser.add_argument("--above", type=float, default=-1)
    parser.add_argument("--limit", type=float, default=1e9)
    parser.add_argument("--memory", type=float, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 ** 30 - 3)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    folder = os.path.join(options.checkout, "tests")
    sys.path.insert(0, folder)
    without_a_gpu()
    drawn_once()
    import kernelkit, quant, ref  # theirs, for the sparse ones
    kernelkit.check_is_allclose = compare_in_parts(kernelkit.check_is_allclose)
    caches = Caches(quant)
    kernelkit.gen_non_contiguous_randn_tensor = caches.draw  # of sparse decoding alone
    quant.quantize_k_cache, quant.dequantize_k_cache = caches.quantize, caches.dequantize
    ref.ref_sparse_attn_decode = decode_in_parts(ref.ref_sparse_attn_decode)
    ref.ref_sparse_attn_fwd = prefill_in_parts(ref.ref_sparse_attn_fwd)
    signal.signal(signal.SIGTERM, end)
    sys.exit(1 if sum(Suite(name, folder, options).run() for name in options.only.split(",")) else 0)


main()
