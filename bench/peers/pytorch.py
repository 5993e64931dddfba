#!/usr/bin/env python3
"""PyTorch and transformers beside ours, in turns, on the same threads, in bf16. bench/peers/run pytorch sets it up.

decode: absorbed MLA, one query token. prefill: explicit, causal. gqa: 32 query heads over 8. Each as
scaled_dot_product_attention and as two products and a softmax, in the arrangement that is fastest for torch (heads
that share a kv head are rows of one matrix; values are padded to the width of keys for the former). model: a
DeepSeek-V2-Lite of two layers by transformers beside mla bench model.
"""
import json
import os

import torch
import torch.nn.functional as F

from common import ROOT, Comparison, parser


def sdpa(q, k, v, causal=False, mask=None):
    padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    return lambda: F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, is_causal=causal)


def two_products(q, k, v, mask=None):
    scale = q.shape[-1] ** -0.5
    keys = k.transpose(-1, -2)

    def call():
        scores = torch.matmul(q, keys) * scale
        if mask is not None:
            scores = scores + mask
        return torch.matmul(torch.softmax(scores, -1), v)
    return call


def random(*shape):
    return torch.randn(*shape).bfloat16()


def decode(compare):
    for heads in (128, 16):
        for rows in (4096, 32768):
            q, k = random(1, 1, heads, 576), random(1, 1, rows, 576)
            v = k[..., :512]
            compare.run(["attention", "--rows", "bf16", "--heads", heads, "--kv", rows],
                        {"torch sdpa": sdpa(q, k, v), "torch two products": two_products(q, k, v)})


def prefill(compare):
    for new, cached in ((512, 0), (2048, 0), (256, 8192)):
        rows = new + cached
        q, k, v = random(1, 16, new, 192), random(1, 16, rows, 192), random(1, 16, rows, 128)
        mask = torch.full((new, rows), float("-inf")).triu(cached + 1).bfloat16()
        sdpa_call = sdpa(q, k, v, mask=mask) if cached else sdpa(q, k, v, causal=True)
        compare.run(["attention", "--op", "prefill", "--variant", "gqa", "--heads", 16, "--kv-heads", 16, "--d-qk", 192,
                     "--d-v", 128, "--queries", new, "--kv", rows],
                    {"torch sdpa": sdpa_call, "torch two products": two_products(q, k, v, mask)})


def gqa(compare):
    for rows in (4096, 32768):
        q, k, v = random(1, 8, 4, 128), random(1, 8, rows, 128), random(1, 8, rows, 128)
        compare.run(["attention", "--rows", "bf16", "--variant", "gqa", "--heads", 32, "--kv-heads", 8, "--kv", rows],
                    {"torch sdpa": sdpa(q, k, v), "torch two products": two_products(q, k, v)})


def transformers_model(layers):
    """DeepSeek-V2-Lite of that many layers, weights filled from one table: quick, and no expert is preferred."""
    from transformers import AutoConfig, AutoModelForCausalLM
    directory = os.path.join(ROOT, "tests", "data", "configs", "DeepSeek-V2-Lite")
    with open(os.path.join(directory, "config.json")) as file:
        fields = json.load(file)
    fields.pop("auto_map", None)  # transformers' own code, not a checkpoint's
    fields["num_hidden_layers"] = layers
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.to_empty(device="cpu")
    table = (torch.randn(1 << 20) * 0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for begin in range(0, flat.numel(), table.numel()):
                part = flat[begin:begin + table.numel()]
                part.copy_(table.roll(begin // 7)[:part.numel()] if begin else table[:part.numel()])
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def model(compare, layers=2, prompt=512, context=1024):
    from transformers import DynamicCache
    lite = transformers_model(layers)
    vocabulary = lite.config.vocab_size

    @torch.inference_mode()
    def run_prefill():
        lite(torch.randint(vocabulary, (1, prompt)), use_cache=True, logits_to_keep=1)

    past = DynamicCache(config=lite.config)
    with torch.inference_mode():
        lite(torch.randint(vocabulary, (1, context)), cache=past, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def run_decode():
        lite(torch.randint(vocabulary, (1, 1)), cache=past, use_cache=True, logits_to_keep=1)
        past.crop(-1)

    arguments = ["model", "--shape", "v2-lite", "--layers", layers, "--prompt", prompt, "--context", context]
    compare.run(arguments, {"transformers": run_prefill}, lambda entry: entry["op"] == "prefill")
    compare.run(arguments, {"transformers": run_decode}, lambda entry: entry["op"] == "decode")


def main():
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    compare = Comparison(options)
    with torch.inference_mode():
        for section in (decode, prefill, gqa):
            if compare.wants(section.__name__):
                section(compare)
    if compare.wants("model"):
        model(compare)
    compare.finish()


main()
