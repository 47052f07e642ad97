"""The libraries under measurement behind one interface. Runs in any of the virtual environments.

Each backend imports its library when it is opened, so that a fresh process pays for nothing else.
"""

import inspect
import itertools
import json
from pathlib import Path


class Backend:
    """A classifier that is given token ids or a text.

    `fixed_length` pads every row to that many tokens, `max_length` truncates longer ones.
    """

    tensors = "np"
    input_names: list[str]  # set by `open`

    def __init__(self, path: str, num_threads: int, max_length: int, fixed_length: bool = False):
        self.path, self.num_threads = path, num_threads
        self.tokenizer_options: dict[str, object] = {"truncation": True, "max_length": max_length}
        if fixed_length:
            self.tokenizer_options["padding"] = "max_length"
        self.fixed_length = max_length if fixed_length else None
        self.open()

    def open(self) -> None:
        """Load the model: sets `pipeline` and `input_names`."""
        raise NotImplementedError

    def inputs(self, rows: list[dict]) -> dict:
        """What `graph` takes, from rows of token ids; padded to the longest of them."""
        arrays = pad(rows, self.fixed_length)
        return {name: arrays[name] for name in arrays if name in self.input_names}

    def batches(self, rows: list[dict], batch_size: int) -> list[list[dict]]:
        """Rows that are sorted by length, in batches."""
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

    def graph(self, inputs: dict):
        """Logits [rows, labels]."""
        raise NotImplementedError

    def graphs(self, batches: list[dict]) -> None:
        """Run many batches."""
        for batch in batches:
            self.graph(batch)

    def text(self, text: str) -> str:
        """The label of a text, as the library's documentation shows it: a transformers pipeline."""
        return self.pipeline(text)[0]["label"]

    def by_hand(self, text: str) -> str:
        """The label of a text without the pipeline: tokenizer, graph, largest logit."""
        logits = self.graph(self.tokenizer(text, return_tensors=self.tensors, **self.tokenizer_options))
        return self.labels[int(logits[0].argmax())]

    def texts(self, texts: list[str], batch_size: int) -> list[str]:
        """The labels of many texts, by the library's own batching."""
        return [answer["label"] for answer in self.pipeline(texts, batch_size=batch_size)]

    def make_pipeline(self, model) -> None:
        """The transformers pipeline around `model`, a path or an object, and the parts of it that `by_hand` uses."""
        from transformers import AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.pipeline = pipeline("text-classification", model=model, tokenizer=tokenizer, **self.tokenizer_options)
        self.tokenizer = tokenizer
        self.labels = self.pipeline.model.config.id2label


class PyTorch(Backend):
    tensors = "pt"
    int8 = False

    def open(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(self.num_threads)
        model = self.path
        if self.int8:
            from transformers import AutoModelForSequenceClassification

            model = AutoModelForSequenceClassification.from_pretrained(self.path).eval()
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        self.make_pipeline(model)
        self.input_names = list(inspect.signature(self.pipeline.model.forward).parameters)

    def inputs(self, rows: list[dict]) -> dict:
        return {name: self.torch.from_numpy(array) for name, array in super().inputs(rows).items()}

    def graph(self, inputs: dict):
        with self.torch.inference_mode():
            return self.pipeline.model(**inputs).logits


class PyTorchInt8(PyTorch):
    int8 = True


class Optimum(Backend):
    def open(self) -> None:
        from onnxruntime import SessionOptions
        from optimum.onnxruntime import ORTModelForSequenceClassification

        options = SessionOptions()
        options.intra_op_num_threads = self.num_threads
        file_name = next(Path(self.path).glob("*.onnx")).name
        model = ORTModelForSequenceClassification.from_pretrained(
            self.path, file_name=file_name, session_options=options
        )
        self.session = model.session
        self.input_names = [node.name for node in self.session.get_inputs()]
        self.make_pipeline(model)

    def graph(self, inputs: dict):
        return self.session.run(["logits"], dict(inputs))[0]


class OpenVino(Backend):
    hints: dict[str, str] = {}

    def open(self) -> None:
        from optimum.intel import OVModelForSequenceClassification

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(self.num_threads), **self.hints}
        model = OVModelForSequenceClassification.from_pretrained(self.path, export=False, ov_config=options)
        self.request = model.request.create_infer_request()
        self.input_names = [node.get_any_name() for node in model.request.inputs]
        self.make_pipeline(model)

    def graph(self, inputs: dict):
        return self.request.infer(dict(inputs), share_inputs=True)["logits"]


