"""64 requests at once on the real model, each as if it were alone (`pytest -m slow`)."""

import random

import pytest

from qkv.engine.engine import Engine
from qkv.engine.native_runner import NativeRunner
from qkv.engine.sequence import EngineRequest
from qkv.engine.torch_runner import TorchRunner
from qkv.errors import QkvError
from qkv.fetch.pull import find
from qkv.sample.tokens import Sampling
from qkv.weights.gguf import open_gguf
from qkv.weights.gguf_decoder import load_gguf, read_decoder

pytestmark = [pytest.mark.slow, pytest.mark.weights]


@pytest.fixture
def path():
    try:
        found = find("smollm2", offline=True)
    except QkvError as error:
        pytest.skip(str(error))
    return found if found.is_file() else next(found.glob("*.gguf"))


@pytest.mark.parametrize(("kind", "count"), [("native", 64), ("torch", 8)])
def test_requests_at_once_equal_their_solo_runs(path, kind, count):
    runner = NativeRunner(*read_decoder(open_gguf(path))) if kind == "native" else TorchRunner(load_gguf(path))
    draw = random.Random(0)
    beginning = [draw.randrange(1000, 40_000) for _ in range(200)]
    requests = [
        EngineRequest(
            prompt=beginning[: draw.randint(0, 200)]
            + [draw.randrange(1000, 40_000) for _ in range(draw.randint(1, 40))],
            max_tokens=draw.randint(4, 24),
            sampling=Sampling(temperature=draw.choice([0.0, 0.8]), seed=seed),
        )
        for seed in range(count)
    ]
    engine = Engine(runner)
    together = [[event.id for event in handle] for handle in [engine.submit(request) for request in requests]]
    for request, found in zip(requests, together):
        assert found == [event.id for event in Engine(runner).submit(request)]  # nothing is reused: a cache of its own
