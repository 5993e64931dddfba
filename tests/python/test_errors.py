"""What is wrong is said by name: TypeError for types, ValueError for shapes and values."""
import re

import numpy
import pytest

from mla import flash_mla
from reference import torch

Q = numpy.zeros((2, 1, 4, 576), numpy.float32)
CACHE = numpy.zeros((3, 64, 1, 576), numpy.float32)
TABLE = numpy.zeros((2, 2), numpy.int32)
LENGTHS = numpy.array([1, 100], numpy.int32)
FP8 = numpy.zeros((3, 64, 1, 656), numpy.uint8)
INDICES = numpy.zeros((2, 1, 8), numpy.int32)


def decode(q=Q, cache=CACHE, table=TABLE, lengths=LENGTHS, d_v=512, metadata=None, splits=None, **options):
    return flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, d_v, metadata or flash_mla.get_mla_metadata()[0], splits, **options)


def sparse(cache=FP8, indices=INDICES, **options):
    return decode(cache=cache, table=None, lengths=None, indices=indices, is_fp8_kvcache=True, **options)


DECODE = [
    (TypeError, "q:", dict(q=[1.0])), (TypeError, "q:", dict(q=Q.astype(float))), (TypeError, "q:", dict(q=Q.astype(numpy.int32))),
    (ValueError, "q:", dict(q=Q[0])), (TypeError, "k_cache:", dict(cache=None)), (ValueError, "k_cache:", dict(cache=CACHE[0])),
    (ValueError, "k_cache:", dict(cache=CACHE[..., :500])), (ValueError, "k_cache:", dict(cache=numpy.zeros((3, 64, 1, 1152), numpy.float32)[..., ::2])),
    (ValueError, "k_cache: found rows -2304", dict(cache=CACHE[:, ::-1])),
    (ValueError, "k_cache: found rows 0", dict(cache=numpy.broadcast_to(CACHE[:, :1], CACHE.shape))),
    (ValueError, "q:", dict(cache=numpy.zeros((3, 64, 3, 576), numpy.float32))),
    (TypeError, "block_table:", dict(table=None)), (TypeError, "block_table:", dict(table=TABLE.astype(numpy.int64))),
    (ValueError, "block_table:", dict(table=TABLE[:1])), (ValueError, "block_table[1, 1]", dict(table=numpy.array([[0, 9], [0, 3]], numpy.int32))),
    (ValueError, "block_table[0, 0]", dict(table=numpy.array([[-1, 9], [0, 1]], numpy.int32))),
    (TypeError, "cache_seqlens:", dict(lengths=LENGTHS.astype(float))), (ValueError, "cache_seqlens:", dict(lengths=LENGTHS[:1])),
    (ValueError, "cache_seqlens[1]", dict(lengths=numpy.array([1, 129], numpy.int32))),
    (ValueError, "cache_seqlens[0]", dict(lengths=numpy.array([-1, 1], numpy.int32))),
    (ValueError, "head_dim_v", dict(d_v=577)), (ValueError, "head_dim_v", dict(d_v=0)), (ValueError, "head_dim_v", dict(d_v=-1)),
    (ValueError, "head_dim_v", dict(d_v=10 ** 12)), (TypeError, "head_dim_v", dict(d_v=None)), (TypeError, "head_dim_v", dict(d_v=511.9)),
    (TypeError, "head_dim_v", dict(d_v="512")), (ValueError, "q: found 0 heads", dict(q=Q[:, :, :0])),
    (ValueError, "q: found 4 heads of 0 values", dict(q=Q[..., :0])), (TypeError, "softmax_scale", dict(softmax_scale="1")),
    (TypeError, "softmax_scale", dict(softmax_scale=[1])), (ValueError, "softmax_scale", dict(softmax_scale=float("inf"))),
    (ValueError, "softmax_scale: found 1e+300", dict(softmax_scale=1e300)), (ValueError, "softmax_scale: found 1e-300", dict(softmax_scale=1e-300)),
    (TypeError, "indices:", dict(indices=[[1]])), (TypeError, "extra_indices_in_kvcache:", dict(extra_indices_in_kvcache=[1])),
    (ValueError, "is_fp8_kvcache", dict(indices=numpy.array(1, numpy.int32))),
    (ValueError, "softmax_scale", dict(softmax_scale=0.0)), (ValueError, "softmax_scale", dict(softmax_scale=float("nan"))),
    (TypeError, "tile_scheduler_metadata", dict(metadata="no")), (ValueError, "num_splits", dict(splits=1)),
    (ValueError, "attn_sink", dict(attn_sink=numpy.zeros(4, numpy.float32))), (ValueError, "topk_length", dict(topk_length=LENGTHS)),
]
SPARSE = [
    (TypeError, "k_cache:", dict(cache=CACHE)), (ValueError, "k_cache:", dict(cache=FP8[..., :600])),
    (TypeError, "indices:", dict(indices=INDICES.astype(numpy.int64))), (ValueError, "indices:", dict(indices=INDICES[0])),
    (ValueError, "indices:", dict(indices=INDICES[:1])), (ValueError, "causal", dict(causal=True)),
    (ValueError, "attn_sink:", dict(attn_sink=numpy.zeros(3, numpy.float32))),
    (ValueError, "topk_length[1]", dict(topk_length=numpy.array([1, 9], numpy.int32))),
    (ValueError, "topk_length:", dict(topk_length=numpy.array([1], numpy.int32))),
    (ValueError, "extra_k_cache", dict(extra_k_cache=FP8)), (ValueError, "extra_k_cache", dict(extra_k_cache=FP8[0])),
    (ValueError, "extra_indices_in_kvcache: expected None without extra_k_cache", dict(extra_indices_in_kvcache=INDICES)),
    (ValueError, "extra_topk_length: expected None without extra_k_cache", dict(extra_topk_length=numpy.array([-5, 99], numpy.int32))),
    (ValueError, "head_dim_v: found 600", dict(d_v=600)), (ValueError, "indices: found 0 dimensions", dict(indices=numpy.array(1, numpy.int32))),
    (ValueError, "extra_k_cache", dict(extra_k_cache=numpy.zeros((3, 64, 1, 584), numpy.uint8), extra_indices_in_kvcache=INDICES)),
]


