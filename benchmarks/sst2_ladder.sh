# The ladder of docs/results.md, in two rounds. benchmarks/sst2.sh reads this file, and has the settings.
#
# In the first round 6 layers learn from train.txt and TEXTS, for 3 epochs. In the second they go on for 2 epochs, from
# TEXTS and OTHER_TEXTS, and give their layers to the smaller models. The accuracy table shows models of both rounds.
FIRST_DATA=data/sst2-texts FIRST=runs/sst2-texts SECOND=runs/sst2

ladder() { # TARGET SEED VARIABLES...: make the ladder, or one of its models, from the larger teacher
    local target=$1 seed=$2
    shift 2
    make "$target" TEACHER=$LARGE TEACHER_OPTIONS="$LARGE_OPTIONS" \
        STUDENT_OPTIONS="--kd_loss=mse --lr=2e-4 --batch_size=64 --dropout=0 --measure=loss --seed=$seed" \
        SHAPE_small="--keep_layers=0,2 --target_num_heads=4 --target_ffn_dim=128" "$@"
}

first_round() { # TARGET SEED VARIABLES...: a model of the ladder, from TEXTS
    if [ ! -e $FIRST_DATA/unlabelled.txt ]; then
        mkdir -p $FIRST_DATA
        cp $SST2/{train,valid,test}.txt $FIRST_DATA
        cp "$TEXTS" $FIRST_DATA/unlabelled.txt
    fi
    ladder "$1" "$2" DATA=$FIRST_DATA RUN=$FIRST EPOCHS_student=3 EPOCHS_small=4 "${@:3}"
}

second_round() { # TARGET SEED VARIABLES...: a model of the ladder, from all texts
    local variables="DATA=$SST2 RUN=$SECOND ENCODER=$FIRST/assistant EPOCHS_student=2 EPOCHS_small=3"
    if [ ! -e $SECOND/teacher.done ]; then # the same teacher, as the labelled rows are the same
        first_round $FIRST/assistant.done 42
        [ -e $SST2/unlabelled.txt ] || cat "$TEXTS" "$OTHER_TEXTS" >$SST2/unlabelled.txt
        ladder $SECOND/teacher-data/tokenized/meta.json 42 $variables
        cp -r $FIRST/teacher $FIRST/teacher.pt $SECOND
        touch $SECOND/teacher.done
    fi
    ladder "$1" "$2" $variables "${@:3}"
}

of_round() { # first|second NAME MODEL SEED: a model of it; of other seeds, begun from the same models as of seed 42
    local round=$1_round name=$2 model=$3 seed=$4 folder=$FIRST before
    [ "$1" = first ] || folder=$SECOND
    if [ "$seed" != 42 ]; then
        local of_42=$folder
        folder=$RUN/$name-ladder
        mkdir -p "$folder"
        for before in teacher assistant student; do
            [ "$before" != "$model" ] || break
            $round "$of_42/$before.done" 42
            ln -sfn "$PWD/$of_42/$before" "$PWD/$of_42/$before.pt" "$PWD/$of_42/$before.done" "$folder"
        done
    fi
    $round "$folder/$model.done" "$seed" RUN="$folder"
    ln -sfn "$PWD/$folder/$model" "$RUN/$name"
    ln -sfn "$PWD/$folder/$model.pt" "$RUN/$name.pt"
}

ladder_table() {
    second_round $SECOND/teacher.done 42
    [ -e $SECOND/static/model.safetensors ] ||
        .venv-model2vec/bin/python -m benchmarks.static_classifier $SECOND/teacher $SST2/train.txt $SECOND/static
    second_round ladder 42 STATIC=$SECOND/static
}
