"""Rows of every form keep their other columns, in every form that they are written in; what cannot be is refused."""

import csv
import datetime
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from utils.data import labelled_files, row_chunks
from utils.data.labelled_files import QUOTE, check_form, check_rows, open_output
from utils.data.row_chunks import RowFile, read_chunks
from utils.system.errors import UserError

TEXTS = ["a fine film", 'not "great", but', '"so" it ""is""', "", "schön ☺", "12"]
TYPES = {"label": str, "probability": float, "stage": int, "sure": bool}


@pytest.fixture
def rewrite(tmp_path, monkeypatch):
    """Write a file's rows in another form, with the labels L0, L1, ...; in chunks of two rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 2)

    def rewrite_file(name: str, content: bytes | str, output: str, columns=("text",), count: int | None = 1) -> Path:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        file, path = RowFile(Path(name), columns, count, ["good", "bad"], tuple(TYPES)), Path(output)
        check_form(file, path)
        number = 0
        with open_output(path, path.suffix, file, TYPES) as append:
            for chunk in read_chunks(file):
                check_rows(chunk.rows, path)
                ids = range(number, number + len(chunk.texts))
                assert len(ids) <= 2
                added = [[f"L{i}" for i in ids], [i / 10 for i in ids], [*ids], [i > 2 for i in ids]]
                append(chunk.rows, dict(zip(TYPES, added, strict=True)))
                number = ids.stop
        return path

    return rewrite_file


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(table, file, row_group_size=3)
    return file.getvalue()


def csv_of(rows: list[dict], separator: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


ROWS = [{"n": f"0{i}", "text": text} for i, text in enumerate(TEXTS)]
CONTENTS = {
    "rows.csv": "\ufeff" + csv_of(ROWS),  # its lines end in CRLF
    "rows.tsv": "n\ttext\n" + "".join(f"{row['n']}\t{row['text']}\n" for row in ROWS),
    "rows.parquet": parquet(pa.Table.from_pylist(ROWS)),
}


def read(path: Path) -> list[dict]:
    """The rows of a file; of CSV and TSV, as texts."""
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path).to_pylist()
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    assert "\r" not in text
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, cells, strict=True)) for cells in lines]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("output", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
def test_the_same_rows_in_every_form(rewrite, name, output):
    rows = read(rewrite(name, CONTENTS[name], output))
    added = [{"label": f"L{i}", "probability": i / 10, "stage": i, "sure": i > 2} for i in range(len(TEXTS))]
    expected = [row | more for row, more in zip(ROWS, added, strict=True)]
    if output.endswith("sv"):
        texts = [f"{row['probability']:.6f}" for row in added]
        expected = [
            {key: str(value) for key, value in (row | {"probability": text}).items()}
            for row, text in zip(expected, texts, strict=True)
        ]
    if output == "out.tsv":  # else its own quotes would be taken for a cell's
        expected[2]["text"] = f'"{TEXTS[2].replace(QUOTE, 2 * QUOTE)}"'
    assert rows == expected
    assert list(rows[0]) == ["n", "text", *TYPES]


def test_quotes_of_tsv_are_read_again_as_they_were(rewrite):
    text = '"so" it ""is""'
    path = rewrite("rows.csv", csv_of([{"text": text, "b": '"'}]), "out.tsv")
    file = RowFile(path, ("text",), 1, [], ())
    assert [chunk.texts for chunk in read_chunks(file)] == [[text]]


def test_cells_of_csv(rewrite):
    """Line ends in cells, columns of one name or none, empty cells beyond the header's."""
    content = ',text,b,b,,\n0,a,"x\ny", z ,,\n\n1,"c\rd",,"1,2",,,\n,,,\n'
    text = rewrite("rows.csv", content, "out.csv").read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == ["", "text", "b", "b", *TYPES]
    assert [row[:4] for row in rows] == [["0", "a", "x\ny", " z "], ["1", "c\rd", "", "1,2"]]


