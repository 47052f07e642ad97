#!/usr/bin/env bash
# Every row of the published recipe and its ablations, on SST-2: trains, distills and scores them, and writes the
# accuracy table of docs/results.md from what results/sst2/accuracy holds.
#
#     benchmarks/sst2.sh               # all rows: six hours on 2 cores with bf16, a day without
#     benchmarks/sst2.sh main          # the first table: 3 seeds of the rows that are compared, 1 of the others
#     benchmarks/sst2.sh row mse 43    # one of them, of one seed
#     benchmarks/sst2.sh ablations | unlabelled | table
#     benchmarks/sst2.sh ladder        # the ladder of docs/results.md, from a larger teacher: three hours with bf16
#
# The ladder and the rows of `unlabelled`, not among `all`, need texts without labels: sentences of the same kind in
# TEXTS, and of whole reviews in OTHER_TEXTS; the ladder needs .venv-model2vec (benchmarks/README.md).
# data/sst2 must hold train.txt, valid.txt and test.txt (data/README.md); the ladder reads that folder, to which it adds
# the texts, and the rows read data/sst2-rows, a copy with augmented rows. A row whose scores are there is not done
# again, and a run that was stopped continues. The test split is scored once a model, and nothing is chosen by it.
set -euo pipefail
cd "$(dirname "$0")/.."

SST2=data/sst2 DATA=data/sst2-rows RUN=runs/sst2-rows ROWS=results/sst2/accuracy ENCODER=embeddings/all-MiniLM-L6-v2
PYTHON=.venv/bin/python SEEDS="42 43 44"
COMMON="--config=configs/config-bert-cls.json --data_dir=$DATA"
# The larger teacher has a tokenizer of its own.
LARGE=all-mpnet-base-v2
LARGE_CONFIG="--config=configs/config-mpnet-cls.json"
LARGE_OPTIONS="--lr=3e-5 --epoch=1 --batch_size=32 --eval_steps=500"
# Augmented rows that are whole sentences or long parts of them, as those that are classified in the end.
SENTENCES=data/sst2-sentences WORDS=12
# Texts without labels, a line each, in which no sentence of valid.txt or test.txt is; and 1,000 labels, where the other
# rows of train.txt are such texts.
TEXTS=${TEXTS:-../shared/data/critics/unlabelled.txt}
OTHER_TEXTS=${OTHER_TEXTS:-../shared/data/critics/reviews-cc-by.txt}
WITH_TEXTS=data/sst2-unlabelled WITH_OTHERS=data/sst2-other-texts WITH_DOMAINS=data/sst2-other-domains
ONE_VARIANT=data/sst2-one-variant FEW=data/sst2-1000
ALONE_OPTIONS="--lr=1e-4 --epoch=1 --batch_size=32 --eval_steps=500"
TEACHER_OPTIONS="--kd_loss=mse --lr=1.5e-4 --batch_size=64 --dropout=0 --measure=loss"
STUDENT_OPTIONS="--kd_loss=mse --lr=2e-4 --epoch=4 --batch_size=64 --dropout=0"
FEW_OPTIONS="$STUDENT_OPTIONS --data_dir=$FEW" FEW_THREE="few-larger-42 few-larger-43 few-larger-44"
AUGMENTED="--augmented --epoch=1 --eval_steps=1350"
STATES="--state_loss_ratio=1 --state_layers=all"
LABEL_OPTIONS="--lr=1e-4 --epoch=3 --batch_size=64"
SHORT_OPTIONS="--lr=2e-4 --epoch=2 --batch_size=64" # of ablations, their own base row included

source benchmarks/sst2_ladder.sh

once() { # NAME COMMAND...: run it unless it has ended before
    local name=$1
    shift
    [ -e "$RUN/$name.done" ] || { "$@" && touch "$RUN/$name.done"; }
}

