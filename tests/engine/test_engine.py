"""The engine on a runner of paper: every request gets what a plain loop would have drawn."""

import asyncio
import gc
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.engine.engine import Engine
from qkv.engine.sequence import EngineRequest
from qkv.errors import BusyError, InputError
from qkv.sample.tokens import Sampling

pytestmark = pytest.mark.processor

ABC = list(range(1, 13))


def ids(handle, answer=0):
    return [event.id for event in handle if event.answer == answer]


def settle(engine):
    """Waits until nothing runs."""
    until = time.monotonic() + 10
    while engine._thread is not None:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_one_request(paper):
    runner = paper()
    events = list(Engine(runner).submit(EngineRequest(prompt=ABC, max_tokens=9)))
    assert [event.id for event in events] == runner.alone(ABC, 9, Sampling())
    assert [event.finish for event in events] == [None] * 8 + ["length"]


def test_a_stop_token_ends_an_answer_and_is_reported(paper):
    runner = paper()
    whole = runner.alone(ABC, 20, Sampling())
    stop = whole[7]
    events = list(Engine(runner).submit(EngineRequest(prompt=ABC, max_tokens=20, stops=frozenset({stop}))))
    assert [event.id for event in events] == whole[: whole.index(stop) + 1]
    assert events[-1].finish == "stop"


def test_n_answers_share_the_prompt_and_differ_by_seed(paper):
    runner = paper(page=4)
    engine = Engine(runner)
    sampling = Sampling(temperature=1.5, seed=5)
    events = list(engine.submit(EngineRequest(prompt=ABC, max_tokens=7, sampling=sampling, n=4)))
    for i in range(4):
        alone = runner.alone(ABC, 7, Sampling(temperature=1.5, seed=5 + i))
        assert [event.id for event in events if event.answer == i] == alone
    assert engine.stats.reused == 3 * 8, "two of three pages; the third has the last token"


def test_prefixes_are_reused_after_the_first_is_done(paper):
    runner = paper()
    engine = Engine(runner)
    first = ids(engine.submit(EngineRequest(prompt=ABC, max_tokens=6)))
    settle(engine)
    longer = ABC + first + [3]
    assert ids(engine.submit(EngineRequest(prompt=longer, max_tokens=3))) == runner.alone(longer, 3, Sampling())
    assert engine.stats.reused == 16, "answers are prefixes too: 17 of 18 tokens have keys, 16 of them in full pages"
    assert engine.stats.memory_used == 0


def test_who_would_compute_the_same_page_waits_for_it(paper):
    runner = paper(context=200, pages=100)
    engine = Engine(runner, budget=16)
    prompt = [random.Random(0).randrange(23) for _ in range(61)]
    handles = [engine.submit(EngineRequest(prompt=[*prompt, i], max_tokens=3)) for i in range(5)]
    for i, handle in enumerate(handles):
        assert ids(handle) == runner.alone([*prompt, i], 3, Sampling())
    assert sum(len(chunk.ids) for step in runner.steps for chunk in step) <= 60 + 5 * (2 + 2) + 12  # and guesses


def test_scored_tokens_are_reported_first(paper):
    runner = paper()
    engine = Engine(runner, budget=4)
    for score in (1, 5, len(ABC) - 1):
        events = list(engine.submit(EngineRequest(prompt=ABC, max_tokens=2, score=score, logprobs=2, n=2)))
        events = [event for event in events if event.answer == 0]
        assert [event.id for event in events] == ABC[-score:] + runner.alone(ABC, 2, Sampling())
        for i, event in enumerate(events):
            row = runner.row((ABC + runner.alone(ABC, 2, Sampling()))[: len(ABC) - score + i]).astype(float)
            chances = row - np.log(np.exp(row).sum())
            assert event.logprob == pytest.approx(chances[event.id], abs=1e-5)
            assert [token for token, _ in event.top] == list(np.argsort(-chances)[:2])


