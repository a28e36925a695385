"""`qkv chat` and `qkv complete`: the text on stdout as it comes, all else on stderr, and a talk at a terminal."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from qkv import cli
from qkv.models.decoder import Decoder
from qkv.models.decoder_config import DecoderConfig
from qkv.text.learn import learn_bpe
from qkv.weights.decoder import save_decoder

ASKED = "<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\n"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def qkv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs the command line in this process; `typed` stands on stdin, which is a terminal."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, typed: str | None = None, piped: bytes | None = None) -> Ran:
        stdin = Terminal(typed or "") if piped is None else io.TextIOWrapper(io.BytesIO(piped))
        monkeypatch.setattr(sys, "stdin", stdin)
        lines = iter((typed or "").splitlines())

        def answer(prompt: str) -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_a_question(qkv: Callable[..., Ran], scripted) -> None:
    scripted({ASKED: "like 狗 this"})
    assert qkv("chat", "how?") == (0, "like 狗 this\n", "")
    assert qkv("chat", piped=b"how?\n") == (0, "like 狗 this\n", "")
    assert qkv("chat", "how?", "--stop", "狗") == (0, "like \n", "")
    values = json.loads(qkv("chat", "how?", "--json", "--max-tokens", 4).out)
    assert (values["text"], values["finish"], values["model"]) == ("like", "length", "paper")
    assert values["usage"]["completion_tokens"] == 4
    assert values["sampling"]["temperature"] == 0


def test_an_answer_may_be_begun(qkv: Callable[..., Ran], scripted) -> None:
    scripted({ASKED + "like": " this"})
    assert qkv("chat", "how?", "--begin", "like") == (0, " this\n", "")


def test_completion(qkv: Callable[..., Ran], scripted) -> None:
    scripted({"def f():": "\n  pass"})
    assert qkv("complete", "def f():", "--code") == (0, "\n  pass\n", "")
    assert qkv("complete", piped=b"def f():").out == "\n  pass\n"
    assert qkv("complete", "def f():").err.startswith("qkv: warning: code: read as python")
    assert qkv("complete", "def f():", "--echo").out == "def f():\n  pass\n"
    several = qkv("complete", "def f():", "-n", 2, "--no-code")
    assert several.out == "\n  pass\n" * 2
    assert several.err.startswith("qkv: warning: greedy: ")
    lines = qkv(
        "complete", "a", "-n", 3, "--temperature", 1, "--seed", 7, "--max-tokens", 3, "--logprobs", 2, "--json"
    ).out
    texts = [json.loads(line) for line in lines.splitlines()]
    assert [text["seed"] for text in texts] == [7, 8, 9]
    assert all(len(token["top"]) == 2 for text in texts for token in text["tokens"])
    ran = qkv("complete", "ab", "--echo", "--max-tokens", 1, "--logprobs", 0, "--json")
    assert [token["logprob"] is None for token in json.loads(ran.out)["tokens"]] == [True, False, False]
    assert len(qkv("complete", "a", "--beams", 3, "-n", 3, "--max-tokens", 2, "--json").out.splitlines()) == 3
    assert re.fullmatch(r"\d\d\n", qkv("complete", "a", "--regex", r"\d\d").out)


def test_files_as_options(qkv: Callable[..., Ran], scripted) -> None:
    Path("schema.json").write_text('{"enum": ["a", "b"]}')
    Path("shots.jsonl").write_text('{"input": "x", "output": "y"}\n')
    Path("code.py").write_text("def f():\n    \n\nprint(f())\n")
    scripted({"Input: z\nOutput:": " w\n\nno", "def f():\n": "    return 1\nx"})
    assert qkv("complete", "a", "--schema", "schema.json").out in ('"a"\n', '"b"\n')
    assert qkv("complete", "z", "--shots", "shots.jsonl").out == " w\n"
    ran = qkv("complete", "code.py", "--at", 2)
    assert (ran.code, ran.out) == (0, "return 1\n")
    assert ran.err.startswith("qkv: warning: left side only")
    assert Path("code.py").read_text() == "def f():\n    \n\nprint(f())\n"


def test_a_file_is_gone_on_from(qkv: Callable[..., Ran], scripted) -> None:
    """Code to the end of its block, a text as it is; a prompt that only looks like a name is one."""
    Path("code.py").write_bytes(b"\xef\xbb\xbfdef f():\r\n    x = 1\r\n")
    Path("my text.txt").write_text("once upon")
    scripted({"def f():\n    x = 1\n": "    return 1\nx", "once upon": " a time", "v1.0": " of"})
    ran = qkv("complete", "code.py")
    assert (ran.code, ran.out) == (0, "    return 1\nx\n")
    assert ran.err == "qkv: going on from what is in the file code.py\n"
    assert qkv("complete", "my text.txt", "--max-tokens", 7).out == " a time\n"
    assert qkv("complete", "my text.txt", "--max-tokens", 7, "--echo").out == "once upon a time\n"
    assert qkv("complete", "v1.0", "--max-tokens", 3) == (0, " of\n", "")
    gone = qkv("complete", "gone.py")
    assert (gone.code, gone.err) == (
        2,
        "qkv: error: there is no file 'gone.py'; name one that is there, or pipe the text in\n",
    )
    assert "--at is a line of a file; it does not go with --echo" in qkv("complete", "code.py", "--at", 1, "--echo").err
    assert "it does not go with piped text" in qkv("complete", "--at", 1, piped=b"x").err


def test_a_talk(qkv: Callable[..., Ran], scripted) -> None:
    second = "one<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    scripted({ASKED: "one", second: "two"})
    ran = qkv("chat", "--temperature", 0, typed="how?\nand?\n/save talk.jsonl\n/reset\nand?\n\n/exit\nhow?\n")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[:2] == ["one", "two"]
    assert lines[2] != "two"  # it had forgotten
    assert "paper; /help" in ran.err
    assert json.loads(Path("talk.jsonl").read_text())["messages"] == [
        {"role": "user", "content": "how?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "two"},
    ]


def test_what_a_talk_does_not_know(qkv: Callable[..., Ran], scripted) -> None:
    scripted({ASKED: "one"})
    ran = qkv("chat", "--temperature", 0, typed="/help\n/nothing\n/save none/a\n^C\n/model other\nhow?\n")
    assert (ran.code, ran.out) == (0, "one\n")
    assert "/reset" in ran.err
    assert "there is no '/nothing'" in ran.err
    assert "cannot write none/a" in ran.err
    assert ran.err.count("paper") == 2


def test_the_sign_of_a_talk_is_no_result(qkv: Callable[..., Ran], scripted) -> None:
    scripted({ASKED: "one"})
    ran = qkv("chat", "--json", typed="how?\n/exit")
    assert len([json.loads(line) for line in ran.out.splitlines()]) == 1
    assert ran.err.count("> ") == 2


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also by a suite in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_talk_stops_the_answer_only(qkv: Callable[..., Ran], scripted, monkeypatch, heard) -> None:
    scripted({ASKED: "one two three"})
    print_, pressed = print, iter([signal.SIGINT])

    def interrupted(*text: str, **options: object) -> None:
        print_(*text, **options)
        if text == ("e",) and (key := next(pressed, None)):
            os.kill(os.getpid(), key)

    monkeypatch.setattr("builtins.print", interrupted)
    ran = qkv("chat", "--temperature", 0, typed="how?\n/save talk.jsonl\n")
    assert ran.code == 0
    said = json.loads(Path("talk.jsonl").read_text())["messages"][1]["content"]
    assert "one two three".startswith(said)
    assert len(said) < 13


REFUSED = {
    "nothing": (["complete"], "there is no text"),
    "empty question": (["chat", ""], "the prompt is empty"),
    "temperature": (["chat", "a", "--temperature", "nan"], "temperature=nan"),
    "top-p": (["complete", "a", "--top-p", "0"], "top_p=0"),
    "max-tokens": (["complete", "a", "--max-tokens", "1000000000"], "max_tokens=1000000000"),
    "n": (["complete", "a", "-n", "0"], "n=0"),
    "too long": (["complete", "a " * 500], "the prompt has 501 tokens; paper takes 300 in all"),
    "no schema": (["chat", "a", "--schema", "none.json"], "cannot read none.json"),
    "no shots": (["complete", "a", "--shots", "none.jsonl"], "cannot read none.jsonl"),
    "regex": (["complete", "a", "--regex", "(a"], "regex cannot be honoured"),
    "both": (["complete", "a", "--regex", "a", "--schema", "schema.json"], "schema and regex"),
    "no file": (["complete", "none.py", "--at", "1"], "cannot read none.py"),
    "no line": (["complete", "schema.json", "--at", "99"], "line=99 is not in this code"),
    "logprobs without json": (["complete", "a", "--logprobs", "1"], "add --json"),
    "suffix": (["complete", "a", "--suffix", "b"], "no tokens for filling in the middle"),
    "an unknown option": (["chat", "a", "--chat-template", "x"], "--chat-template"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(qkv: Callable[..., Ran], scripted, name: str) -> None:
    Path("schema.json").write_text("{}")
    scripted({})
    arguments, reason = REFUSED[name]
    ran = qkv(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"qkv: error: [^\n]{10,600}\n", ran.err)
    assert reason in ran.err


def test_bytes_that_are_no_text(qkv: Callable[..., Ran], scripted) -> None:
    scripted({})
    assert "qkv: error: cannot read the input: it is not UTF-8 text: byte 1" in qkv("complete", piped=b"a\xff").err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder that can go on for a long time."""
    path = tmp_path_factory.mktemp("models") / "endless"
    shape = {"vocab": 256, "context": 20_000, "dim": 16, "layers": 1, "heads": 2, "ffn_dim": 16}
    llama = {"activation": "silu", "gated": True, "norm": "rms", "position": "rotary"}
    flags = {"bias": False, "attention_bias": False, "out_bias": False}
    save_decoder(Decoder(DecoderConfig(**shape, **llama, **flags)), path, family="llama")
    learn_bpe("", 256).save(path)
    return path


