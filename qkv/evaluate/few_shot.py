"""`qkv eval few-shot`: what a language model learns from examples in its prompt, and from nothing else.

The way, after GPT-3 (2005.14165, section 2 and figure 1.2): labelled lines -> shots, as many of each label as of any
other -> "Subject: ...\\nLabel:" -> the log-probability of each label's tokens -> the likeliest label. All items of a
draw stand behind the same shots, so that these go through the model once (engine/cache.py); GPT-3 drew new ones for
each item. Contextual calibration (2102.09690, section 4) divides by what the model says of lines without content.
Beside the curve stand chance and a TF-IDF with logistic regression, which sees the same shots, or all other lines.
A flat curve is a finding. Left out: a search for better words, and a division by the labels' lengths.
"""

import importlib.util
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from qkv.atomic import replacing
from qkv.data import spam_subjects
from qkv.data.spam import Labelled
from qkv.engine.engine import Engine
from qkv.engine.sequence import MAX_TOP, EngineRequest, Event
from qkv.errors import InputError, MissingDependencyError, shorten
from qkv.loaded.language import Language
from qkv.progress import Bar
from qkv.sample.tokens import whole
from qkv.train.classify import labelled
from qkv.weights.configs import write_json
from qkv.writing.shots import MAX_SHOTS

SHOTS = (0, 1, 4, 16)
DRAWS = 5
ITEMS = 200
LONGEST = 32  # tokens of a line
EMPTY = ("N/A", "[MASK]", "")  # lines without content (2102.09690, section 4)
AHEAD = 64  # requests that wait in the engine, so that it always has a full step
CURVES = {"raw": "as it is", "calibrated": "calibrated", "tfidf": "TF-IDF, same shots"}

Floats = npt.NDArray[np.float64]


class Question(NamedTuple):
    """A prompt for all labels: the tokens that they share, and what each label has of its own."""

    shared: list[int]
    rests: list[list[int]]


class FewShotTask(NamedTuple):
    """Lines of each label, to measure on and to show; `name` is what a line is called in the prompt."""

    name: str
    items: list[Labelled]
    pool: dict[str, list[str]]

    @property
    def labels(self) -> list[str]:
        return list(self.pool)

    def prompt(self, shots: Sequence[Labelled], text: str) -> str:
        """Up to where the label comes."""
        shown = "".join(f"{self.name}: {shot.text}\nLabel: {shot.label}\n\n" for shot in shots)
        return f"{shown}{self.name}: {text}\nLabel:"


