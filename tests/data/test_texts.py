"""Every format gives the same rows, or an error that names the file's line; nothing is read as something else."""

import datetime
import decimal
import json
import math

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import fails, snapshot
from data_files import write, write_rows

from utils.data.label_checks import read_labels
from utils.data.texts import NAMES, Columns, numbered_rows, read_rows
from utils.system.errors import UserError

PAIR = Columns(("a", "b"), "label")
COLUMN_FORMATS = [".tsv", ".csv", ".jsonl", ".parquet"]


def rows_of(path, names: Columns = NAMES):
    return list(read_rows(path, names))


def refused(path, *parts: str, names: Columns = NAMES) -> None:
    with pytest.raises(UserError) as error:
        rows_of(path, names)
    for part in (str(path), *parts):
        assert part in str(error.value), error.value


def test_windows_line_ends_byte_order_mark_and_labels_of_any_kind(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffgood film \tvery, good!\r\nbad\t-1\r\n\ttwice\r\n")
    assert rows_of(path) == [(("good film",), "very, good!"), (("bad",), "-1"), (("",), "twice")]


@pytest.mark.parametrize("suffix", COLUMN_FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    texts = ['a "good" film', '"so" it ends', "not, good", "naïve 日本語 🙂", " spaces "]
    rows = [{"id": i, "b": text, "a": "x", "label": i % 2} for i, text in enumerate(texts)]
    path = write_rows(tmp_path / f"train{suffix}", rows)
    assert rows_of(path, Columns(("b",))) == [((text.strip(),), str(i % 2)) for i, text in enumerate(texts)]
    assert rows_of(path, PAIR)[1] == (("x", '"so" it ends'), "1")


def test_tsv_as_glue_and_as_spreadsheets_write_it(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"good" film\t1\n"fine"\t0\nit is "\t1\n')
    assert rows_of(path) == [(('"good" film',), "1"), (('"fine"',), "0"), (('it is "',), "1")]
    path = write(tmp_path / "a.tsv", '"text"\t"label"\n"fine"\t"0"\n"a ""b"""\t"1"\n')
    assert rows_of(path) == [(("fine",), "0"), (('a "b"',), "1")]


ONE_ROW = {
    ".txt": "good\t1\n", ".tsv": "text\tlabel\ngood\t1\n", ".csv": "text,label\ngood,1\n",
    ".jsonl": '{"text": "good", "label": 1}\n',
}  # fmt: skip


@pytest.mark.parametrize("suffix", ONE_ROW)
@pytest.mark.parametrize("end", ["", "\n", "\n \n\n", "\r\n\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_byte_order_mark_and_blank_lines_at_the_end(tmp_path, suffix, end, start):
    path = write(tmp_path / f"a{suffix}", start + ONE_ROW[suffix] + end)
    assert rows_of(path) == [(("good",), "1")]


def test_blank_cells_at_the_end(tmp_path):
    assert rows_of(write(tmp_path / "a.csv", "text,label,,\ngood,1,,\nbad,0\n,,,\n")) == [
        (("good",), "1"), (("bad",), "0"),
    ]  # fmt: skip
    refused(write(tmp_path / "a.csv", "text,label\n,\ngood,1\n"), "line 2: empty label")
    refused(write(tmp_path / "a.jsonl", '\n{"text": "good", "label": 1}\n'), "line 1: not valid JSON")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "label,text\nbad,dull\ngood,not great, but I laughed\n", ["line 3: 3 cells", "2 columns", "quotes"]),
        ("a.csv", "text,label\nnot great, but I laughed,good\n", ["line 2: 3 cells", "2 columns", "quotes missing"]),
        ("a.csv", "text,label,,\nfine,good,,\nnot great,good, I laughed,\n", ["line 3: 4 cells", "2 columns"]),
        ("a.csv", "text,label,id\nfine,good\n", ["line 2: 2 cells", "3 columns"]),
        ("a.csv", 'text,label\n"two\nlines",good\nnot, great,good\n', ["line 4: 3 cells"]),
        ("a.csv", 'text,label\nfine,good\n"two\nlines" more,good\n', ["line 3: not valid CSV"]),
        ("a.csv", 'text,label\nfine,good\n\n"never closed,good\nfine,bad\n', ["line 4: not valid CSV"]),
        ("a.tsv", "text\tlabel\nnot\tgreat\tgood\n", ["line 2: 3 cells", "2 columns", "tab"]),
        ("a.tsv", "text\tlabel\nfine\n", ["line 2: 1 cells", "2 columns"]),
        ("a.txt", "fine\tgood\nnot\tgreat\tgood\n", ["line 2: 3 columns"]),
    ],
)
def test_ragged_rows(tmp_path, name, content, parts):
    refused(write(tmp_path / name, content), *parts)


def test_line_of_a_row_is_where_it_begins(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"a\nb",1\n\n"c ""d""",0\n')
    assert list(numbered_rows(path)) == [(2, (("a\nb",), "1")), (5, (('c "d"',), "0"))]


@pytest.mark.parametrize("suffix", COLUMN_FORMATS)
def test_columns_of_one_name(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pa.parquet.write_table(pa.table([["x"], ["y"], ["1"], ["z"]], names=["text", "text", "label", "a"]), path)
    elif suffix == ".jsonl":
        write(path, '{"text": "x", "text": "y", "label": "1", "a": "z"}\n')
    else:
        names, cells = ["text", "text ", "label", "a"], ["x", "y", "1", "z"]
        write(path, "".join(("," if suffix == ".csv" else "\t").join(row) + "\n" for row in (names, cells)))
    refused(path, "'text'")
    refused(path, "'text'", names=Columns(("text",), "a"))
    if suffix != ".parquet":
        assert rows_of(path, Columns(("a",))) == [(("z",), "1")], "one that is not wanted may be there twice"


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize(
    ("value", "part"),
    [
        (["a", "b"], "a list"), ({"a": 1}, "an object"), (math.nan, "nan"), (1.5, "1.5"), (math.inf, "inf"),
        (None, "null"), (b"ab", "bytes"), (decimal.Decimal("1.0"), "Decimal"), (datetime.date(2020, 1, 1), "date"),
        (datetime.datetime(2020, 1, 1), "datetime"),
    ],
)  # fmt: skip
def test_cells_that_are_no_text(tmp_path, column, value, part):
    good = {"text": "fine", "label": "1"}
    if not isinstance(value, bytes | decimal.Decimal | datetime.date):
        path = write(tmp_path / "a.jsonl", json.dumps(good) + "\n" + json.dumps(good | {column: value}) + "\n")
        refused(path, "line 2", f"{column!r} is", part)
    path = write_rows(tmp_path / "a.parquet", [good | {column: value}])
    refused(path, "row 1", f"{column!r} is", part)


def test_numbers_and_truth_values(tmp_path):
    labels = [1, 1.0, "1", True, -0.0, 10**20, 1e20]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": 2, "label": label}) + "\n" for label in labels))
    expected = ["1", "1", "1", "True", "0", "1" + "0" * 20, "1" + "0" * 20]
    assert rows_of(path) == [(("2",), label) for label in expected]
    # As pandas writes integers beside missing values.
    path = write_rows(tmp_path / "a.parquet", [{"text": "a", "label": 1.0}, {"text": "b", "label": 0.0}])
    assert rows_of(path) == [(("a",), "1"), (("b",), "0")]
    assert rows_of(write(tmp_path / "a.csv", "text,label\na,1.0\n")) == [(("a",), "1.0")]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (r'{"text": "a fine film \ud83d", "label": "1"}', r"'text' holds '\ud83d'"),
        (r'{"text": "fine", "label": "\udc00"}', r"'label' holds '\udc00'"),
        ("[" * 100_000, "not valid JSON"),
        ('{"text": ' + "1" * 5000 + ', "label": "1"}', "not valid JSON"),
        ('["fine", "1"]', "a list, not a JSON object"),
        ('{"label": "1"}', "no value for 'text', only 'label': correct it, or give --text_column"),
        ("", "not valid JSON"),
    ],
)
def test_bad_json(tmp_path, line, part):
    good = '{"text": "\\ud83d\\ude42", "label": "1"}\n'
    path = write(tmp_path / "a.jsonl", good + line + "\n" + good)
    refused(path, f"line 2: {part}")
    assert rows_of(write(path, good)) == [(("🙂",), "1")]


def test_columns_that_are_not_there(tmp_path):
    refused(write(tmp_path / "a.csv", "txt, label\nfine,1\n"), "no column 'text', only 'txt', 'label'", "--text_column")
    assert rows_of(write(tmp_path / "a.csv", "text, label\nfine,1\n")) == [(("fine",), "1")]
    assert rows_of(write(tmp_path / "a.jsonl", '{"text ": "fine", " label": 1}\n')) == [(("fine",), "1")]
    refused(write(tmp_path / "a.csv", "text;label\nfine;1\n"), "line 1", "separated by ';'")
    refused(write(tmp_path / "a.csv", '"text";"label"\n"fine";"1"\n'), "line 1", "separated by ';'")
    refused(write(tmp_path / "a.csv", "text\tlabel\nfine\t1\n"), "call it a.tsv")
    refused(write(tmp_path / "a.tsv", "text,label\nfine,1\n"), "call it a.csv")
    refused(
        write(tmp_path / "test.tsv", "index\ttext\n0\tfine\n"), "no column 'label'", "rows without labels are of no use"
    )
    refused(write(tmp_path / "test.tsv", "fine\t1\nbad\t0\n"), "only 'fine', '1'", "call the file test.txt")
    refused(write_rows(tmp_path / "a.parquet", [{"text": "a", "mark": 1}]), "no column 'label', only 'text', 'mark'")


def test_texts_longer_than_the_csv_module_takes_by_itself(tmp_path):
    text = "good film " * 20_000
    assert rows_of(write(tmp_path / "a.csv", f"text,label\n{text},1\n")) == [((text.strip(),), "1")]


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl"])
def test_line_that_is_not_utf8(tmp_path, suffix):
    lines = ONE_ROW[suffix].encode().splitlines(keepends=True)
    content = b"".join([*lines, lines[-1] * 2000, lines[-1].replace(b"good", b"caf\xe9")])
    refused(write(tmp_path / f"a{suffix}", content), f"line {content.count(bytes([10]))}: not UTF-8")


def test_damaged_parquet(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [{"text": f"text {i}", "label": i % 2} for i in range(5000)])
    content = path.read_bytes()
    refused(write(path, content[:-20]), "Parquet")
    refused(write(path, content[:4] + bytes(3000) + content[3004:]), "Parquet")
    pa.parquet.write_table(pa.table({"text": pa.array([b"caf\xe9"]).cast(pa.string(), safe=False), "label": [1]}), path)
    refused(path, "not UTF-8")


def test_class_names_of_hugging_face(tmp_path):
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pa.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [(("a",), "good"), (("b",), "bad"), (("c",), "-1")]
    for other in (b"{", b"[]", b'{"info": {"features": {"label": [1]}}}', b'{"info": {"features": {}}}'):
        pa.parquet.write_table(table.replace_schema_metadata({b"huggingface": other}), tmp_path / "a.parquet")
        assert rows_of(tmp_path / "a.parquet")[0] == (("a",), "1")


def data_set(folder, suffix: str = ".txt", **contents: str):
    folder.mkdir(exist_ok=True)
    good = {".txt": "good\t1\nbad\t0\n", ".csv": "text,label\ngood,1\nbad,0\n"}[suffix]
    for split in ("train", "valid", "test"):
        write(folder / f"{split}{suffix}", contents.get(split, good))
    return folder


def refused_set(folder, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        read_labels(folder)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize("header", ["sentence\tlabel", "Text\tClass", "review\tsentiment_of_it", "label\tsentence"])
@pytest.mark.parametrize("splits", [["train"], ["valid"], ["train", "valid", "test"]])
def test_header_in_a_text_file(tmp_path, header, splits):
    rows = "good film\t1\nbad film\t0\n" * 3
    data_set(tmp_path, **dict.fromkeys(splits, f"{header}\n{rows}"))
    refused_set(tmp_path, f"{splits[0]}.txt, line 1 seems to name the columns", f"{splits[0]}.tsv")


@pytest.mark.parametrize("header", ["sentence1\tsentence2\tgold", "how\twhy\tlabel"])
def test_header_of_pairs(tmp_path, header):
    pairs = "how much\twhat price\t1\nwhy\tnot\t0\n"
    data_set(tmp_path, train=f"{header}\n{pairs}", valid=pairs, test=pairs)
    refused_set(tmp_path, "train.txt, line 1 seems to name the columns", ", ".join(map(repr, header.split("\t"))))


def test_first_rows_that_are_no_header(tmp_path):
    data_set(tmp_path, train="text\t1\ngood\t1\nbad\t0\n")
    assert read_labels(tmp_path)[0] == {"0": 1, "1": 2}
    data_set(tmp_path, train="a film\tother\ngood\t1\nbad\t0\n")
    assert set(read_labels(tmp_path)[0]) == {"0", "1", "other"}
    data_set(tmp_path, train="what is it?\tquestion\ngood\t1\nbad\t0\nand that?\tquestion\n")
    assert set(read_labels(tmp_path)[0]) == {"0", "1", "question"}


def test_unknown_labels(tmp_path):
    text = "this is a film which goes on and on until nobody knows why they came, " * 30
    data_set(tmp_path, ".csv", valid='text,label\n"two\nlines",1\ngood,2\nbad,0\n')
    refused_set(tmp_path, "valid.csv, line 4: label '2' is not in train.csv: correct it, or add rows")
    data_set(tmp_path, ".csv", test="text,label\ngood,-1\nbad,-1\n")
    refused_set(tmp_path, "test.csv, line 2: label '-1'", "no labels", "labelled rows")
    data_set(tmp_path, ".csv", test="text,label\ngood,-1\n")
    refused_set(tmp_path, "test.csv, line 2: label '-1'", "no labels")
    data_set(tmp_path, ".csv", test="text,label\ngood,2\n")
    refused_set(tmp_path, "test.csv, line 2: label '2' is not in train.csv: correct it, or add rows")
    data_set(tmp_path / "b", train="1\tgood\n0\tbad\n", valid=f"1\t{text}\n0\tbad\n")
    refused_set(tmp_path / "b", "valid.txt, line 1", "is the label last in each line?")
    with pytest.raises(UserError) as error:
        read_labels(tmp_path / "b")
    assert len(str(error.value)) < 300


def test_label_of_several_lines(tmp_path):
    data_set(tmp_path, ".csv", train='text,label\ngood,1\nfine,"a\nb"\nbad,"a\tb"\n')
    refused_set(tmp_path, "train.csv, line 3", "end of a line")
    data_set(tmp_path, ".csv", train='text,label\ngood,1\nbad,"a\tb"\n')
    refused_set(tmp_path, "train.csv, line 3", "a tab")


def test_very_long_numbers_are_labels_too(tmp_path):
    data_set(tmp_path, train=f"good\t1\nbad\t{'9' * 5000}\nfine\t0\n", valid="good\t1\n", test="good\t1\n")
    assert [label[0] for label in read_labels(tmp_path)[0]] == ["0", "1", "9"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("val.csv", ["val.csv", "call it valid.csv"]),
        ("dev.tsv", ["dev.tsv", "call it valid.tsv"]),
        ("Valid.TXT", ["Valid.TXT", "call it valid.txt"]),
        ("validation-00000-of-00001.parquet", ["call it valid.parquet"]),
        ("valid.json", ["call it valid.jsonl", "one JSON object a line"]),
        ("valid.csv.gz", ["unpack it", "call it valid.csv"]),
        ("dev_matched.tsv dev_mismatched.tsv", ["dev_matched.tsv, dev_mismatched.tsv", "call one of them valid.tsv"]),
        ("development.pdf", ["no such file", ".parquet"]),
        ("train.csv", ["both train.txt and train.csv"]),
    ],
)
def test_files_of_other_names(tmp_path, name, parts):
    data_set(tmp_path)
    (tmp_path / "valid.txt").unlink()
    for one in name.split():
        write(tmp_path / one, "x")
    refused_set(tmp_path, *parts)


def test_link_to_a_file_that_is_not_there(tmp_path):
    data_set(tmp_path)
    (tmp_path / "valid.txt").unlink()
    (tmp_path / "valid.csv").symlink_to(tmp_path / "annex/valid.csv")
    refused_set(tmp_path, "valid.csv is a link to a file that is not there")


def test_nothing_is_left_behind(project):
    """As the shell sees it: one sentence, and not a file more than before."""
    steps = project()
    for path in steps.data.iterdir():
        path.unlink()
    for split in ("train", "valid", "test"):
        write(steps.data / f"{split}.jsonl", '{"text": "good \\ud83d", "label": "1"}\n{"text": "bad", "label": "0"}\n')
    before = snapshot(steps.folder)
    fails(steps.preprocess(), "train.jsonl, line 1", "surrogate")
    encoder = f"--bert_model_name_or_path={steps.encoder}"
    fails(steps.script("augment_data", f"--data_dir={steps.data}", encoder, "--mask_ratio=0"), "train.jsonl, line 1")
    assert snapshot(steps.folder) == before
    fails(steps.preprocess("--text_column=label"), "--text_column=label", "--label_column=label", "twice")
