"""The nearest caption, without a model: what a search box would find.

The baseline of `python -m lab eval emblem` copies the training picture whose caption is nearest to the prompt. Nearest
is the cosine of TF-IDF vectors (Salton and Buckley 1988) over character n-grams inside words, which serves German
compounds and Chinese without spaces alike. It must not be the judge's text tower: that one knows the held-out
concepts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

LENGTHS = (1, 2, 3, 4)  # of the n-grams; a word counts with a space at either end


class Nearest:
    """An index of `texts`."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [grams(text) for text in texts]
        seen = Counter(gram for count in counts for gram in count)
        self._rarity = {gram: 1 + math.log(len(texts) / number) for gram, number in seen.items()}
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            for gram, weight in self._weigh(count).items():
                found[gram].append((place, weight))
        self._places = {gram: np.array([place for place, _ in pairs]) for gram, pairs in found.items()}
        self._weights = {gram: np.array([weight for _, weight in pairs]) for gram, pairs in found.items()}
        self._size = len(texts)

    def find(self, text: str) -> int:
        """The place of the text with the largest cosine; of equal ones the first, and 0 where none shares anything."""
        cosine = np.zeros(self._size)
        for gram, weight in self._weigh(grams(text)).items():
            cosine[self._places[gram]] += weight * self._weights[gram]
        return int(cosine.round(9).argmax())  # rounded: the order of summing must not decide between equals

    def _weigh(self, counts: Counter[str]) -> dict[str, float]:
        """TF-IDF of the known n-grams, as a vector of length 1."""
        known = {gram: count * self._rarity[gram] for gram, count in counts.items() if gram in self._rarity}
        length = math.hypot(*known.values())
        return {gram: weight / length for gram, weight in known.items()}


def grams(text: str) -> Counter[str]:
    """How often each n-gram of the lower-case words stands in `text`."""
    words = [f" {word} " for word in text.casefold().replace(",", " ").replace("，", " ").split()]
    return Counter(
        word[start : start + length] for word in words for length in LENGTHS for start in range(len(word) - length + 1)
    )
