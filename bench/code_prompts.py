"""Whether code that is begun on the command line comes out so that it runs: one beginning, four ways to show it.

    python bench/code_prompts.py [--model NAME] [--show]

Claim: greedily, SmolLM2-135M-Instruct finishes at least as many of 24 small Python functions so that they pass their
test when their first line stands within a Markdown fence (`qkv complete TEXT`) as in any of the other ways, `factorial`
among them. Every way ends with the function's block, so what is compared is what the model makes of the beginning: as
it is; as it is with its last token written anew; behind the token that separates documents; within a fence.

What the model wrote is run in a process of its own with a limit of time; it is a small model's code, run it where that
may be done.
"""

import argparse
import subprocess
import sys
from typing import Any

from measure import machine, prepare, report, table

# The first line of a function, and what is true of it.
CASES = {
    "def factorial(n):": "factorial(0) == 1 and factorial(5) == 120",
    "def fibonacci(n):": "[fibonacci(i) for i in range(2, 7)] in ([1, 2, 3, 5, 8], [1, 1, 2, 3, 5], [2, 3, 5, 8, 13])",
    "def is_prime(n):": "is_prime(7) and not is_prime(9)",
    "def add(a, b):": "add(2, 3) == 5",
    "def reverse_string(s):": "reverse_string('abc') == 'cba'",
    "def is_even(n):": "is_even(4) and not is_even(3)",
    "def maximum(a, b):": "maximum(2, 3) == 3 and maximum(5, 1) == 5",
    "def sum_list(numbers):": "sum_list([1, 2, 3]) == 6",
    "def gcd(a, b):": "gcd(12, 18) == 6",
    "def count_vowels(text):": "count_vowels('banana') == 3",
    "def is_palindrome(s):": "is_palindrome('abba') and not is_palindrome('abc')",
    "def square(x):": "square(4) == 16",
    "def power(base, exponent):": "power(2, 5) == 32",
    "def celsius_to_fahrenheit(celsius):": "abs(celsius_to_fahrenheit(100) - 212) < 1e-6",
    "def absolute(x):": "absolute(-3) == 3 and absolute(4) == 4",
    "def bubble_sort(items):": "(lambda items: bubble_sort(items) or items)([3, 1, 2]) == [1, 2, 3]",
    "def binary_search(items, target):": "binary_search([1, 3, 5, 7], 5) == 2",
    "def unique(items):": "sorted(unique([1, 1, 2])) == [1, 2]",
    "def mean(numbers):": "mean([1, 2, 3]) == 2",
    "def flatten(lists):": "flatten([[1], [2, 3]]) == [1, 2, 3]",
    "def is_leap_year(year):": "is_leap_year(2000) and not is_leap_year(1900) and is_leap_year(2024)",
    "def sum_of_digits(n):": "sum_of_digits(123) == 6",
    "def count_words(text):": "count_words('a b c') == 3",
    "def lcm(a, b):": "lcm(4, 6) == 12",
}
WAYS = ("as it is", "healed", "behind the end of a document", "within a fence")
ROOM = 160  # tokens


def written(language: Any, way: str, beginning: str) -> str:
    """What the model makes of a beginning, up to the end of its block."""
    from qkv.writing.loop import last, write
    from qkv.writing.options import Options
    from qkv.writing.settle import settle
    from qkv.writing.source import cutters, read_code

    ids = language.read(beginning)
    if way == WAYS[2]:
        end = language.token("<|endoftext|>")
        ids = [language.tokenizer.eos if end is None else end, *ids]
    if way == WAYS[3]:
        ids, _ = read_code(language, beginning, "python")
    options = Options(max_tokens=ROOM, temperature=0)
    heal = way in (WAYS[1], WAYS[3])
    task = settle(language, ids, options, room=ROOM, heal=heal, cutters=lambda: [*cutters(beginning)])
    return last(write(task)).text


def passes(source: str, check: str) -> bool:
    """Whether `check` is true behind `source`, in a process of its own, within two seconds."""
    program = f"{source}\nraise SystemExit(0 if {check} else 1)\n"
    try:
        return not subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=2).returncode
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: SmolLM2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what was written")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    prepare(asked.threads)

    from qkv.loaded.language import load_language

    language = load_language(asked.model, threads=asked.threads)
    results: dict[str, Any] = {"machine": machine(asked.threads, "qkv")}
    rows: list[list[object]] = []
    for way in WAYS:
        good = []
        for beginning, check in CASES.items():
            code = beginning + written(language, way, beginning)
            if passes(code, check):
                good.append(beginning)
            if asked.show:
                print(f"{code}\n# {way}: {'passes' if beginning in good else 'fails'}\n", file=sys.stderr)
        results[way] = good
        rows.append([way, f"{len(good)} of {len(CASES)}", "yes" if "def factorial(n):" in good else "no"])
    best = max(len(results[way]) for way in WAYS)
    met = len(results[WAYS[3]]) == best and rows[-1][-1] == "yes"
    verdict = f"Within a fence as many as any other way, `factorial` among them: {'met' if met else 'missed'}."
    report(results, [table(["shown", "pass", "`factorial`"], rows), verdict], as_json=asked.json)


if __name__ == "__main__":
    main()
