"""More pairs of the sentences of a data set, each with the similarity that an embedding model gives it.

    python -m benchmarks.sentence_pairs embeddings/all-mpnet-base-v2 data/stsb/train.csv data/stsb-pairs/train.csv
    python -m benchmarks.sentence_pairs embeddings/all-MiniLM-L6-v2 data/goemotions/train.csv more.csv --columns=text

A few thousand labelled pairs are soon known by heart. Each sentence is paired with its nearest neighbours and with a
random one, after Augmented SBERT (Thakur et al. 2021, arXiv 2010.08240); the score, from 0 to 5 as in
STS-B, is five times the cosine of the two embeddings. A model of pairs that first learned these scores starts from much
of what the embedding model knows.
"""

import csv
import itertools
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoModel, AutoTokenizer

from utils.arguments import positive_int, script_parser
from utils.system.cli import run_script

RANKS = [1, 4]  # of the neighbours that a sentence is paired with
BATCH_SIZE = 64


@torch.inference_mode()
def embed(texts: list[str], encoder: str) -> torch.Tensor:
    """The means of the encoder's last states over the tokens, of length 1: float [texts, hidden size]."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(texts), BATCH_SIZE):
        rows = by_length[start : start + BATCH_SIZE]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state
        embeddings[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return embeddings


def new_pairs(num_sentences: int, embeddings: torch.Tensor, known: set[frozenset[int]]) -> list[tuple[int, int]]:
    """Every sentence with its neighbours at RANKS and with a random one, without known pairs, in a random order."""
    neighbours = torch.cat([(rows @ embeddings.T).topk(max(RANKS) + 1).indices for rows in embeddings.split(1024)])
    generator, seen, pairs = random.Random(0), set(known), []
    for i in range(num_sentences):
        for j in [*neighbours[i, RANKS].tolist(), generator.randrange(num_sentences)]:
            if i != j and frozenset((i, j)) not in seen:
                seen.add(frozenset((i, j)))
                pairs.append((i, j))
    return generator.sample(sorted(pairs), len(pairs))


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help="folder of an embedding model")
    parser.add_argument("source", metavar="SOURCE", help="CSV file with sentences")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="CSV file to write, with a column score besides")
    parser.add_argument("--columns", default="sentence_a,sentence_b", help="its columns with sentences")
    parser.add_argument("--num_rows", type=positive_int, help="its first rows alone; without it, all")
    args = parser.parse_args()
    with open(args.source, newline="", encoding="utf-8") as file:
        read = itertools.islice(csv.DictReader(file), args.num_rows)
        rows = [tuple(row[column] for column in args.columns.split(",")) for row in read]
    sentences = sorted({sentence for row in rows for sentence in row})
    numbers = {sentence: i for i, sentence in enumerate(sentences)}
    known = {frozenset(numbers[sentence] for sentence in row) for row in rows}
    embeddings = embed(sentences, args.encoder)
    pairs = new_pairs(len(sentences), embeddings, known)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence_a", "sentence_b", "score"])
        for i, j in pairs:
            writer.writerow([sentences[i], sentences[j], f"{5 * max(0.0, float(embeddings[i] @ embeddings[j])):.4f}"])
    print(f"{len(pairs)} pairs of {len(sentences)} sentences")


if __name__ == "__main__":
    run_script(main)