def test_a_long_prompt_delays_the_others_by_chunks_only(paper):
    """Rows a step stay near the budget, writers get a token in every step, readers take turns."""
    gate = threading.Event()

    class Gated(paper):
        def step(self, chunks):
            gate.wait(10)
            return super().step(chunks)

    runner = Gated(context=500, pages=600)
    engine = Engine(runner, budget=16)
    draw = random.Random(1)
    prompts = [[draw.randrange(23) for _ in range(length)] for length in (6, 300, 300, 20)]
    handles = [engine.submit(EngineRequest(prompt=prompt, max_tokens=40, guess=False)) for prompt in prompts]
    gate.set()
    for handle, prompt in zip(handles, prompts):
        assert ids(handle) == runner.alone(prompt, 40, Sampling())
    assert max(sum(len(chunk.ids) for chunk in step) for step in runner.steps) <= 20
    by_prompt = [[], [], [], []]
    for number, step in enumerate(runner.steps):
        for chunk in step:
            if chunk.start == 0:
                (which,) = (i for i, prompt in enumerate(prompts) if prompt[:6] == chunk.ids[:6])
            else:
                (which,) = (
                    i for i, chunks in enumerate(by_prompt) if chunks and chunks[-1][1].table[0] == chunk.table[0]
                )
            by_prompt[which].append((number, chunk))
    for chunks, prompt in zip(by_prompt, prompts):
        writing = [number for number, chunk in chunks if chunk.start >= len(prompt)]
        assert writing == list(range(writing[0], writing[0] + 39)), "a token in every step"
    ready = [next(number for number, chunk in chunks if chunk.wanted) for chunks in by_prompt]
    assert ready[3] < 10, "the short one does not wait for the long ones"


def test_admission_waits_for_memory_in_order(paper):
    runner = paper(pages=6, page=4)  # two of the requests at a time
    engine = Engine(runner)
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    handles = [engine.submit(EngineRequest(prompt=prompt, max_tokens=9)) for prompt in prompts]
    order = []
    threads = []
    for number, (handle, prompt) in enumerate(zip(handles, prompts)):

        def wait(number=number, handle=handle, prompt=prompt):
            assert ids(handle) == runner.alone(prompt, 9, Sampling())
            order.append(number)

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
    for thread in threads:
        thread.join(10)
    assert sorted(order) == list(range(8))
    assert max(len(step) for step in runner.steps) <= 2
    starts = [chunk.ids[0] for step in runner.steps for chunk in step if chunk.start == 0]
    assert starts == sorted(starts), "first come, first served"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_mix_equals_the_plain_loop(paper, data):
    """Random pools, budgets, prompts that share beginnings, seeds, stops, cancels, with and without guesses."""
    draw = data.draw
    runner = paper(pages=draw(st.integers(12, 40)), page=draw(st.sampled_from([1, 2, 4, 8])), order=2, vocab=7)
    with Engine(runner, slots=draw(st.integers(1, 6)), budget=draw(st.integers(1, 40))) as engine:
        asked = []
        for _ in range(draw(st.integers(1, 12))):
            prompt = [1, 2, 3, 4, 5] * 2
            prompt = prompt[: draw(st.integers(0, 10))] + draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
            temperature = draw(st.sampled_from([0.0, 0.5]))
            most = min(40, runner.pages * runner.page - 14)
            if most < 1:
                continue
            request = EngineRequest(
                prompt=prompt,
                max_tokens=draw(st.integers(1, most)),
                sampling=Sampling(temperature=temperature, seed=draw(st.integers(0, 9)), presence_penalty=0.3),
                stops=frozenset(draw(st.sets(st.integers(0, 6), max_size=1))),
                guess=draw(st.booleans()),
            )
            try:
                asked.append((request, engine.submit(request), draw(st.none() | st.integers(1, 6))))
            except InputError:
                assert len(prompt) + request.max_tokens - 1 > runner.pages * runner.page
        for request, handle, leave in asked:
            alone = runner.alone(request.prompt, request.max_tokens, request.sampling, request.stops)
            found = []
            for event in handle:
                found.append(event.id)
                if len(found) == leave:
                    break
            assert found == alone[:leave]
        settle(engine)
        assert engine.stats.memory_used == 0
        assert engine.stats.running == engine.stats.waiting == 0


def test_guesses_change_no_token_and_save_steps(paper):
    steps = {}
    for guess in (True, False):
        runner = paper(order=1, vocab=5, context=300, pages=300)
        engine = Engine(runner)
        for sampling in (Sampling(), Sampling(temperature=0.3, seed=1), Sampling(repetition_penalty=1.05)):
            request = EngineRequest(prompt=[1, 2], max_tokens=100, sampling=sampling, guess=guess)
            assert ids(engine.submit(request)) == runner.alone([1, 2], 100, sampling)
        steps[guess] = len(runner.steps)
    assert steps[True] < 0.6 * steps[False]


def test_cancelling_frees_the_pages_within_a_step(paper):
    class Slow(paper):
        def step(self, chunks):
            time.sleep(0.01)
            return super().step(chunks)

    runner = Slow(context=2000, pages=600)
    engine = Engine(runner)
    handle = engine.submit(EngineRequest(prompt=ABC, max_tokens=1500))
    for number, _ in enumerate(handle):
        if number == 3:
            break
    steps = len(runner.steps)
    settle(engine)
    assert len(runner.steps) - steps <= 2
    assert engine.stats.memory_used == 0