def test_json_lines_stay_as_they_are(rewrite):
    lines = [
        '{"text": "a", "n": 1e400, "big": 12345678901234567890123, "x": [1.50, null, {"y": true}]}',
        ' {"id":"\\ud83d", "n": NaN, "text" : 12 } ',
        '{"text": "\\u00e9", "text2": 1}',
    ]
    path = rewrite("rows.jsonl", "\ufeff" + "\r\n".join(lines) + "\r\n\n", "out.jsonl")
    written = path.read_text().splitlines()
    for i, (line, own) in enumerate(zip(written, lines, strict=True)):
        added = {"label": f"L{i}", "probability": i / 10, "stage": i, "sure": False}
        assert line == own.strip()[:-1].rstrip() + ", " + json.dumps(added)[1:]
    assert json.loads(written[2])["text"] == "é"


TYPED = {
    "text": ["a", "b", "c", "d", "e"],
    "int": pa.array([1, None, 3, 4, 5], pa.int8()),
    "time": pa.array([1, 2, None, 4, 5], pa.timestamp("ns")),
    "day": [datetime.date(2020, 1, 2)] * 5,
    "list": [[1, 2], [], None, [3], [None]],
    "struct": [{"x": 1.5, "y": "é"}] * 5,
    "word": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
    "share": [0.1, 1.0, None, 2.5, 3.0],
    "is": [True, False, None, True, False],
}


def test_types_of_parquet(rewrite, monkeypatch):
    table = pa.table(TYPED | {"bytes": [b"\xff", None, b"", b"a", b"b"]}).replace_schema_metadata({"who": "me"})
    monkeypatch.setattr(labelled_files, "GROUP_ROWS", 4)
    path = rewrite("rows.parquet", parquet(table), "out.parquet")
    written = pa.parquet.read_table(path)
    assert written.select(table.column_names).equals(table)
    assert [str(written.schema.field(name).type) for name in TYPES] == ["string", "double", "int64", "bool"]
    assert written["label"].to_pylist() == ["L0", "L1", "L2", "L3", "L4"]
    assert pa.parquet.read_schema(path).metadata[b"who"] == b"me"
    groups = pa.parquet.read_metadata(path)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [4, 1]


def test_types_of_parquet_in_other_forms(rewrite):
    content = parquet(pa.table(TYPED))
    rows = read(rewrite("rows.parquet", content, "out.jsonl"))
    for name in ("int", "list", "struct", "word", "share", "is"):
        assert [row[name] for row in rows] == pa.table(TYPED)[name].to_pylist()
    assert rows[0]["time"] == "1970-01-01 00:00:00.000000001" and rows[0]["day"] == "2020-01-02"
    first, *_, last = read(rewrite("rows.parquet", content, "out.csv"))
    assert first["list"] == "[1, 2]" and first["struct"] == '{"x": 1.5, "y": "é"}' and first["share"] == "0.1"
    assert last["time"] == "1970-01-01 00:00:00.000000005" and last["is"] == "False" and last["list"] == "[null]"


def test_plain_text(rewrite):
    assert [row["text"] for row in read(rewrite("texts.txt", "\ufeffa\r\n\n b ", "out.csv"))] == ["a", "", "b"]
    assert [row["words"] for row in read(rewrite("t", "a\nb\n", "out.jsonl", ("words",), None))] == ["a", "b"]
    for columns, names in ((("text",), ["text_a", "text_b"]), (("q1", "q2"), ["q1", "q2"])):
        for count in (2, None):
            rows = read(rewrite("t.txt", "a\tb\nc\td\n", "out.parquet", columns, count))
            assert [[row[name] for name in names] for row in rows] == [["a", "b"], ["c", "d"]]
    with pytest.raises(UserError, match=r"t.txt, line 2 has 2 text\(s\), but those before 1"):
        rewrite("t.txt", "a\nb\tc\n", "out.csv", count=None)


