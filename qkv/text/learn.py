"""A tokenizer learnt from a text, for a language model that is trained from scratch on it.

Byte-level BPE (Radford et al. 2019, section 2.2). With a vocabulary of 256 nothing is joined: every byte is a token,
which in an English text is a character. It spells any text, and has no control tokens. CLIP's is in tokenizer.py.
"""

import json

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from qkv.errors import InputError
from qkv.text.language import LanguageTokenizer
from qkv.text.vocabulary import Vocabulary
from qkv.text.words import byte_rules

BYTES = 256  # the smallest vocabulary
# The trainer breaks ties by id and would number the bytes in a hash map's order, so it gets them as special tokens.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def learn_bpe(text: str, vocab: int) -> LanguageTokenizer:
    """The 256 bytes, and the `vocab` - 256 sequences that joining the most frequent pairs in `text` gives, one by one.

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
    return LanguageTokenizer(Vocabulary(ids=learnt["vocab"], merges=merges, rules=rules))
