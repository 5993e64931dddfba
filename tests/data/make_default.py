#!/usr/bin/env python3
"""Writes default/logits.npy and default/reference.json: what transformers makes of models/default.

Needs transformers, torch and numpy (5.24.0 and 2.13.0 made the files committed here). In float64, with eager attention and
no cache: reference.json has the ids of the first 256 tokens of default/heldback.txt, the 64 greedy tokens behind "And God
said" with the smallest distance to the second largest logit, and the text they make; logits.npy is f32 [64, vocabulary], for
the first 64 of the ids. Prints how well the model predicts the held-back text in windows of 256 tokens.
"""
import json
import math
import pathlib

import numpy
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "models/default"
PROMPT = "And God said"


def greedy(model, ids, count):
    found, margin = [], math.inf
    for _ in range(count):
        best = torch.topk(model(torch.tensor([ids + found])).logits[0, -1], 2)
        found.append(best.indices[0].item())
        margin = min(margin, (best.values[0] - best.values[1]).item())
    return found, margin


def bits_per_byte(model, ids, size, window=256):
    nats = 0.0
    for begin in range(0, len(ids) - 1, window - 1):
        part = torch.tensor([ids[begin:begin + window]])
        logits = model(part).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
    return nats / math.log(2) / size


@torch.no_grad()
def main():
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    text = (HERE / "default/heldback.txt").read_text(encoding="utf-8")
    held_back = tokenizer.encode(text).ids
    ids, prompt = held_back[:256], tokenizer.encode(PROMPT).ids
    numpy.save(HERE / "default/logits.npy", model(torch.tensor([ids[:64]])).logits[0].float().numpy())
    found, margin = greedy(model, prompt, 64)
    reference = {"ids": ids, "greedy_prompt": prompt, "greedy": found, "greedy_margin": margin, "prompt_text": PROMPT,
                 "greedy_text": tokenizer.decode(prompt + found)}
    (HERE / "default/reference.json").write_text(json.dumps(reference) + "\n", encoding="utf-8")
    model = model.float()
    print(f"held back: {bits_per_byte(model, held_back, len(text.encode())):.4f} bits per byte")


main()
