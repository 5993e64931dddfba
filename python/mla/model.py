"""Checkpoints of DeepSeek's architecture, from their Hugging Face files, and conversations with them."""
import operator
import os
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Union

import numpy

from mla import _arguments, _core

_CHUNK = 512  # tokens of a prompt between two looks at Ctrl-C


def _ids(ids: Iterable[int], name: str = "ids") -> List[int]:
    """Token ids as Python's integers. Raises TypeError for what is none, ValueError for what no vocabulary holds."""
    try:
        numbers = [operator.index(i) for i in ids]
    except TypeError:
        raise TypeError(f"{name}: found {ids!r}, expected integers") from None
    for i in numbers:
        if not 0 <= i < 1 << 31:
            raise ValueError(f"{name}: found {i}, expected token ids")
    return numbers


class Model:
    """A checkpoint directory: config.json, safetensors, tokenizer.json or tiktoken.model. Without one, the small model that ships.

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
        return self._model.encode(_arguments.text("text", text))

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._model.decode(_ids(ids))

    def logits(self, ids: Sequence[int], *, attention: str = "auto", dtype: str = "", cache_dtype: str = "") -> numpy.ndarray:
        """f32 [len(ids), vocab]: what may follow each id.

        attention: auto, explicit or absorbed. dtype: f32 or bf16, of the arithmetic; the weights' unless given.
        cache_dtype: f32, bf16, fp8 or int8; dtype unless given. Raises ValueError for ids outside the vocabulary.
        """
        ids = _ids(ids)
        return self.session(len(ids), attention=attention, dtype=dtype, cache_dtype=cache_dtype).feed_all(ids)

    def session(self, max_tokens: int = 0, *, attention: str = "auto", dtype: str = "", cache_dtype: str = "") -> "Session":
        """A conversation of at most max_tokens tokens (0: the model's context limit), to be fed step by step.

        The other arguments are those of `logits`. Raises ValueError naming the argument.
        """
        words = (_arguments.text(*named) for named in (("attention", attention), ("dtype", dtype), ("cache_dtype", cache_dtype)))
        return Session(_core.Session(self._model, *words, _arguments.whole("max_tokens", max_tokens, 0)), self._model)

    def generate(self, prompt: Union[str, Sequence[int]], max_tokens: int = 200, *, temperature: float = 0.7, top_k: int = 0,
                 top_p: float = 0.95, seed: int = 0, ignore_eos: bool = False, attention: str = "auto", dtype: str = "",
                 cache_dtype: str = "") -> Iterator[str]:
        """Pieces of text that go on from a prompt (text, or ids), as they come; temperature 0 is greedy.

        Ends behind max_tokens tokens, at the end of text, or where the context ends. Ctrl-C ends it between two tokens.
        """
        sampler = _core.Sampler(_arguments.number("temperature", temperature), _arguments.whole("top_k", top_k, 0),
                                _arguments.number("top_p", top_p), _arguments.whole("seed", seed, 0, (1 << 64) - 1))
        is_text = isinstance(prompt, str)
        ids = self._model.encode_prompt(_arguments.text("prompt", prompt)) if is_text else _ids(prompt, "prompt")
        if not ids:
            raise ValueError("prompt: found no tokens, expected at least one")
        max_tokens = _arguments.whole("max_tokens", max_tokens, 0)
        longest = min(len(ids) + max_tokens, self._model.max_context)
        session = self.session(longest, attention=attention, dtype=dtype, cache_dtype=cache_dtype)
        return self._pieces(session, ids, max_tokens, sampler, set() if ignore_eos else set(self._model.eos_ids))

    def _pieces(self, session: "Session", ids: List[int], max_tokens: int, sampler: "_core.Sampler",
                ends: "set[int]") -> Iterator[str]:
        decoder = _core.StreamDecoder(self._model)
        logits = session.feed(ids)
        for left in range(max_tokens, 0, -1):
            token = sampler.next(logits)
            if token in ends:
                break
            piece = decoder.push(token)
            if piece:
                yield piece
            if left == 1 or len(session) == session.max_tokens:
                break
            logits = session.feed([token])
        rest = decoder.finish()
        if rest:
            yield rest


class Session:
    """One conversation with a model: what its tokens left in the cache. `mla.Model.session` makes one.

    Two threads may each feed their own session, not one session or its forks at a time (ValueError).
    """

    def __init__(self, session: "_core.Session", model: "_core.Model"):
        self._session, self._model = session, model

    def __len__(self) -> int:
        """Tokens fed so far."""
        return self._session.length

    @property
    def max_tokens(self) -> int:
        """Tokens that it may have."""
        return self._session.max_tokens

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache pages in use by this session and its forks."""
        return self._session.cache_bytes

    def feed(self, ids: Sequence[int]) -> numpy.ndarray:
        """f32 [vocab]: what may follow, once ids stand behind what was fed before.

        Raises ValueError for no ids, for ids outside the vocabulary, and where max_tokens would be passed. The session is then as
        before, also if Ctrl-C ends a long prompt.
        """
        ids, parts, before = _ids(ids), 0, len(self)
        try:
            while len(ids) > _CHUNK:
                self._session.append(ids[:_CHUNK])
                ids, parts = ids[_CHUNK:], parts + 1
            return self._session.feed(ids)
        except BaseException:
            if parts > 0:
                self._session.truncate(before)
            raise

    def feed_all(self, ids: Sequence[int]) -> numpy.ndarray:
        """The same with what may follow each of the ids: f32 [len(ids), vocab]."""
        return self._session.feed_all(_ids(ids))

    def cache(self, layer: int) -> Dict[str, numpy.ndarray]:
        """What a layer keeps of all tokens, as f32 copies.

        Latent attention: "latent" [tokens, kv_lora_rank] and "rope_key" [tokens, qk_rope_head_dim], the rotated key that heads share.
        Others: "keys" and "values", [tokens, num_kv_heads, head_dim] each. Raises ValueError for another layer.
        """
        rows, info = self._session.rows(_arguments.whole("layer", layer, 0)), self._model.inspect()
        if "kv_lora_rank" in info:
            rank = info["kv_lora_rank"]
            return {"latent": rows[:, :rank], "rope_key": rows[:, rank:]}
        heads = rows.reshape(len(rows), info["num_kv_heads"], 2, info["head_dim"])
        return {"keys": heads[:, :, 0], "values": heads[:, :, 1]}

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on. Raises ValueError unless 0 <= length <= len(self)."""
        self._session.truncate(_arguments.whole("length", length, 0, len(self)))

    def fork(self) -> "Session":
        """Another session with the same past; pages are shared until one of the two writes."""
        return Session(self._session.fork(), self._model)
