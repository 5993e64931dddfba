#!/usr/bin/env python3
"""Writes kimi/: a small tokenizer in the files of Kimi's checkpoints, and what the library `tiktoken` makes of many texts.

Needs `tokenizers` to learn a vocabulary and `tiktoken` (0.14.0 made the files committed here). Words, ids of added tokens and their names
are those of TikTokenTokenizer in tokenization_kimi.py (https://huggingface.co/moonshotai/Kimi-K2-Instruct). cases.json as in make_cases.py.
"""
import base64
import json
import random

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

import make_cases

CHINESE = r"[\p{Han}]+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
BEFORE, BEHIND = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
WORDS = "|".join([CHINESE, BEFORE + UPPER + "*" + LOWER + "+" + BEHIND, BEFORE + UPPER + "+" + LOWER + "*" + BEHIND, r"\p{N}{1,3}",
                  r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
NAMES = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
         9: "[EOT]", 10: "<|im_system|>", 11: "<|tool_calls_section_begin|>", 13: "<|tool_call_begin|>", 254: "[UNK]", 255: "[PAD]"}
SHOWN = {11, 13}  # that are not special
MORE = ["HTTPServer's ParseURLs", "CamelCaseWords and ALLCAPS'LL", "中文abc漢字DEF한국어", "ǅ ǈuro ʰx ˀY", "I'M we'RE 1234567", "。、！？,.!?\n\n",
        "汉" * 40, "word汉word", "e\u0301tude E\u0301TUDE", "\u0ea1\u0eb2 ꟲ", "\r\n\r\n \n", "a\u00a0\u00a0b", "x" * 400 + "Y" * 400]


def ranks():
    """bytes -> rank: all bytes, then what a BPE learns in Kimi's words."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1100, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([make_cases.TRAINING, make_cases.EXTRA], trainer)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelled = {chr(b): b for b in printable}
    spelled.update({chr(0x100 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)})
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda token: token[1])
    known = {}
    for text, _ in tokens:
        known.setdefault(bytes(spelled[c] for c in text), len(known))
    return known


def main():
    known = ranks()
    first = len(known)
    names = {first + i: NAMES.get(i, f"<|reserved_token_{first + i}|>") for i in range(258)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {"added_tokens_decoder": {str(first + i): {"content": name, **flags, "special": i not in SHOWN} for i, name in NAMES.items()},
              "additional_special_tokens": [NAMES[i] for i in (2, 3, 4, 6, 7, 9, 10)], "bos_token": "[BOS]", "eos_token": "[EOS]",
              "unk_token": "[UNK]", "pad_token": "[PAD]", "clean_up_tokenization_spaces": False, "extra_special_tokens": {},
              "model_max_length": 1000000000000000019884624838656, "tokenizer_class": "TikTokenTokenizer",
              "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    encoding = tiktoken.Encoding("kimi", pat_str=WORDS, mergeable_ranks=known, special_tokens={name: id for id, name in names.items()})
    special = {first + i for i in NAMES if i not in SHOWN}
    visible = lambda ids: encoding.decode([id for id in ids if id not in special])
    choose = random.Random("kimi")
    contents = [*NAMES.values(), f"<|reserved_token_{first + 5}|>", "<|im_", *MORE]
    cases = []
    for text in make_cases.FIXED + MORE + [make_cases.random_text(choose, contents) for _ in range(200)]:
        ids = encoding.encode(text, allowed_special="all")
        cases.append({"text": text, "ids": ids, "prompt": ids, "decoded": visible(ids), "shown": encoding.decode(ids)})
    for _ in range(80):
        ids = [choose.randrange(choose.choice([20, 280, first + 258])) for _ in range(choose.randint(1, 9))]
        cases.append({"ids": ids, "decoded": visible(ids), "shown": encoding.decode(ids)})
    directory = make_cases.HERE / "kimi"
    directory.mkdir(exist_ok=True)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in known.items()]
    (directory / "tiktoken.model").write_text("".join(lines))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (directory / "cases.json").write_text(make_cases.lines(cases), encoding="utf-8")


if __name__ == "__main__":
    main()
