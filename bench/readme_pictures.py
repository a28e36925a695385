"""The README's pictures: what emblem knows, then the six example prompts, each with two seeds, on one contact sheet.

python bench/readme_pictures.py [MODEL]      writes docs/examples.png
"""

import sys
from pathlib import Path

import qkv
from qkv.pictures.sheet import contact_sheet

CASTLE = "a colorful photo of a castle in the middle of a forest with trees"
PROMPTS = [
    ("a red apple, flat style", ""),
    ("grinning face, noto style", ""),
    ("a blue heart, 3d style", ""),
    ("a yellow star, gradient style", ""),
    ("a green leaf, twemoji style", ""),
    ("a purple octopus, noto style", ""),
    ("a photo of an astronaut riding a horse on mars", ""),
    ("a painting of new york city in impressionist style", ""),
    ("dog in a suit", ""),
    ("dogs playing poker", ""),
    (CASTLE, ""),
    (CASTLE, "yellow color"),
]


def main(model: str = "emblem") -> None:
    prompts, negatives = map(list, zip(*PROMPTS))
    pictures = qkv.draw(prompts, negative=negatives, model=model, count=2, seed=1)
    words = [f"{p.settings.prompt}{', without yellow' if p.settings.negative else ''}" for p in pictures]
    target = Path(__file__).parents[1] / "docs" / "examples.png"
    contact_sheet([picture.image for picture in pictures], words, columns=6).save(target)
    print(target)


if __name__ == "__main__":
    main(*sys.argv[1:2])
