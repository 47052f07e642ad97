"""Where each encoder family keeps its parts: the one table that everything touching a layer's insides reads.

To add a family, add a row here, a class to utils/models/modeling_pruned.py, a config in configs/ and its name to the
tests' list of families.
Paths of a layer's parts are relative to the layer, the others to the classification model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.system.errors import UserError

if TYPE_CHECKING:  # importing models takes seconds, and the table alone needs none
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Module paths of one encoder family's classification model in transformers."""

    layers: str
    self_attention: str  # what gives the context of all heads
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_input: str
    ffn_output: str
    ffn_norm: str
    embeddings: str
    embeddings_project: str | None  # ELECTRA and ALBERT widen narrow embeddings after their layer norm
    head_dense: str
    head_activation: str
    head_output: str
    # RoBERTa numbers positions from pad_token_id + 1, the others from 0.
    positions_follow_padding: bool = False
    position_bias: str | None = None  # MPNet adds a bias of each head for each distance to the scores, in all layers
    shared_layer: bool = False  # ALBERT's rows go through one layer num_hidden_layers times
    word_embeddings: str = "word_embeddings"  # of the embeddings
    embeddings_norm: str = "LayerNorm"  # of the embeddings
    # Whether a layer normalizes what goes into attention and FFN, instead of the sums behind them.
    pre_norm: bool = False
    final_norm: str | None = None  # behind the last layer, where layers do not end with a norm
    head_norm: str | None = None  # behind the classifier's activation
    relative_embeddings: str | None = None  # of distances
    relative_norm: str | None = None
    layer_returns_tuple: bool = False
    # Keys of config.json and the values that they must have for the insides to be as this table says.
    needs: dict[str, Any] = field(default_factory=dict)
    # Linear layers that compute several blocks of outputs at once, by path: so many, of one size.
    packed: dict[str, int] = field(default_factory=dict)


BERT_LAYER: dict[str, Any] = dict(
    self_attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_input="intermediate.dense",
    ffn_output="output.dense",
    ffn_norm="output.LayerNorm",
)

ROBERTA = Family(
    layers="roberta.encoder.layer",
    **BERT_LAYER,
    embeddings="roberta.embeddings",
    embeddings_project=None,
    head_dense="classifier.dense",
    head_activation="tanh",
    head_output="classifier.out_proj",
    positions_follow_padding=True,
)

FAMILIES = {
    "bert": Family(
        layers="bert.encoder.layer",
        **BERT_LAYER,
        embeddings="bert.embeddings",
        embeddings_project=None,
        head_dense="bert.pooler.dense",
        head_activation="tanh",
        head_output="classifier",
    ),
    "roberta": ROBERTA,
    "electra": Family(
        layers="electra.encoder.layer",
        **BERT_LAYER,
        embeddings="electra.embeddings",
        embeddings_project="electra.embeddings_project",
        head_dense="classifier.dense",
        head_activation="gelu",
        head_output="classifier.out_proj",
    ),
    "distilbert": Family(
        layers="distilbert.transformer.layer",
        self_attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        ffn_input="ffn.lin1",
        ffn_output="ffn.lin2",
        ffn_norm="output_layer_norm",
        embeddings="distilbert.embeddings",
        embeddings_project=None,
        head_dense="pre_classifier",
        head_activation="relu",
        head_output="classifier",
    ),
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": Family(
        layers="mpnet.encoder.layer",
        **BERT_LAYER
        | dict(
            self_attention="attention.attn",
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            attention_output="attention.attn.o",
            attention_norm="attention.LayerNorm",
        ),
        embeddings="mpnet.embeddings",
        embeddings_project=None,
        head_dense="classifier.dense",
        head_activation="tanh",
        head_output="classifier.out_proj",
        positions_follow_padding=True,
        position_bias="mpnet.encoder.relative_attention_bias",
        layer_returns_tuple=True,
    ),
    "albert": Family(
        layers="albert.encoder.albert_layer_groups.0.albert_layers",
        self_attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        ffn_input="ffn",
        ffn_output="ffn_output",
        ffn_norm="full_layer_layer_norm",
        embeddings="albert.embeddings",
        embeddings_project="albert.encoder.embedding_hidden_mapping_in",
        head_dense="albert.pooler",
        head_activation="tanh",
        head_output="classifier",
        shared_layer=True,
    ),
    "deberta-v2": Family(  # v3 too
        layers="deberta.encoder.layer",
        **BERT_LAYER | {name: f"attention.self.{name}_proj" for name in ("query", "key", "value")},
        embeddings="deberta.embeddings",
        embeddings_project=None,
        head_dense="pooler.dense",
        head_activation="gelu",
        head_output="classifier",
        relative_embeddings="deberta.encoder.rel_embeddings",
        relative_norm="deberta.encoder.LayerNorm",
        layer_returns_tuple=True,
        needs={"relative_attention": True, "share_att_key": True, "conv_kernel_size": 0},
    ),
    "modernbert": Family(
        layers="model.layers",
        self_attention="attn",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_output="attn.Wo",
        attention_norm="attn_norm",
        ffn_input="mlp.Wi",
        ffn_output="mlp.Wo",
        ffn_norm="mlp_norm",
        embeddings="model.embeddings",
        embeddings_project=None,
        head_dense="head.dense",
        head_activation="gelu",
        head_output="classifier",
        word_embeddings="tok_embeddings",
        embeddings_norm="norm",
        pre_norm=True,
        final_norm="model.final_norm",
        head_norm="head.norm",
        packed={"attn.Wqkv": 3, "mlp.Wi": 2},  # query, key and value; what GELU gets and what it is multiplied by
    ),
}