def run(
    language: Language,
    output: Path,
    *,
    data: str | Path = "spam",
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    items: int = ITEMS,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures, draws the curve into `output` (.png) and writes the figures beside it (.json); they are returned too.

    `data` is "spam", the subject lines of mails, or a file of JSON lines with "text" and "label". Of its lines `items`
    are measured on, at each number of `shots`, with `draws` choices of shots. Raises InputError,
    MissingDependencyError, OutputError, and what fetching the mails raises.
    """
    if output.suffix != ".png":
        raise InputError(f"cannot draw into {shorten(str(output))!r}; end the name in .png")
    for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError.needs(package, "train")
    for number in shots:
        whole("shots", number, 0, MAX_SHOTS)
    whole("draws", draws, 1, 1000)
    whole("items", items, 1, 1_000_000)
    if not shots:
        raise InputError("shots is empty; say how many, such as 0,1,4,16")
    counts = sorted(set(shots))
    task = make_task(language, data, items, counts[-1], seed)
    with replacing(output) as file:  # opened first, so that an unwritable folder costs nothing
        result = {"data": str(data)} | measure(language, task, counts, draws, seed, progress=progress)
        plot(result, file)
    write_json(output.with_suffix(".json"), result)
    return result


def make_task(language: Language, data: str | Path, items: int, most: int, seed: int) -> FewShotTask:
    """Balanced items, and the other lines to draw at most `most` shots from. Raises InputError."""
    rows = spam_subjects.load() if data == "spam" else labelled(str(data))
    lines: dict[str, str] = {}  # each text once, so that no item can be among the shots
    for row in rows:
        if text := trim(language, row.text):
            lines.setdefault(text, row.label.strip())
    labels = sorted(set(lines.values()))
    if len(labels) < 2:
        raise InputError(f"{data} has {len(labels)} label; give texts with two or more")
    chance, held, pool = random.Random(f"{seed} items"), list[Labelled](), dict[str, list[str]]()
    for place, label in enumerate(labels):
        texts = [text for text, other in lines.items() if other == label]
        wanted = share(items, place, len(labels))
        need = wanted + -(-max(most, 1) // len(labels))  # one at least is left for the baseline
        if len(texts) < need:
            raise InputError(
                f"{data} has {len(texts)} texts labelled {shorten(label)!r}; {items} items and {most} shots need "
                f"{need}: lower them, or give more texts"
            )
        chance.shuffle(texts)
        held += [Labelled(text, label) for text in texts[:wanted]]
        pool[label] = texts[wanted:]
    return FewShotTask("Subject" if data == "spam" else "Text", held, pool)


def trim(language: Language, text: str) -> str:
    """The first 32 tokens of a text, on one line."""
    flat = " ".join(text.split())
    ids = language.tokenizer.encode(flat)
    return flat if len(ids) <= LONGEST else language.tokenizer.decode(ids[:LONGEST]).rstrip("\ufffd").strip()


def share(count: int, place: int, parts: int) -> int:
    """How many of `count` fall to one of `parts`: the first ones get what is left over."""
    return count // parts + (place < count % parts)


def draw_shots(pool: Mapping[str, Sequence[str]], shots: int, draw: int, seed: int) -> list[Labelled]:
    """As many of each label, in an order of chance; what is left over goes to another label in each draw."""
    chance = random.Random(f"{seed} {shots} shots, draw {draw}")
    chosen = [
        Labelled(text, label)
        for number, (label, texts) in enumerate(pool.items())
        for text in chance.sample(texts, share(shots, (number + draw) % len(pool), len(pool)))
    ]
    chance.shuffle(chosen)
    return chosen


def measure(
    language: Language, task: FewShotTask, counts: Sequence[int], draws: int, seed: int, *, progress: bool
) -> dict[str, Any]:
    """The shares of items that are answered rightly, as plain values. Raises InputError if a prompt is too long."""
    plan = {n: [draw_shots(task.pool, n, draw, seed) for draw in range(draws if n else 1)] for n in counts}
    _check(language, task, max(plan[max(counts)], key=lambda shown: sum(len(shot.text) for shot in shown)))
    known = [Labelled(text, label) for label, texts in task.pool.items() for text in texts]
    chance = 1 / len(task.labels)
    total = sum(map(len, plan.values())) * (len(task.items) + len(EMPTY))
    with Bar("reading", total, shown=progress) as bar:
        points = []
        for number, group in plan.items():
            rows = [_examine(language, task, shown, bar.advance) for shown in group]
            points.append({"shots": number} | {name: _mean([row[name] for row in rows]) for name in CURVES})
    return {
        "model": language.name,
        "labels": task.labels,
        "items": len(task.items),
        "draws": draws,
        "seed": seed,
        "chance": chance,
        "noise": (chance * (1 - chance) / len(task.items)) ** 0.5,
        "points": points,
        "tfidf": {"examples": len(known), "value": _right_of_words(known, task)},
    }


def _check(language: Language, task: FewShotTask, shown: Sequence[Labelled]) -> None:
    """InputError if the longest item does not fit behind these shots, or labels cannot be told apart."""
    longest = max((item.text for item in task.items), key=lambda text: len(language.tokenizer.encode(text)))
    question = ask(language, task.prompt(shown, longest), task.labels)
    if not all(question.rests):
        raise InputError(f"labels {shorten(str(task.labels))}: one is how another begins; rename one")
    need = len(question.shared) + max(map(len, question.rests)) + 1  # the engine writes a token more
    if need > language.context:
        raise InputError(
            f"{len(shown)} shots make prompts of {need} tokens; {language.name} reads at most {language.context}: "
            "show fewer"
        )


def _examine(
    language: Language, task: FewShotTask, shown: Sequence[Labelled], tick: Callable[[], None]
) -> dict[str, float]:
    """The share of items that are right behind these shots, for each of `CURVES`."""
    texts = [*(item.text for item in task.items), *EMPTY]
    rows = []
    for row in logprobs(language.engine, [ask(language, task.prompt(shown, text), task.labels) for text in texts]):
        rows.append(row)
        tick()
    said, empty = np.split(np.stack(rows), [len(task.items)])
    truth = np.array([task.labels.index(item.label) for item in task.items])
    right = {"raw": said, "calibrated": calibrate(said, empty)}
    words = _right_of_words(shown, task) if shown else 1 / len(task.labels)
    return {name: float((scores.argmax(-1) == truth).mean()) for name, scores in right.items()} | {"tfidf": words}


def ask(language: Language, prompt: str, labels: Sequence[str]) -> Question:
    """Each label is read together with the prompt, since tokens may reach over the seam."""
    read = [language.read(f"{prompt} {label}") for label in labels]
    shared = len(list(takewhile(lambda ids: len(set(ids)) == 1, zip(*read))))
    return Question(read[0][:shared], [ids[shared:] for ids in read])


def logprobs(engine: Engine | Language, questions: Sequence[Question]) -> Iterator[Floats]:
    """The log-probability of each label (L,), a question after the other.

    A label of one token among the likeliest is read off where the prompt ends, one reading for all labels; what else
    there is costs a reading each. Both ways give the same bits.
    """
    first = (EngineRequest(prompt=question.shared, max_tokens=1, logprobs=MAX_TOP) for question in questions)
    for question, [event] in zip(questions, _answers(engine, first)):
        known = dict(event.top)
        found = [known.get(rest[0]) if len(rest) == 1 else None for rest in question.rests]
        left = [rest for rest, value in zip(question.rests, found) if value is None]
        more = (
            EngineRequest(prompt=[*question.shared, *rest], max_tokens=1, logprobs=0, score=len(rest)) for rest in left
        )
        sums = (
            sum(event.logprob or 0.0 for event in events[:-1])  # the last one is written, not scored
            for events in _answers(engine, more)
        )
        yield np.array([next(sums) if value is None else value for value in found])


def _answers(engine: Engine | Language, requests: Iterable[EngineRequest]) -> Iterator[list[Event]]:
    """The events of each request, in their order; the next ones are on their way meanwhile."""
    waiting = deque[Any]()
    for request in requests:
        waiting.append(engine.submit(request))
        if len(waiting) == AHEAD:
            yield list(waiting.popleft())
    while waiting:
        yield list(waiting.popleft())


def calibrate(scores: Floats, empty: Floats) -> Floats:
    """log of q = p / p_cf (2102.09690, equation 1 with W = diag(p_cf)^-1, b = 0); scores (N, L), empty (M, L).

    p are the labels' shares among themselves, p_cf their mean over the lines without content. Normalising q again
    changes no order, so it is left out.
    """
    shares = np.exp(empty - np.logaddexp.reduce(empty, axis=-1, keepdims=True))
    return scores - np.log(shares.mean(axis=0))


def _right_of_words(known: Sequence[Labelled], task: FewShotTask) -> float:
    """The share that is right by words, pairs of words and signs. With one label the baseline can only say that one."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(seen := {row.label for row in known}) == 1:
        return sum(item.label in seen for item in task.items) / len(task.items)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]")
    model = make_pipeline(words, LogisticRegression(C=100, max_iter=1000, class_weight="balanced"))
    model.fit([row.text for row in known], [row.label for row in known])
    said = model.predict([item.text for item in task.items])
    return float(np.mean([guess == item.label for guess, item in zip(said, task.items)]))


