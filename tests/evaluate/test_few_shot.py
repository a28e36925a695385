"""`qkv eval few-shot` on models of paper: one that knows the answers, one that guesses, one that leans to one side."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.cli import main
from qkv.data.spam import Labelled
from qkv.errors import InputError, MissingDependencyError, NotFoundError, OutputError
from qkv.evaluate import few_shot
from qkv.evaluate.few_shot import Question, calibrate, draw_shots, logprobs, make_task, table, trim
from qkv.loaded.language import Language
from qkv.sample.tokens import log_softmax

Make = Callable[..., Language]

LABELS = ("good", "bad")
ROWS = [Labelled(f"{'sun' if n % 2 else 'rain'} {n:03}", LABELS[1 - n % 2]) for n in range(80)]
ANSWERS = {f"Text: {row.text}\nLabel:": f" {row.label}" for row in ROWS}


def write(path: Path, rows: list[Labelled]) -> Path:
    path.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "weather.jsonl", ROWS)


def shares(result: dict, name: str) -> list[float]:
    return [point[name]["value"] for point in result["points"]]


def test_who_knows_the_answers_is_always_right(scripted: Make, data: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    result = few_shot.run(scripted(ANSWERS), picture, data=data, shots=(2, 0, 1, 2), draws=2, items=10, progress=False)
    assert [point["shots"] for point in result["points"]] == [0, 1, 2]
    assert shares(result, "raw") == shares(result, "calibrated") == [1, 1, 1]
    assert [len(point["raw"]["draws"]) for point in result["points"]] == [1, 2, 2]  # no shots, nothing to draw
    assert result["points"][0]["raw"]["spread"] is None
    assert shares(result, "tfidf")[:2] == [0.5, 0.5]  # of nothing, and of one label, a word count learns nothing
    assert result["tfidf"] == {"examples": 70, "value": 1}
    assert json.loads(picture.with_suffix(".json").read_text()) == result
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "100.0 ± 0.0 %" in table(result)


def test_who_guesses_is_at_chance(scripted: Make, data: Path, tmp_path: Path) -> None:
    result = few_shot.run(scripted({}), tmp_path / "a.png", data=data, shots=(0, 1), draws=4, items=30, progress=False)
    guesses = [share for point in result["points"] for share in point["raw"]["draws"]]
    assert abs(np.mean(guesses) - 0.5) < 4 * result["noise"] / len(guesses) ** 0.5
    assert result["points"][1]["raw"]["spread"] == pytest.approx(np.std(guesses[1:], ddof=1))
    assert 0 < result["points"][1]["raw"]["spread"] < 4 * result["noise"]
    assert result["noise"] == pytest.approx((0.25 / 30) ** 0.5)


def test_seeds_reproduce(scripted: Make, data: Path, tmp_path: Path) -> None:
    def run(seed: int) -> dict:
        options = {"data": data, "shots": (0, 2), "draws": 1, "items": 12, "seed": seed, "progress": False}
        return few_shot.run(scripted({}), tmp_path / "a.png", **options)

    assert run(1) == run(1)
    assert run(1)["points"] != run(2)["points"]


def test_the_shots_of_a_draw_are_read_once(scripted: Make, data: Path, tmp_path: Path) -> None:
    language = scripted({})
    few_shot.run(language, tmp_path / "a.png", data=data, shots=(6,), draws=1, items=20, progress=False)
    shown = len(language.read(few_shot.FewShotTask("Text", [], {}).prompt(ROWS[:6], "")))
    assert shown > 100
    assert language.engine.stats.reused > 0.9 * 20 * shown


@given(shots=st.integers(0, 20), draw=st.integers(0, 9), labels=st.integers(2, 5), seed=st.integers(0, 5))
def test_shots_are_balanced(shots: int, draw: int, labels: int, seed: int) -> None:
    pool = {f"label {i}": [f"text {i} {n}" for n in range(12)] for i in range(labels)}
    found = draw_shots(pool, shots, draw, seed)
    assert found == draw_shots(pool, shots, draw, seed)
    counts = Counter(dict.fromkeys(pool, 0)) + Counter(row.label for row in found)
    assert len(set(found)) == len(found) == shots
    assert all(row.text in pool[row.label] for row in found)
    assert max(counts.values(), default=0) - min((counts[label] for label in pool), default=0) <= 1


def test_a_single_shot_is_of_another_label_in_each_draw() -> None:
    pool = {"a": ["x", "y"], "b": ["z"]}
    assert [draw_shots(pool, 1, draw, 0)[0].label for draw in range(4)] == ["a", "b", "a", "b"]


def test_items_are_balanced_and_never_among_the_shots(scripted: Make, tmp_path: Path) -> None:
    twice = [*ROWS, *ROWS, *(Labelled(f"  {row.text} ", row.label) for row in ROWS)]
    task = make_task(scripted({}), write(tmp_path / "twice.jsonl", twice), 31, 8, 0)
    assert Counter(item.label for item in task.items) == {"bad": 16, "good": 15}
    shown = {text for texts in task.pool.values() for text in texts}
    assert not shown & {item.text for item in task.items}
    assert len(shown) == 80 - 31
    assert set(map(tuple, task.items)) <= {(row.text, row.label) for row in ROWS}


def test_lines_are_cut_after_32_tokens(scripted: Make) -> None:
    language = scripted({})
    assert trim(language, " one\n line ") == "one line"
    cut = trim(language, "z" * 31 + "é" + "z" * 40)  # a byte a token: the é is halved
    assert cut == "z" * 31


def test_logprobs_are_the_models_own(scripted: Make) -> None:
    """Of labels among the likeliest tokens, of labels that are not, and of labels of many tokens."""
    language = scripted({})
    shared, runner = [5, 6, 7, 8, 9, 10], language.engine.runner
    order = np.argsort(runner.row(shared))
    rests = [[int(order[-1])], [int(order[0])], [int(order[20])], [3, 4, 5]]
    expected = []
    for rest in rests:
        read, total = list(shared), 0.0
        for token in rest:
            total += log_softmax(runner.row(read))[token]
            read.append(token)
        expected.append(total)
    [found, again] = logprobs(language.engine, [Question(shared, rests)] * 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(found, again)


def test_labels_are_told_apart_where_their_tokens_differ(scripted: Make) -> None:
    question = few_shot.ask(scripted({}), "Label:", ["bad", "bag"])
    assert [len(rest) for rest in question.rests] == [1, 1]


def test_calibration_takes_away_what_leans_to_one_side() -> None:
    """Two labels, of which the model always takes the second to be e^3 times likelier than it says of nothing."""
    chance = np.random.default_rng(0)
    truth = chance.integers(0, 2, 50)
    scores = chance.normal(0, 0.1, (50, 2)) + np.eye(2)[truth] + [0, 3]
    assert (scores.argmax(1) == 1).all()
    calibrated = calibrate(scores - 7, np.array([[-9.0, -6.0], [-2.0, 1.0]]))
    np.testing.assert_array_equal(calibrated.argmax(1), truth)
    # Equation 1 with W = diag(p_cf)^-1, letter by letter.
    p, p_cf = np.exp(scores) / np.exp(scores).sum(1, keepdims=True), np.array([1, np.e**3]) / (1 + np.e**3)
    q = p @ np.linalg.inv(np.diag(p_cf))
    ours = np.exp(calibrated)
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), q / q.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 90}, "40 texts labelled 'bad'; 90 items and 16 shots need 53"),
        ({"items": 80, "shots": (0,)}, "80 items and 0 shots need 41"),
        ({"shots": (70,)}, "40 texts labelled 'bad'; 20 items and 70 shots need 45"),
        ({"shots": (30,)}, "reads at most 300: show fewer"),
        ({"shots": ()}, "shots is empty"),
        ({"shots": (-1,)}, "shots=-1"),
        ({"draws": 0}, "draws=0"),
        ({"items": 0}, "items=0"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    options: dict, message: str, scripted: Make, data: Path, tmp_path: Path
) -> None:
    language = scripted(ANSWERS)
    with pytest.raises(InputError, match=message):
        few_shot.run(language, tmp_path / "a.png", **{"data": data, "items": 20, "progress": False} | options)
    assert language.engine.stats.steps == 0
    assert not list(tmp_path.glob("*.p*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": "b"}\n\n{"text": "a"}', "line 3"),
        ('{"text": "a", "label": "b"}\nnonsense', "line 2: it is not JSON"),
        ('{"text": "a", "label": "b"}', "has 1 label"),
        ('{"text": "a", "label": "b"}\n{"text": "a", "label": "c"}', "has 1 label"),  # the first says what it is
        ("", "empty"),
    ],
)
def test_bad_files(content: str, message: str, scripted: Make, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        few_shot.run(scripted({}), tmp_path / "a.png", data=path, progress=False)
    with pytest.raises(InputError, match="cannot read"):
        few_shot.run(scripted({}), tmp_path / "a.png", data=tmp_path / "none.jsonl", progress=False)


def test_labels_that_begin_alike(scripted: Make, tmp_path: Path) -> None:
    rows = [Labelled(row.text, {"good": "z", "bad": "zq"}[row.label]) for row in ROWS]
    with pytest.raises(InputError, match="one is how another begins"):
        few_shot.run(
            scripted({}),
            tmp_path / "a.png",
            data=write(tmp_path / "z.jsonl", rows),
            shots=(1,),
            items=4,
            progress=False,
        )


def test_where_it_goes(scripted: Make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = scripted({})
    with pytest.raises(InputError, match=r"end the name in \.png"):
        few_shot.run(language, tmp_path / "a.svg", data=data)
    with pytest.raises(OutputError):
        few_shot.run(language, tmp_path / "none" / "a.png", data=data, shots=(0,), items=20)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match="scikit-learn is not installed"):
        few_shot.run(language, tmp_path / "a.png", data=data)
    assert language.engine.stats.steps == 0


def test_the_verb(
    scripted: Make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    language = scripted(ANSWERS)
    monkeypatch.setattr("qkv.loaded.language.load_language", lambda model, **options: language)
    command = ["eval", "few-shot", "--data", str(data), "--items", "4", "--draws", "2", "-o", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--shots", "0, 2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [point["shots"] for point in result["points"]] == [0, 2]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--shots", "few"])
    assert "shots='few' is no list of whole numbers" in capsys.readouterr().err


def test_spam_is_told_by_its_subject(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot.spam_subjects, "load", lambda: ROWS)
    task = make_task(scripted({}), "spam", 10, 2, 0)
    assert task.prompt(ROWS[:1], "hello") == "Subject: rain 000\nLabel: bad\n\nSubject: hello\nLabel:"
    monkeypatch.setattr(few_shot.spam_subjects, "load", lambda: (_ for _ in ()).throw(NotFoundError("npm")))
    with pytest.raises(NotFoundError):
        make_task(scripted({}), "spam", 10, 2, 0)
