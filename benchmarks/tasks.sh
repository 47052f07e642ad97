#!/usr/bin/env bash
# Several labels a text and scores, through the whole recipe: GoEmotions (28 labels) and STS-B (pairs, 0 to 5). For each
# a teacher, a 3-layer student, int8 folders and the ladder; at the end the targets that they are held to. STS-B's teacher
# is a larger one, and its students learn that one's scores of many more pairs: of its own sentences and of GoEmotions'.
#
#     benchmarks/tasks.sh                   # both: three hours on 2 cores, most of them for GoEmotions
#     benchmarks/tasks.sh goemotions        # one of them
#     benchmarks/tasks.sh targets           # what results/goemotions and results/stsb hold
#     ROWS=300 benchmarks/tasks.sh          # a try on 300 rows of each split: runs/tasks-300, results/tasks-300
#
# GOEMOTIONS and STSB name folders with train.csv, valid.csv and test.csv: columns text,labels (labels joined by |), and
# sentence_a,sentence_b,score. A step that has ended is not done again, and one that was stopped continues. The test
# split is scored once a model, and nothing is chosen by it.
set -euo pipefail
cd "$(dirname "$0")/.."

GOEMOTIONS=${GOEMOTIONS:-../shared/data/goemotions} STSB=${STSB:-../shared/data/stsb}
ENCODER=embeddings/all-MiniLM-L6-v2 LARGER=embeddings/all-mpnet-base-v2 PYTHON=.venv/bin/python ROWS=${ROWS:-}
DATA=data RUNS=runs RESULTS=results
[ -z "$ROWS" ] || DATA=data/tasks-$ROWS RUNS=runs/tasks-$ROWS RESULTS=results/tasks-$ROWS

once() { # NAME COMMAND...: run it unless it has ended before
    local name=$1
    shift
    [ -e "$RUN/$name.done" ] || { "$@" && touch "$RUN/$name.done"; }
}

rows_from() { # FOLDER: its rows in $OWN, or the first ones, of valid and test those whose labels these of train have
    [ ! -e "$OWN/test.csv" ] || return 0
    mkdir -p "$OWN"
    if [ -z "$ROWS" ]; then
        cp "$1"/{train,valid,test}.csv "$OWN"
        return
    fi
    $PYTHON - "$1" "$OWN" "$ROWS" <<'PROGRAM'
import sys

import pandas

source, target, count = sys.argv[1:]
known = None
for split in ("train", "valid", "test"):
    rows = pandas.read_csv(f"{source}/{split}.csv", dtype=str, keep_default_na=False, nrows=int(count))
    if "labels" in rows:
        own = rows["labels"].map(lambda labels: set(labels.split("|")))
        known = known or set().union(*own)
        rows = rows[own.map(known.issuperset)]
    rows.to_csv(f"{target}/{split}.csv", index=False)
PROGRAM
}

scored() { # NAME OPTIONS...: that checkpoint or folder on test
    local name=$1
    shift
    [ -e "$RESULT/$name.json" ] || $PYTHON evaluate.py $COMMON --output_json="$RESULT/$name.json" --batch_size=32 "$@"
}

folder() { # NAME OPTIONS...: the checkpoint as a folder to deploy, and its score
    local name=$1
    shift
    once "int8-$name" $PYTHON quantize.py $COMMON --bert_output_dir="$RUN/$name" --output_dir="$RUN/models/$name" "$@"
    scored "int8-$name" --bert_output_dir="$RUN/$name" --enable_ort --onnx_path="$RUN/models/$name"
}

checkpoints() { # NAME: its folders
    OWN=$DATA/$1 RUN=$RUNS/$1 RESULT=$RESULTS/$1
    mkdir -p "$RUN/models" "$RESULT"
}