def test_no_rows(rewrite):
    assert rewrite("t.csv", "n,text\n", "out.csv").read_text() == "n,text,label,probability,stage,sure\n"
    assert rewrite("t.txt", "", "out.tsv").read_text() == "text\tlabel\tprobability\tstage\tsure\n"
    empty = parquet(pa.table({"text": pa.array([], pa.string())}))
    assert pa.parquet.read_table(rewrite("t.parquet", empty, "out.parquet")).column_names == ["text", *TYPES]


def test_long_rows_end_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(row_chunks, "CHUNK_CHARACTERS", 10)
    (tmp_path / "t.csv").write_text("text,n\naaaaaaa,0\nb,1\nc,23456\nd,1\n" + "e" * 20 + ",1\n")
    chunks = read_chunks(RowFile(tmp_path / "t.csv", ("text",), 1, [], ()))
    assert [len(chunk.texts) for chunk in chunks] == [2, 3]


@pytest.mark.parametrize(
    ("name", "content", "output", "message"),
    [
        ("t.csv", "text,label\na,1\n", "out.csv", "t.csv, line 1: there is a column 'label' already.*--prefix"),
        ("t.csv", "text, stage \na,1\n", "out.csv", "there is a column 'stage' already.*--prefix"),
        ("t.jsonl", '{"text": "a"}\n{"text": "a", "sure": 1}', "out.jsonl", "t.jsonl, line 2: .* 'sure' already"),
        ("t.parquet", parquet(pa.table({"text": ["a"], "probability": [1]})), "out.parquet", "'probability' already"),
        ("t.jsonl", '{"text": "a"}\n', "out.csv", "other columns: name a file that ends in .jsonl"),
        ("t.csv", "text\na\n", "out.txt", "--output out.txt: name a file that ends in .csv"),
        ("t.csv", "text,b,b\na,b,c\n", "out.parquet", "t.csv: 2 columns are called 'b': rename"),
        ("t.csv", 'text,b\na,"b\tc"\n', "out.tsv", "'b\\\\tc' holds a tab or a line end.*.csv"),
        ("t.parquet", parquet(pa.table({"text": ["a"], "image": [{"bytes": b"a"}]})), "out.csv", "'image' holds bytes"),
        ("t.csv", "text\na\n".encode("utf-16"), "out.csv", "t.csv, line 1: not UTF-8 but UTF-16: save the text"),
        ("t.jsonl", '{"text": "a"}\n'.encode("utf-16"), "out.jsonl", "t.jsonl, line 1: not UTF-8 but UTF-16"),
        ("t.csv", b"text\na\ncaf\xe9\n", "out.csv", "t.csv, line 3: not UTF-8"),
        ("t.csv", b"", "out.csv", "t.csv is empty"),
        ("t.csv", b"\n\n", "out.csv", "t.csv is empty"),
        ("t.csv", b"body\na\n", "out.csv", "names no column 'text', only 'body': give its name with --text_column"),
        ("t.jsonl", '{"text": "a"}\n{"body": "a"}', "out.jsonl", "line 2: no value for 'text', only 'body'"),
        ("t.jsonl", '{"text": "a"}\n{"text": null}', "out.jsonl", "line 2: 'text' is null, not text"),
        ("t.jsonl", '{"text": "a \\ud83d"}', "out.jsonl", "line 1: 'text' holds .* half of a character"),
        ("t.parquet", parquet(pa.table({"text": ["a", None]})), "out.parquet", "row 2: 'text' is null"),
        ("t.parquet", parquet(pa.table({"text": [1.5]})), "out.parquet", "row 1: 'text' is 1.5"),
    ],
)  # fmt: skip
def test_what_cannot_be(rewrite, name, content, output, message):
    with pytest.raises(UserError, match=message):
        rewrite(name, content, output)
