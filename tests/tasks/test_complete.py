"""Completion: pieces add up to the whole, stop strings cut exactly, and what was asked is what was done."""

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qkv.cli.text import HELP
from qkv.errors import InputError
from qkv.loaded.generation import Generation
from qkv.loaded.where import Where
from qkv.pictures.request import Request
from qkv.sample.tokens import Sampling
from qkv.tasks.chat import ChatRequest
from qkv.tasks.code import CodeRequest, completing_code, in_file
from qkv.tasks.complete import CompleteRequest, acomplete, acompleting, complete, completing
from qkv.writing.loop import Completion, Piece
from qkv.writing.options import Options
from qkv.writing.shots import Shot, after, read_shots
from qkv.writing.source import BlockEnd, reads_as

GREETING = "hé 狗 👩🏽‍🚀!"


def test_pieces_are_whole_characters_and_add_up(scripted) -> None:
    scripted({"say: ": GREETING})
    *pieces, whole = completing(CompleteRequest(prompt="say: "))
    assert [piece.text for piece in pieces] == list(GREETING)
    assert (whole.text, whole.finish, whole.model) == (GREETING, "stop", "paper")
    assert whole.usage == (5, len(GREETING.encode()) + 1)
    assert whole.sampling == Sampling()
    assert whole.seed is None
    assert whole.warnings == ()


def test_max_tokens(scripted) -> None:
    scripted({"say: ": GREETING})
    short = complete("say: ", max_tokens=2)
    assert (short.text, short.finish, short.max_tokens) == ("h\ufffd", "length", 2)
    exact = complete("say: ", max_tokens=3)
    assert (exact.text, exact.finish) == ("hé", "length")


def test_stop_strings_over_several_tokens(scripted) -> None:
    language = scripted({"say: ": "one ##STOP## two"})
    *pieces, whole = completing(CompleteRequest(prompt="say: ", options=Options(stop=["##STOP##"])))
    assert "".join(piece.text for piece in pieces) == whole.text == "one "
    assert whole.finish == "stop"
    for stop, text in (("#STOX", "one ##STOP## two"), (("two", "##"), "one "), ("e", "on"), (" two", "one ##STOP##")):
        assert complete("say: ", stop=stop).text == text
    while language.engine.stats.running:  # the engine hears of it
        pass
    assert language.engine.stats.memory_used == 0


def test_several_texts_each_with_its_seed(scripted) -> None:
    scripted({})
    options = {"max_tokens": 12, "temperature": 1.5, "seed": 5}
    together = complete("the thing ", n=4, **options)
    alone = [complete("the thing ", **options | {"seed": 5 + i}) for i in range(4)]
    assert [text.ids for text in together.texts] == [each.texts[0].ids for each in alone]
    assert [text.seed for text in together.texts] == [5, 6, 7, 8]
    assert len({text.text for text in together.texts}) > 1
    chosen = complete("the thing ", temperature=1.0, max_tokens=3)
    again = complete("the thing ", temperature=1.0, max_tokens=3, seed=chosen.seed)
    assert chosen.text == again.text


def test_best_of_is_the_likeliest_a_token(scripted) -> None:
    scripted({})
    options = {"max_tokens": 6, "temperature": 1.0, "seed": 1, "logprobs": 0}
    every = complete("the thing ", n=8, **options)
    best = complete("the thing ", n=2, best_of=8, **options)
    mean = {text.ids: np.mean([token.logprob for token in text.tokens]) for text in every.texts}
    assert [text.ids for text in best.texts] == sorted(mean, key=mean.__getitem__, reverse=True)[:2]
    *pieces, _ = completing(CompleteRequest(prompt="a ", options=Options(n=1, best_of=3, **options)))
    assert len(pieces) == 1


def test_logprobs(scripted) -> None:
    language = scripted({"say: ": "yes"})
    found = complete("say: ", logprobs=2)
    assert [token.text for token in found.texts[0].tokens] == ["y", "e", "s", "<|im_end|>"]
    row = language.engine.runner.row(language.read("say: ")).astype(float)
    assert found.texts[0].tokens[0].logprob == pytest.approx(row.max() - np.log(np.exp(row).sum()), abs=1e-5)
    assert all(len(token.top) == 2 and token.top[0][1] == token.logprob for token in found.texts[0].tokens)
    assert found.texts[0].logprob == pytest.approx(sum(token.logprob for token in found.texts[0].tokens))
    assert complete("say: ").texts[0].tokens == ()


