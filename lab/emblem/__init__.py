"""The emblem data set: emoji-like pictures with captions."""