def _mean(shares: Sequence[float]) -> dict[str, Any]:
    """With the standard deviation over the draws, which one draw does not have."""
    spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
    return {"value": float(np.mean(shares)), "spread": spread, "draws": list(shares)}


def table(result: Mapping[str, Any]) -> str:
    """The figures for people: shares in percent, with their standard deviation over the draws."""
    lines = [f"{result['model']}: right of {result['items']} held-out lines, {result['draws']} draws of shots"]
    lines.append(f"{'shots':>6}" + "".join(f"{title:>20}" for title in CURVES.values()))
    for point in result["points"]:
        lines.append(f"{point['shots']:>6}" + "".join(f"{_percent(point[name]):>20}" for name in CURVES))
    lines.append(
        f"chance {result['chance']:.1%}, ± {result['noise']:.1%} by {result['items']} items alone; TF-IDF of all "
        f"{result['tfidf']['examples']:,} other lines {result['tfidf']['value']:.1%}"
    )
    return "\n".join(lines)


def _percent(score: Mapping[str, Any]) -> str:
    spread = "" if score["spread"] is None else f" ± {100 * score['spread']:.1f}"
    return f"{100 * score['value']:.1f}{spread} %"


def plot(result: Mapping[str, Any], file: BinaryIO) -> None:
    """The curve as a PNG picture: bars are standard deviations over the draws, the grey band is chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    panel = figure.add_subplot()
    places = np.arange(len(result["points"]))  # 0 shots have no place on an axis of powers
    for shift, (name, title) in enumerate(CURVES.items(), -1):
        scores = [point[name] for point in result["points"]]
        bars = [100 * (score["spread"] or 0.0) for score in scores]
        heights, label = [100 * score["value"] for score in scores], title if name == "tfidf" else f"the model, {title}"
        panel.errorbar(places + 0.04 * shift, heights, bars, label=label, marker="o", capsize=3)
    chance, noise = 100 * result["chance"], 200 * result["noise"]
    panel.axhspan(chance - noise, chance + noise, color="grey", alpha=0.2, label="chance, ± 2 standard errors")
    baseline = result["tfidf"]
    panel.axhline(100 * baseline["value"], linestyle="--", color="black", linewidth=1)
    panel.text(0, 100 * baseline["value"] + 0.8, f"TF-IDF of all {baseline['examples']:,} other lines", fontsize=9)
    panel.set_xticks(places, [str(point["shots"]) for point in result["points"]])
    panel.set(
        title=result["model"],
        xlabel=f"shots (bars: standard deviation over {result['draws']} draws)",
        ylabel=f"right of {result['items']} held-out lines, %",
        ylim=(max(0.0, chance - 20), 102),
    )
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(file, format="png", dpi=110)
