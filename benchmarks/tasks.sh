#!/usr/bin/env bash
# Several labels a text and scores, through the whole recipe: GoEmotions (28 labels) and STS-B (pairs, 0 to 5). For each
# a teacher, a 3-layer student, int8 folders and the ladder; at the end the targets that they are held to. STS-B's begin
# with an embedding model's similarities of more pairs of its sentences.
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
STUDENT_OPTIONS="--lr=2e-4 --dropout=0 --state_loss_ratio=1 --state_layers=all"
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

recipe() { # NAME CONFIG SOURCE COLUMNS TEACHER_OPTIONS STUDENT_OPTIONS TUNE: every step of one data set
    local tune=$7
    OWN=$DATA/$1 RUN=$RUNS/$1 RESULT=$RESULTS/$1
    COMMON="--config=$2 --data_dir=$OWN"
    mkdir -p "$RUN/models" "$RESULT"
    rows_from "$3"
    once preprocess $PYTHON preprocess.py $COMMON --bert_model_name_or_path=$ENCODER $4
    once teacher $PYTHON train.py $COMMON --bert_model_name_or_path="${START:-$ENCODER}" \
        --bert_output_dir="$RUN/teacher" \
        --save_path="$RUN/teacher.pt" $5
    once start $PYTHON prune.py $COMMON --bert_output_dir="$RUN/teacher" --keep_layers=1,3,5 \
        --bert_output_dir_pruned="$RUN/start"
    once student $PYTHON fastformers.py $COMMON --teacher_bert_model_name_or_path="$RUN/teacher" \
        --bert_model_name_or_path="$RUN/start" --bert_output_dir="$RUN/student" --save_path="$RUN/student.pt" $6
    scored teacher --bert_output_dir="$RUN/teacher" $tune
    scored student --bert_output_dir="$RUN/student" $tune
    folder teacher $tune
    folder student $tune
    once ladder $PYTHON report.py $COMMON $4 $tune --output_dir="$RESULT" \
        --rung "teacher, padded to n_ctx" pytorch_fixed "$RUN/teacher" \
        --rung "+ dynamic length" pytorch "$RUN/teacher" \
        --rung "+ distillation, 3 layers" pytorch "$RUN/student" \
        --rung "+ fused graph, int8" onnx "$RUN/models/student" \
        --rung "+ an instance a core" onnx_instances "$RUN/models/student" \
        --rung "TF-IDF, linear model" linear -
}

goemotions() {
    recipe goemotions configs/config-bert-multi-label.json "$GOEMOTIONS" "--label_column=labels" \
        "--lr=2e-4 --epoch=3 --batch_size=32 --measure=mean_average_precision" \
        "$STUDENT_OPTIONS --kd_loss=mse --epoch=2 --batch_size=64 --measure=mean_average_precision" \
        --tune_thresholds
}

similarity() { # CONFIG COLUMNS: more pairs, for the student as well, and an encoder that learned their similarities
    local pairs=$DATA/stsb-pairs
    OWN=$DATA/stsb RUN=$RUNS/stsb
    mkdir -p "$RUN"
    rows_from "$STSB"
    [ -e $LARGER/model.safetensors ] || $PYTHON embeddings/fetch.py "$(basename $LARGER)"
    once pairs $PYTHON -m benchmarks.sentence_pairs $LARGER "$OWN/train.csv" "$pairs/train.csv"
    cp "$OWN"/{valid,test}.csv "$pairs"
    once unlabelled cp "$pairs/train.csv" "$OWN/unlabelled.csv"
    once preprocess-pairs $PYTHON preprocess.py --config="$1" --data_dir="$pairs" --bert_model_name_or_path=$ENCODER $2
    once similarity $PYTHON train.py --config="$1" --data_dir="$pairs" --bert_model_name_or_path=$ENCODER \
        --bert_output_dir="$RUN/similarity" --save_path="$RUN/similarity.pt" --lr=1e-4 --epoch=1 --batch_size=32
}

stsb() {
    local config=configs/config-bert-regression.json columns="--text_column=sentence_a,sentence_b --label_column=score"
    similarity $config "$columns"
    START=$RUNS/stsb/similarity recipe stsb $config "$STSB" "$columns" "--lr=5e-5 --epoch=4 --batch_size=32" \
        "$STUDENT_OPTIONS --unlabelled --epoch=2 --batch_size=32" ""
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
    if measured == measured:  # not what was left out
        print(f"target: {name} measured {measured:.4f} needs {needed:.4f} {'ok' if measured >= needed else 'short'}")


for name, measure, floor, loss in (("goemotions", "macro_f1", 0.45, 0.015), ("stsb", "pearson", 0.86, 0.02)):
    teacher, student = score(name, "teacher", measure), score(name, "student", measure)
    target(f"{name} teacher {measure}", teacher, floor)
    target(f"{name} student {measure}", student, teacher - loss)
    target(f"{name} int8 student {measure}", score(name, "int8-student", measure), student - 0.005)
    if measure == "macro_f1":
        for model in ("teacher", "student", "int8-student"):
            micro = score(name, model, "micro_f1")
            print(f"{name} {model}: micro F1 {micro:.4f}" if micro == micro else "", end="\n" if micro == micro else "")
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