@pytest.mark.parametrize("kind, name, wrong", DECODE, ids=str)
def test_dense_decoding(kind, name, wrong):
    decode()
    with pytest.raises(kind, match="^" + re.escape(name)):
        decode(**wrong)


@pytest.mark.parametrize("kind, name, wrong", SPARSE, ids=str)
def test_sparse_decoding(kind, name, wrong):
    sparse()
    with pytest.raises(kind, match="^" + re.escape(name)):
        sparse(**wrong)


TABLES = [
    (TypeError, "block_table:", dict(table=TABLE.astype(numpy.int64))), (TypeError, "cache_seqlens:", dict(lengths=LENGTHS.astype(float))),
    (TypeError, "block_table:", dict(table=None)), (ValueError, "block_table: found the shape (1, 2)", dict(table=TABLE[:1])),
    (ValueError, "cache_seqlens: found the shape (1,)", dict(lengths=LENGTHS[:1])),
    (ValueError, "cache_seqlens[1]: found 129, expected 0 to 128", dict(lengths=numpy.array([1, 129], numpy.int32))),
    (ValueError, "block_table[1, 1]: found block 3", dict(table=numpy.array([[0, 9], [0, 3]], numpy.int32))),
]


@pytest.mark.parametrize("kind, name, wrong", TABLES, ids=str)
def test_fp8_by_the_block_table(kind, name, wrong):
    decode(cache=FP8, is_fp8_kvcache=True)
    with pytest.raises(kind, match="^" + re.escape(name)):
        decode(cache=FP8, is_fp8_kvcache=True, **wrong)


def test_indices_need_fp8():
    with pytest.raises(ValueError, match="^is_fp8_kvcache"):
        decode(indices=INDICES)


def test_metadata_is_for_one_shape():
    metadata = flash_mla.get_mla_metadata("old", arguments=1)[0]
    decode(metadata=metadata)
    decode(metadata=metadata)
    with pytest.raises(ValueError, match="^tile_scheduler_metadata: found h_q 2"):
        decode(q=Q[:, :, :2], metadata=metadata)
    assert metadata.have_initialized and metadata.config.h_q == 4 and metadata.config.topk is None
    metadata = flash_mla.get_mla_metadata()[0]
    extra = dict(metadata=metadata, extra_indices_in_kvcache=INDICES)
    with pytest.raises(ValueError, match="^extra_k_cache: found rows of 576"):
        sparse(extra_k_cache=FP8[..., :576], **extra)
    sparse(extra_k_cache=FP8, **extra)  # what failed has left nothing
    with pytest.raises(ValueError, match="^tile_scheduler_metadata: found extra_page_block_size 32"):
        sparse(extra_k_cache=FP8[:, :32], **extra)