goemotions() {
    local columns="--label_column=labels" tune=--tune_thresholds measure="--measure=mean_average_precision"
    checkpoints goemotions
    COMMON="--config=configs/config-bert-multi-label.json --data_dir=$OWN"
    rows_from "$GOEMOTIONS"
    once preprocess $PYTHON preprocess.py $COMMON --bert_model_name_or_path=$ENCODER $columns
    once teacher $PYTHON train.py $COMMON --bert_model_name_or_path=$ENCODER --bert_output_dir="$RUN/teacher" \
        --save_path="$RUN/teacher.pt" --lr=2e-4 --epoch=3 --batch_size=32 $measure
    once start $PYTHON prune.py $COMMON --bert_output_dir="$RUN/teacher" --keep_layers=1,3,5 \
        --bert_output_dir_pruned="$RUN/start"
    once student $PYTHON fastformers.py $COMMON --teacher_bert_model_name_or_path="$RUN/teacher" \
        --bert_model_name_or_path="$RUN/start" --bert_output_dir="$RUN/student" --save_path="$RUN/student.pt" \
        --lr=2e-4 --dropout=0 --state_loss_ratio=1 --state_layers=all --kd_loss=mse --epoch=2 --batch_size=64 $measure
    scored teacher --bert_output_dir="$RUN/teacher" $tune
    scored student --bert_output_dir="$RUN/student" $tune
    folder teacher $tune
    folder student $tune
    ladder "$columns $tune"
}

ladder() { # OPTIONS RUNG...: report.py's, of the teacher and the student, with further rungs between them
    local options=$1
    shift
    once ladder $PYTHON report.py $COMMON $options --output_dir="$RESULT" \
        --rung "teacher, padded to n_ctx" pytorch_fixed "$RUN/teacher" \
        --rung "+ dynamic length" pytorch "$RUN/teacher" "$@" \
        --rung "+ distillation, 3 layers" pytorch "$RUN/student" \
        --rung "+ fused graph, int8" onnx "$RUN/models/student" \
        --rung "+ an instance a core" onnx_instances "$RUN/models/student" \
        --rung "TF-IDF, linear model" linear -
}

pairs_without_scores() { # the sentences of STS-B in other pairs, with an embedding model's similarities; of GoEmotions'
    once pairs $PYTHON -m benchmarks.sentence_pairs $LARGER "$OWN/train.csv" "$PAIRS/train.csv"
    once other-pairs $PYTHON -m benchmarks.sentence_pairs $ENCODER "$GOEMOTIONS/train.csv" "$PAIRS/others.csv" \
        --columns=text --num_rows="${ROWS:-12000}"
    [ ! -e "$ALL/test.csv" ] || return 0
    mkdir -p "$ALL"
    cp "$OWN"/{valid,test}.csv "$PAIRS"
    cp "$PAIRS/train.csv" "$OWN/unlabelled.csv"
    { cat "$PAIRS/train.csv" && tail -n +2 "$PAIRS/others.csv"; } >"$ALL/unlabelled.csv"
    cp "$OWN"/{train,valid,test}.csv "$ALL"
}

tokenized() { # FOLDER CONFIG ENCODER COLUMNS
    [ -e "$1/tokenized/meta.json" ] || $PYTHON preprocess.py --config="$2" --data_dir="$1" --bert_model_name_or_path="$3" $4
}

taught() { # NAME START FOLDER OPTIONS...: from the larger teacher's scores of all rows in that folder
    local name=$1 start=$2 data=$3
    shift 3
    once "$name" $PYTHON fastformers.py --config=$CONFIG --data_dir="$data" --unlabelled --batch_size=32 --dropout=0 \
        --teacher_bert_model_name_or_path="$RUN/teacher" --teacher_config=$LARGER_CONFIG \
        --teacher_data_dir="$data-mpnet" --bert_model_name_or_path="$start" --bert_output_dir="$RUN/$name" \
        --save_path="$RUN/$name.pt" "$@"
}

