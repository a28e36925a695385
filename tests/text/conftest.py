import pytest

from qkv.text.tokenizer import Tokenizer, train_tokenizer

SENTENCES = [
    "a photo of an astronaut riding a horse on mars",
    "a painting of new york city in impressionist style",
    "a colorful photo of a castle in the middle of a forest with trees, it's a dog's castle",
    "ein Hund im Anzug, dogs playing poker, ein Schloß im Wald",
    "un chien à l'école, une forêt enchantée",
    "穿西裝的狗, 火星上騎馬的太空人",
    "собака в костюме",
    "🐶 a dog in a suit 🤵, 1234!",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES * 3, vocab=700)
