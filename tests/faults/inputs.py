"""Bad input, written down and generated: exit code 2, one sentence, no traceback, nothing touched."""

import json
import pickle
from pathlib import Path

import torch
from conftest import make_encoder, make_tokenizer, snapshot
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from faults.processes import Recipe

# A step, its further options, and the files that are changed first, relative to the recipe's folder.
Case = tuple[str, list[str], dict[str, bytes]]

NUMBERS = ["0", "-1", "1.5", "nan", "many", ""]
TRAINING = ["--epoch", "--batch_size", "--eval_steps", "--save_steps", "--patience", "--accumulation_steps"]


class Bomb:
    """Pickled, it leaves a file behind when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def written_down(recipe: Recipe) -> list[Case]:
    """Mistakes that users make."""
    folder = recipe.folder
    torch.save({"weight": Bomb(folder / "exploded")}, folder / "bomb.pt")
    (folder / "plain-bomb.pt").write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    make_encoder(folder / "other-words", "bert", make_tokenizer(cls="<s>", sep="</s>"), hidden_size=16)
    make_encoder(folder / "roberta", "roberta", hidden_size=16)
    config, meta = (folder / "encoder/config.json").read_text(), (folder / "data/tokenized/meta.json").read_text()
    lines = (folder / "data/train.txt").read_bytes()
    cases: list[Case] = [("train", [f"{flag}={value}"], {}) for flag in TRAINING for value in NUMBERS[:4]]
    cases += [
        ("train", [f"{flag}={value}"], {}) for flag in ("--lr", "--max_grad_norm") for value in ("0", "-1", "nan")
    ]
    cases += [("train", [option], {}) for option in (
        "--warmup_ratio=1.5", "--weight_decay=-1", "--measure=f1", "--precision=int8", "--device=tpu", "--resume=yes",
        "--resume=always", "--unknown=1", "--bert_model_name_or_path=nowhere/at/all",
        f"--bert_model_name_or_path={folder}/roberta", f"--bert_model_name_or_path={folder}/other-words",
        "--bert_output_dir=/proc/out", f"--save_path={folder}", "--config=nowhere.json", "--data_dir=nowhere",
    )]  # fmt: skip
    cases += [("preprocess", [], {"data/train.txt": content}) for content in (
        b"", b"\n", b"no tab\n", b"a\t\n", b"a\tb\tc\td\n", b"\xff\xfe\tpositive\n", b"one label\tpositive\n",
        lines + b"a film\n", b"a\tb\tpositive\n" + lines,
    )]  # fmt: skip
    cases += [("preprocess", [], {"data/test.txt": b"a film\tunknown\n"})]
    cases += [("train", [], {"config.json": content}) for content in (
        b"", b"{", b"[]", b"null", b'{"encoder_class": "bert"}', b'{"encoder_class": "gpt", "n_ctx": 16}',
        b'{"encoder_class": "bert", "n_ctx": 0}', b'{"encoder_class": "bert", "n_ctx": "16"}',
        b'{"encoder_class": "bert", "n_ctx": 100000}', b'{"encoder_class": "bert", "n_ctx": 16, "more": 1}',
        b'{"encoder_class": "roberta", "n_ctx": 16}',
    )]  # fmt: skip
    cases += [("train", [], {"encoder/config.json": content}) for content in (
        b"", b"[1]", config.replace('"hidden_size": 16', '"hidden_size": 32').encode(),
        config.replace('"num_attention_heads": 4', '"num_attention_heads": 5').encode(),
        config.replace('"bert"', '"unheard-of"').encode(),
    )]  # fmt: skip
    cases += [("train", [], {"data/tokenized/meta.json": content}) for content in (
        b"", b"{}", b"[]", meta.replace('"n_ctx": 16', '"n_ctx": 17').encode(),
    )]  # fmt: skip
    cases += [
        ("evaluate", [f"--model_path={folder}/{name}"], {}) for name in ("bomb.pt", "plain-bomb.pt", "no.pt", "log.txt")
    ]
    cases += [("evaluate", options, {}) for options in (
        ["--enable_ort"], ["--num_threads=0"], ["--num_instances=0"], ["--batch_size=0"],
        ["--enable_ort", f"--onnx_path={folder}/log.txt"],
        ["--enable_ort", f"--onnx_path={folder}/log.txt", "--torch_int8"],
    )]  # fmt: skip
    cases += [("prune", options.split(), {}) for options in (
        "--target_num_heads=9", "--target_num_heads=-1", "--target_ffn_dim=0", "--target_ffn_dim=10000",
        "--target_macs=0", "--target_macs=1.5", "--target_macs=nan", "--target_latency=0", "--target_latency=-1",
        "--keep_layers=7", "--keep_layers=1,1", "--keep_layers=1,0", "--keep_layers=-1", "--keep_layers=a",
        "--target_num_layers=9", "--target_num_layers=0", "--target_hidden_size=7", "--target_hidden_size=4096",
        "--target_macs=0.5 --target_latency=0.5", "--importance=best", "--importance_rows=0", "--iterations=0",
    )]  # fmt: skip
    cases += [("fastformers", options, {}) for options in (
        ["--kd_loss=none"], ["--state_loss_ratio=-1"], ["--att_loss_ratio=inf"], ["--teacher_config=nowhere.json"],
        ["--state_loss_ratio=1", "--teacher_layers=0,9"], [f"--teacher_model_path={folder}/bomb.pt"],
        ["--teacher_bert_model_name_or_path=nowhere"],
    )]  # fmt: skip
    cases += [("quantize", options, {}) for options in (
        ["--max_accuracy_drop=-1"], ["--target_cpu=z80"], ["--fp16", "--fp32"], [f"--output_dir={folder}"],
        [f"--quantized_onnx_path={folder}/new.onnx", f"--onnx_path={folder}/new.onnx"],
    )]  # fmt: skip
    return cases + data_of_strangers(recipe) + checkpoints_of_strangers(recipe) + texts_to_label(recipe)


def data_of_strangers(recipe: Recipe) -> list[Case]:
    """Files of rows as other programs and people write them, of which some rows are not what they seem."""
    good = {
        ".csv": b"text,label\ngood film,positive\nbad film,negative\n",
        ".tsv": b"text\tlabel\ngood film\tpositive\nbad film\tnegative\n",
        ".jsonl": b'{"text": "good film", "label": "positive"}\n{"text": "bad film", "label": "negative"}\n',
    }
    bad = {
        ".csv": [b"", b"text,label\n", b"a,b\n", b"text;label\ngood;1\n", b"text,text,label\na,b,1\n",
                 b"text,label\nnot great, but good,1\n", b"text,label\ngood\n", b'text,label\n"never closed,1\n',
                 b"text,label\ncaf\xe9,1\n", b"\xff\xfet\x00", b"text,label\ngood,\n"],
        ".tsv": [b"text,label\ngood,1\n", b"text\tlabel\na\tb\t1\n", b"good film\tpositive\nbad film\tnegative\n"],
        ".jsonl": [b"[]\n", b"[1]\n", b"{\n", b"null\n", b'{"text": "a"}\n', b'{"text": null, "label": "1"}\n',
                   b'{"text": ["a"], "label": "1"}\n', b'{"text": {"a": 1}, "label": "1"}\n',
                   b'{"text": NaN, "label": "1"}\n', b'{"text": "a", "label": 1.5}\n',
                   b'{"text": "a \\ud83d", "label": "1"}\n', b'{"text": "a", "label": "\\udc00"}\n',
                   b'{"text": "a", "text": "b", "label": "1"}\n', b"[" * 100_000],
    }  # fmt: skip
    cases: list[Case] = []
    for ending, content in good.items():
        folder = recipe.folder / f"data{ending}"
        folder.mkdir()
        for split in ("train", "valid", "test"):
            (folder / f"{split}{ending}").write_bytes(content)
        cases += [
            ("preprocess", [f"--data_dir={folder}"], {f"{folder.name}/train{ending}": rows}) for rows in bad[ending]
        ]
    lines = (recipe.data / "train.txt").read_bytes()
    cases.append(("preprocess", [], {"data/train.txt": b"sentence\tlabel\n" + lines}))
    return [*cases, ("preprocess", [f"--data_dir={recipe.folder}/data.csv", "--text_column=label"], {})]


def checkpoints_of_strangers(recipe: Recipe) -> list[Case]:
    """Checkpoint folders of which something is missing, or is not what it seems."""
    folder = recipe.folder
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    config = json.loads((folder / "encoder/config.json").read_text())
    names = ("config.json", "tokenizer.json", "model.safetensors")
    cases: list[Case] = [("train", [], {f"encoder/{name}": pointer}) for name in names]
    cases += [("preprocess", [], {"encoder/tokenizer.json": content}) for content in (b"", b"{}", pointer)]
    cases += [
        ("train", [], {"encoder/config.json": json.dumps(config | keys).encode()})
        for keys in ({"is_decoder": True}, {"vocab_size": 9}, {"model_type": None}, {"model_type": 1})
    ]
    for name in ("no-vocabulary", "adapter", "flax"):
        make_encoder(folder / name, "bert", hidden_size=16)
    (folder / "no-vocabulary/tokenizer.json").unlink()
    (folder / "adapter/adapter_config.json").write_text("{}")
    (folder / "flax/model.safetensors").rename(folder / "flax/flax_model.msgpack")
    (folder / "pointer.onnx").write_bytes(pointer)
    cases += [
        ("train", [f"--bert_model_name_or_path={folder}/{name}"], {}) for name in ("no-vocabulary", "adapter", "flax")
    ]
    cases.append(("preprocess", [f"--bert_model_name_or_path={folder}/no-vocabulary"], {}))
    return [*cases, ("evaluate", ["--enable_ort", f"--onnx_path={folder}/pointer.onnx"], {})]


def texts_to_label(recipe: Recipe) -> list[Case]:
    """Files that predict.py would label wrongly, or not at all, with a model of one text."""
    folder = recipe.folder
    recipe.must("quantize", folder / "model", "--fp32")
    endings = (".csv", ".tsv", ".jsonl", ".parquet", ".json")
    for ending in (".txt", *endings):
        (folder / f"texts{ending}").write_bytes(b"")
    lines = [b"a film\tpositive\n", b"a film\tor two\n", b'{"text": "a film"}\n', b"text,label\na film,positive\n",
             b"text;label\n", b"sentence\tlabel\n", b"caf\xe9\n", "a film\n".encode("utf-16"), b"a\0\n",
             b"\xed\xa0\xbd\n"]  # fmt: skip
    cases: list[Case] = [("predict", [], {"texts.txt": content}) for content in lines]
    for ending, contents in {
        ".csv": [b"", b"body\na\n", b"text,text\na,b\n", b"label,text\nbad,not good, but dull\n", b'text\n"a" b\n',
                 b"text\ncaf\xe9\n", b"label,text\ngood\n", "text\na\n".encode("utf-16")],
        ".tsv": [b"text,label\na,b\n", b"text\nbad\tfilm\n"],
        ".jsonl": [b"a\n", b"[1]\n", b'{"text": null}\n', b'{"text": ["a"]}\n', b'{"text": NaN}\n', b'{"body": "a"}\n',
                   b'{"text": "a \\ud83d"}\n', b'{"text": "a", "text": "b"}\n', b"[" * 100_000],
        ".parquet": [b"", b"PAR1", b"a film\n"],
        ".json": [b'[{"text": "a film"}]\n'],
    }.items():  # fmt: skip
        own = f"--input={folder}/texts{ending}"
        for more in ([], [f"--output={folder}/labelled.jsonl"]):
            cases += [("predict", [own, *more], {f"texts{ending}": content}) for content in contents]
    good = {"texts.csv": b"text,body\na,b\n"}
    cases += [("predict", [f"--input={folder}/texts.csv", option], good) for option in (
        "--text_column=text,body", "--text_column=a,b,c", "--text_column=", "--batch_size=0", "--num_threads=0",
    )]  # fmt: skip
    cases += [
        ("predict", [f"--output={folder}/labelled{ending}"], {"texts.txt": content})
        for ending, content in ((".csv", lines[0]), (".tsv", b"a\tb\n"), (".parquet", lines[6]), ("", b"a\n"))
    ]
    taken = {"texts.csv": b"text,label\na,b\n"}
    cases.append(("predict", [f"--input={folder}/texts.csv", f"--output={folder}/labelled.csv"], taken))
    return [*cases, ("predict", ["--input=nowhere.txt"], {})]


def failure(recipe: Recipe, case: Case) -> str | None:
    """What a step did wrong with bad input; None if it failed as it should."""
    script, options, files = case
    before = {name: (recipe.folder / name).read_bytes() for name in files}
    for name, content in files.items():
        (recipe.folder / name).write_bytes(content)
    recipe.log.write_bytes(b"")
    ignored = {"log.txt"}
    there = {name: content for name, content in snapshot(recipe.folder).items() if name not in ignored}
    code = recipe.run(script, recipe.folder / "bad-output", *options)
    log = recipe.log.read_text(errors="replace")
    left = {name: content for name, content in snapshot(recipe.folder).items() if name not in ignored}
    for name, content in before.items():
        (recipe.folder / name).write_bytes(content)
    last = log.strip().splitlines()[-1] if log.strip() else ""
    shown = f"{script} {' '.join(options)} {files}"[:200]
    if code != 2 or "Traceback" in log or not last.startswith(f"{script}.py: error: "):
        return f"{shown}: exit code {code}: {log[-300:]}"
    if left != there:
        return f"{shown}: outputs touched: {sorted(set(left) ^ set(there))}"
    return None


def generated(recipe: Recipe, examples: int) -> tuple[int, list[str]]:
    """Draw bad lines, configs and numbers; returns how many, and what was wrong with them."""
    tried: list[Case] = []
    lost: list[str] = []
    word = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
    not_utf8 = st.binary(min_size=1).map(lambda noise: noise.replace(b"\n", b"") + b"\xff\tpositive\n")
    line = st.one_of(
        word.map(lambda text: text.encode() + b"\n"),
        word.map(lambda text: text.encode() + b"\t \n"),
        st.lists(word, min_size=4, max_size=9).map(lambda texts: "\t".join(texts).encode() + b"\n"),
        not_utf8,
    )
    good = (recipe.data / "train.txt").read_bytes()
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
    number = st.one_of(st.integers(max_value=0), st.floats(), st.text("abcxyz-._", min_size=1)).map(str)
    case = st.one_of(
        line.map(lambda bad: ("preprocess", [], {"data/train.txt": good + bad})),
        json_value.map(lambda value: ("train", [], {"config.json": json.dumps(value).encode()})),
        st.tuples(st.sampled_from(TRAINING), number).map(lambda pair: ("train", [f"{pair[0]}={pair[1]}"], {})),
    )

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case)
    def try_one(bad: Case) -> None:
        tried.append(bad)
        wrong = failure(recipe, bad)
        if wrong:
            lost.append(wrong)

    try_one()
    return len(tried), lost


def exploded(recipe: Recipe) -> bool:
    """Whether a pickle was executed."""
    return (recipe.folder / "exploded").exists()