def started(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qkv", "complete", "abc", "--model", str(folder), "--temperature", "1"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background of a shell ignores it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], preexec_fn=heard, **pipes, **options)


def some(pipe: io.BufferedReader, seconds: float = 120) -> Iterator[bytes]:
    """What comes, as it comes: each piece ends where a writing ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and select.select([pipe], [], [], 1):
        if not (data := os.read(pipe.fileno(), 1 << 16)):
            return
        yield data


def test_ctrl_c_keeps_the_text(folder: Path) -> None:
    running = started(folder, "--max-tokens", "15000", "--seed", "1")
    pieces = []
    for data in some(running.stdout):
        pieces.append(data)
        if len(b"".join(pieces)) > 30:
            break
    assert running.poll() is None  # it came before the whole was there
    running.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")
    assert time.monotonic() - sent < 30
    text = b"".join([*pieces, out])
    assert text.endswith(b"\n")
    for piece in pieces:
        piece.decode()  # never half a character


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    running = started(folder, "--max-tokens", "15000")
    next(some(running.stdout))
    running.stdout.close()
    assert running.stderr.read() == b""
    running.wait(60)


def test_the_same_seed_the_same_text(folder: Path) -> None:
    texts = [started(folder, "--max-tokens", "20", "--seed", "3").communicate(timeout=120) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0][0]
