"""FlashMLA's interface (https://github.com/deepseek-ai/FlashMLA) on CPUs: the same names, arguments and meanings.

Tensors are torch's, numpy's or any that speak DLPack, on the CPU, in f32, bf16 or f16; results are of q's type and library (numpy's
where q does not tell its own by __array_namespace__). torch is not required. Inputs are not copied where the kernels can read
them as they lie. In all functions:

- a query that sees no row gives output 0 and lse +inf; lse is the natural logarithm, in f32;
- slots of a cache that no sequence uses may hold anything, NaN too;
- wrong types raise TypeError, wrong shapes and values ValueError, each naming the argument;
- the same query over the same rows gives the same bits at any number of threads and in any batch; where the CPU multiplies bf16
  pairs, a NaN in a row that only later tokens of its own call see may show in it.
"""
import dataclasses
import functools
import sys
from typing import Any, NamedTuple, Optional, Tuple

import numpy

from mla import _core
from mla._arguments import scale as scale_given
from mla._arguments import whole
from mla._arrays import columns, empty, given, given_or_none, handed_back, int32s, is_torch, last_of, read_once, shape_of

__all__ = ["FlashMLASchedMeta", "get_mla_metadata", "flash_mla_with_kvcache", "flash_mla_sparse_fwd",
           "flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func"]


@dataclasses.dataclass
class FlashMLASchedMeta:
    """What FlashMLA plans once for calls of the same shapes. Here nothing needs planning: it only checks that they are."""

    class Config(NamedTuple):
        b: int
        s_q: int
        h_q: int
        page_block_size: int
        h_k: int
        causal: bool
        is_fp8_kvcache: bool
        topk: Optional[int]
        extra_page_block_size: Optional[int]
        extra_topk: Optional[int]

    have_initialized: bool = False
    config: Optional[Config] = None  #: of the first call that was right
    tile_scheduler_metadata: None = None
    num_splits: None = None

    def check(self, found: Tuple[Any, ...]) -> None:
        """Raises ValueError if an earlier call's shapes, in Config's order, differ."""
        if self.config is not None and self.config != found:
            name, value, first = next(x for x in zip(self.config._fields, found, self.config) if x[1] != x[2])
            raise ValueError(f"tile_scheduler_metadata: found {name} {value}, its first call had {first}")

    def keep(self, shapes: Tuple[Any, ...]) -> None:
        """Keeps a call's shapes, unless there was one before."""
        if self.config is None:
            self.config, self.have_initialized = self.Config(*shapes), True


