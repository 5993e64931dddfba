"""Attention by its definition, in float64, and the formats of FlashMLA's caches: what the tests compare with."""
import itertools

import numpy

try:
    import torch
except ImportError:
    torch = None


#: A small model of the family llama: three query heads to a KV head.
HEADS_CONFIG = {"model_type": "llama", "vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
                "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10000.0}


def blocks(tokens, group, rows):
    """Ranges of tokens whose scores of a KV head's `group` heads take about 64 MiB."""
    step = max(1, (8 << 20) // max(1, group * rows))
    return ((first, min(first + step, tokens)) for first in range(0, tokens, step))


def unseen(first, last, tokens, rows):
    """[last - first, rows]: what causal queries first..last - 1 of `tokens` do not see of the rows, aligned bottom-right."""
    return numpy.arange(rows) > numpy.arange(first, last)[:, None] + rows - tokens


def attention(q, k, v, scale, causal=False):
    """q [s_q, h_q, d], k [s_k, h_kv, d], v [s_k, h_kv, d_v] -> out [s_q, h_q, d_v], lse [s_q, h_q], largest score [s_q, h_q]."""
    q, k, v = (numpy.asarray(x, numpy.float64) for x in (q, k, v))
    tokens, heads, group = len(q), q.shape[1], q.shape[1] // k.shape[1]
    out, lse, largest = numpy.zeros((tokens, heads, v.shape[2])), numpy.full((tokens, heads), numpy.inf), numpy.full((tokens, heads), -numpy.inf)
    if len(k) == 0:
        return out, lse, largest
    for at, (first, last) in itertools.product(range(k.shape[1]), blocks(tokens, group, len(k))):
        here = slice(first, last), slice(at * group, (at + 1) * group)
        scores = (q[here].reshape(-1, q.shape[2]) @ k[:, at].T * scale).reshape(last - first, group, len(k))
        if causal:
            numpy.copyto(scores, -numpy.inf, where=unseen(first, last, tokens, len(k))[:, None])
        top = largest[here] = scores.max(-1)
        sees = numpy.isfinite(top)
        weights = numpy.exp(scores - numpy.where(sees, top, 0)[..., None])
        total = numpy.where(sees, weights.sum(-1), 1)
        out[here] = (weights.reshape(-1, len(k)) @ v[:, at]).reshape(last - first, group, -1) / total[..., None]
        lse[here] = numpy.where(sees, numpy.log(total) + top, numpy.inf)
    return out, lse, largest


def gradient(q, k, v, d_out, scale, causal):
    """The gradients of q, k and v of one sequence, shapes as attention's."""
    out, lse, _ = attention(q, k, v, scale, causal)
    tokens, rows, group = len(q), len(k), q.shape[1] // k.shape[1]
    dq, dk, dv = numpy.zeros(q.shape), numpy.zeros(k.shape), numpy.zeros(v.shape)
    for head, (first, last) in itertools.product(range(q.shape[1]), blocks(tokens, 1, rows)):
        at, here = head // group, (slice(first, last), head)
        p = numpy.exp(q[here] @ k[:, at].T * scale - lse[here][:, None])
        if causal:
            p[unseen(first, last, tokens, rows)] = 0
        d_p = d_out[here] @ v[:, at].T
        d_s = p * (d_p - (out[here] * d_out[here]).sum(-1)[:, None]) * scale
        dq[here] = d_s @ k[:, at]
        dk[:, at] += d_s.T @ q[here]
        dv[:, at] += p.T @ d_out[here]
    return dq, dk, dv


def with_sinks(out, lse, sinks):
    """out [s_q, h_q, d_v] times exp(lse) / (exp(lse) + exp(sinks[h])); rows that saw nothing are 0 anyway."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        factor = numpy.where(numpy.isposinf(sinks), 0, 1 / (1 + numpy.exp(sinks - lse)))
    return out * numpy.where(numpy.isnan(factor), 0, factor)[..., None]


def to_bf16(x):
    """float32 rounded to bf16 values, ties to even (finite numbers)."""
    bits = numpy.ascontiguousarray(x, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & numpy.uint32(0xFFFF0000)).view(numpy.float32)


def bf16_bytes(x):
    """The two bytes of each bf16 value, as uint8 [..., 2 n]."""
    return (to_bf16(x).view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)


def _e4m3_values():
    codes = numpy.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return numpy.where(exponent == 0, mantissa / 8 * 2.0 ** -6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


E4M3 = _e4m3_values()  # of the codes 0 to 126; 127 is NaN


def to_e4m3(x):
    """The nearest codes (a tie may go either way; both decode within half a step)."""
    codes = numpy.abs(numpy.abs(x)[..., None] - E4M3).argmin(-1).astype(numpy.uint8)
    return codes | (numpy.signbit(x).astype(numpy.uint8) << 7)


def from_e4m3(codes):
    return numpy.where(codes & 0x80, -1.0, 1.0) * E4M3[codes & 0x7F]


def _power_of_two(x):
    return numpy.exp2(numpy.ceil(numpy.log2(numpy.maximum(x, 1e-4))))


def fp8_656(rows):
    """rows [n, 576] -> (bytes [n, 656], the values that they stand for)."""
    content = rows[:, :512].reshape(len(rows), 4, 128)
    scales = _power_of_two(numpy.abs(content).max(-1) / 448).astype(numpy.float32)
    codes = to_e4m3(content / scales[..., None])
    values = numpy.concatenate([(from_e4m3(codes) * scales[..., None]).reshape(len(rows), 512), to_bf16(rows[:, 512:])], 1)
    raw = numpy.concatenate([codes.reshape(len(rows), 512), scales.view(numpy.uint8), bf16_bytes(rows[:, 512:])], 1)
    return raw, values


def fp8_584(rows, page):
    """rows [n, 512], n a multiple of page -> (cache [n / page, page, 1, 584] of padded blocks, the values)."""
    n = len(rows)
    content = rows[:, :448].reshape(n, 7, 64)
    scales = _power_of_two(numpy.abs(content).max(-1) / 448)
    codes = to_e4m3(content / scales[..., None])
    values = numpy.concatenate([(from_e4m3(codes) * scales[..., None]).reshape(n, 448), to_bf16(rows[:, 448:])], 1)
    stride = -(-page * 584 // 576) * 576
    blocks = numpy.full((n // page, stride), 0xFF, numpy.uint8)
    blocks[:, :page * 576] = numpy.concatenate([codes.reshape(n, 448), bf16_bytes(rows[:, 448:])], 1).reshape(-1, page * 576)
    exponents = numpy.full((n, 8), 0xFF, numpy.uint8)
    exponents[:, :7] = numpy.log2(scales) + 127
    blocks[:, page * 576:page * 584] = exponents.reshape(-1, page * 8)
    cache = numpy.lib.stride_tricks.as_strided(blocks, (n // page, page, 1, 584), (stride, 584, 584, 1))
    return cache, values


def close(found, expected, absolute, relative, cosine=None):
    """FlashMLA's test of closeness: each element within one of the tolerances, infinities equal, and the cosine distance."""
    found, expected = numpy.asarray(found, numpy.float64), numpy.asarray(expected, numpy.float64)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    for odd in (numpy.isposinf, numpy.isneginf, numpy.isnan):
        assert (odd(found) == odd(expected)).all(), f"{odd.__name__} in other places"
    found, expected = (numpy.where(numpy.isfinite(x), x, 0) for x in (found, expected))
    error = numpy.abs(found - expected)
    bad = (error >= absolute) & (error >= relative * (numpy.abs(expected) + 1e-6))
    assert not bad.any(), f"{bad.sum()} of {bad.size} elements differ, by up to {error[bad].max()}"
    size = (found ** 2 + expected ** 2).sum()
    if cosine is not None and size > 1e-12:
        assert abs(1 - 2 * (found * expected).sum() / size) <= cosine


def close_decode(out, lse, expected_out, expected_lse):
    """The tolerances of FlashMLA's decoding tests."""
    close(out, expected_out, 8e-4, 2.01 / 128, 5e-6)
    close(lse, expected_lse, 1e-6, 8.01 / 65536)


def numbers(x):
    """A tensor of any kind as float64."""
    return x.detach().double().numpy() if torch is not None and isinstance(x, torch.Tensor) else numpy.asarray(x, numpy.float64)


def strided(x):
    """The same numbers in memory with gaps behind the rows (numpy or torch)."""
    wide = (torch.full if torch is not None and isinstance(x, torch.Tensor) else numpy.full)
    room = wide((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1]), 0, dtype=x.dtype)
    room[..., :-1, :] = x
    return room[..., :-1, :]
