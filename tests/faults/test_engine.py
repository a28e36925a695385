"""Requests that cannot be, requests that break, and a thousand at once (rows 15, 16, 32 to 34 and 46)."""

import contextlib
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from qkv.engine.engine import Engine
from qkv.engine.runner import Chunk
from qkv.engine.sequence import EngineRequest
from qkv.engine.torch_runner import TorchRunner
from qkv.errors import BusyError, CheckpointError, GenerationError, InputError, QkvError
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.sample.tokens import Sampling, TokenSampler

VOCAB = 50
POISON = VOCAB - 1


def tiny_runner() -> TorchRunner:
    decoder = Decoder(
        DecoderConfig(
            vocab=VOCAB, context=64, dim=32, layers=1, heads=4, kv_heads=2, ffn_dim=48, position="rotary", norm="rms"
        )
    )
    draw = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return TorchRunner(decoder, memory=64 << 10, page=16)


RUNNER, SOLO = tiny_runner(), tiny_runner()  # one thread at a time may step


class Wrapped:
    """A runner with something on the way."""

    def __init__(self, runner=RUNNER):
        self.inner = runner
        self.vocab, self.context, self.page = runner.vocab, runner.context, runner.page
        self.pages, self.page_bytes = runner.pages, runner.page_bytes

    def step(self, chunks):
        return self.inner.step(chunks)


def alone(request: EngineRequest) -> list[int]:
    """A plain loop over the runner, without an engine."""
    sampler, ids = TokenSampler(request.sampling, request.prompt, VOCAB), list(request.prompt)
    start = 0
    for _ in range(request.max_tokens):
        (logits,) = SOLO.step([Chunk(ids[start:], start, range(4), 1)])
        start = len(ids)
        ids.append(sampler.next(logits[0]).id)
        if ids[-1] in request.stops:
            break
    return ids[len(request.prompt) :]


def settle(engine: Engine) -> None:
    until = time.monotonic() + 20
    while engine._thread is not None:
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("field", ["n", "max_tokens", "logprobs", "score"])
@pytest.mark.parametrize("value", [10**9, -1, 2**63, 1.5, True, "3", None])
def test_numbers_out_of_range(field, value, steps):
    if field == "logprobs" and value is None:
        return
    engine = Engine(RUNNER)
    with (
        pytest.raises(InputError, match=rf"{field}=|max_tokens=\d+ are \d+ tokens; this model reads at most 64"),
        steps() as taken,
    ):
        engine.submit(EngineRequest(**{"prompt": [1, 2, 3], "max_tokens": 5, field: value}))
    assert taken.count < 1000


@pytest.mark.parametrize("prompt", [[], [VOCAB], [-1], [2**70], [1] * 60, [1] * 10_000_000], ids=lambda p: len(p))
def test_prompts_that_cannot_be(prompt, steps):
    engine = Engine(RUNNER)
    with pytest.raises(InputError), steps() as taken:
        engine.submit(EngineRequest(prompt=prompt, max_tokens=5))
    assert taken.count < 1000


def test_a_request_that_can_never_fit_names_both_numbers():
    runner = Wrapped()
    runner.pages = 2
    engine = Engine(runner)
    list(engine.submit(EngineRequest(prompt=[1] * 16, max_tokens=17)))
    with pytest.raises(
        InputError, match=f"needs {3 * runner.page_bytes:,} bytes .* room for {2 * runner.page_bytes:,};"
    ):
        engine.submit(EngineRequest(prompt=[1] * 16, max_tokens=18))
    with pytest.raises(InputError, match="16 prompt tokens and max_tokens=49 are 65 tokens; .* at most 64"):
        engine.submit(EngineRequest(prompt=[1] * 16, max_tokens=49))


