#!/usr/bin/env python3
"""Calls of mla.flash_mla beside the ceilings of the CPU, which `mla bench peak` measures in the same run.

    python bench/python/flash_mla.py [--mla build/mla] [--rounds 5] [--json]     torch and the package mla are needed

Overhead: a whole call over one cached row of one head, from torch and from numpy. Rates: 2 FLOPs for each multiply-add of scores
and values (of all five products for a gradient), as FlashMLA's tests count them; medians. Attention of whole sequences is measured
beside torch's scaled_dot_product_attention of the same tensors.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

import numpy
import torch

from mla import flash_mla

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
WIDTH, VALUES = 576, 512


def seconds(call, rounds, repeats=1):
    """The median of at least `rounds` rounds and half a second: after a pause, a machine's first calls of a millisecond say little."""
    call()
    times, end = [], time.perf_counter() + 0.5
    while len(times) < rounds or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        times.append((time.perf_counter() - begin) / repeats)
    return statistics.median(times)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16) / 10


def dense(heads, rows, batch):
    """A call of flash_mla_with_kvcache over shuffled pages of 64, and its FLOPs."""
    pages = -(-rows // 64)
    q, cache = randn(batch, 1, heads, WIDTH), randn(batch * pages, 64, 1, WIDTH)
    table = torch.randperm(batch * pages).int().view(batch, pages)
    lengths, metadata = torch.full((batch,), rows, dtype=torch.int32), flash_mla.get_mla_metadata()[0]
    return (lambda: flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, VALUES, metadata),
            2 * batch * heads * rows * (WIDTH + VALUES))


def indices_of(tokens, rows, topk):
    return torch.stack([torch.randperm(rows)[:topk] for _ in range(tokens)]).int()


def sparse_prefill(heads, rows, topk, tokens):
    q, kv, indices = randn(tokens, heads, WIDTH), randn(rows, 1, WIDTH), indices_of(tokens, rows, topk)[:, None]
    return lambda: flash_mla.flash_mla_sparse_fwd(q, kv, indices, 0.1), 2 * tokens * heads * topk * (WIDTH + VALUES)


def sparse_decode(heads, rows, topk, tokens):
    q, indices = randn(tokens // 2, 2, heads, WIDTH), indices_of(tokens, rows, topk).view(-1, 2, topk)
    cache = torch.randint(0, 120, (rows // 64, 64, 1, 656), dtype=torch.uint8)
    cache[..., 512:528] = torch.full((rows // 64, 64, 1, 4), 2.0 ** -8).view(torch.uint8)
    metadata = flash_mla.get_mla_metadata()[0]
    return (lambda: flash_mla.flash_mla_with_kvcache(q, cache, None, None, VALUES, metadata, is_fp8_kvcache=True, indices=indices),
            2 * tokens * heads * topk * (WIDTH + VALUES))


def varlen(heads, tokens, causal):
    """Calls of flash_attn_varlen_func and of its gradient, those of torch's attention, and the FLOPs of each."""
    d, d_v = 192, 128
    tensors = [randn(tokens, heads, width).requires_grad_() for width in (d, d, d_v)]
    theirs = [x.detach().transpose(0, 1)[None].contiguous().requires_grad_() for x in tensors]
    ends = torch.tensor([0, tokens], dtype=torch.int32)
    ours_of = lambda: flash_mla.flash_attn_varlen_func(*tensors, ends, ends, tokens, tokens, causal=causal)[0]
    theirs_of = lambda: torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
    out, their_out, d_out = ours_of(), theirs_of(), randn(tokens, heads, d_v)
    seen = heads * tokens * (tokens + 1) // 2 if causal else heads * tokens * tokens
    return {"forward": (torch.no_grad()(ours_of), torch.no_grad()(theirs_of), 2 * seen * (d + d_v)),
            "backward": (lambda: out.backward(d_out, retain_graph=True),
                         lambda: their_out.backward(d_out.transpose(0, 1)[None], retain_graph=True), 2 * seen * (3 * d + 2 * d_v))}


def ceiling(program):
    """GFLOP/s of bf16 products, or of f32 where the CPU has none, on all threads."""
    said = subprocess.run([program, "bench", "peak", "--json"], stdout=subprocess.PIPE, check=True).stdout
    peaks = [e for e in json.loads(said) if e["gflops"] and not e["name"].startswith("peak int8")]
    bf16 = [e for e in peaks if e["name"].startswith("peak bf16")]
    return max(e["gflops"] for e in bf16 or peaks)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mla", default=os.path.join(ROOT, "build", "mla"))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", action="store_true")
    options = options.parse_args()
    torch.manual_seed(1)
    entries = []
    one, _ = dense(1, 1, 1)
    entries.append({"name": "call over one row, torch", "microseconds": 1e6 * seconds(one, options.rounds, 2000)})
    q, cache = numpy.zeros((1, 1, 1, WIDTH), numpy.float32), numpy.zeros((1, 64, 1, WIDTH), numpy.float32)
    table, length, metadata = numpy.zeros((1, 1), numpy.int32), numpy.ones(1, numpy.int32), flash_mla.get_mla_metadata()[0]
    call = lambda: flash_mla.flash_mla_with_kvcache(q, cache, table, length, VALUES, metadata)
    entries.append({"name": "call over one row, numpy", "microseconds": 1e6 * seconds(call, options.rounds, 2000)})
    cases = {"dense decoding, 128 heads, 2 x 4096": dense(128, 4096, 2), "dense decoding, 16 heads, 2 x 4096": dense(16, 4096, 2),
             "sparse decoding fp8, 128 heads, 64 x 2048": sparse_decode(128, 32768, 2048, 64),
             "sparse prefill, 128 heads, 64 x 2048": sparse_prefill(128, 32768, 2048, 64)}
    for name, (call, operations) in cases.items():
        peak = ceiling(options.mla)
        gflops = operations / seconds(call, options.rounds) / 1e9
        entries.append({"name": name, "gflops": gflops, "ceiling": peak, "share": gflops / peak})
    for causal in (False, True):
        for part, (ours, theirs, operations) in varlen(16, 2048, causal).items():
            peak = ceiling(options.mla)
            gflops, torchs = (operations / seconds(call, options.rounds) / 1e9 for call in (ours, theirs))
            entries.append({"name": f"sequence of 2048, 16 heads, {'causal, ' * causal}{part}", "gflops": gflops, "ceiling": peak,
                            "share": gflops / peak, "torch": torchs})
    if options.json:
        return print(json.dumps(entries, indent=2))
    for e in entries:
        print(f"{e['name']:<46}" + (f"{e['microseconds']:>8.1f} us" if "microseconds" in e else
                                    f"{e['gflops']:>8.0f} of {e['ceiling']:.0f} GFLOP/s, {100 * e['share']:.0f}%" +
                                    (f"; torch {e['torch']:.0f}" if "torch" in e else "")))


main()
