"""Attention by its definition, in float64, and the formats of FlashMLA's caches: what the tests compare with."""
import numpy

try:
    import torch
except ImportError:
    torch = None


def attention(q, k, v, scale, causal=False):
    """q [s_q, h_q, d], k [s_k, h_kv, d], v [s_k, h_kv, d_v] -> out [s_q, h_q, d_v], lse [s_q, h_q], largest score [s_q, h_q]."""
    q, k, v = (numpy.asarray(x, numpy.float64) for x in (q, k, v))
    tokens, heads, group = len(q), q.shape[1], q.shape[1] // k.shape[1]
    out, lse, largest = numpy.zeros((tokens, heads, v.shape[2])), numpy.full((tokens, heads), numpy.inf), numpy.full((tokens, heads), -numpy.inf)
    if len(k) == 0:
        return out, lse, largest
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * scale
        if causal:
            scores[numpy.arange(len(k)) > numpy.arange(tokens)[:, None] + len(k) - tokens] = -numpy.inf
        top = largest[:, head] = scores.max(-1)
        sees = numpy.isfinite(top)
        weights = numpy.exp(scores[sees] - top[sees, None])
        total = weights.sum(-1)
        out[sees, head] = weights @ v[:, head // group] / total[:, None]
        lse[sees, head] = numpy.log(total) + top[sees]
    return out, lse, largest


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