scored() { # NAME OPTIONS...: accuracy of that checkpoint on valid.txt and test.txt
    local name=$1 split
    shift
    for split in valid test; do
        [ -e "$ROWS/$name.$split.json" ] || $PYTHON evaluate.py $COMMON --bert_output_dir="$RUN/$name" \
            --model_path="$RUN/$name.pt" --split=$split --batch_size=32 --output_json="$ROWS/$name.$split.json" "$@"
    done
}

done_before() { [ -e "$ROWS/$1.test.json" ]; }

labels() { # NAME START SEED OPTIONS...: trained on the labels
    local name=$1 start=$2 seed=$3
    shift 3
    once "$name" $PYTHON train.py $COMMON --bert_model_name_or_path="$start" --bert_output_dir="$RUN/$name" \
        --save_path="$RUN/$name.pt" --seed="$seed" "$@"
}

distilled() { # NAME TEACHERS START SEED OPTIONS...: from one teacher, or the mean of several, with spaces between
    local name=$1 teachers=$2 start=$3 seed=$4
    shift 4
    once "$name" $PYTHON fastformers.py $COMMON --teacher_bert_model_name_or_path $(printf "$RUN/%s " $teachers) \
        --bert_model_name_or_path="$start" --bert_output_dir="$RUN/$name" --save_path="$RUN/$name.pt" \
        --seed="$seed" "$@"
}

for_larger() { # FOLDER: its rows, but augmented ones, as the larger teacher reads them, in FOLDER-mpnet
    local file
    [ ! -e "$1-mpnet/tokenized/meta.json" ] || return 0
    $PYTHON embeddings/fetch.py $LARGE
    mkdir -p "$1-mpnet"
    for file in train valid test unlabelled; do
        [ ! -e "$1/$file.txt" ] || cp "$1/$file.txt" "$1-mpnet"
    done
    $PYTHON preprocess.py $LARGE_CONFIG --data_dir="$1-mpnet" --bert_model_name_or_path=embeddings/$LARGE
}

larger() { # SEED
    for_larger $DATA
    if [ "$1" = 42 ]; then
        of_round first larger-42 teacher 42
        return
    fi
    labels "larger-$1" embeddings/$LARGE "$1" $LARGE_CONFIG --data_dir=$DATA-mpnet $LARGE_OPTIONS
}

alone() { labels "alone-$1" $ENCODER "$1" $ALONE_OPTIONS; }

taught() { # NAME START SEED OPTIONS...: distilled from the larger teacher of seed 42
    larger 42
    local name=$1 start=$2 seed=$3
    shift 3
    distilled "$name" larger-42 "$start" "$seed" "$@"
}

teacher() { # SEED
    taught "teacher-$1" $ENCODER "$1" $TEACHER_OPTIONS $AUGMENTED
}

teacher_plain() { # SEED: it has never seen an augmented row, nor has what starts from it
    taught "teacher-plain-$1" $ENCODER "$1" $TEACHER_OPTIONS --epoch=3
}

start_from() { # NAME CHECKPOINT LAYERS: some of a checkpoint's layers
    once "$1" $PYTHON prune.py $COMMON --bert_output_dir="$2" --keep_layers="$3" --bert_output_dir_pruned="$RUN/$1"
}

student_start() { # half of the layers of the teacher of seed 42
    teacher 42
    start_from student-start $RUN/teacher-42 1,3,5
}

start_plain() { # and of one that has seen no augmented row
    teacher_plain 42
    start_from start-plain $RUN/teacher-plain-42 1,3,5
}

encoder_start() { # and of the encoder itself
    start_from encoder-start $ENCODER 1,3,5
}

student() { # NAME SEED OPTIONS...: of the larger teacher's logits, without augmented rows
    start_plain
    local name=$1 seed=$2
    shift 2
    taught "$name" $RUN/start-plain "$seed" $STUDENT_OPTIONS "$@"
}

student_of_states() { # NAME START SEED OPTIONS...: of the logits and hidden states of the teacher of seed 42
    student_start
    distilled "$1" teacher-42 "$2" "$3" $STUDENT_OPTIONS $STATES "${@:4}"
}

