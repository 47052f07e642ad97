"""A classifier of model2vec, which a student has to beat where it is as fast: in an environment of its own, with
requirements-model2vec.txt, as model2vec's documentation shows.

    .venv-model2vec/bin/python -m benchmarks.static_classifier runs/sst2/teacher data/sst2/train.txt runs/sst2/static

Static embeddings are distilled from a checkpoint's encoder, and a classifier on them is trained on a file of
`sentence<TAB>label`. The folder can be a rung of report.py: `make ladder ... STATIC=runs/sst2/static`.
"""

import sys
from pathlib import Path


def write_static_classifier(checkpoint: str, texts: list[str], labels: list[str], folder: str) -> None:
    """Distill, train and save."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    classifier = StaticModelForClassification.from_static_model(model=distill(checkpoint))
    classifier.fit(texts, labels)
    classifier.to_pipeline().save_pretrained(folder)


def main() -> None:
    checkpoint, train, folder = sys.argv[1:]
    lines = Path(train).read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    write_static_classifier(checkpoint, list(texts), list(labels), folder)


if __name__ == "__main__":
    main()