@pytest.mark.parametrize("name, wrong", [
    ("q", dict(q=Q[0, 0])), ("kv", dict(kv=Q[0, 0])), ("kv", dict(kv=numpy.zeros((5, 2, 576), numpy.float32))),
    ("q", dict(kv=numpy.zeros((5, 1, 500), numpy.float32))), ("indices", dict(indices=INDICES)), ("d_v", dict(d_v=600)),
    ("sm_scale", dict(sm_scale=-1.0)), ("q: found 0 heads", dict(q=Q[0, :, :0])), ("topk_length", dict(topk_length=numpy.zeros(3, numpy.int32)))])
def test_sparse_prefill(name, wrong):
    right = dict(q=Q[0], kv=numpy.zeros((5, 1, 576), numpy.float32), indices=numpy.zeros((1, 1, 8), numpy.int32), sm_scale=1.0)
    flash_mla.flash_mla_sparse_fwd(**right)
    with pytest.raises(ValueError, match=f"^{name}"):
        flash_mla.flash_mla_sparse_fwd(**{**right, **wrong})


@pytest.mark.parametrize("name, wrong", [
    ("q", dict(q=Q)), ("k", dict(k=Q[:, 0, :, :500])), ("v", dict(v=Q[:1, 0])), ("v", dict(v=Q[:, 0, :2])),
    ("cu_seqlens_kv", dict(cu_seqlens_kv=numpy.int32([1, 2]))),
    ("cu_seqlens_qo", dict(cu_seqlens_qo=numpy.int32([0, 3, 2]))), ("cu_seqlens_kv", dict(cu_seqlens_kv=numpy.int32([0, 1, 2]))),
    ("cu_seqlens_qo", dict(cu_seqlens_qo=numpy.int32([0, 3]))), ("v: found 4 heads of 0", dict(v=Q[:, 0, :, :0])),
    ("k", dict(k=Q[:, 0, :0])), ("dropout_p", dict(dropout_p=0.1)), ("softmax_scale", dict(softmax_scale=-1.0))])
def test_varlen(name, wrong):
    right = dict(q=Q[:, 0], k=Q[:, 0], v=Q[:, 0], cu_seqlens_qo=numpy.int32([0, 2]), cu_seqlens_kv=numpy.int32([0, 2]),
                 max_seqlen_qo=2, max_seqlen_kv=2)
    flash_mla.flash_attn_varlen_func(**right)
    with pytest.raises(ValueError, match=f"^{name}"):
        flash_mla.flash_attn_varlen_func(**{**right, **wrong})


@pytest.mark.skipif(torch is None, reason="torch is not installed")
def test_tensors_of_other_devices():
    with pytest.raises(ValueError, match="^k_cache: found a tensor on meta"):
        decode(q=torch.zeros(2, 1, 4, 576), cache=torch.zeros(3, 64, 1, 576, device="meta"))


@pytest.mark.parametrize("kind, name, wrong", [
    (ValueError, "kv: found 2 dimensions", dict(kv=Q[0, 0])), (TypeError, "kv: found list", dict(kv=[1])),
    (ValueError, "head_dim_qk: found -124, expected 1 to 575", dict(head_dim_qk=-124)), (TypeError, "head_dim_qk", dict(head_dim_qk=None))])
def test_kvpacked(kind, name, wrong):
    cu = numpy.int32([0, 2])
    right = dict(q=Q[:, 0, :, :64], kv=Q[:, 0], cu_seqlens_qo=cu, cu_seqlens_kv=cu, max_seqlen_qo=2, max_seqlen_kv=2, head_dim_qk=64)
    flash_mla.flash_attn_varlen_kvpacked_func(**right)
    with pytest.raises(kind, match="^" + name):
        flash_mla.flash_attn_varlen_kvpacked_func(**{**right, **wrong})


def test_qkvpacked():
    cu = numpy.int32([0, 2])
    assert flash_mla.flash_attn_varlen_qkvpacked_func(Q[:, 0, :, :100], cu, 2, 49)[0].shape == (2, 4, 2)
    with pytest.raises(ValueError, match="^head_dim_qk: found 64, expected 1 to 49"):
        flash_mla.flash_attn_varlen_qkvpacked_func(Q[:, 0, :, :100], cu, 2, 64)
