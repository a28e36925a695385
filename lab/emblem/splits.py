"""Who may see which picture: a fixed, hash-based split by concept base.

Place: `python -m lab data emblem`, its last decision. Every choice is a hash of the seed and of names, so it does not
move when pictures are added, reordered or dropped. All variants and styles of a base share its split, else a
test concept would be learnt from its twin.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from lab.emblem.items import Item, Split

VALIDATION = 0.03  # of the bases
TEST = 0.05  # of the bases
CELLS = 0.03  # of the (base, style) pairs of training bases that are drawn in many styles
CELL_STYLES = 4  # how many styles are many
TONES = 0.10  # of the (profession, skin tone) pairs
PROFESSIONS = "person-role"  # Unicode's subgroup

# Too large or too alike to be told apart: always trained on, never a cell.
COLLECTIVE = frozenset({"flag", "clock", "keycap", "letter", "family"})

# What the README's example prompts ask for: always trained on too, and so never counted as unseen.
SHOWN = frozenset(
    {
        *("1F9D1-1F680", "1F40E", "1F434", "1FA90", "1F30C"),  # astronaut, horses, planet, milky way
        *("1F3D9", "1F306", "1F309", "1F5FD", "1F5BC", "1F3A8"),  # city, liberty, painting, palette
        *("1F415", "1F436", "1F935", "1F454", "1F0CF", "2660"),  # dogs, tuxedo, tie, cards
        *("1F3F0", "1F3EF", "1F332", "1F333", "1F3D5", "1F3DE"),  # castles, trees, camping, park
    }
)

TONED_SHARE = 0.10  # of what training draws; unweighted it would be 45 %
FLAG_SHARE = 0.03


def fraction(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on the seed and the names alone."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(items: Sequence[Item], seed: int, hidden: Collection[str]) -> list[Item]:
    """`items` with their split; `hidden` are the styles that only the judge sees."""
    styles = defaultdict(set)
    professions = {item.base for item in items if item.subgroup == PROFESSIONS}
    for item in items:
        if item.style not in hidden:
            styles[item.base].add(item.style)

    def split(item: Item) -> Split:
        if item.style in hidden:
            return "judge_style"
        if item.base in COLLECTIVE | SHOWN or item.base.startswith("name:"):  # no emoji: one style, an unclear name
            return "train"
        place = fraction(seed, "base", item.base)
        if place < TEST:
            return "test"
        if place < TEST + VALIDATION:
            return "validation"
        if len(styles[item.base]) >= CELL_STYLES and fraction(seed, "cell", item.base, item.style) < CELLS:
            return "heldout_cell"
        if item.tone and item.base in professions and fraction(seed, "tone", item.base, item.tone) < TONES:
            return "heldout_tone"
        return "train"

    return [replace(item, split=split(item)) for item in items]


def weigh(items: Sequence[Item]) -> list[Item]:
    """`items` with weights such that toned pictures and flags keep their small shares of what training draws."""
    train = [item for item in items if item.split == "train"]
    toned = sum(bool(item.tone) for item in train)
    flags = sum(item.base == "flag" for item in train)
    plain = (len(train) - toned - flags) / (1 - TONED_SHARE - FLAG_SHARE)  # what all draws together weigh
    tone_weight = min(1.0, TONED_SHARE * plain / toned) if toned else 1.0
    flag_weight = min(1.0, FLAG_SHARE * plain / flags) if flags else 1.0

    def weight(item: Item) -> float:
        return round(tone_weight if item.tone else flag_weight if item.base == "flag" else 1.0, 4)

    return [replace(item, weight=weight(item)) for item in items]
