"""Command-line options that several scripts share, and checks of their values."""

import argparse


def script_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser whose help shows the script's docstring as written, and every default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            return action.help if action.default in (None, False) else super()._get_help_string(action)

    return argparse.ArgumentParser(description=docstring, formatter_class=Formatter, allow_abbrev=False)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--config and --data_dir."""
    parser.add_argument("--config", required=True, help="encoder family and n_ctx, a file of configs/")
    parser.add_argument("--data_dir", required=True, help="data folder that preprocess.py has tokenized")


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """--bert_output_dir and --model_path: a trained classifier to work on."""
    parser.add_argument("--bert_output_dir", required=True, help="checkpoint folder: tokenizer, labels, weights")
    parser.add_argument("--model_path", help="its state dict (.pt); without it the folder's own weights are used")


def add_training_options(parser: argparse.ArgumentParser, epochs: int) -> None:
    """Hyperparameters and hardware of the training loop."""
    group = parser.add_argument_group("training")
    group.add_argument("--lr", type=positive_float, default=5e-5, help="peak learning rate")
    group.add_argument("--epoch", type=positive_int, default=epochs, help="passes over train.txt")
    group.add_argument("--batch_size", type=positive_int, default=64, help="rows a step, over all processes together")
    group.add_argument(
        "--measure", choices=["loss", "accuracy"], default="accuracy", help="what picks the best epoch on valid.txt"
    )
    group.add_argument("--seed", type=int, default=42, help="seed of the classifier's start, row order and dropout")
    add_device_option(parser)
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
        help="autocast; auto takes bf16 where the hardware has it, else fp32",
    )  # fmt: skip


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="auto takes a GPU where there is one; choose among several with CUDA_VISIBLE_DEVICES",
    )  # fmt: skip


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return value


def ratio(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number of at least 0")
    return value


def layer_list(text: str) -> list[int]:
    """An argparse type: comma-separated layer numbers, such as 1,3,5."""
    return [int(part) for part in text.split(",")]