def test_one_answer_of_two_is_cancelled(paper):
    class Slow(paper):
        def step(self, chunks):
            time.sleep(0.01)
            return super().step(chunks)

    runner = Slow()
    handle = Engine(runner).submit(
        EngineRequest(prompt=ABC, max_tokens=40, n=2, sampling=Sampling(temperature=1.0, seed=0))
    )
    events = []
    for event in handle:
        events.append(event)
        if len(events) == 4:
            handle.cancel(0)
    assert len([event for event in events if event.answer == 0]) < 40
    assert [event.id for event in events if event.answer == 1] == runner.alone(ABC, 40, Sampling(temperature=1, seed=1))


def test_a_dropped_handle_is_a_cancelled_one(paper):
    runner = paper(context=100_000, pages=30_000)
    engine = Engine(runner)
    engine.submit(EngineRequest(prompt=ABC, max_tokens=90_000))
    gc.collect()
    settle(engine)
    assert engine.stats.tokens < 1000


def test_async(paper):
    runner = paper(pages=300)
    engine = Engine(runner)

    async def one(seed):
        sampling = Sampling(temperature=1.0, seed=seed)
        request = EngineRequest(prompt=ABC, max_tokens=20, sampling=sampling)
        found = [event.id async for event in engine.submit(request)]
        assert found == runner.alone(ABC, 20, sampling)

    async def cut():
        async def run():
            async for _ in engine.submit(EngineRequest(prompt=ABC[::-1], max_tokens=80)):
                await asyncio.sleep(0.01)

        task = asyncio.create_task(run())
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main():
        await asyncio.gather(cut(), *(one(seed) for seed in range(20)))

    asyncio.run(main())
    settle(engine)
    assert engine.stats.memory_used == 0


def test_async_in_a_loop_that_dies(paper):
    """Nobody waits for what still comes; the engine goes on."""
    runner = paper(context=400, pages=200)
    engine = Engine(runner)
    kept = []

    async def start():
        kept.append(engine.submit(EngineRequest(prompt=ABC, max_tokens=300)))
        await anext(aiter(kept[0]))

    asyncio.run(start())
    assert ids(engine.submit(EngineRequest(prompt=ABC, max_tokens=5))) == runner.alone(ABC, 5, Sampling())


def test_many_threads_at_once(paper):
    runner = paper(pages=40)
    engine, failed = Engine(runner, queue=1000), []

    def work(number):
        draw = random.Random(number)
        for _ in range(5):
            prompt = [draw.randrange(4) for _ in range(draw.randint(1, 12))]
            sampling = Sampling(temperature=1.0, seed=draw.randrange(9))
            if ids(engine.submit(EngineRequest(prompt=prompt, max_tokens=6, sampling=sampling))) != runner.alone(
                prompt, 6, sampling
            ):
                failed.append(prompt)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed
    settle(engine)
    assert engine.stats.memory_used == 0


def test_an_idle_engine_has_no_thread(paper):
    before = threading.active_count()
    engine = Engine(paper())
    assert threading.active_count() == before
    list(engine.submit(EngineRequest(prompt=ABC, max_tokens=3)))
    settle(engine)
    assert threading.active_count() == before


def test_close_lets_finish_or_cuts(paper):
    class Slow(paper):
        def step(self, chunks):
            time.sleep(0.002)
            return super().step(chunks)

    runner = Slow(context=2000, pages=600)
    engine = Engine(runner)
    short = engine.submit(EngineRequest(prompt=ABC, max_tokens=5))
    long = engine.submit(EngineRequest(prompt=[3, *ABC], max_tokens=1500))
    engine.close(grace=0.1)
    assert ids(short) == runner.alone(ABC, 5, Sampling())
    found = ids(long)
    assert 5 < len(found) < 1000
    assert found == runner.alone([3, *ABC], len(found), Sampling())
    assert engine.stats.memory_used == 0
    with pytest.raises(BusyError, match="closed"):
        engine.submit(EngineRequest(prompt=ABC, max_tokens=5))


def test_stats(paper):
    class Slow(paper):
        def step(self, chunks):
            time.sleep(0.005)
            return super().step(chunks)

    engine = Engine(Slow(context=500, pages=100, page=4))
    handle = engine.submit(EngineRequest(prompt=ABC, max_tokens=300, guess=False))
    waiting = iter(handle)
    for _ in range(20):
        next(waiting)
    stats = engine.stats
    assert stats.running == 1
    assert stats.memory == 100 * 1000
    assert 8000 <= stats.memory_used <= 12_000
    assert 1 < stats.tokens_per_second <= 250
    waiting.close()
    settle(engine)
    assert engine.stats.tokens_per_second == 0