def test_the_queue_is_bounded(steps):
    gate = threading.Event()

    class Gated(Wrapped):
        def step(self, chunks):
            gate.wait(10)
            return super().step(chunks)

    engine = Engine(Gated(), slots=2, queue=5)
    request = EngineRequest(prompt=[1, 2], max_tokens=3)
    handles = [engine.submit(EngineRequest(prompt=[3], max_tokens=3, n=2))]
    while engine.stats.running < 2:
        time.sleep(0.001)
    handles += [engine.submit(request) for _ in range(5)]
    with pytest.raises(BusyError, match="5 answers wait already, 5 may"), steps() as taken:
        engine.submit(request)
    assert taken.count < 1000
    gate.set()
    for handle in handles[1:]:
        assert [event.id for event in handle] == alone(request)


class Raises(Wrapped):
    def step(self, chunks):
        if any(POISON in chunk.ids for chunk in chunks):
            raise RuntimeError("a kernel at 0x7f00 broke")
        return super().step(chunks)


class WritesNaN(Wrapped):
    """NaN in the logits, and in the keys and values of whoever reads the token."""

    def step(self, chunks):
        found = iter(super().step(chunks))
        for chunk in chunks:
            if POISON in chunk.ids:
                self.inner._pool[:, 1, list(chunk.table)] = torch.nan
        return [next(found) * (np.nan if POISON in c.ids else 1) for c in chunks if c.wanted]


@pytest.mark.parametrize(("runner", "error"), [(Raises, GenerationError), (WritesNaN, CheckpointError)])
@pytest.mark.parametrize("place", [0, 7, 16])
def test_one_poisoned_request_fails_alone(runner, error, place):
    """Its neighbours' tokens are those of a run without it, and so are those who get its pages afterwards."""
    engine = Engine(runner(), budget=64)
    draw = random.Random(place)
    bias = {POISON: -100.0}
    requests = [
        EngineRequest(
            prompt=[draw.randrange(POISON) for _ in range(draw.randint(1, 30))],
            max_tokens=12,
            sampling=Sampling(temperature=1.0, seed=i, logit_bias=bias),
        )
        for i in range(17)
    ]
    poison = EngineRequest(prompt=[*requests[place].prompt, POISON, 1], max_tokens=12)
    handles = [engine.submit(poison if i == place else request) for i, request in enumerate(requests)]
    for i, handle in enumerate(handles):
        if i == place:
            with pytest.raises(error) as caught:
                list(handle)
            assert "0x" not in str(caught.value)
        else:
            assert [event.id for event in handle] == alone(requests[i])
    settle(engine)
    assert engine.stats.memory_used == 0
    for request in requests:
        assert [event.id for event in engine.submit(request)] == alone(request)


def test_a_broken_constraint_fails_alone():
    class Broken:
        def allowed(self):
            return np.zeros(VOCAB, dtype=bool) if self.seen else None

        def accept(self, token):
            self.seen = True

        seen = False

    class Dies(Broken):
        def accept(self, token):
            raise KeyError(token)

    engine = Engine(RUNNER)
    good = EngineRequest(prompt=[1, 2, 3], max_tokens=20)
    handles = [engine.submit(good) for _ in range(3)]
    with pytest.raises(InputError, match="no token is left"):
        list(engine.submit(EngineRequest(prompt=[1, 2, 3], max_tokens=20, constraint=Broken)))
    with pytest.raises(GenerationError, match="KeyError"):
        list(engine.submit(EngineRequest(prompt=[1, 2, 3], max_tokens=20, constraint=Dies, n=3)))
    for handle in handles:
        assert [event.id for event in handle] == alone(good)
    settle(engine)
    assert engine.stats.memory_used == 0


def test_the_engine_survives_its_own_bug(monkeypatch):
    engine = Engine(RUNNER)
    request = EngineRequest(prompt=[1, 2, 3], max_tokens=20)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "plan", lambda: 1 / 0)
        with pytest.raises(GenerationError, match="ZeroDivisionError"):
            list(engine.submit(request))
    assert [event.id for event in engine.submit(request)] == alone(request)