class OpenVinoFp32(OpenVino):
    # Where the CPU has bf16, OpenVINO computes in it unless told not to.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoThroughput(OpenVino):
    """Its throughput mode: many batches are given to it at once."""

    hints = {"PERFORMANCE_HINT": "THROUGHPUT"}

    def open(self) -> None:
        import openvino

        super().open()
        self.queue = openvino.AsyncInferQueue(self.pipeline.model.request)

    def graphs(self, batches: list[dict]) -> None:
        self.queue.set_callback(lambda request, number: None)
        for batch in batches:
            self.queue.start_async(batch)
        self.queue.wait_all()

    def texts(self, texts: list[str], batch_size: int) -> list[str]:
        ids: dict[int, list[int]] = {}

        def keep(request, start: int) -> None:
            ids[start] = request.get_tensor("logits").data.argmax(1).tolist()

        self.queue.set_callback(keep)
        options = self.tokenizer_options | {"padding": True, "return_tensors": "np"}
        for start in range(0, len(texts), batch_size):
            encoded = self.tokenizer(texts[start : start + batch_size], **options)
            self.queue.start_async({name: encoded[name] for name in self.input_names}, start)
        self.queue.wait_all()
        return [self.labels[i] for start in sorted(ids) for i in ids[start]]


class WithoutPipeline(Backend):
    """A library that runs models and leaves texts and labels to its caller: transformers' tokenizer, largest logit."""

    batch_options: dict[str, object] = {}  # of the tokenizer

    def open_tokenizer(self) -> dict:
        """Sets `tokenizer` and `labels`; returns the model's config.json."""
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        config = json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        return config

    def text(self, text: str) -> str:
        return self.texts([text], 1)[0]

    by_hand = text

    def texts(self, texts: list[str], batch_size: int) -> list[str]:
        labels, options = [], self.tokenizer_options | self.batch_options
        for start in range(0, len(texts), batch_size):
            encoded = self.tokenizer(texts[start : start + batch_size], **options)
            logits = self.graph({name: encoded[name] for name in self.input_names})
            labels += [self.labels[i] for i in logits.argmax(1).tolist()]
        return labels


class CTranslate2(WithoutPipeline):
    """Its encoder, and the rest of the classifier in numpy."""

    def open(self) -> None:
        import ctranslate2
        import numpy as np

        self.np = np
        self.encoder = ctranslate2.Encoder(
            f"{self.path}/encoder", compute_type="int8", inter_threads=1, intra_threads=self.num_threads
        )
        self.head = dict(np.load(f"{self.path}/head.npz"))
        config = self.open_tokenizer()
        self.input_names = ["input_ids"] + ["token_type_ids"] * (config.get("type_vocab_size", 0) > 1)
        self.activation = (lambda x: np.maximum(x, 0)) if config["model_type"] == "distilbert" else np.tanh

    def inputs(self, rows: list[dict]) -> dict:
        return {name: [row[name] for row in rows] for name in self.input_names}

    def graph(self, inputs: dict):
        output = self.encoder.forward_batch(inputs["input_ids"], token_type_ids=inputs.get("token_type_ids"))
        if "dense_weight" not in self.head:
            return self.layer(self.np.array(output.pooler_output), "output")
        rows = self.np.array(output.last_hidden_state)[:, 0]
        return self.layer(self.activation(self.layer(rows, "dense")), "output")

    def layer(self, x, name: str):
        """A linear layer of the classifier."""
        return x @ self.head[f"{name}_weight"].T + self.head[f"{name}_bias"]