sentences() { # the data with variants of train.txt's rows of WORDS words and more
    local long=$SENTENCES/long
    [ ! -e $SENTENCES/tokenized/augmented.arrow ] || return 0
    mkdir -p $long
    cp $DATA/{train,valid,test}.txt $SENTENCES
    cp $DATA/{valid,test}.txt $long
    awk -F'\t' -v words=$WORDS 'split($1, _, " ") >= words' $DATA/train.txt >$long/train.txt
    $PYTHON augment_data.py --data_dir=$long --bert_model_name_or_path=$ENCODER --n_iter=8 --mask_ratio=0
    cp $long/augmented.txt $SENTENCES
    $PYTHON preprocess.py $COMMON --data_dir=$SENTENCES --bert_model_name_or_path=$ENCODER
}

with_rows() { # FOLDER unlabelled|augmented COMMAND...: the data, and what the command prints as further rows
    [ ! -e "$1/tokenized/meta.json" ] || return 0
    mkdir -p "$1"
    cp $DATA/{train,valid,test}.txt "$1"
    "${@:3}" >"$1/$2.txt"
    $PYTHON preprocess.py $COMMON --data_dir="$1" --bert_model_name_or_path=$ENCODER
}

few_labels() { # every 67th row with its label, and the others without
    if [ ! -e $FEW/tokenized/meta.json ]; then
        mkdir -p $FEW
        cp $DATA/{valid,test}.txt $FEW
        awk 'NR % 67 == 1 && NR <= 67000' $DATA/train.txt >$FEW/train.txt
        awk -F'\t' 'NR % 67 != 1 || NR > 67000 { print $1 }' $DATA/train.txt >$FEW/unlabelled.txt
        $PYTHON preprocess.py $COMMON --data_dir=$FEW --bert_model_name_or_path=$ENCODER
    fi
    for_larger $FEW
}

from_encoder() { # NAME SEED FOLDER OPTIONS...: 3 layers of the encoder, of the larger teacher's logits of these rows
    encoder_start
    taught "$1" $RUN/encoder-start "$2" $STUDENT_OPTIONS --data_dir="$3" "${@:4}"
}

other_domains() { # tweets, product reviews and editorials
    $PYTHON -c 'from data.fetch import fetch_movie_reviews as fetch
for text, _ in fetch(other_domains=True)["unlabelled"]: print(text)'
}

taught_few() { # as `distilled`, of larger teachers of 1,000 labels, NAME-SEED each, which are made first
    local teacher
    for teacher in $2; do model "${teacher%-*}" "${teacher##*-}"; done
    distilled "$@"
}

few_start() { # few-three | few-self: half of the layers of its 6
    model "$1-6" 42
    start_from "$1-start" "$RUN/$1-6-42" 1,3,5
}