def test_a_thousand_requests_at_once_equal_their_solo_runs():
    """Row 34, on 21 pages that are used again and again: no token of one in another."""
    draw = random.Random(0)
    beginnings = [[draw.randrange(VOCAB) for _ in range(40)] for _ in range(4)]
    engine = Engine(RUNNER, slots=24, budget=48, queue=1000)
    asked = []
    for seed in range(1000):
        prompt = draw.choice(beginnings)[: draw.randint(0, 36)] + [draw.randrange(VOCAB) for _ in range(3)]
        sampling = Sampling(temperature=draw.choice([0.0, 0.7, 1.5]), seed=seed, top_k=draw.choice([0, 5]))
        stops = frozenset({draw.randrange(VOCAB)})
        request = EngineRequest(prompt=prompt, max_tokens=draw.randint(1, 5), sampling=sampling, stops=stops)
        asked.append((request, engine.submit(request), draw.random() < 0.1))
    for number, (_, handle, cancel) in enumerate(asked):
        if cancel and number % 2:
            handle.cancel()
    got = [
        ([next(iter(handle)).id] if cancel and not number % 2 else [event.id for event in handle])
        for number, (_, handle, cancel) in enumerate(asked)
    ]
    settle(engine)
    for (request, _, cancel), found in zip(asked, got):
        expected = alone(request)
        assert found == (expected[: len(found)] if cancel else expected)
    assert engine.stats.memory_used == 0
    assert engine.stats.reused > 1000


def test_soak():
    """Good, bad, cancelled and dropped requests leave no threads, channels or pages."""
    engine, draw = Engine(Raises(), queue=1000), random.Random(3)
    threads = threading.active_count()
    for _ in range(10):
        kept = [
            engine.submit(EngineRequest(prompt=[draw.choice([1, 2, POISON])] * draw.randint(1, 20), max_tokens=5))
            for _ in range(20)
        ]
        for handle in kept:
            if draw.random() < 0.5:
                with contextlib.suppress(QkvError):
                    list(handle)
        del kept, handle
        settle(engine)
    gc.collect()
    assert threading.active_count() == threads
    assert not engine._channels
    assert engine.stats.memory_used == 0


SCRIPT = """
import sys, time, signal, os, threading
sys.path.insert(0, {tests!r})
from qkv.engine.engine import Engine
from qkv.engine.sequence import EngineRequest
import numpy as np
class Runner:
    vocab, context, page, pages, page_bytes = 9, 100_000, 16, 7000, 1
    def step(self, chunks):
        time.sleep(0.01)
        return [np.eye(9, dtype=np.float32)[:1].repeat(c.wanted, 0) for c in chunks if c.wanted]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite runs in a shell's background
engine = Engine(Runner())
handle = engine.submit(EngineRequest(prompt=[1], max_tokens=90_000))
if sys.argv[1] == "exit":
    next(iter(handle)); kept = engine.submit(EngineRequest(prompt=[1], max_tokens=90_000)); time.sleep(0.05)
else:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    found = 0
    try:
        for event in handle:
            found += 1
    except KeyboardInterrupt:
        while engine._thread is not None:
            time.sleep(0.001)
        print("stopped", found > 0)
        print(len(list(engine.submit(EngineRequest(prompt=[1], max_tokens=3)))))
"""


@pytest.mark.parametrize(("how", "said"), [("exit", ""), ("interrupt", "stopped True\n3\n")])
def test_exit_and_interrupt(how, said):
    """The interpreter ends while requests run; Ctrl-C stops one, and the engine goes on."""
    command = [sys.executable, "-c", SCRIPT.format(tests=os.getcwd()), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)  # all that was asked for would take 900
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_fork_says_what_is_wrong():
    engine = Engine(RUNNER)

    def child(pipe):
        engine.close()
        try:
            engine.submit(EngineRequest(prompt=[1], max_tokens=2))
        except InputError as error:
            pipe.send(str(error))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.poll(10)
    assert "make one after forking" in here.recv()
    process.join(10)
    assert process.exitcode == 0


def test_the_engine_needs_no_torch():
    """So that a chat on compiled kernels starts without it."""
    code = "import sys, qkv.engine.engine; print([m for m in ('torch', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