def test_logprobs_of_an_echoed_prompt(scripted) -> None:
    """As OpenAI's: the prompt's tokens before what is written, the first without anything."""
    language = scripted({"say: ": "yes"})
    found = complete("say: ", echo=True, logprobs=2).texts[0]
    ids = language.read("say: ")
    assert "".join(token.text for token in found.tokens[:-1]) == found.text == "say: yes"
    assert [token.id for token in found.tokens] == [*ids, *found.ids]
    assert (found.tokens[0].logprob, found.tokens[0].top) == (None, ())
    for place in range(1, len(ids)):
        row = language.engine.runner.row(ids[:place]).astype(float)
        chances = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert found.tokens[place].logprob == pytest.approx(chances[ids[place]], abs=1e-5)
        assert found.tokens[place].top[0] == (language.spell(int(row.argmax())), pytest.approx(chances.max(), abs=1e-5))
    alone = complete("say: ", logprobs=2).texts[0]
    assert (alone.logprob, alone.tokens) == (found.logprob, found.tokens[len(ids) :])
    several = complete("say: ", echo=True, logprobs=0, n=2, best_of=3, temperature=1.0, seed=1, max_tokens=3)
    assert [text.tokens[: len(ids)] for text in several.texts] == [several.texts[0].tokens[: len(ids)]] * 2
    assert [len(text.tokens) for text in several.texts] == [len(ids) + len(text.ids) for text in several.texts]
    healed = complete("say retu", echo=True, logprobs=0, heal=True, max_tokens=9).texts[0]
    assert "".join(token.text for token in healed.tokens).startswith("say retu")
    one = complete([5], echo=True, logprobs=0, max_tokens=1).texts[0]
    assert [token.logprob is None for token in one.tokens] == [True, False]
    assert complete("def f(x):", echo=True, logprobs=0, max_tokens=1).warnings == ()  # nothing but these tokens


def test_the_prompt_alone_can_be_judged(scripted) -> None:
    language = scripted({"say: ": "yes"})
    found = complete("say: ", echo=True, logprobs=2, max_tokens=0)
    assert (found.text, found.finish, found.texts[0].ids) == ("say: ", "length", ())
    assert found.usage == (len(language.read("say: ")), 0)
    assert found.texts[0].tokens == complete("say: ", echo=True, logprobs=2, max_tokens=1).texts[0].tokens[:-1]
    assert complete("say: ", echo=True, max_tokens=0, n=2, temperature=1.0).texts[1].text == "say: "
    for options in ({}, {"echo": True, "heal": True}):
        with pytest.raises(InputError, match="max_tokens=0 writes nothing"):
            complete("say: ", max_tokens=0, **options)


def test_echo_and_token_ids(scripted) -> None:
    language = scripted({"say: ": "yes"})
    *pieces, whole = completing(CompleteRequest(prompt="say: ", echo=True))
    assert "".join(piece.text for piece in pieces) == whole.text == "say: yes"
    ids = language.tokenizer.encode("say: ")
    assert complete(ids).text == "yes"
    assert complete([281, *ids], echo=True).text == "<|im_start|>say: yes"
    for wrong in ([10**6], [-1], [1.5], [True], [], [2**70], ["a"], None, 5):
        with pytest.raises(InputError, match="prompt"):
            complete(wrong)


def test_token_healing(scripted) -> None:
    """`return` is a token; a prompt that ends within one is written on as if it had not been cut."""
    scripted({"say ": "return it"})
    *pieces, healed = completing(CompleteRequest(prompt="say retu", heal=True))
    assert healed.text == "rn it"
    assert "".join(piece.text for piece in pieces) == healed.text


CODE = {
    "def factorial(n):": "python",
    "# squares\nimport math\n\n@cache\nasync def f(x": "python",
    "class Stack:\n    def push(self, item):\n        ": "python",
    "export async function twice(f) {": "javascript",
    "pub fn area(r: f64) -> f64 {": "rust",
    "package main\n\nfunc (s *Stack) Push(": "go",
    "#include <stdio.h>\nint main(void) {": "c",
}
PROSE = [
    *(
        "Here is a function:\n\ndef f(x):",
        "for example:",
        "class dismissed: the pupils",
        "import duties",
        "# A title\n\nA",
    ),
    *(
        "from here on",
        "define a (small) number",
        "int is a type",
        "Function f(x) of x",
        "",
        "\n",
        "x = 3",
        "    def f(x):",
    ),
]


def test_what_reads_as_code() -> None:
    assert {text: reads_as(text) for text in CODE} == CODE
    assert [text for text in PROSE if reads_as(text)] == []


