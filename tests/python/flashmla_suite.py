#!/usr/bin/env python3
"""Runs FlashMLA's own test files, from a checkout of it, on this package: only the device is changed.

    python tests/python/flashmla_suite.py FLASHMLA_DIR [--only dense,sparse-decode,sparse-prefill,fmha] [--every N] [--limit GFLOP]

--every N takes each N-th case, --first N begins with the N-th, --limit leaves cases of more work out; counts of what passed and
of what was left out are printed, also if it is ended before (SIGTERM). Their timing of GPU kernels is left out: cases meant for
it are checked as the others where they check anything.
"""
import argparse
import contextlib
import dataclasses
import io
import os
import signal
import sys
import time
import traceback
import types

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


class Ended(BaseException):
    """SIGTERM came."""


def end(*_):
    raise Ended


class Suite:
    def __init__(self, name, folder, options):
        self.name, self.options = name, options
        self.passed, self.failed, self.left_out = 0, 0, 0
        with open(os.path.join(folder, FILES[name])) as file:
            self.source = file.read().replace("cuda:0", "cpu")

    def case(self, function):
        """Their function of one case, counted."""
        def run(*arguments):
            index = self.passed + self.failed + self.left_out
            if index < self.options.first or index % self.options.every or work(self.name, arguments) > self.options.limit:
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
                print(said.getvalue())
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
    parser.add_argument("--limit", type=float, default=1e9)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    folder = os.path.join(options.checkout, "tests")
    sys.path.insert(0, folder)
    without_a_gpu()
    signal.signal(signal.SIGTERM, end)
    sys.exit(1 if sum(Suite(name, folder, options).run() for name in options.only.split(",")) else 0)


main()
