"""SmolLM2 before and after it is fitted to a small domain (recipes chat-shelves, chat-shelves-preference).

Measured on held-out items: the share of answers that are exactly right (greedy), and of right shelves; the mean loss of
the right answers; and what was forgotten, as the perplexity of texts that have nothing to do with it: WordNet's
definitions and a module of Python's standard library. An answer that may name any shelf is right by chance 1 in 5.

    python bench/fit_smollm2.py --runs runs
"""

import argparse
import json
import textwrap
from pathlib import Path

import torch

from lab.emblem.wordnet import wordnet_glosses
from qkv.evaluate.loss import answer, perplexity
from qkv.train.conversations import Speaker, messages, read_conversations
from qkv.train.finetune import Start, answer_loss, open_start, read_examples
from qkv.train.recipes import run

RECIPES = Path(__file__).parents[1] / "qkv" / "recipes"
HELD_OUT = RECIPES / "shelves/held-out.jsonl"
RULE = "Answer with the item, a slash, and its shelf: nature, food, travel, leisure or tools. Example: 'item / shelf'."


def measure(name: str, start: Start) -> dict[str, float | str]:
    """One row of the table."""
    decoder, speaker = start.decoder, start.speaker(128)
    conversations = read_conversations(HELD_OUT, list)
    examples = read_examples(HELD_OUT, speaker)
    answers = [answer(decoder, speaker, turns[:-1], most=14) for turns in conversations]
    rights = [turns[-1].content for turns in conversations]
    shelves = [right.rpartition(" / ")[2] for right in rights]
    row = {
        "model": name,
        "exact": sum(map(str.__eq__, answers, rights)) / len(rights),
        "right shelf": sum(given.strip().endswith(shelf) for given, shelf in zip(answers, shelves)) / len(rights),
        "loss": answer_loss(decoder, examples, 8),
        "definitions": perplexity(decoder, start.tokenizer, glosses()),
        "code": perplexity(decoder, start.tokenizer, Path(textwrap.__file__).read_text()[:12000]),
        "example": answers[0],
    }
    print(json.dumps(row), flush=True)
    return row


def told(start: Start) -> float:
    """Exact answers when the rule stands in the prompt, which is what one would try before training."""
    speaker = Speaker(start.tokenizer, start.template, 256)
    rule = messages([{"role": "system", "content": RULE}])
    conversations = [[*rule, *turns] for turns in read_conversations(HELD_OUT, list)]
    answers = [answer(start.decoder, speaker, turns[:-1], most=14) for turns in conversations]
    return sum(given.strip() == turns[-1].content for given, turns in zip(answers, conversations)) / len(answers)


def glosses() -> str:
    return "\n".join(f"{word}: {gloss}" for word, gloss in wordnet_glosses()[::400])[:12000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--start", default="smollm2")
    given = parser.parse_args()
    fitted, preferred = given.runs / "chat-shelves", given.runs / "chat-shelves-preference"
    places = {"data": "train", "held_out": "held-out"}, {"data": "pairs", "held_out": "pairs-held-out"}
    files = [[f'{key}="{RECIPES}/shelves/{name}.jsonl"' for key, name in place.items()] for place in places]

    base = open_start(given.start, torch.bfloat16)
    print(json.dumps({"model": "before, told the rule", "exact": told(base)}), flush=True)
    measure("before", base)
    del base
    run(RECIPES / "chat-shelves.toml", [*files[0], f'start="{given.start}"'], folder=fitted, resume=True)
    measure("after chat-shelves", open_start(str(fitted / "model"), torch.bfloat16))
    changes = [*files[1], f'start="{fitted}/model"']
    run(RECIPES / "chat-shelves-preference.toml", changes, folder=preferred, resume=True)
    measure("after chat-shelves-preference", open_start(str(preferred / "model"), torch.bfloat16))


if __name__ == "__main__":
    main()
