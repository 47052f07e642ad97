"""Pruned classifiers for plain transformers: this file is saved beside the weights of every pruned checkpoint.

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)

transformers builds every layer alike, from config.json's hidden_size, num_attention_heads and intermediate_size. Here
they get the shapes that pruning left, which config.json lists too: `layer_shapes` holds (attention heads, FFN neurons)
of every layer, of ALBERT's only one, and `layer_paths` the names of a layer's parts in this family. It must not import
anything but torch and transformers.
"""

import torch
from torch import nn
from transformers import (
    AlbertForSequenceClassification,
    BertForSequenceClassification,
    CamembertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    DistilBertForSequenceClassification,
    ElectraForSequenceClassification,
    ModernBertForSequenceClassification,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


class NoAttention(nn.Module):
    """Takes the place of a self-attention whose heads were all pruned: of its output only a bias is left."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        # By their old names, as the checkpoint and the search for a layer's parts know them.
        for name, child in attention.named_children():
            self.add_module(name, child)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        context = hidden_states.new_zeros(*hidden_states.shape[:-1], 0)
        return after_context(self, context, hidden_states), None


def after_context(attention: nn.Module, context: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a self-attention gives for the context of its heads, where `states` came in.

    Nothing in BERT; DistilBERT, MPNet, ModernBERT and ALBERT project it, and ALBERT also adds and normalizes.
    """
    for name in ("out_lin", "o", "dense", "Wo"):
        if hasattr(attention, name):
            context = getattr(attention, name)(context)
    if hasattr(attention, "LayerNorm"):
        context = attention.LayerNorm(states + attention.output_dropout(context))
    return context


class PrunedMPNetAttention(nn.Module):
    """MPNet's self-attention with some of its heads: `heads` are their columns in the bias that all layers share."""

    def __init__(self, attention: nn.Module, heads: torch.Tensor) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.head_size, self.training = attention.attention_head_size, attention.training
        self.register_buffer("heads", heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_bias: torch.Tensor,
        output_attentions: bool = False,
        **kwargs: object,
    ) -> tuple[torch.Tensor, ...]:
        query, key, value = (
            linear(hidden_states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        scores = query @ key.transpose(-1, -2) / self.head_size**0.5 + position_bias[:, self.heads]
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = self.dropout(scores.softmax(-1))
        output = self.o((probabilities @ value).transpose(1, 2).flatten(2))
        return (output, probabilities) if output_attentions else (output,)


def number_heads(model: PreTrainedModel, table: nn.Embedding, layers: str, self_attention: str) -> None:
    """Make MPNet's self-attentions such that can lose heads, in place; `table` is the bias [buckets, heads]."""
    model.config.num_position_biases = table.embedding_dim
    for layer in model.get_submodule(layers):
        attention = layer.get_submodule(self_attention)
        if isinstance(attention, MPNetSelfAttention):
            heads = torch.arange(table.embedding_dim, device=table.weight.device)
            layer.set_submodule(self_attention, PrunedMPNetAttention(attention, heads))


def shape_layers(model: PreTrainedModel) -> None:
    """Give the layers of a freshly built model the shapes in its config, in place."""
    paths, config = model.config.layer_paths, model.config
    head_size = config.hidden_size // config.num_attention_heads
    packed = paths.get("packed", {})  # checkpoints of before have none
    for layer, (num_heads, num_neurons) in zip(model.get_submodule(paths["layers"]), config.layer_shapes, strict=True):
        width, hidden = num_heads * head_size, config.hidden_size
        for part, outputs, inputs in [
            ("query", width, hidden),
            ("key", width, hidden),
            ("value", width, hidden),
            ("attention_output", hidden, width),
            ("ffn_input", num_neurons, hidden),
            ("ffn_output", hidden, num_neurons),
        ]:
            linear = layer.get_submodule(paths[part])
            outputs *= packed.get(paths[part], 1)
            bias = None if linear.bias is None else linear.bias.new_empty(outputs)
            resize_linear(linear, linear.weight.new_empty(outputs, inputs), bias)
        attention = layer.get_submodule(paths["self_attention"])
        if isinstance(attention, PrunedMPNetAttention):
            attention.heads = attention.heads[:num_heads]
        count_heads(layer, paths["self_attention"], num_heads)


def resize_linear(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a Linear another weight [outputs, inputs] and bias [outputs], or none, in place."""
    linear.weight, linear.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    linear.out_features, linear.in_features = weight.shape


def count_heads(layer: nn.Module, path: str, num_heads: int) -> None:
    """Tell the self-attention of a layer how many heads it has, in place; without any, it is replaced."""
    if not num_heads:
        drop_attention(layer, path)
    elif hasattr(layer.get_submodule(path), "num_attention_heads"):  # DeBERTa goes by it, others by their weights
        layer.get_submodule(path).num_attention_heads = num_heads


def drop_attention(layer: nn.Module, path: str) -> None:
    """Replace the self-attention of a layer that has no heads, in place."""
    layer.set_submodule(path, NoAttention(layer.get_submodule(path)))


class PrunedBertForSequenceClassification(BertForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedRobertaForSequenceClassification(RobertaForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedDistilBertForSequenceClassification(DistilBertForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedElectraForSequenceClassification(ElectraForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedXLMRobertaForSequenceClassification(XLMRobertaForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedCamembertForSequenceClassification(CamembertForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedMPNetForSequenceClassification(MPNetForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        # Not as wide as num_attention_heads says where hidden units were pruned.
        table = nn.Embedding(config.relative_attention_num_buckets, config.num_position_biases)
        self.mpnet.encoder.relative_attention_bias = table
        number_heads(self, table, config.layer_paths["layers"], config.layer_paths["self_attention"])
        shape_layers(self)


class PrunedAlbertForSequenceClassification(AlbertForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedDebertaV2ForSequenceClassification(DebertaV2ForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        shape_layers(self)


class PrunedModernBertForSequenceClassification(ModernBertForSequenceClassification):
    def __init__(self, config) -> None:
        super().__init__(config)
        if config.first_layer_norm:  # where the first layer was removed: that one alone has no norm
            first = self.model.layers[0]
            first.attn_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        shape_layers(self)


PRUNED_CLASSES = {
    "bert": PrunedBertForSequenceClassification,
    "roberta": PrunedRobertaForSequenceClassification,
    "distilbert": PrunedDistilBertForSequenceClassification,
    "electra": PrunedElectraForSequenceClassification,
    "xlm-roberta": PrunedXLMRobertaForSequenceClassification,
    "camembert": PrunedCamembertForSequenceClassification,
    "mpnet": PrunedMPNetForSequenceClassification,
    "albert": PrunedAlbertForSequenceClassification,
    "deberta-v2": PrunedDebertaV2ForSequenceClassification,
    "modernbert": PrunedModernBertForSequenceClassification,
}
