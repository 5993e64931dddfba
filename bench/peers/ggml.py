#!/usr/bin/env python3
"""ggml's flash attention beside ours, in turns, on the same threads. bench/peers/run ggml --library DIR sets it up.

DIR holds the libggml*.so of a build of ik_llama.cpp or llama.cpp, such as
  cmake -S ik_llama.cpp -B build -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_TYPE=Release && cmake --build build --target ggml
decode: absorbed MLA (keys of 576, values their first 512, one query token) over f16, bf16 and q8_0 rows; q8_0 stands
beside our bf16 rows. prefill: explicit, causal. gqa: 32 query heads over 8. Each result is first checked against
numpy.
"""
import ctypes
import glob
import os
import sys

import numpy as np

from common import Comparison, parser

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
TYPES = {"f16": F16, "bf16": BF16, "q8_0": Q8_0}
MASK_PAD = 64  # enough for every version
SLACK = 256 << 20  # for work buffers, which each call takes from the context


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def load(directory):
    """All functions of the libraries in `directory`: base first, since the others need it."""
    paths = sorted(glob.glob(os.path.join(directory, "libggml*.so")), key=lambda p: ("base" not in p, "cpu" not in p))
    if not paths:
        sys.exit(f"ggml: {directory}: found no libggml*.so")
    libraries = [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in paths]
    pointer, i64, size, f32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_float
    signatures = {
        "ggml_init": (pointer, [InitParams]), "ggml_free": (None, [pointer]), "ggml_used_mem": (size, [pointer]),
        "ggml_new_tensor_4d": (pointer, [pointer, ctypes.c_int, i64, i64, i64, i64]),
        "ggml_view_4d": (pointer, [pointer, pointer, i64, i64, i64, i64, size, size, size, size]),
        "ggml_row_size": (size, [ctypes.c_int, i64]), "ggml_get_data": (pointer, [pointer]),
        "ggml_flash_attn_ext": (pointer, [pointer] * 5 + [f32] * 3),
        "ggml_new_graph": (pointer, [pointer]), "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
        "ggml_quantize_chunk": (size, [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]),
        "ggml_fp32_to_bf16_row": (None, [pointer, pointer, i64]), "ggml_fp32_to_fp16_row": (None, [pointer, pointer, i64]),
    }

    class Functions:
        pass
    for name, (result, arguments) in signatures.items():
        function = next((getattr(lib, name) for lib in libraries if hasattr(lib, name)), None)
        if function is None:
            sys.exit(f"ggml: {directory}: no library has {name}")
        function.restype, function.argtypes = result, arguments
        setattr(Functions, name, staticmethod(function))
    return Functions