def test_a_text_that_reads_as_code_is_completed_as_code(scripted) -> None:
    """Within a fence, up to the end of its block, and said so; a caller may want it or not."""
    fenced = {"```python\ndef f(x)": ":\n    return x\n\nThis function"}  # the last token is written anew
    scripted(fenced | {"def f(x)": ": pass\n\nThis", "say:": " yes"})
    *pieces, found = completing(CompleteRequest(prompt="def f(x):", code=None))
    assert found.text == "\n    return x" == "".join(piece.text for piece in pieces)
    assert found.warnings == complete("def f(x):").warnings
    assert "read as python" in found.warnings[0]
    assert "--no-code" in found.warnings[0]
    wanted = complete("def f(x):", code=True, echo=True)
    assert (wanted.text, wanted.warnings) == ("def f(x):\n    return x", ())
    plain = completing(CompleteRequest(prompt="def f(x):"))
    assert next(plain).text == " "  # what a request says is read as it is
    assert complete("def f(x):", code=False).text == " pass\n\nThis"
    assert (complete("say: ").text, complete("say: ").warnings) == ("yes", ())
    assert complete("say: ", code=True).text == "yes"
    scripted(fenced | {"def f(x)": ": 1"}, control=CONTROL_AND_FIM)
    assert complete("def f(x):").text == " 1"  # a model for code needs no fence


def test_code_ends_with_its_fence(scripted) -> None:
    scripted({"```python\ndef f(x): return x\ny =": " 1\n```\nThis"})
    assert complete("def f(x): return x\ny = ").text == "1"


def test_code_does_not_go_with_everything(scripted) -> None:
    scripted({})
    for odd in ({"beams": 2}, {"regex": "a"}, {"suffix": "b"}, {"shots": [Shot("a", "b")]}):
        with pytest.raises(InputError, match="code does not go with"):
            complete("def f(x):", code=True, **odd)
    assert complete("def f(x):", regex="a").text == "a"  # None: only where nothing speaks against it


def test_beams(scripted) -> None:
    language = scripted({})
    found = complete("the ", beams=3, n=3, max_tokens=4, length_penalty=0.0)
    scores = [text.logprob for text in found.texts]
    assert scores == sorted(scores, reverse=True)
    for text in found.texts:
        ids, total = language.read("the "), 0.0
        for token in text.ids:
            row = language.engine.runner.row(ids).astype(float)
            total += row[token] - np.log(np.exp(row).sum())
            ids = [*ids, token]
        assert text.logprob == pytest.approx(total, abs=1e-4)