stsb() {
    local columns="--text_column=sentence_a,sentence_b --label_column=score" data
    CONFIG=configs/config-bert-regression.json LARGER_CONFIG=configs/config-mpnet-regression.json
    checkpoints stsb
    PAIRS=$OWN-pairs ALL=$OWN-all COMMON="--config=$CONFIG --data_dir=$OWN"
    rows_from "$STSB"
    [ -e $LARGER/model.safetensors ] || $PYTHON embeddings/fetch.py "$(basename $LARGER)"
    pairs_without_scores
    tokenized "$PAIRS" $CONFIG $ENCODER "$columns"
    for data in "$OWN" "$ALL"; do
        tokenized "$data" $CONFIG $ENCODER "$columns"
        mkdir -p "$data-mpnet"
        cp "$data"/*.csv "$data-mpnet"
        tokenized "$data-mpnet" $LARGER_CONFIG $LARGER "$columns"
    done
    once similarity $PYTHON train.py --config=$CONFIG --data_dir="$PAIRS" --bert_model_name_or_path=$ENCODER \
        --bert_output_dir="$RUN/similarity" --save_path="$RUN/similarity.pt" --lr=1e-4 --epoch=1 --batch_size=32
    once teacher $PYTHON train.py --config=$LARGER_CONFIG --data_dir="$OWN-mpnet" --bert_model_name_or_path=$LARGER \
        --bert_output_dir="$RUN/teacher" --save_path="$RUN/teacher.pt" --lr=3e-5 --epoch=4 --batch_size=32
    taught own-6-layers "$RUN/similarity" "$OWN" --lr=2e-4 --epoch=3
    taught assistant "$RUN/own-6-layers" "$ALL" --lr=1e-4 --epoch=2
    once start $PYTHON prune.py $COMMON --bert_output_dir="$RUN/assistant" --keep_layers=1,3,5 \
        --bert_output_dir_pruned="$RUN/start"
    once student $PYTHON fastformers.py --config=$CONFIG --data_dir="$ALL" --unlabelled --batch_size=32 --dropout=0 \
        --teacher_bert_model_name_or_path="$RUN/assistant" --bert_model_name_or_path="$RUN/start" \
        --bert_output_dir="$RUN/student" --save_path="$RUN/student.pt" --lr=2e-4 --epoch=2 --state_loss_ratio=1 \
        --state_layers=all
    scored teacher --config=$LARGER_CONFIG --data_dir="$OWN-mpnet" --bert_output_dir="$RUN/teacher"
    scored assistant --bert_output_dir="$RUN/assistant"
    scored student --bert_output_dir="$RUN/student"
    folder student
    ladder "$columns" --rung "+ distillation, 6 small layers" pytorch "$RUN/assistant"
}

targets() { # what each model is held to, and what it reached
    $PYTHON - "$RESULTS" <<'PROGRAM'
import json
import sys
from pathlib import Path


def score(name: str, model: str, measure: str) -> float:
    path = Path(sys.argv[1]) / name / f"{model}.json"
    return json.loads(path.read_text())[measure] if path.is_file() else float("nan")


def target(name: str, measured: float, needed: float) -> None:
    if measured == measured and needed == needed:  # not what was left out
        print(f"target: {name} measured {measured:.4f} needs {needed:.4f} {'ok' if measured >= needed else 'short'}")


# STS-B has two teachers: the larger one, and the 6 layers that learned from it.
pairs = [("goemotions", "teacher", "macro_f1", 0.45, 0.015), ("stsb", "teacher", "pearson", 0.86, 0.02)]
pairs += [("stsb", "assistant", "pearson", 0.86, 0.02)]
for name, taught_by, measure, floor, loss in pairs:
    teacher, student = score(name, taught_by, measure), score(name, "student", measure)
    target(f"{name} {taught_by} {measure}", teacher, floor)
    target(f"{name} student {measure}, beside the {taught_by}", student, teacher - loss)
for name, measure in (("goemotions", "macro_f1"), ("stsb", "pearson")):
    target(f"{name} int8 student {measure}", score(name, "int8-student", measure), score(name, "student", measure) - 0.005)
for model in ("teacher", "student", "int8-student"):
    micro = score("goemotions", model, "micro_f1")
    if micro == micro:
        print(f"goemotions {model}: micro F1 {micro:.4f}")
PROGRAM
}

case ${1:-all} in
goemotions) goemotions ;;
stsb) stsb ;;
targets) ;;
all)
    stsb
    goemotions
    ;;
*)
    echo "benchmarks/tasks.sh: unknown data set $1: give goemotions, stsb or targets" >&2
    exit 2
    ;;
esac
targets