def get_mla_metadata(*args: Any, **kwargs: Any) -> Tuple[FlashMLASchedMeta, None]:
    """(metadata for calls of flash_mla_with_kvcache of the same shapes, None). Takes no arguments; older ones are ignored."""
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q: Any, k_cache: Any, block_table: Optional[Any], cache_seqlens: Optional[Any], head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta, num_splits: None = None, softmax_scale: Optional[float] = None,
    causal: bool = False, is_fp8_kvcache: bool = False, indices: Optional[Any] = None, attn_sink: Optional[Any] = None,
    extra_k_cache: Optional[Any] = None, extra_indices_in_kvcache: Optional[Any] = None,
    topk_length: Optional[Any] = None, extra_topk_length: Optional[Any] = None,
) -> Tuple[Any, Any]:
    """Attention of q [b, s_q, h_q, d] over a paged cache. Returns (out [b, s_q, h_q, head_dim_v], lse [b, h_q, s_q] f32).

    Dense: k_cache [blocks, page, h_kv, d] of f32, bf16 or f16, any page size; block_table [b, n] and cache_seqlens [b],
    int32. A row's first head_dim_v values are its value. causal is aligned to the bottom right.

    is_fp8_kvcache: k_cache [blocks, page, 1, 656] of bytes (512 e4m3, 4 f32 scales, 64 bf16; d = 576) or [.., 584] (448
    e4m3 and 64 bf16 a row; scales at a block's end; d = 512). Without indices it goes by block_table and cache_seqlens.

    Sparse (fp8 only, not causal): indices [b, s_q, topk], int32, block * page + offset each; those that are no row of the
    cache are passed over; of each sequence only the first topk_length [b] count. extra_k_cache and
    extra_indices_in_kvcache add rows of a second cache. attn_sink [h_q] scales outputs by exp(lse) / (exp(lse) +
    exp(sink)) and leaves lse.

    softmax_scale: d^-0.5 unless given. Raises TypeError and ValueError naming the argument.
    """
    if not isinstance(tile_scheduler_metadata, FlashMLASchedMeta):
        raise TypeError("tile_scheduler_metadata: expected what get_mla_metadata returns, found "
                        f"{type(tile_scheduler_metadata).__name__}")
    if num_splits is not None:
        raise ValueError("num_splits: expected None")
    q_, cache = given("q", q), given("k_cache", k_cache)
    q = read_once(q, q_)
    batch, tokens, heads, d = _queries("q", q_, 4)
    blocks, page, kv_heads, _ = shape_of("k_cache", cache, 4)
    named, extra_named = given_or_none("indices", indices), given_or_none("extra_indices_in_kvcache", extra_indices_in_kvcache)
    extra = given_or_none("extra_k_cache", extra_k_cache)
    shapes = (batch, tokens, heads, page, kv_heads, bool(causal), bool(is_fp8_kvcache), last_of(named),
              shape_of("extra_k_cache", extra, 4)[1] if extra is not None else None, last_of(extra_named))
    tile_scheduler_metadata.check(shapes)
    scale = d ** -0.5 if softmax_scale is None else scale_given("softmax_scale", softmax_scale)
    d_v = whole("head_dim_v", head_dim_v, 1, d)
    out, lse = empty(q, (batch, tokens, heads, d_v)), empty(q, (batch, heads, tokens), is_f32=True)
    if indices is None:
        _reject("without indices", attn_sink=attn_sink, extra_k_cache=extra_k_cache, topk_length=topk_length,
                extra_indices_in_kvcache=extra_indices_in_kvcache, extra_topk_length=extra_topk_length)
        if is_fp8_kvcache:
            named = _indices_of(block_table, cache_seqlens, batch, page, blocks, tokens, bool(causal))
    elif causal:
        raise ValueError("causal: expected False with indices")
    elif not is_fp8_kvcache:
        raise ValueError("is_fp8_kvcache: expected True with indices")
    elif extra_k_cache is None:
        _reject("without extra_k_cache", extra_indices_in_kvcache=extra_indices_in_kvcache, extra_topk_length=extra_topk_length)
    if named is None:
        _core.dense_decode(q_, cache, given("block_table", block_table), given("cache_seqlens", cache_seqlens), given("out", out),
                           given("lse", lse), scale, bool(causal))
    else:
        _core.sparse_decode(q_, cache, named, given_or_none("topk_length", topk_length), given_or_none("attn_sink", attn_sink), extra,
                            extra_named, given_or_none("extra_topk_length", extra_topk_length), given("out", out), given("lse", lse),
                            scale)
    tile_scheduler_metadata.keep(shapes)
    return handed_back(q, out, lse)


