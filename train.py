"""Fine-tune a classifier: a teacher, a student alone, or a distilled student once more on the labels.

    python train.py --config=configs/config-bert-cls.json --data_dir=data/sst2 \\
        --bert_model_name_or_path=./embeddings/bert-base-uncased --bert_output_dir=bert-checkpoint-teacher \\
        --save_path=pytorch-model-teacher.pt --lr=5e-5 --epoch=3 --batch_size=64

Reads what preprocess.py wrote into data_dir. After each epoch the model is scored on valid.txt; the best one
(--measure) is kept in --bert_output_dir, a standard transformers checkpoint, and in --save_path, its state dict.
Stopped or killed, the same command continues where it was, and ends as if it had not been.
Several processes: `accelerate launch train.py ...` or `torchrun --nproc_per_node=2 train.py ...`, same options.
"""

import argparse
import logging

import utils.system.environment  # isort: skip  # noqa: F401

from accelerate.utils import set_seed
from torch import as_tensor
from transformers import PreTrainedModel

from utils.arguments import (
    add_data_options,
    add_output_options,
    add_training_options,
    begin_training,
    script_parser,
    training_settings,
)
from utils.data.tables import load_data
from utils.models.checkpoint import load_tokenizer
from utils.models.classifier import fingerprint, freeze_embeddings, load_model, save_checkpoint
from utils.models.config import load_config
from utils.models.first_token import first_token_only
from utils.system.cli import run_script
from utils.system.devices import make_accelerator
from utils.system.files import check_output_file, check_output_folder
from utils.training.loop import train
from utils.training.resume import discard
from utils.training.scalars import scalars_into
from utils.training.tasks import task_of

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = add_data_options(parser)
    group.add_argument(
        "--bert_model_name_or_path",
        required=True,
        help="checkpoint to start from: a pretrained encoder or a classifier",
    )
    add_output_options(parser)
    add_training_options(parser, lr=1e-4, epochs=3)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    tokenizer = load_tokenizer(args.bert_model_name_or_path, "--bert_model_name_or_path", allow_hub_name=True)
    data = load_data(args.data_dir, tokenizer, config.n_ctx, task=config.task)
    task, settings = task_of(data), training_settings(args, config.task)
    set_seed(args.seed)  # before a new classifier draws its weights
    model = load_model(
        args.bert_model_name_or_path,
        "--bert_model_name_or_path",
        config,
        data.labels,
        new_head=True,
        allow_hub_name=True,
        start=data.start,
    )
    if args.freeze_embeddings:
        freeze_embeddings(model)
    check_output_folder(args.bert_output_dir, "--bert_output_dir")
    check_output_file(args.save_path, "--save_path")

    def row_losses(wrapped, inputs, batch, rows):
        with first_token_only(model):
            logits = wrapped(**inputs).logits
        return task.label_loss(logits, as_tensor(batch["labels"]).to(logits.device))

    accelerator = make_accelerator(args.device, args.precision)
    contents = {"--data_dir": data.fingerprint, "--bert_model_name_or_path": fingerprint(model)}
    run = begin_training(args, args.bert_output_dir, contents, accelerator)

    def save(model: PreTrainedModel) -> None:
        save_checkpoint(model, tokenizer, args.bert_output_dir, args.save_path)

    best = train(model, data, row_losses, settings, accelerator, save, run, scalars_into(args.log_dir))
    discard(run, accelerator)
    logger.info("[Best] : %s: %s", best, args.bert_output_dir)


if __name__ == "__main__":
    run_script(main)
