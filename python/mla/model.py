"""Checkpoints of DeepSeek's architecture, from their Hugging Face files."""
import os
from typing import Any, Dict, Iterator, List, Sequence, Union

import numpy

from mla import _core

_CHUNK = 512  # tokens of a prompt between two looks at Ctrl-C


class Model:
    """A checkpoint directory: config.json, safetensors, tokenizer.json. Without one, the small model that ships.

    Raises ValueError naming file and field for what is not such a directory.
    """

    def __init__(self, directory: Union[str, "os.PathLike[str]", None] = None):
        self.directory = str(directory) if directory is not None else os.path.join(os.path.dirname(__file__), "models", "default")
        self._model = _core.Model(self.directory)

    def __repr__(self) -> str:
        return f"mla.Model({self.directory!r})"

    def inspect(self) -> Dict[str, Any]:
        """Shape, parameters, and the numbers that a token keeps in the cache beside those of MHA, GQA and MQA."""
        return self._model.inspect()

    def tokenize(self, text: str) -> List[int]:
        """The ids of a text; nothing is added."""
        return self._model.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._model.decode(list(ids))

    def logits(self, ids: Sequence[int], *, attention: str = "auto", dtype: str = "", cache_dtype: str = "") -> numpy.ndarray:
        """f32 [len(ids), vocab]: what may follow each id.

        attention: auto, explicit or absorbed. dtype: f32 or bf16, of the arithmetic; the weights' unless given.
        cache_dtype: f32, bf16, fp8 or int8; dtype unless given. Raises ValueError for ids outside the vocabulary.
        """
        return self._model.logits(list(ids), attention, dtype, cache_dtype)

    def generate(self, prompt: Union[str, Sequence[int]], max_tokens: int = 200, *, temperature: float = 0.8, top_k: int = 0,
                 top_p: float = 0.95, seed: int = 0, ignore_eos: bool = False, attention: str = "auto", dtype: str = "",
                 cache_dtype: str = "") -> Iterator[str]:
        """Pieces of text that go on from a prompt (text, or ids), as they come; temperature 0 is greedy.

        Ends behind max_tokens tokens, at the end of text, or where the context ends. Ctrl-C ends it between two tokens.
        """
        sampler = _core.Sampler(temperature, top_k, top_p, seed)
        ids = self._model.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ValueError("prompt: found no tokens, expected at least one")
        if max_tokens < 0:
            raise ValueError(f"max_tokens: found {max_tokens}, expected 0 or more")
        longest = min(len(ids) + max_tokens, self._model.max_context)
        session = _core.Session(self._model, attention, dtype, cache_dtype, longest)
        return self._pieces(session, ids, max_tokens, sampler, set() if ignore_eos else set(self._model.eos_ids))

    def _pieces(self, session: "_core.Session", ids: List[int], max_tokens: int, sampler: "_core.Sampler",
                ends: "set[int]") -> Iterator[str]:
        decoder = _core.StreamDecoder(self._model)
        while len(ids) > _CHUNK:
            session.append(ids[:_CHUNK])
            ids = ids[_CHUNK:]
        logits = session.feed(ids)
        for left in range(max_tokens, 0, -1):
            token = sampler.next(logits)
            if token in ends:
                break
            piece = decoder.push(token)
            if piece:
                yield piece
            if left == 1 or session.length == session.max_tokens:
                break
            logits = session.feed([token])
        rest = decoder.finish()
        if rest:
            yield rest