model() { # NAME SEED: the trained model of a row
    local name=$1-$2
    case $1 in
    larger) larger "$2" ;;
    alone) alone "$2" ;;
    teacher) teacher "$2" ;;
    teacher-plain) teacher_plain "$2" ;;
    labels)
        encoder_start
        labels "$name" $RUN/encoder-start "$2" $LABEL_OPTIONS
        ;;
    soft) student "$name" "$2" --kd_loss=soft_cross_entropy ;;
    soft-by-loss) student "$name" "$2" --kd_loss=soft_cross_entropy --measure=loss ;;
    mse) student "$name" "$2" ;;
    mse-of-alone)
        alone 42
        start_from start-of-alone $RUN/alone-42 1,3,5
        distilled "$name" alone-42 $RUN/start-of-alone "$2" $STUDENT_OPTIONS
        ;;
    states) student_of_states "$name" $RUN/student-start "$2" --epoch=3 ;;
    augmented)
        model states "$2"
        sentences
        student_of_states "$name" "$RUN/states-$2" "$2" --data_dir=$SENTENCES $AUGMENTED
        ;;
    augmented-then-larger)
        model augmented "$2"
        taught "$name" "$RUN/augmented-$2" "$2" $STUDENT_OPTIONS --lr=1e-4 --data_dir=$SENTENCES $AUGMENTED \
            --eval_steps=1150
        ;;
    augmented-at-once) student_of_states "$name" $RUN/student-start "$2" $AUGMENTED ;;
    augmented-logits)
        student_start
        taught "$name" $RUN/student-start "$2" $STUDENT_OPTIONS $AUGMENTED
        ;;
    mse-then-labels | states-then-labels | augmented-then-labels)
        local first=${1%-then-labels}
        model "$first" "$2"
        labels "$name" "$RUN/$first-$2" "$2" --lr=2e-5 --epoch=1 --batch_size=64 --freeze_embeddings
        ;;
    texts-6) of_round first "$name" assistant "$2" ;;
    more-texts-6) of_round second "$name" assistant "$2" ;;
    texts-3) of_round first "$name" student "$2" ;;
    more-texts-3) of_round second "$name" student "$2" ;;
    texts-2) of_round first "$name" pruned-small "$2" ;;
    more-texts-2) of_round second "$name" pruned-small "$2" ;;
    # About 2,100 steps each, from layers of the plain encoder: 2, 1, 1, 1, 1 and 2 times all rows.
    steps-train) from_encoder "$name" "$2" $DATA --epoch=2 ;;
    steps-augmented)
        with_rows $ONE_VARIANT augmented awk 'NR % 4 == 1' $DATA/augmented.txt
        from_encoder "$name" "$2" $ONE_VARIANT --augmented --epoch=1
        ;;
    steps-texts)
        with_rows $WITH_TEXTS unlabelled cat "$TEXTS"
        from_encoder "$name" "$2" $WITH_TEXTS --unlabelled --epoch=1
        ;;
    steps-texts-of-6-layers)
        with_rows $WITH_TEXTS unlabelled cat "$TEXTS"
        alone 42
        encoder_start
        distilled "$name" alone-42 $RUN/encoder-start "$2" $STUDENT_OPTIONS --data_dir=$WITH_TEXTS --unlabelled \
            --epoch=1
        ;;
    steps-other-texts)
        with_rows $WITH_OTHERS unlabelled cat "$OTHER_TEXTS"
        from_encoder "$name" "$2" $WITH_OTHERS --unlabelled --epoch=1
        ;;
    steps-other-domains)
        with_rows $WITH_DOMAINS unlabelled other_domains
        from_encoder "$name" "$2" $WITH_DOMAINS --unlabelled --epoch=2
        ;;
    few-larger)
        few_labels
        labels "$name" embeddings/$LARGE "$2" $LARGE_CONFIG --data_dir=$FEW-mpnet --lr=3e-5 --epoch=5 --batch_size=32
        ;;
    few-alone)
        encoder_start
        taught_few "$name" few-larger-42 $RUN/encoder-start "$2" $FEW_OPTIONS --epoch=40
        ;;
    few-texts)
        encoder_start
        taught_few "$name" few-larger-42 $RUN/encoder-start "$2" $FEW_OPTIONS --unlabelled
        ;;
    few-three-6) taught_few "$name" "$FEW_THREE" $ENCODER "$2" $FEW_OPTIONS --unlabelled ;;
    few-three-3)
        few_start few-three
        taught_few "$name" "$FEW_THREE" $RUN/few-three-start "$2" $FEW_OPTIONS --unlabelled
        ;;
    few-self) # a larger teacher that learns these three's answers
        taught_few "$name" "$FEW_THREE" embeddings/$LARGE "$2" $LARGE_CONFIG --data_dir=$FEW-mpnet $LARGE_OPTIONS \
            --unlabelled
        ;;
    few-self-6) taught_few "$name" few-self-42 $ENCODER "$2" $FEW_OPTIONS --unlabelled ;;
    few-self-3)
        few_start few-self
        taught_few "$name" few-self-42 $RUN/few-self-start "$2" $FEW_OPTIONS --unlabelled
        ;;
    *)
        echo "benchmarks/sst2.sh: unknown row $1" >&2
        exit 2
        ;;
    esac
}

