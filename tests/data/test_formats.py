"""Cells are what the file holds: line ends and quotes inside of them too."""

import pytest
from data_files import write

from utils.data.formats import missing_file, read_cells, read_fields, undecodable_line

FLAGS = {"text": "--text_column", "label": "--label_column"}


def cells_of(path) -> list[list[str]]:
    return [cells for _, cells in read_cells(path, FLAGS)]


def test_line_ends_inside_a_cell(tmp_path):
    assert cells_of(write(tmp_path / "a.csv", 'text,label\r\n"a\r\nb",1\r\n"c\rd",0\r\n')) == [
        ["a\r\nb", "1"],
        ["c\rd", "0"],
    ]
    # A lone carriage return ends no line of a file of lines.
    assert cells_of(write(tmp_path / "a.tsv", "text\tlabel\na\rb\t1\n")) == [["a\rb", "1"]]
    assert [fields for _, fields in read_fields(write(tmp_path / "a.txt", "a\rb\t1\n"))] == [["a\rb", "1"]]


def test_quotes_of_tsv(tmp_path):
    """Of GLUE's files they are text, of a spreadsheet's, which quotes its header too, they are not."""
    rows = '"fine"\t"0"\n"\t1\n""\t1\n"a"b"\t1\n"say ""no"""\t1\n'
    plain = [['"fine"', '"0"'], ['"', "1"], ['""', "1"], ['"a"b"', "1"], ['say "no"', "1"]]
    assert cells_of(write(tmp_path / "a.tsv", f"text\tlabel\n{rows}")) == plain
    quoted = [["fine", "0"], ['"', "1"], ["", "1"], ['"a"b"', "1"], ['say "no"', "1"]]
    assert cells_of(write(tmp_path / "a.tsv", f'"text"\t"label"\n{rows}')) == quoted


def test_line_that_is_not_utf8(tmp_path):
    assert undecodable_line(write(tmp_path / "a.txt", "schön\n")) == 0
    (tmp_path / "a.txt").write_bytes(b"a\ncaf\xe9\n")
    assert undecodable_line(tmp_path / "a.txt") == 2


@pytest.mark.parametrize(
    ("names", "mend"),
    [
        (["dev.ndjson"], "call it valid.jsonl"),
        (["validation.json"], "call it valid.jsonl; it needs one JSON object a line"),
        ([f"val-{i}.csv" for i in range(5)], "val-0.csv, val-1.csv, val-2.csv): call one of them valid.csv"),
        (["valid.tsv.gz"], "unpack it, and call it valid.tsv"),
        (["other.csv"], "put the data set's files there, as .txt, .tsv, .csv, .jsonl or .parquet"),
    ],
)
def test_file_of_another_name(tmp_path, names, mend):
    for name in names:
        write(tmp_path / name, "")
    assert str(missing_file(tmp_path / "valid.txt")).endswith(mend) or mend in str(missing_file(tmp_path / "valid.txt"))


def test_no_folder(tmp_path):
    assert f"{tmp_path / 'a'} is not a folder" in str(missing_file(tmp_path / "a" / "train.txt"))
