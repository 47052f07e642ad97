"""Labels, positions and kind of a checkpoint, as its config.json says them."""

import json
import shlex

import pytest
import torch
from conftest import fails
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils.arguments import label_list
from utils.models.checkpoint import check_labels, config_of_checkpoint, label_columns, load_hub_config
from utils.models.config import Config
from utils.models.families import POSITIONS_FOLLOW_PADDING, num_positions
from utils.system.errors import UserError

LABELS = ["bad", "good"]
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}


def labels_refused(folder, keys: dict, *parts: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **keys}))
    hub_config = load_hub_config(str(folder), "--flag", Config("bert", 16))
    with pytest.raises(UserError) as caught:
        check_labels(hub_config, LABELS, str(folder), "--flag")
    for part in parts:
        assert part in str(caught.value)


def test_labels_without_names(tmp_path):
    written = 'such as "id2label": {"0": "bad", "1": "good"}'
    labels_refused(tmp_path, {}, "LABEL_0, LABEL_1", written, "config.json")
    labels_refused(tmp_path, {"id2label": {"0": "BAD", "1": "GOOD"}}, "BAD, GOOD", written)


def test_labels_in_another_order_are_not_to_be_renamed(tmp_path):
    with pytest.raises(AssertionError, match="id2label"):
        labels_refused(tmp_path, {"id2label": {"0": "good", "1": "bad"}}, "id2label")
    labels_refused(tmp_path, {"id2label": {"0": "good", "1": "bad"}}, "good, bad", "train it again")
    labels_refused(tmp_path, {"id2label": {"0": "bad", "1": "good", "2": "fair"}}, "fair", "train it again")


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"id2label": {"0": "bad", "1": "bad"}}, "a name of its own"),
        ({"id2label": {"1": "bad", "2": "good"}}, "1: bad, 2: good"),
        ({"id2label": {"0": "bad", "2": "good"}}, "0: bad, 2: good"),
        ({"id2label": {"0": "bad", "1": "good"}, "num_labels": 3}, "num_labels 3 but id2label has 2"),
    ],
)
def test_labels_that_contradict_each_other(tmp_path, keys, part):
    labels_refused(tmp_path, keys, part, "correct it")


def test_numbers_as_labels(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "id2label": {"1": 1, "0": 0}, "num_labels": 2}')
    check_labels(AutoConfig.from_pretrained(tmp_path), ["0", "1"], str(tmp_path), "--flag")


@pytest.mark.parametrize(
    ("own", "labels", "value"),
    [
        (["POSITIVE", "Negative"], ["negative", "positive"], "positive,negative"),
        (["c", "a", "b"], ["a", "b", "c"], "c,a,b"),
        (["LABEL_0", "LABEL_1"], ["0", "1"], "0,1"),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], "bad,good"),
        (["no", "yes, but"], ["NO", "Yes, but"], """'NO,"Yes, but"'"""),
        (["a", "B"], ["a", "A"], "a,A"),  # not one for one
    ],
)
def test_labels_to_copy(tmp_path, own, labels, value):
    """The message says what to give, with each label once; and given so, its columns are those."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": dict(enumerate(own))}))
    hub_config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        label_columns(hub_config, labels, None, str(tmp_path), "--teacher", "--teacher_labels")
    assert f"--teacher_labels={value}, " in str(caught.value)
    names = label_list(shlex.split(value)[0])
    columns = label_columns(hub_config, labels, names, str(tmp_path), "--teacher", "--teacher_labels")
    assert [names[column] for column in columns] == labels


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["a", "b"], "has 2 labels but --teacher=.* has 3 outputs .*x, y, z.*in this order"),
        (["a", "b", "d"], "'d' is not a label of the data set, which has a, b, c"),
        (["a", "b", "b"], "a label twice, and c not at all"),
        ([], "has 0 labels"),
    ],
)
def test_names_of_outputs_that_are_not_the_labels(tmp_path, names, part):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "id2label": {"0": "x", "1": "y", "2": "z"}}')
    hub_config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=part):
        label_columns(hub_config, ["a", "b", "c"], names, str(tmp_path), "--teacher", "--teacher_labels")
    with pytest.raises(UserError, match="x, y, z but the data set has a, b: use the data set"):
        label_columns(hub_config, ["a", "b"], names, str(tmp_path), "--teacher", "--teacher_labels")


@pytest.mark.parametrize(("positions", "n_ctx"), [(40, 30), (20, 18)])
def test_a_config_for_a_checkpoint(tmp_path, positions, n_ctx):
    keys = {"model_type": "roberta", "max_position_embeddings": positions, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert config_of_checkpoint(str(tmp_path), "--flag", 30) == Config("roberta", n_ctx)


def test_no_config_for_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="'vit', of which transformers has no sequence classifier"):
        config_of_checkpoint(str(tmp_path), "--flag", 30)


def test_decoder(trained):
    encoder = trained.folder / "encoder"
    encoder.mkdir()
    for path in (trained.folder / "teacher").iterdir():
        (encoder / path.name).write_bytes(path.read_bytes())
    keys = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(keys | {"is_decoder": True}))
    for step in (trained.evaluate(source="encoder"), trained.quantize(source="encoder")):
        fails(step, "decoder", '"is_decoder": false')


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", *sorted(POSITIONS_FOLLOW_PADDING)])
def test_positions_are_those_that_the_model_reads(family):
    """One more token, and the model looks for a position that it has no embedding for."""
    extra = {"max_position_embeddings": 20, "pad_token_id": 1}
    if family == "longformer":
        extra |= {"attention_window": 4}
    if family == "esm":
        extra |= {"position_embedding_type": "absolute", "mask_token_id": 4}
    if family == "xmod":
        extra |= {"default_language": "en_XX"}
    if family in ("layoutlmv3", "markuplm"):
        extra |= {"visual_embed": False, "max_2d_position_embeddings": 64, "coordinate_size": 4, "shape_size": 4}
    if family == "markuplm":
        extra |= {"max_depth": 2, "xpath_unit_hidden_size": 4}
    config = AutoConfig.for_model(family, **SIZES, **extra)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    count = num_positions(config)
    assert count == (20 if family in ("bert", "distilbert", "electra") else 18)
    inputs = {"input_ids": torch.full((1, count), 5), "attention_mask": torch.ones(1, count, dtype=torch.long)}
    with torch.no_grad():
        model(**inputs)
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(**{name: torch.cat([tensor, tensor[:, :1]], 1) for name, tensor in inputs.items()})


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_n_ctx_of_all_positions(project, tmp_path, family):
    """RoBERTa's 514 are 512 tokens; each script that reads the config says so before it does anything."""
    from conftest import make_encoder, make_tokenizer

    steps = project("bert")
    tokenizer = make_tokenizer(cls="<s>", sep="</s>", pad="<pad>")
    steps.encoder = make_encoder(tmp_path / family, family, tokenizer, max_position_embeddings=20)
    steps.config = str(tmp_path / "config.json")
    most = num_positions(AutoConfig.from_pretrained(steps.encoder))
    (tmp_path / "config.json").write_text(json.dumps({"encoder_class": family, "n_ctx": most + 1}))
    fails(steps.preprocess(), f"only {most} positions")
    (tmp_path / "config.json").write_text(json.dumps({"encoder_class": family, "n_ctx": most}))
    long = " ".join(["good"] * 30)
    (steps.data / "train.txt").write_text(f"{long}\tnegative\n{long} film\tpositive\n" * 16)
    for step in (steps.preprocess, lambda: steps.train("--epoch=1"), steps.evaluate):
        code, stderr = step()
        assert code == 0, stderr
