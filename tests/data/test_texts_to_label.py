"""Texts to label, from every form of file; what is not what it seems is refused."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from utils.data.texts_to_label import has_columns, read_columns
from utils.predictor.lines import read_lines
from utils.system.errors import UserError

LABELS = ["good", "bad", "0"]
TEXTS = ["a fine film", 'not "great", but\tI laughed', "12", "", "schön ☺"]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a file of the given content and name, in the way that its ending says."""
    monkeypatch.chdir(tmp_path)

    def read_file(content: bytes | str, name: str = "texts.txt", columns=("text",), count: int | None = 1) -> list:
        content = content.encode() if isinstance(content, str) else content
        if not has_columns(name):
            return list(read_lines(io.BytesIO(content), name, columns, count, LABELS))
        (tmp_path / name).write_bytes(content)
        return list(read_columns(name, columns, count))

    return read_file


def parquet(table: dict) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(pa.table(table), file)
    return file.getvalue()


def test_the_same_texts_from_every_form(read):
    csv = 'label,text\nbad,a fine film\ngood,"not ""great"", but\tI laughed"\nbad,12\n0,\ngood,schön ☺\n'
    rows = [{"text": text, "n": 1.5} for text in TEXTS]
    jsonl = "\n".join(map(json.dumps, rows))
    assert read(csv, "texts.csv") == TEXTS
    assert read("\ufeff" + csv.replace("\n", "\r\n") + "\r\n", "t.CSV") == TEXTS
    assert read(jsonl, "texts.jsonl") == TEXTS
    assert read("\ufeff" + jsonl.replace("\n", "\r\n") + "\n\n", "texts.jsonl") == TEXTS
    assert read(parquet({"text": TEXTS, "n": [1] * 5}), "texts.parquet") == TEXTS
    without_tabs = [text.replace("\t", " ") for text in TEXTS]
    assert read("\n".join(without_tabs)) == without_tabs
    assert read("\ufeff" + "\r\n".join(f" {text} " for text in without_tabs)) == without_tabs
    assert read("n\ttext\n" + "".join(f"1\t{text}\n" for text in without_tabs), "t.tsv") == without_tabs


def test_numbers_are_their_digits(read):
    """As preprocess.py reads them."""
    assert read('{"text": 12}\n{"text": 1.0}\n{"text": true}', "t.jsonl") == ["12", "1", "True"]
    assert read(parquet({"text": [3, 4]}), "t.parquet") == ["3", "4"]
    assert read(parquet({"text": [3.0, 4.0]}), "t.parquet") == ["3", "4"]


def test_pairs(read):
    pairs = [("how much", "what price"), ("why", "good")]
    assert read("a,b\nhow much, what price\nwhy,good", "t.csv", ("a", "b"), 2) == pairs
    assert read("how much\twhat price\nwhy\tgood", count=2) == pairs
    # A folder that does not say what it takes gets both, as ever.
    assert read("how much\twhat price\nwhy\tgood\nwhy", count=None) == [*pairs, "why"]


def test_a_long_cell(read):
    text = "good " * 40_000
    assert read(f"text\n{text}\n", "t.csv") == [text.strip()]


