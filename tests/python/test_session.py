"""mla.Session: a model's conversation step by step, and what its cache holds, by its definition."""
import json
import pathlib
import struct
import threading

import numpy
import pytest

import mla
from reference import HEADS_CONFIG

IDS = [5, 17, 300, 4, 9, 1000, 77]


@pytest.fixture(scope="module")
def model():
    return mla.Model()


def tensor(directory, name):
    """A bf16 or f32 tensor of a checkpoint, as float64."""
    for path in sorted(directory.glob("*.safetensors")):
        raw = path.read_bytes()
        size, = struct.unpack("<Q", raw[:8])
        entry = json.loads(raw[8:8 + size]).get(name)
        if entry:
            begin, end = entry["data_offsets"]
            data = raw[8 + size + begin:8 + size + end]
            values = (numpy.frombuffer(data, numpy.float32) if entry["dtype"] == "F32"
                      else (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32))
            return values.reshape(entry["shape"]).astype(float)
    raise KeyError(name)


def normed(x, weight, epsilon):
    return x / numpy.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * weight


def test_fed_in_any_parts_it_says_the_same(model):
    whole = model.logits(IDS, dtype="f32")
    session = model.session(dtype="f32")
    first = session.feed(IDS[:3])
    every = session.feed_all(IDS[3:6])
    last = session.feed(IDS[6:])
    assert len(session) == len(IDS) and session.max_tokens == model.inspect()["max_context"]
    assert numpy.abs(numpy.vstack([first, every, last]) - whole[2:]).max() < 1e-4


def test_a_prompt_longer_than_a_part_is_fed_or_nothing_is(model):
    ids = [i % 1000 for i in range(700)]
    session = model.session(701, dtype="f32")
    assert numpy.abs(session.feed(ids) - model.logits(ids, dtype="f32")[-1]).max() < 1e-4
    assert len(session) == 700
    session.truncate(0)
    with pytest.raises(ValueError, match="token id: found 4096"):
        session.feed(ids + [4096])
    assert len(session) == 0
    with pytest.raises(ValueError, match="at most 701"):
        session.feed(ids + [1, 2])
    assert len(session) == 0


def test_what_is_forgotten_is_not_seen_and_forks_part(model):
    session = model.session(dtype="f32")
    expected = session.feed(IDS)
    session.feed([8, 9])
    other = session.fork()
    session.truncate(len(IDS) - 1)
    assert numpy.abs(session.feed(IDS[-1:]) - expected).max() < 1e-4
    assert len(other) == len(IDS) + 2 and len(session) == len(IDS)
    assert numpy.abs(other.feed([7]) - model.logits(IDS + [8, 9, 7], dtype="f32")[-1]).max() < 1e-4
    assert (session.feed([7]) != other.feed([7])).any()


def test_the_latent_cache_by_its_definition(model):
    """Layer 0: c_kv = norm(W_DKV x), and the key of position 0, which rotation leaves alone."""
    directory = pathlib.Path(model.directory)
    config = json.loads((directory / "config.json").read_text())
    epsilon, rank = config["rms_norm_eps"], config["kv_lora_rank"]
    x = tensor(directory, "model.embed_tokens.weight")[IDS]
    x = normed(x, tensor(directory, "model.layers.0.input_layernorm.weight"), epsilon)
    down = x @ tensor(directory, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight").T
    latent = normed(down[:, :rank], tensor(directory, "model.layers.0.self_attn.kv_a_layernorm.weight"), 1e-6)
    session = model.session(dtype="f32")
    session.feed(IDS)
    found = session.cache(0)
    assert found["latent"].shape == (len(IDS), rank) and found["rope_key"].shape == (len(IDS), config["qk_rope_head_dim"])
    assert numpy.abs(found["latent"] - latent).max() < 1e-4
    key, expected = found["rope_key"], down[:, rank:]
    assert numpy.abs(numpy.sort(key[0]) - numpy.sort(expected[0])).max() < 1e-4  # stored in halves, not in pairs
    assert numpy.abs(numpy.linalg.norm(key, axis=1) - numpy.linalg.norm(expected, axis=1)).max() < 1e-4
    coarse = model.session(dtype="f32", cache_dtype="fp8")
    coarse.feed(IDS)
    error = numpy.abs(coarse.cache(0)["latent"] - latent)
    assert 0 < error.max() < numpy.abs(latent).max() / 16
    assert coarse.cache_bytes < session.cache_bytes


def test_the_cache_of_heads_by_its_definition(tmp_path):
    config = HEADS_CONFIG
    directory, ids = tmp_path / "heads", [5, 17, 200, 4, 9, 100, 77, 3, 3]
    list(mla.Trainer.begin(directory, "In the beginning was the word.\n" * 40, config, steps=1, batch=1, length=32, held_back=0.2))
    x = normed(tensor(directory, "model.embed_tokens.weight")[ids], tensor(directory, "model.layers.0.input_layernorm.weight"),
               config["rms_norm_eps"])
    expected = x @ tensor(directory, "model.layers.0.self_attn.v_proj.weight").T
    session = mla.Model(directory).session(dtype="f32")
    session.feed(ids)
    found = session.cache(0)
    assert found["keys"].shape == found["values"].shape == (9, 2, 16)
    assert numpy.abs(found["values"].reshape(9, -1) - expected).max() < 1e-4


def test_an_empty_session_has_an_empty_cache(model):
    session = model.session()
    assert len(session) == 0 and session.cache(1)["latent"].shape == (0, model.inspect()["kv_lora_rank"])


def test_one_thread_at_a_time(model):
    session = model.session()
    said = []

    def feed():
        try:
            session.feed([1] * 400)
        except ValueError as error:
            said.append(str(error))
    threads = [threading.Thread(target=feed) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all("in use by another thread" in s or "at most" in s for s in said)
    assert len(session) == 400 * (8 - len(said))


@pytest.mark.parametrize("match, call", [
    ("layer: found 99", lambda s: s.cache(99)), ("layer: found -1", lambda s: s.cache(-1)), ("length: found 9", lambda s: s.truncate(9)),
    ("length: found -1", lambda s: s.truncate(-1)), ("no tokens", lambda s: s.feed([])), ("ids", lambda s: s.feed_all([])),
    ("ids: found -1", lambda s: s.feed([-1])), ("ids: found 1099511627776", lambda s: s.feed_all([1 << 40])),
    ("token id: found 4096", lambda s: s.feed([4096]))])
def test_errors_say_what(model, match, call):
    session = model.session()
    session.feed([1, 2])
    with pytest.raises(ValueError, match=match):
        call(session)
    assert len(session) == 2


@pytest.mark.parametrize("ids", [[1.5], ["a"], None, 3])
def test_ids_that_are_no_integers(model, ids):
    session = model.session()
    for call in (session.feed, session.feed_all, model.logits, model.detokenize):
        with pytest.raises(TypeError, match="ids: found .*, expected integers"):
            call(ids)


def test_ids_of_any_kind_of_integer(model):
    assert (model.logits(numpy.int16(IDS)) == model.logits(IDS)).all()


@pytest.mark.parametrize("match, options", [
    ("max_tokens|at most", {"max_tokens": 1 << 20}), ("attention", {"attention": "x"}), ("dtype", {"dtype": "fp8"}),
    ("cache_dtype", {"cache_dtype": "f64"})])
def test_options_that_are_none(model, match, options):
    with pytest.raises(ValueError, match=match):
        model.session(**options)