def flash_mla_sparse_fwd(q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512, attn_sink: Optional[Any] = None,
                         topk_length: Optional[Any] = None) -> Tuple[Any, Any, Any]:
    """Attention of q [s_q, h_q, d] over rows of kv [s_kv, 1, d] that indices [s_q, 1, topk] (int32) name.

    Returns (out [s_q, h_q, d_v], max_logits [s_q, h_q] f32, lse [s_q, h_q] f32): max_logits is the largest scaled score,
    -inf where there is none. Indices outside [0, s_kv) are passed over; of query i only the first topk_length[i] count.
    attn_sink [h_q] as in flash_mla_with_kvcache. Raises TypeError and ValueError naming the argument.
    """
    q_, kv_ = given("q", q), given("kv", kv)
    q = read_once(q, q_)
    tokens, heads, d = _queries("q", q_, 3)
    scale = scale_given("sm_scale", sm_scale)
    out = empty(q, (tokens, heads, whole("d_v", d_v, 1, d)))
    max_logits, lse = empty(q, (tokens, heads), is_f32=True), empty(q, (tokens, heads), is_f32=True)
    _core.sparse_prefill(q_, kv_, given("indices", indices), given_or_none("topk_length", topk_length),
                         given_or_none("attn_sink", attn_sink), given("out", out), given("max_logits", max_logits), given("lse", lse),
                         scale)
    return handed_back(q, out, max_logits, lse)


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_qo: Any, cu_seqlens_kv: Any, max_seqlen_qo: int, max_seqlen_kv: int,
    dropout_p: float = 0.0, softmax_scale: Optional[float] = None, causal: bool = False, deterministic: bool = False,
    is_varlen: bool = True,
) -> Tuple[Any, Any]:
    """Attention of several sequences, packed one after another. Returns (out [tokens, h_q, d_v], lse [tokens, h_q] f32).

    q [tokens, h_q, d_qk], k [rows, h_kv, d_qk], v [rows, h_kv, d_v], h_q a multiple of h_kv; sequence i has the tokens
    [cu_seqlens_qo[i], cu_seqlens_qo[i + 1]) and the rows that cu_seqlens_kv (int32 too) says; tokens behind the last sequence see no
    row. causal is aligned to the bottom right. With torch tensors that require gradients out has one, GQA included, by q, k and v;
    lse has none. max_seqlen_qo, max_seqlen_kv and is_varlen are taken and not needed; results are always deterministic.
    softmax_scale: d_qk^-0.5 unless given. dropout_p must be 0. Raises TypeError and ValueError naming the argument.
    """
    if dropout_p != 0.0:
        raise ValueError(f"dropout_p: found {dropout_p!r}, expected 0")
    q_ = given("q", q)
    d = _queries("q", q_, 3)[2]
    scale = d ** -0.5 if softmax_scale is None else scale_given("softmax_scale", softmax_scale)
    for name, array in (("k", k), ("v", v)):
        if is_torch(array) != is_torch(q):
            raise TypeError(f"{name}: found {type(array).__name__}, expected {type(q).__name__}, as q is")
    if is_torch(q):
        offsets = _torch_tensor("cu_seqlens_qo", cu_seqlens_qo), _torch_tensor("cu_seqlens_kv", cu_seqlens_kv)
        return _differentiable().apply(q, k, v, *offsets, scale, bool(causal))
    q = read_once(q, q_)
    return handed_back(q, *_varlen_forward(q, k, v, cu_seqlens_qo, cu_seqlens_kv, scale, bool(causal)))


def flash_attn_varlen_kvpacked_func(
    q: Any, kv: Any, cu_seqlens_qo: Any, cu_seqlens_kv: Any, max_seqlen_qo: int, max_seqlen_kv: int, head_dim_qk: int,
    dropout_p: float = 0.0, softmax_scale: Optional[float] = None, causal: bool = False, deterministic: bool = False,
    is_varlen: bool = True,
) -> Tuple[Any, Any]:
    """flash_attn_varlen_func of kv [rows, h_kv, head_dim_qk + d_v]: keys, then values."""
    kv_ = given("kv", kv)
    kv, width = read_once(kv, kv_), shape_of("kv", kv_, 3)[2]
    d = whole("head_dim_qk", head_dim_qk, 1, width - 1)
    return flash_attn_varlen_func(q, columns(kv, 0, d), columns(kv, d, width), cu_seqlens_qo, cu_seqlens_kv,
                                  max_seqlen_qo, max_seqlen_kv, dropout_p, softmax_scale, causal, deterministic, is_varlen)


