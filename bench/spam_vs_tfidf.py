"""How well mails are told apart, by a fine-tuned model and by scikit-learn's TF-IDF with a logistic regression.

    qkv train bert-spam
    python bench/spam_vs_tfidf.py [RUN/model] [--context N] [--json]

Both learn from the same four fifths of the corpus and are measured on the same fifth. The baseline reads words and
pairs of words of a mail's first 4,000 characters, the model its first `context` tokens. Needs: pip install scikit-learn
"""

import argparse
from pathlib import Path
from typing import Any

from measure import machine, report, table, timed

from qkv.data import spam
from qkv.data.spam import Labelled
from qkv.train.classify import predict, scores


def baseline(known: list[Labelled], unseen: list[Labelled]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    model = make_pipeline(words, LogisticRegression(C=100, max_iter=1000))
    model.fit([row.text for row in known], [row.label for row in known])
    return [str(label) for label in model.predict([row.text for row in unseen])]


def tuned(folder: Path, unseen: list[Labelled], context: int) -> list[str]:
    from qkv.text.bert import BertTokenizer
    from qkv.weights.bert import load_classifier
    from qkv.weights.folder import Folder

    return predict(load_classifier(Folder(folder)), BertTokenizer.load(folder), [row.text for row in unseen], context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="what the recipe made")
    parser.add_argument("--context", type=int, default=128, help="tokens that the model reads")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    mails = spam.load()
    known, unseen = ([row for row in mails if spam.held_out(row.text) is out] for out in (False, True))
    packages = ["qkv", "torch", "scikit-learn"]
    results: dict[str, Any] = {"machine": machine(1, *packages), "trained": len(known), "measured": len(unseen)}
    rows: list[list[object]] = []
    runs = {"TF-IDF": lambda: baseline(known, unseen)}
    if asked.folder:
        runs["fine-tuned"] = lambda: tuned(asked.folder, unseen, asked.context)
    for name, run in runs.items():
        guesses: list[str] = []
        seconds = timed(lambda run=run, guesses=guesses: guesses.extend(run()))  # type: ignore[misc]
        wrong = {label: sum(g == label != row.label for g, row in zip(guesses, unseen)) for label in spam.LABELS}
        results[name] = scores(guesses, unseen) | {"seconds": seconds, "wrong": wrong}
        share, f1 = results[name]["accuracy"], results[name]["f1"]
        rows.append([name, f"{share:.2%}", f"{f1:.4f}", wrong["spam"], wrong["ham"], f"{seconds:.1f}"])
    head = [f"{len(unseen)} of {len(mails)} mails", "right", "F1", "ham called spam", "spam called ham", "seconds"]
    report(results, [table(head, rows)], as_json=asked.json)


if __name__ == "__main__":
    main()