class Inductor(WithoutPipeline):
    """What Inductor compiled beforehand."""

    batch_options = {"padding": True, "return_tensors": "pt"}
    input_names = ["input_ids", "attention_mask", "token_type_ids"]

    def open(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(self.num_threads)
        self.model = torch._inductor.aoti_load_package(f"{self.path}/model.pt2")
        self.open_tokenizer()

    def inputs(self, rows: list[dict]) -> dict:
        return {name: self.torch.from_numpy(array) for name, array in super().inputs(rows).items()}

    def graph(self, inputs: dict):
        with self.torch.inference_mode():
            return self.model(*(inputs[name] for name in self.input_names))


class Model2Vec(Backend):
    """Static embeddings, which know no way from our token ids: `graph` begins with the texts, too."""

    def open(self) -> None:
        from model2vec.inference import StaticModelPipeline

        self.pipeline = StaticModelPipeline.from_pretrained(self.path)
        names = json.loads((Path(self.path) / "labels.json").read_text(encoding="utf-8"))
        self.columns = [list(self.pipeline.classes_).index(name) for name in names]

    def inputs(self, rows: list[dict]) -> dict:
        return {"texts": [row["text"] for row in rows]}

    def graph(self, inputs: dict):
        return self.pipeline.predict_proba(inputs["texts"])[:, self.columns]

    def text(self, text: str) -> str:
        return str(self.pipeline.predict([text])[0])

    by_hand = text

    def texts(self, texts: list[str], batch_size: int) -> list[str]:
        return [str(label) for label in self.pipeline.predict(texts, batch_size=batch_size)]


class Ours(Backend):
    """A folder that quantize.py wrote, run by utils.predictor."""

    def open(self) -> None:
        from utils.predictor import Predictor

        self.predictor = Predictor(self.path, self.num_threads)
        self.input_names = [node.name for node in self.predictor.session.get_inputs()]

    def batches(self, rows: list[dict], batch_size: int) -> list[list[dict]]:
        # As `Predictor.predict_batch` does: only rows of the same length together, so that none is padded.
        groups = itertools.groupby(rows, key=lambda row: len(row["input_ids"]))
        return [batch for _, group in groups for batch in Backend.batches(self, list(group), batch_size)]

    def text(self, text: str) -> str:
        return self.predictor.predict(text).label

    by_hand = text

    def texts(self, texts: list[str], batch_size: int) -> list[str]:
        return [prediction.label for prediction in self.predictor.predict_batch(texts, batch_size=batch_size)]

    def graph(self, inputs: dict):
        return self.predictor.session.run(["logits"], inputs)[0]


BACKENDS = {
    "pytorch_fixed": PyTorch,
    "pytorch": PyTorch,
    "pytorch_int8": PyTorchInt8,
    "optimum_fp32": Optimum,
    "optimum_int8": Optimum,
    "openvino_fp32": OpenVinoFp32,
    "nncf_int8": OpenVino,
    "nncf_int8_throughput": OpenVinoThroughput,
    "ctranslate2_int8": CTranslate2,
    "inductor_int8": Inductor,
    "model2vec": Model2Vec,
    "ours_fp32": Ours,
    "ours_int8": Ours,
}


def open_backend(engine: str, path: str, num_threads: int, max_length: int) -> Backend:
    """Load an engine's model."""
    return BACKENDS[engine](path, num_threads, max_length, fixed_length=engine.endswith("_fixed"))


def read_rows(path: str) -> list[dict]:
    """Rows as the driver writes them, one JSON object a line: text, label, input_ids, token_type_ids."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pad(rows: list[dict], length: int | None = None) -> dict:
    """Rows as int64 arrays [rows, longest], padded on the right to the longest row or to `length`."""
    import numpy as np

    width = length or max(len(row["input_ids"]) for row in rows)
    names = ("input_ids", "attention_mask", "token_type_ids")
    arrays = {name: np.zeros((len(rows), width), np.int64) for name in names}
    for i, row in enumerate(rows):
        used = len(row["input_ids"])
        arrays["input_ids"][i, used:] = row["pad_token_id"]
        arrays["input_ids"][i, :used] = row["input_ids"]
        arrays["token_type_ids"][i, :used] = row["token_type_ids"]
        arrays["attention_mask"][i, :used] = 1
    return arrays