def flash_attn_varlen_qkvpacked_func(
    qkv: Any, cu_seqlens: Any, max_seqlen: int, head_dim_qk: int, dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None, causal: bool = False, deterministic: bool = False, is_varlen: bool = True,
) -> Tuple[Any, Any]:
    """flash_attn_varlen_func of qkv [tokens, h, 2 head_dim_qk + d_v]: queries, keys, then values."""
    qkv_ = given("qkv", qkv)
    qkv, width = read_once(qkv, qkv_), shape_of("qkv", qkv_, 3)[2]
    d = whole("head_dim_qk", head_dim_qk, 1, (width - 1) // 2)
    return flash_attn_varlen_func(columns(qkv, 0, d), columns(qkv, d, 2 * d), columns(qkv, 2 * d, width),
                                  cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, deterministic,
                                  is_varlen)


# ---------------------------------------------------------------- what the above is made of

def _queries(name: str, given_: Any, dims: int) -> Tuple[int, ...]:
    """The shape of queries [..., heads, d]. Raises ValueError where there are no heads or no values."""
    shape = shape_of(name, given_, dims)
    if shape[-1] < 1 or shape[-2] < 1:
        raise ValueError(f"{name}: found {shape[-2]} heads of {shape[-1]} values, expected at least one of each")
    return shape


def _reject(when: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: expected None {when}")


def _indices_of(block_table: Any, cache_seqlens: Any, batch: int, page: int, blocks: int, tokens: int, causal: bool) -> numpy.ndarray:
    """indices [b, tokens, longest] of the rows that each token of a dense call sees."""
    table, lengths = int32s("block_table", block_table), int32s("cache_seqlens", cache_seqlens)
    if table.ndim != 2 or len(table) != batch:
        raise ValueError(f"block_table: found the shape {table.shape}, expected [{batch}, n], as q has {batch} sequences")
    if lengths.shape != (batch,):
        raise ValueError(f"cache_seqlens: found the shape {lengths.shape}, expected [{batch}], as q has {batch} sequences")
    room = table.shape[1] * page
    for i in numpy.flatnonzero((lengths < 0) | (lengths > room))[:1]:
        raise ValueError(f"cache_seqlens[{i}]: found {lengths[i]}, expected 0 to {room}, which block_table has room for")
    longest = int(lengths.max(initial=0))
    at = numpy.arange(longest)
    block = table[:, at // page].astype(numpy.int64)
    used = at < lengths[:, None]
    for i, row in numpy.argwhere(used & ((block < 0) | (block >= blocks)))[:1]:
        raise ValueError(f"block_table[{i}, {row // page}]: found block {block[i, row]}, k_cache has {blocks}")
    rows = numpy.where(used, block * page + at % page, -1)
    behind = numpy.arange(tokens - 1, -1, -1) if causal else numpy.zeros(tokens, numpy.int64)
    seen = at < (lengths[:, None] - behind)[:, :, None]
    return numpy.where(seen, rows[:, None, :], -1).astype(numpy.int32)


def _torch_tensor(name: str, offsets: Any) -> Any:
    torch: Any = sys.modules["torch"]
    return offsets if is_torch(offsets) else torch.tensor(int32s(name, offsets), device="cpu")


def _varlen_forward(q: Any, k: Any, v: Any, cu_q: Any, cu_kv: Any, scale: float, causal: bool) -> Tuple[Any, Any]:
    q_, v_ = given("q", q), given("v", v)
    tokens, heads, _ = shape_of("q", q_, 3)
    out, lse = empty(q, (tokens, heads, _queries("v", v_, 3)[2])), empty(q, (tokens, heads), is_f32=True, turned=True)
    _core.varlen_forward(q_, given("k", k), v_, given("cu_seqlens_qo", cu_q), given("cu_seqlens_kv", cu_kv), given("out", out),
                         given("lse", lse), scale, causal)
    return out, lse


@functools.lru_cache(maxsize=None)
def _differentiable() -> Any:
    """The torch function of flash_attn_varlen_func, made when torch is there for sure."""
    torch: Any = sys.modules["torch"]

    class FlashAttnVarlen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, cu_q, cu_kv, scale, causal):
            out, lse = _varlen_forward(q, k, v, cu_q, cu_kv, scale, causal)
            ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_kv)
            ctx.scale, ctx.causal = scale, causal
            ctx.mark_non_differentiable(lse)
            return out, lse

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, d_out, _):
            saved = ctx.saved_tensors  # once: torch.utils.checkpoint computes them again each time
            inputs = (given(*named) for named in zip(("q", "k", "v", "out", "lse", "cu_seqlens_qo", "cu_seqlens_kv"), saved))
            dq, dk, dv = (empty(t, t.shape) for t in saved[:3])
            _core.varlen_backward(given("do", d_out), *inputs, given("dq", dq), given("dk", dk), given("dv", dv), ctx.scale, ctx.causal)
            return dq, dk, dv, None, None, None, None

    return FlashAttnVarlen
