"""mla.Model against the answers of transformers that the C++ tests use, and its generation loop."""
import json
import pathlib
import signal
import threading

import numpy
import pytest

import mla

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "reference"


@pytest.fixture(scope="module")
def model():
    return mla.Model()


@pytest.mark.parametrize("name", sorted(p.name for p in REFERENCE.iterdir() if (p / "config.json").exists()))
def test_logits_are_those_of_transformers(name):
    directory = REFERENCE / name
    expected = numpy.load(directory / "logits.npy")
    ids = json.loads((directory / "reference.json").read_text())["ids"]
    found = mla.Model(directory).logits(ids, dtype="f32")
    assert numpy.abs(found - expected).max() < 5e-4


def test_the_model_that_ships_is_the_repositorys(model):
    found = model.inspect()
    assert found["model_type"] == "deepseek_v3" and found["attention"] == "MLA"
    assert found["cache_values_per_token"]["mla"] * 2 == found["cache_bytes_per_token"]
    assert mla.Model(ROOT / "models" / "default").inspect() == found


def test_tokens_and_back(model):
    text = "In the beginning God created the heaven and the earth."
    ids = model.tokenize(text)
    assert model.detokenize(ids) == text and all(isinstance(i, int) for i in ids)


def test_generation_is_seeded_and_greedy_follows_the_logits(model):
    greedy = "".join(model.generate("In the beginning", 12, temperature=0))
    assert greedy == "".join(model.generate("In the beginning", 12, temperature=0))
    ids = model._model.encode_prompt("In the beginning")
    for _ in range(12):
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert model.detokenize(ids).endswith(greedy) or model.detokenize(ids).startswith("In the beginning" + greedy)
    one, same, other = ("".join(model.generate("And it came to pass", 30, seed=s)) for s in (1, 1, 2))
    assert one == same != other


def test_forms_and_row_types_agree(model):
    ids = model.tokenize("The LORD is my shepherd; I shall not want.")
    expected = model.logits(ids, dtype="f32", attention="explicit")
    assert numpy.abs(model.logits(ids, dtype="f32", attention="absorbed") - expected).max() < 1e-3
    for rows in ("bf16", "fp8", "int8"):
        assert 0 < numpy.abs(model.logits(ids, dtype="f32", cache_dtype=rows) - expected).max() < 1


def test_stops_where_the_context_ends(model):
    length = model._model.max_context
    pieces = list(model.generate([5] * (length - 1), 50, ignore_eos=True))
    assert len(pieces) <= 3


def test_ctrl_c_ends_a_generation(model):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores the signal
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in range(1000):
                for _ in model.generate("And", 400, ignore_eos=True):
                    pass
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def test_threads_may_generate_side_by_side(model):
    expected = "".join(model.generate("And God said", 40, seed=3))
    found = [None] * 3
    def run(i):
        found[i] = "".join(model.generate("And God said", 40, seed=3))
    threads = [threading.Thread(target=run, args=[i]) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [expected] * 3


@pytest.mark.parametrize("match, call", [
    ("nowhere", lambda m: mla.Model("/nowhere")), ("attention: found 'x'", lambda m: m.logits([1], attention="x")),
    ("dtype: found 'int8'", lambda m: m.logits([1], dtype="int8")), ("cache_dtype: found 'x'", lambda m: m.logits([1], cache_dtype="x")),
    ("ids", lambda m: m.logits([])), ("4096", lambda m: m.logits([4096])), ("prompt", lambda m: m.generate([])),
    ("temperature", lambda m: m.generate("a", temperature=-1)), ("max_tokens", lambda m: m.generate("a", -1)),
    ("max_tokens|context", lambda m: list(m.generate([1] * 2000, 1))), ("text: found half a character", lambda m: m.tokenize("a\ud800")),
    ("seed: found -1", lambda m: m.generate("a", seed=-1)), ("top_k: found -1", lambda m: m.generate("a", top_k=-1))])
def test_errors_say_what(model, match, call):
    with pytest.raises(ValueError, match=match):
        call(model)


@pytest.mark.parametrize("match, call", [
    ("temperature: found 'x', expected a number", lambda m: m.generate("a", temperature="x")), ("prompt: found 5", lambda m: m.generate(5)),
    ("max_tokens: found 2.5, expected an integer", lambda m: m.generate("a", 2.5)), ("max_tokens", lambda m: m.generate("a", None)),
    ("dtype: found None, expected a str", lambda m: m.logits([1], dtype=None)), ("text: found 5", lambda m: m.tokenize(5)),
    ("text: found None", lambda m: mla.Trainer.begin("/nowhere/run", None)), ("layer: found 1.0", lambda m: m.session().cache(1.0))])
def test_arguments_of_another_type(model, match, call):
    with pytest.raises(TypeError, match="^" + match):
        call(model)
