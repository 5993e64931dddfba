#!/usr/bin/env python3
"""Training steps of the embedded model's shape: PyTorch beside ours, in turns, on the same threads.

transformers: DeepseekV3ForCausalLM in eager mode, as anyone would train it. hand-written: the same model in plain
PyTorch without transformers, as fast as we can write it: fused products, scaled_dot_product_attention, tokens grouped
by expert, AdamW in one call. All in f32 and in bf16 (PyTorch's under autocast), f32 weights; the faster of each counts.
Each side's threads wait as they do by default: PyTorch's are asleep some milliseconds after its last step.
A step: 16 sequences of 256 tokens forward and backward, clipping, AdamW.
"""
import glob
import json
import os
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
from torch import nn

from common import ROOT, Comparison, parser

CONFIG = os.path.join(ROOT, "models", "default", "config.json")
BATCH, LENGTH = 16, 256


def transformers_model():
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(os.path.dirname(CONFIG))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model, lambda ids, targets: F.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1).float(),
                                                       targets.flatten())


class Norm(nn.Module):
    def __init__(self, width, epsilon=1e-6):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class FeedForward(nn.Module):
    def __init__(self, d, width):
        super().__init__()
        self.gate_up, self.down = nn.Linear(d, 2 * width, bias=False), nn.Linear(width, d, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, width = c["hidden_size"], c["moe_intermediate_size"]
        self.k, self.groups, self.kept = c["num_experts_per_tok"], c["n_group"], c["topk_group"]
        self.gate = nn.Linear(d, c["n_routed_experts"], bias=False)
        self.register_buffer("bias", torch.zeros(c["n_routed_experts"]))
        self.experts = nn.ModuleList(FeedForward(d, width) for _ in range(c["n_routed_experts"]))
        self.shared = FeedForward(d, width * c["n_shared_experts"])

    def forward(self, x):
        scores = torch.sigmoid(self.gate(x).float())
        choice = scores.detach() + self.bias
        by_group = choice.view(len(x), self.groups, -1)
        kept = by_group.topk(2, -1)[0].sum(-1).topk(self.kept, -1)[1]
        mask = torch.zeros(len(x), self.groups, dtype=torch.bool).scatter_(1, kept, True)
        chosen = by_group.masked_fill(~mask[..., None], -1e9).flatten(1).topk(self.k, -1)[1]
        weights = scores.gather(1, chosen)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        tokens = order // self.k
        parts = [expert(part) for expert, part in zip(self.experts, x[tokens].split(counts))]
        out = torch.cat(parts) * weights[order, None].to(parts[0].dtype)
        return self.shared(x).index_add(0, tokens, out.to(x.dtype)) if out.dtype == x.dtype else \
            self.shared(x) + torch.zeros_like(x).index_add_(0, tokens, out.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.d_n, self.d_r, self.d_v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self.d_c, self.d_q = c["kv_lora_rank"], c["q_lora_rank"]
        self.down = nn.Linear(d, self.d_q + self.d_c + self.d_r, bias=False)
        self.q_norm, self.kv_norm = Norm(self.d_q), Norm(self.d_c)
        self.q_up = nn.Linear(self.d_q, self.heads * (self.d_n + self.d_r), bias=False)
        self.kv_up = nn.Linear(self.d_c, self.heads * (self.d_n + self.d_v), bias=False)
        self.out = nn.Linear(self.heads * self.d_v, d, bias=False)

    @staticmethod
    def rotate(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def forward(self, x, cos, sin, batch):
        q, c, k_r = self.down(x).split((self.d_q, self.d_c, self.d_r), -1)
        q = self.q_up(self.q_norm(q)).view(batch, -1, self.heads, self.d_n + self.d_r).transpose(1, 2)
        kv = self.kv_up(self.kv_norm(c)).view(batch, -1, self.heads, self.d_n + self.d_v).transpose(1, 2)
        k_n, v = kv.split((self.d_n, self.d_v), -1)
        q_n, q_r = q.split((self.d_n, self.d_r), -1)
        k_r = self.rotate(k_r.view(batch, 1, -1, self.d_r), cos, sin).to(k_n.dtype)
        q = torch.cat((q_n, self.rotate(q_r, cos, sin).to(q_n.dtype)), -1)
        k = torch.cat((k_n, k_r.expand(-1, self.heads, -1, -1)), -1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).flatten(2).flatten(0, 1))


class Layer(nn.Module):
    def __init__(self, c, is_moe):
        super().__init__()
        self.attention_norm, self.attention = Norm(c["hidden_size"]), Attention(c)
        self.feed_norm = Norm(c["hidden_size"])
        self.feed = Experts(c) if is_moe else FeedForward(c["hidden_size"], c["intermediate_size"])

    def forward(self, x, cos, sin, batch):
        x = x + self.attention(self.attention_norm(x), cos, sin, batch)
        return x + self.feed(self.feed_norm(x))


class HandWritten(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, i >= c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"]))
        self.norm, self.head = Norm(c["hidden_size"]), nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        frequencies = c["rope_parameters"]["rope_theta"] ** (-torch.arange(0, c["qk_rope_head_dim"], 2)
                                                             / c["qk_rope_head_dim"])
        angles = torch.arange(LENGTH)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids):
        x = self.embedding(ids).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, len(ids))
        return self.head(self.norm(x))


def hand_written_model():
    with open(CONFIG) as file:
        model = HandWritten(json.load(file))
    return model, lambda ids, targets: F.cross_entropy(model(ids).float(), targets.flatten())


def step_of(make, autocast):
    model, loss_of = make()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step():
        ids = torch.randint(2048, (BATCH, LENGTH + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(ids[:, :-1], ids[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return step


MAKERS = {"transformers": transformers_model, "hand-written": hand_written_model}


def peak_memory(command):
    """MiB of a process. (It starts from one of Python alone: a process counts the size of what it was forked from.)"""
    watch = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True, "
             "stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)")
    return float(subprocess.run([sys.executable, "-c", watch, *command], stdout=subprocess.PIPE, check=True).stdout)


def our_steps(options, folder, dtype):
    """Three steps by our program, on its own sources."""
    text = os.path.join(folder, "text")
    with open(text, "wb") as file:
        for source in sorted(glob.glob(os.path.join(ROOT, "mla", "*", "*.cpp"))):
            with open(source, "rb") as part:
                file.write(part.read())
    return [options.mla, "train", "--text", text, "--out", os.path.join(folder, dtype), "--config", CONFIG, "--steps",
            "3", "--dtype", dtype, "--batch", str(BATCH), "--length", str(LENGTH), "--threads", str(options.threads)]


def report_memory(options):
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("f32", "bf16"):
            print(f"peak memory of ours {dtype}: {peak_memory(our_steps(options, folder, dtype)):.0f} MiB")
    for name in MAKERS:
        for dtype in ("f32", "bf16"):
            command = [sys.executable, os.path.abspath(__file__), "--steps-of", name, "--threads", str(options.threads)]
            used = peak_memory(command + (["--autocast"] if dtype == "bf16" else []))
            print(f"peak memory of {name} {dtype}: {used:.0f} MiB")


def main():
    options = parser(__doc__)
    options.add_argument("--steps-of", choices=MAKERS, help="take three steps and nothing else")
    options.add_argument("--autocast", action="store_true", help="with --steps-of: products in bf16")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if options.steps_of:
        step = step_of(MAKERS[options.steps_of], options.autocast)
        for _ in range(3):
            step()
        return
    compare = Comparison(options)
    peers = {f"{name} {'bf16' if autocast else 'f32'}": step_of(make, autocast)
             for name, make in MAKERS.items() for autocast in (False, True)}
    compare.run(["train", "--model", os.path.dirname(CONFIG), "--dtype", "f32,bf16", "--attention", "explicit"], peers,
                lambda entry: entry["op"] == "train")
    compare.finish()
    if not options.json:
        report_memory(options)


main()
