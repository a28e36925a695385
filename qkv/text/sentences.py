"""Sentences of a paragraph, where they are plain to see: for translators, which read a sentence at a time."""

import re

# An end, perhaps a closing quote or bracket, then space, then what a sentence begins with. CJK ends need no space.
_ENDS = re.compile(r"(?<=[.!?])[\"'”“»)\]]*\s+(?=[\"'„“«(\[]*[A-ZÄÖÜÀ-ÞА-Я])|(?<=[。！？])(?=\S)")
_SHORT = re.compile(r"(?:\b(?:e\.g|i\.e|etc|z\.B|d\.h|u\.a|bzw|ca|Nr|vgl|vs|Dr|Mr|Mrs|St|No|p|\d+|[A-Za-z]))\.$")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, in order; an abbreviation or a number with its point ends none."""
    found, start = [], 0
    for gap in _ENDS.finditer(text):
        end = gap.start() + len(gap[0].rstrip()) if gap[0].strip() else gap.start()
        if not _SHORT.search(text[start:end]):
            found.append(text[start:end].strip())
            start = gap.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found
