"""`python -m lab eval scenes --blind FOLDER`: pictures to be described by somebody who does not know their prompts.

The prompts that the project began with and ten others, with the seeds 1 and 2, none chosen, lie in the folder as
01.png, 02.png ... in a shuffled order, as bare pixels: a PNG of ours would tell its prompt. Which is which stands in a
file beside the folder, FOLDER-key.json, to be opened when every picture has been described.
"""

import json
from pathlib import Path
from random import Random

from lab.measure.drawings import Draw, drawer, write_png
from lab.measure.scene_sets import Prompt, prompts
from qkv.atomic import new_folder, write_file
from qkv.progress import Bar
from qkv.text.weighting import escape

FIRST, OTHERS, SEEDS = 6, 10, (1, 2)


def shown() -> list[tuple[Prompt, int]]:
    """The first prompts, and of the others every second, each with each seed."""
    rows = prompts()
    return [(prompt, seed) for prompt in rows[:FIRST] + rows[FIRST::2][:OTHERS] for seed in SEEDS]


def draw_blind(model: str, folder: Path, *, progress: bool = True, draw: Draw | None = None) -> Path:
    """Draws them; the key's path. Raises OutputError if the folder is there already or cannot be written, NotFoundError
    without the model."""
    draw, rows = draw or drawer(model), shown()
    Random(f"{model} {folder.name}").shuffle(rows)
    key = {}
    with new_folder(folder) as made, Bar("drawing", len(rows), shown=progress) as bar:
        for number, (prompt, seed) in enumerate(rows, 1):
            picture = draw(escape(prompt.text), prompt.negative, seed).convert("RGB")
            write_png(made / f"{number:02d}.png", picture)
            key[f"{number:02d}"] = {"prompt": prompt.text, "negative": prompt.negative, "seed": seed}
            bar.advance()
    path = folder.with_name(f"{folder.name}-key.json")
    write_file(path, json.dumps({"model": model, "pictures": key}, indent=2).encode())
    return path