# Other model types whose first token has the position pad_token_id + 1: so many fewer are left.
POSITIONS_FOLLOW_PADDING = frozenset(
    "data2vec-text esm ibert layoutlmv3 lilt longformer luke markuplm roberta-prelayernorm xlm-roberta-xl xmod".split()
)


def positions_follow_padding(hub_config: PretrainedConfig) -> bool:
    """Whether a model numbers positions from pad_token_id + 1, as RoBERTa does."""
    family = FAMILIES.get(hub_config.model_type)
    return family.positions_follow_padding if family else hub_config.model_type in POSITIONS_FOLLOW_PADDING


def first_position(hub_config: PretrainedConfig) -> int:
    """The position of a row's first token: 0, or the number of the padding token and 1."""
    if not positions_follow_padding(hub_config):
        return 0
    # MPNet's 1 is fixed in its code.
    padding = 1 if hub_config.model_type == "mpnet" else hub_config.pad_token_id
    return (padding or 0) + 1


def num_positions(hub_config: PretrainedConfig) -> int | None:
    """How many tokens a model has positions for, special tokens included; None where it has no limit."""
    positions = getattr(hub_config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    return positions - first_position(hub_config)


def in_table(hub_config: PretrainedConfig) -> bool:
    """Whether a row of the table describes a model; not where an ALBERT has more than one layer of weights."""
    groups = getattr(hub_config, "num_hidden_groups", 1), getattr(hub_config, "inner_group_num", 1)
    return hub_config.model_type in FAMILIES and groups == (1, 1)


def family_of(model: PreTrainedModel) -> Family:
    """The row of the table for this model.

    Raises:
        UserError: it has none.
    """
    if model.config.model_type in FAMILIES and not in_table(model.config):
        raise UserError(
            "the checkpoint's config.json says num_hidden_groups or inner_group_num: only an encoder of the family "
            "'albert' whose layers share all weights is known, with 1 for both: use such a one"
        )
    if model.config.model_type not in FAMILIES:
        raise UserError(
            f"the insides of an encoder of the family {model.config.model_type!r} are not known, only those of "
            f"{', '.join(sorted(FAMILIES))}: use one of these, or add a row to utils/models/families.py"
        )
    return FAMILIES[model.config.model_type]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, each once."""
    return model.get_submodule(family_of(model).layers)


def layer_uses(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers in the order in which a row goes through them: ALBERT's only one many times."""
    layers = list(layers_of(model))
    return layers * model.config.num_hidden_layers if family_of(model).shared_layer else layers


def head_size_of(model: PreTrainedModel) -> int:
    """Width of one attention head; pruning heads does not change it."""
    return model.config.hidden_size // model.config.num_attention_heads


def layer_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(number of attention heads, FFN neurons) of every layer, read off the weights themselves."""
    family, head_size = family_of(model), head_size_of(model)
    return [
        (
            _block_size(family, layer, family.query) // head_size,
            _block_size(family, layer, family.ffn_input),
        )
        for layer in layers_of(model)
    ]


def shapes_in_order(model: PreTrainedModel) -> list[tuple[int, int]]:
    """As `layer_shapes`, of `layer_uses`."""
    shapes = layer_shapes(model)
    return shapes * (len(layer_uses(model)) // len(shapes))


def projections(family: Family) -> list[str]:
    """Paths of what projects a layer's input to queries, keys and values: three, or one for all of them."""
    return list(dict.fromkeys((family.query, family.key, family.value)))


def unknown_option(model: PreTrainedModel) -> str | None:
    """A key of config.json, and its value, by which the insides are not those of the table; None where there is none.

    Such a model is trained and exported plainly.
    """
    config, family = model.config, family_of(model)
    for key, needed in family.needs.items():
        if (value := getattr(config, key, False)) != needed:
            return f"{key} {value}"
    if family.relative_embeddings:
        for key, width in [("embedding_size", config.hidden_size), ("attention_head_size", head_size_of(model))]:
            if (value := getattr(config, key, width)) != width:
                return f"{key} {value}"
    return None


def _block_size(family: Family, layer: nn.Module, path: str) -> int:
    return layer.get_submodule(path).out_features // family.packed.get(path, 1)


def reads_first_token(model: PreTrainedModel) -> bool:
    """Whether the classifier reads the first token's state alone, not the mean of all, as some ModernBERTs' does."""
    return getattr(model.config, "classifier_pooling", "cls") == "cls"


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the second sentence of a pair has an embedding of its own (not in RoBERTa and DistilBERT)."""
    return getattr(model.config, "type_vocab_size", 0) > 1


def last_of_blocks(num_layers: int, num_blocks: int) -> list[int]:
    """The last layer of each of `num_blocks` equal blocks of layers: 1, 3 and 5 of 6 in 3."""
    return [(i + 1) * num_layers // num_blocks - 1 for i in range(num_blocks)]