def test_a_schema_and_a_regex(scripted) -> None:
    scripted({})
    value = complete("the ", schema={"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                                     "additionalProperties": False})  # fmt: skip
    assert json.loads(value.text) in ({"a": 1}, {"a": 2})
    assert value.finish == "stop"
    assert complete("the ", regex="[0-9]{3}-(yes|no)", temperature=1.0, seed=1).text[3] == "-"
    cut = complete("the ", regex="[0-9]{9}", max_tokens=2)
    assert cut.finish == "length"
    assert cut.warnings[0].startswith("unfinished:")


def test_shots(scripted, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"input": "a", "output": "1"}\n\n{"input": "狗", "output": "2"}\n', encoding="utf-8")
    shots = read_shots(file)
    assert shots == [Shot("a", "1"), Shot("狗", "2")]
    assert after(shots[:1], "b") == "Input: a\nOutput: 1\n\nInput: b\nOutput:"
    scripted({after(shots, "b"): " 3\n\nInput: c"})
    assert complete("b", shots=shots).text == complete("b", shots=shots, stop="3x").text == " 3"
    for content in (
        "",
        "{}",
        '{"input": 1, "output": "a"}',
        "[" * 10_000,
        "[1]",
        '{"input": "a", "output": "b"}\n' * 1001,
    ):
        file.write_text(content)
        with pytest.raises(InputError, match="examples"):
            read_shots(file)
    with pytest.raises(InputError, match="cannot read"):
        read_shots(tmp_path / "none")


def test_nothing_asked_is_dropped_in_silence(scripted) -> None:
    scripted({"say: ": "yes"})
    assert complete("say: ", top_p=0.5).warnings == ("greedy: at temperature 0 top_p does nothing; set temperature",)
    assert complete("say: ", n=2).warnings[0].startswith("greedy: at temperature 0 all 2 texts are the same")
    scripted({"say: ": "yes"}, warnings=("slow: no compiler",))
    assert complete("say: ").warnings == ("slow: no compiler",)


def test_the_checkpoints_own_defaults(scripted) -> None:
    scripted({}, generation=Generation(sampling={"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.1}))
    used = complete("a ", max_tokens=1, top_p=0.7).sampling
    assert (used.temperature, used.top_p, used.repetition_penalty) == (0.9, 0.7, 1.1)
    assert complete("a ", max_tokens=1, temperature=0).seed is None


FILE = "import os\n\ndef double(x):\n    # twice\n    \n\ndef other():\n    pass\n"


def test_code_ends_with_its_block(scripted) -> None:
    scripted({"# twice\n": "    y = x\n    return y + x\n\ndef more():\n    pass"})
    *pieces, found = completing_code(CodeRequest(source=FILE, line=5))
    assert found.text == "y = x\n    return y + x" == "".join(piece.text for piece in pieces)
    assert found.warnings[0].startswith("left side only:")


def test_a_files_name_says_its_language(scripted, tmp_path: Path) -> None:
    scripted({"```javascript\nlet x =": " 1\n```"})
    (tmp_path / "a.js").write_text("let x = \nlet y = 2\n")
    *_, found = completing_code(in_file(tmp_path / "a.js", 1, Options()))
    assert found.text == "1"


def test_code_with_both_sides(scripted) -> None:
    key = (
        "<fim_prefix>import os\n\ndef double(x):\n    # twice\n    <fim_suffix>\n\ndef other():\n    pass\n<fim_middle>"
    )
    language = scripted({key: "return 2 * x"}, control=[*CONTROL_AND_FIM])
    assert language.fim is not None
    *_, found = completing_code(CodeRequest(source=FILE, line=5))
    assert (found.text, found.warnings) == ("return 2 * x", ())
    assert complete(
        key[len("<fim_prefix>") :].split("<fim_suffix>")[0], suffix="\n\ndef other():\n    pass\n"
    ).text == ("return 2 * x")


CONTROL_AND_FIM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


def test_without_tokens_for_the_middle_a_suffix_is_refused(scripted) -> None:
    scripted({})
    with pytest.raises(InputError, match="paper has no tokens for filling in the middle"):
        complete("a", suffix="b")


def test_a_long_file_is_cut_on_the_left_and_says_so(scripted) -> None:
    scripted({"last": " = 1"})
    *_, found = completing_code(
        CodeRequest(source="x = 0\n" * 500 + "last = ", line=501, options=Options(max_tokens=9))
    )
    assert found.text == "1"
    assert found.warnings[0].startswith("cut: of ")


@pytest.mark.parametrize(
    ("before", "written", "kept"),
    [
        ("def f():", "\n    a\n\n    b\nc", "\n    a\n\n    b"),
        ("    x = f(", "1)\n    y = 2\n\n    z", "1)\n    y = 2"),
        ("x = ", "1\ny = 2\n\nz = 3", "1\ny = 2"),
        ("    if a:", "\n        b\n    else:\n", "\n        b"),
        ("    return ", "x\ndef g():", "x"),
        ("x = ", "1\n", "1"),
        ("def f():", " return 1\n", " return 1"),
        ("def f(", "a):\n    b\nc", "a):\n    b"),
        ("x = [", "\n    1,\n]\ny", "\n    1,\n]"),
    ],
)
def test_the_end_of_a_block(before: str, written: str, kept: str) -> None:
    for size in (1, 3, 100):
        block = BlockEnd(before)
        pieces = [block.push(written[i : i + size]) for i in range(0, len(written), size)]
        assert "".join(pieces) + ("" if block.hit else block.finish()) == kept


def test_leaving_the_loop_ends_the_writing(scripted) -> None:
    language = scripted({"say: ": "x" * 250})
    for event in completing(CompleteRequest(prompt="say: ")):
        assert isinstance(event, Piece)
        break
    steps = language.engine.runner.steps
    while language.engine.stats.running:
        pass
    assert steps < 20
    assert language.engine.stats.memory_used == 0


def test_async(scripted) -> None:
    scripted({"say: ": GREETING})

    async def run() -> tuple[list[str], Completion, list[Completion]]:
        pieces = [event async for event in acompleting(CompleteRequest(prompt="say: "))]
        several = await asyncio.gather(
            *(acomplete("say: ", max_tokens=i) for i in (3, 6)), acomplete("the ", beams=2, max_tokens=2)
        )
        return [piece.text for piece in pieces[:-1]], pieces[-1], several

    pieces, whole, several = asyncio.run(run())
    assert "".join(pieces) == whole.text == GREETING
    assert [each.text for each in several[:2]] == ["hé", "hé \ufffd"]
    assert dataclasses.replace(several[2], seconds=0.0) == dataclasses.replace(
        complete("the ", beams=2, max_tokens=2), seconds=0.0
    )


def test_a_wish_says_what_and_never_where() -> None:
    places = {each.name for each in dataclasses.fields(Where)} | {"model", "offline"}
    wishes = (Options, ChatRequest, CompleteRequest, CodeRequest, Request)
    assert not places & {each.name for wish in wishes for each in dataclasses.fields(wish)}


def test_the_command_line_asks_for_what_options_are() -> None:
    fields = {each.name for each in dataclasses.fields(Options)}
    assert set(HELP) < fields
    assert fields - set(HELP) == {
        *("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "length_penalty")
    }


def test_keyword_arguments_are_the_options(scripted) -> None:
    scripted({"the ": GREETING})
    assert complete("the ", max_tokens=2, seed=3, threads=1, device="cpu").max_tokens == 2
    with pytest.raises(TypeError, match="max_token'"):
        complete("the ", max_token=2)