@pytest.mark.parametrize(
    ("content", "path", "count", "message"),
    [
        # Another form than the ending says.
        ('{"text": "good"}\n', "texts.txt", 1, "line 1 is a JSON object.*.jsonl"),
        ('\ufeff{"text": "good"}\n', "standard input", None, "line 1 is a JSON object.*.jsonl"),
        ("label,text\ngood,fine\n", "standard input", 1, "line 1: 'label,text' looks like the names of columns.*.csv"),
        ("text;queue\nfine;1\n", "texts.txt", None, "line 1: 'text;queue' looks like.*.csv"),
        ('"text", "queue"\nfine,1\n', "texts.txt", None, "line 1: .*looks like.*.csv"),
        ("sentence\tlabel\nfine\tgood\n", "texts.txt", None, "line 1: .*looks like.*.tsv"),
        ("[\n", "texts.json", 1, "texts.json: .*.jsonl"),
        # Labelled, or pairs, or none.
        ("a fine film\tgood\n", "test.txt", 1, "test.txt, line 1: 'good' after the tab is one of the model's labels"),
        ("a film\nfine\t0\n", "test.txt", 1, "line 2: '0' after the tab"),
        ("why\thow\tgood\n", "test.txt", 2, "line 1: 'good' after the tab"),
        ("a fine film\tor not\n", "texts.txt", 1, "line 1 has a tab: the model takes one text a line"),
        ("a\tb\tc\n", "texts.txt", 1, "line 1 has 3 columns: the model takes one text"),
        ("a\tb\nc\n", "texts.txt", 2, "line 2 has no tab: the model takes two texts a line"),
        ("a\tb\tc\n", "texts.txt", None, "line 1: 3 columns"),
        ("text\nfine\n", "texts.csv", 2, "texts.csv: the model takes two texts a row.*--text_column"),
        # Not UTF-8.
        ("gut\nschön\n".encode("latin-1"), "texts.txt", 1, "line 2: not UTF-8"),
        ("good\n".encode("utf-16"), "texts.txt", 1, "line 1: not UTF-8 but UTF-16"),
        ("good\n".encode("utf-16-be"), "texts.txt", 1, "line 1: holds NUL.*UTF-16"),
        ("good\rbad\r", "texts.txt", 1, "line 1: the only line"),
        (b"a\xed\xa0\xbd\n", "texts.txt", 1, "line 1: not UTF-8"),
        ("text\nschön\n".encode("latin-1"), "texts.csv", 1, "texts.csv, line [12]: not UTF-8"),
        ("text\nfine\n".encode("utf-16"), "texts.csv", 1, "texts.csv, line [12]: not UTF-8"),
        ('{"text": "a"}\n{"text": "schön"}'.encode("latin-1"), "texts.jsonl", 1, "line 2: not UTF-8"),
        # Rows that are not what the header says.
        (
            "label,text\ngood,fine\nbad,not great, but I laughed\n",
            "t.csv",
            1,
            "line 3: 3 cells, but 2 columns.*quotes",
        ),
        ("text,label\n\nnot great, but I laughed,bad\n", "t.csv", 1, "line 3: 3 cells, but 2 columns.*quotes"),
        ('text\n"a\nb"\n"c" d\n', "t.csv", 1, "line 4: not valid CSV"),
        ("label,text\ngood\n", "t.csv", 1, "line 2: 1 cells, but 2 columns"),
        ("text,text\na,b\n", "t.csv", 1, "2 columns are called 'text'"),
        ("body;label\na;b\n", "t.csv", 1, "line 1: the columns are separated by ';'"),
        ("", "t.csv", 1, "t.csv is empty"),
        (parquet({"body": ["a"]}), "t.parquet", 1, "no column 'text', only 'body'"),
        (b"PAR1", "t.parquet", 1, "is no Parquet file"),
        ('{"text": "a", "text": "b"}', "t.jsonl", 1, "line 1: 'text' is there twice"),
        ("fine\n", "t.jsonl", 1, "line 1: not valid JSON"),
        ("[1]\n", "t.jsonl", 1, "line 1: a list, not a JSON object"),
        ("[" * 100_000, "t.jsonl", 1, "line 1: not valid JSON"),
        # Cells that are no text.
        ('{"text": null}', "t.jsonl", 1, "line 1: 'text' is null"),
        ('{"body": "a"}', "t.jsonl", 1, "line 1: no value for 'text', only 'body'"),
        ('{"text": ["a", "b"]}', "t.jsonl", 1, "line 1: 'text' is a list"),
        ('{"text": {"a": 1}}', "t.jsonl", 1, "line 1: 'text' is an object"),
        ('{"text": "a"}\n{"text": NaN}', "t.jsonl", 1, "line 2: 'text' is nan"),
        ('{"text": "fine \\ud83d"}', "t.jsonl", 1, r"line 1: 'text' holds '\\ud83d', half of a character"),
        (parquet({"text": [b"a"]}), "t.parquet", 1, "row 1: 'text' is bytes"),
        (parquet({"text": ["a", None]}), "t.parquet", 1, "row 2: 'text' is null"),
    ],
)
def test_refused(read, content, path, count, message):
    with pytest.raises(UserError, match=message):
        read(content, path, ("a", "b") if count == 2 and "." not in path else ("text",), count)


@pytest.mark.parametrize(
    "line", ["{good}", "{", "12", "text", "text, then a label", "label: good, bad", "a,b,c", "[a]"]
)
def test_first_lines_that_only_look_odd(read, line):
    assert read(line + "\n") == [line]


def test_surplus_columns_without_a_value(read):
    """As of a sheet with empty columns at its right."""
    assert read("label,text,,\ngood,fine,,\nbad,dull,\n", "t.csv") == ["fine", "dull"]


def test_a_row_is_read_when_it_is_asked_for():
    lines = iter([b"good\n", b"a\tb\n"])
    texts = read_lines(lines, "standard input", ("text",), 1)
    assert next(texts) == "good" and next(lines) == b"a\tb\n"