class Attention:
    """One graph: flash attention of q [heads, tokens, d_qk] over k [kv_heads, rows, d_qk] and v, causal."""

    def __init__(self, ggml, threads, row_type, heads, kv_heads, tokens, rows, d_qk, d_v, shared_values):
        self.ggml, self.threads, self.context = ggml, threads, None
        self.random = np.random.default_rng(1)
        self.sizes = (row_type, heads, kv_heads, tokens, rows, d_qk, d_v, shared_values)
        self.build()

    def build(self):
        row_type, heads, kv_heads, tokens, rows, d_qk, d_v, shared_values = self.sizes
        ggml = self.ggml
        if self.context:
            ggml.ggml_free(self.context)
        padded = -(-tokens // MASK_PAD) * MASK_PAD
        bytes_needed = (4 * heads * tokens * (d_qk + d_v) + 4 * kv_heads * rows * (d_qk + d_v) + 2 * padded * rows)
        self.limit = bytes_needed + SLACK
        self.context = ggml.ggml_init(InitParams(self.limit + (16 << 20), None, False))
        self.q = self.random.standard_normal((heads, tokens, d_qk), dtype=np.float32)
        self.k = self.random.standard_normal((kv_heads, rows, d_qk), dtype=np.float32)
        q = self.tensor(F32, self.q)
        k = self.tensor(row_type, self.k)
        if shared_values:
            row = ggml.ggml_row_size(row_type, d_qk)
            v = ggml.ggml_view_4d(self.context, k, d_v, rows, kv_heads, 1, row, row * rows, row * rows * kv_heads, 0)
            self.v = self.k[..., :d_v]
        else:
            self.v = self.random.standard_normal((kv_heads, rows, d_v), dtype=np.float32)
            v = self.tensor(row_type, self.v)
        self.seen = np.arange(rows)[None, :] <= np.arange(tokens)[:, None] + (rows - tokens)
        hidden = np.full((padded, rows), -np.inf, np.float32)
        hidden[:tokens][self.seen] = 0
        mask = self.tensor(F16, hidden)
        self.out = ggml.ggml_flash_attn_ext(self.context, q, k, v, mask, d_qk ** -0.5, 0.0, 0.0)
        self.graph = ggml.ggml_new_graph(self.context)
        ggml.ggml_build_forward_expand(self.graph, self.out)

    def tensor(self, kind, values):
        """A tensor of these values: its first dimension is their last."""
        values = np.ascontiguousarray(values)
        shape = list(values.shape[::-1]) + [1] * (4 - values.ndim)
        tensor = self.ggml.ggml_new_tensor_4d(self.context, kind, *shape)
        data, source = self.ggml.ggml_get_data(tensor), values.ctypes.data
        if kind == F32:
            ctypes.memmove(data, source, values.nbytes)
        elif kind == BF16:
            self.ggml.ggml_fp32_to_bf16_row(source, data, values.size)
        elif kind == F16:
            self.ggml.ggml_fp32_to_fp16_row(source, data, values.size)
        else:
            self.ggml.ggml_quantize_chunk(kind, source, data, 0, values.size // shape[0], shape[0], None)
        return tensor

    def __call__(self):
        if self.ggml.ggml_used_mem(self.context) > self.limit - (SLACK >> 2):
            self.build()  # the context is full of work buffers
        if self.ggml.ggml_graph_compute_with_ctx(self.context, self.graph, self.threads) != 0:
            sys.exit("ggml: the graph failed")

    def check(self):
        """Holds one head's result of the last token against numpy; ends the program if they differ."""
        self()
        heads, tokens, _ = self.q.shape
        d_v = self.v.shape[-1]
        data = ctypes.cast(self.ggml.ggml_get_data(self.out), ctypes.POINTER(ctypes.c_float))
        found = np.ctypeslib.as_array(data, (tokens, heads, d_v))[tokens - 1, 0].astype(np.float64)
        scores = self.k[0].astype(np.float64) @ self.q[0, -1] * self.q.shape[-1] ** -0.5
        weights = np.exp(scores - scores.max()) * self.seen[-1]
        expected = weights @ self.v[0] / weights.sum()
        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        if not cosine > 0.999:
            sys.exit(f"ggml: cosine of its result to numpy's: {cosine}, expected above 0.999")
        return self


def peers(ggml, options, *sizes):
    return {f"ggml {name}": Attention(ggml, options.threads, kind, *sizes).check() for name, kind in TYPES.items()}


def decode(compare, ggml):
    for heads in (128, 20, 16):
        for rows in (4096, 32768):
            compare.run(["attention", "--rows", "bf16", "--heads", heads, "--kv", rows],
                        peers(ggml, compare.options, heads, 1, 1, rows, 576, 512, True))


def prefill(compare, ggml):
    for new, cached in ((512, 0), (2048, 0), (256, 8192)):
        rows = new + cached
        compare.run(["attention", "--op", "prefill", "--variant", "gqa", "--heads", 16, "--kv-heads", 16, "--d-qk", 192,
                     "--d-v", 128, "--queries", new, "--kv", rows],
                    peers(ggml, compare.options, 16, 16, new, rows, 192, 128, False))


def gqa(compare, ggml):
    for rows in (4096, 32768):
        compare.run(["attention", "--rows", "bf16", "--variant", "gqa", "--heads", 32, "--kv-heads", 8, "--kv", rows],
                    peers(ggml, compare.options, 32, 8, 1, rows, 128, 128, False))


def main():
    options = parser(__doc__)
    options.add_argument("--library", required=True, metavar="DIR", help="where the libggml*.so are")
    options = options.parse_args()
    ggml = load(options.library)
    ggml.ggml_free(ggml.ggml_init(InitParams(1 << 20, None, False)))  # fills the tables that conversions use
    compare = Comparison(options)
    for section in (decode, prefill, gqa):
        if compare.wants(section.__name__):
            section(compare, ggml)
    compare.finish()


main()