row() { # NAME SEED: one row of the table
    if done_before "$1-$2"; then return; fi
    model "$1" "$2"
    case $1 in
    larger | few-larger | few-self) scored "$1-$2" $LARGE_CONFIG --data_dir=$DATA-mpnet ;;
    *) scored "$1-$2" ;;
    esac
}

ablation() { # NAME OPTIONS...: 2 epochs, seed 42, against "short", or "short-of-6-layers" where tokens are compared
    local name=$1 start=$RUN/start-plain
    shift
    if done_before "$name-42"; then return; fi
    start_plain
    case $name in
    layers-*)
        local layers=${name#layers-}
        start_from "start-$layers" $RUN/teacher-plain-42 "${layers//./,}"
        start=$RUN/start-$layers
        ;;
    untuned)
        encoder_start
        start=$RUN/encoder-start
        ;;
    esac
    case $name in
    short-of-6-layers | short-states | relations)
        distilled "$name-42" teacher-plain-42 "$start" 42 $SHORT_OPTIONS "$@"
        ;;
    *) taught "$name-42" "$start" 42 $SHORT_OPTIONS "$@" ;;
    esac
    scored "$name-42"
}

main_rows() {
    local name seed
    row larger 42
    for name in teacher states augmented augmented-then-larger augmented-then-labels mse labels soft mse-then-labels \
        alone soft-by-loss states-then-labels; do
        for seed in $SEEDS; do row $name "$seed"; done
    done
    for name in teacher-plain augmented-at-once augmented-logits mse-of-alone; do row $name 42; done
}

ablations() {
    ablation short --kd_loss=mse --dropout=0
    ablation layers-0.2.4 --kd_loss=mse --dropout=0
    ablation layers-3.4.5 --kd_loss=mse --dropout=0
    ablation layers-0.1.2 --kd_loss=mse --dropout=0
    ablation untuned --kd_loss=mse --dropout=0
    ablation short-of-6-layers --kd_loss=mse --dropout=0
    ablation short-states --kd_loss=mse --dropout=0 $STATES
    ablation relations --kd_loss=mse --dropout=0 --relation_loss_ratio=1
    ablation soft-1 --dropout=0
    ablation soft-4 --dropout=0 --temperature=4
    ablation label-mix --kd_loss=mse --dropout=0 --label_ratio=0.5
    ablation frozen --kd_loss=mse --dropout=0 --freeze_embeddings
    ablation dropout --kd_loss=mse
}

unlabelled_rows() {
    local name seed
    for name in texts-6 texts-3 texts-2 more-texts-6 more-texts-3 more-texts-2 steps-train steps-texts \
        steps-augmented steps-texts-of-6-layers steps-other-texts steps-other-domains few-alone few-texts; do
        for seed in $SEEDS; do row $name "$seed"; done
    done
    for name in few-larger few-three-6 few-three-3 few-self few-self-6 few-self-3; do row $name 42; done
}

table() { $PYTHON -m benchmarks.sst2_table; }

# First of all, as rows that come to a data set later make an unfinished run another one. None of the augmented ones are
# masked, as none were when the rows of the table were made.
prepare_rows() {
    mkdir -p $RUN $ROWS $DATA
    cp -n $SST2/{train,valid,test}.txt $DATA
    [ -e $DATA/augmented.txt ] ||
        $PYTHON augment_data.py --data_dir=$DATA --bert_model_name_or_path=$ENCODER --n_iter=4 --mask_ratio=0
    [ -e $DATA/tokenized/augmented.arrow ] || $PYTHON preprocess.py $COMMON --bert_model_name_or_path=$ENCODER
}

run() { # FUNCTION...: rows, once the data is there
    prepare_rows
    "$@"
}

case ${1:-all} in
main) run main_rows ;;
ablations) run ablations ;;
unlabelled) run unlabelled_rows ;;
row) run row "$2" "$3" ;;
table) ;;
ladder) ladder_table ;;
all)
    run main_rows
    ablations
    ;;
*)
    echo "benchmarks/sst2.sh: unknown rows $1: give main, row, ablations, unlabelled, ladder or table" >&2
    exit 2
    ;;
esac
table
