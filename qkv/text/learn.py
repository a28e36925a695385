"""A tokenizer learnt from a text, for a language model that is trained from scratch on it.

Byte-level BPE (Radford et al. 2019, section 2.2). With a vocabulary of 256 nothing is joined: every byte is a token,
which in an English text is a character. It spells any text. CLIP's is in tokenizer.py.
"""

import json

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from qkv.errors import InputError
from qkv.text.language import LanguageTokenizer
from qkv.text.vocabulary import Added, Vocabulary, assemble
from qkv.text.words import byte_rules

BYTES = 256  # the smallest vocabulary
END = "<|endoftext|>"
_NEVER = "ÿ"  # how the byte 255 is spelled, which no UTF-8 holds
# The trainer breaks ties by id and would number the bytes in a hash map's order, so it gets them as special tokens.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def learn_bpe(text: str, vocab: int, *, end: bool = False) -> LanguageTokenizer:
    """The 256 bytes, and the `vocab` - 256 sequences that joining the most frequent pairs in `text` gives, one by one.

    With `end` a token that ends a text, and begins one, takes the place of the byte 255; else there is none.
    InputError if the text is too short to give as many.
    """
    if vocab < BYTES:
        raise InputError(f"vocab={vocab} is out of range; the bytes alone are {BYTES}")
    learner = tokenizers.Tokenizer(models.BPE())
    rules = byte_rules()
    learner.pre_tokenizer = rules.words
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=_ALPHABET, show_progress=False)
    learner.train_from_iterator(text.splitlines(keepends=True), trainer)
    learnt = json.loads(learner.to_str())["model"]
    if len(learnt["vocab"]) != vocab:
        raise InputError(f"the text gives {len(learnt['vocab'])} tokens only; lower vocab={vocab}")
    merges = [(left, right) for left, right in learnt["merges"]]
    ids: dict[str, int] = learnt["vocab"]
    if not end:
        return LanguageTokenizer(Vocabulary(ids=ids, merges=merges, rules=rules))
    ids = {END if symbol == _NEVER else symbol: id for symbol, id in ids.items()}
    added = [Added(id=ids[END], content=END, special=True)]
    return LanguageTokenizer(assemble(ids, added, merges=merges, rules=rules, bos=END, eos=END))
