# The ladder of docs/results.md, in two rounds. benchmarks/sst2.sh reads this file, and has the settings.
#
# In the first round 6 layers learn from train.txt and TEXTS, for 3 epochs. In the second they go on for 2 epochs, from
# TEXTS and OTHER_TEXTS, and give their layers to the smaller models. The first round also has smaller models, which the
# accuracy table shows.
FIRST_DATA=data/sst2-texts FIRST=runs/sst2-texts

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

second_round() { # TARGET VARIABLES...: from all texts; its 6 layers begin with those of the first round
    ladder "$1" 42 DATA=$SST2 ENCODER=$FIRST/assistant EPOCHS_student=2 EPOCHS_small=3 \
        CASCADE_OPTIONS=--target_speedup=5 FAST_CASCADE_OPTIONS=--target_speedup=28 "${@:2}"
}

of_first_round() { # NAME MODEL SEED: a model of it; of other seeds, begun from the same models as that of seed 42
    local folder=$FIRST before
    if [ "$3" != 42 ]; then
        folder=$RUN/$1-ladder
        mkdir -p "$folder"
        for before in teacher assistant student; do
            [ "$before" != "$2" ] || break
            first_round "$FIRST/$before.done" 42
            ln -sfn "$PWD/$FIRST/$before" "$PWD/$FIRST/$before.pt" "$PWD/$FIRST/$before.done" "$folder"
        done
        ln -sfn "$PWD/$FIRST/teacher-data" "$folder"
    fi
    first_round "$folder/$2.done" "$3" RUN="$folder"
    ln -sfn "$PWD/$folder/$2" "$RUN/$1"
    ln -sfn "$PWD/$folder/$2.pt" "$RUN/$1.pt"
}

ladder_table() {
    first_round $FIRST/assistant.done 42
    [ -e $SST2/unlabelled.txt ] || cat "$TEXTS" "$OTHER_TEXTS" >$SST2/unlabelled.txt
    second_round runs/sst2/teacher-data/tokenized/meta.json
    if [ ! -e runs/sst2/teacher.done ]; then # the same teacher, whose labelled rows are the same
        cp -r $FIRST/teacher $FIRST/teacher.pt runs/sst2
        touch runs/sst2/teacher.done
    fi
    [ -e runs/sst2/static/model.safetensors ] ||
        .venv-model2vec/bin/python -m benchmarks.static_classifier runs/sst2/teacher $SST2/train.txt runs/sst2/static
    second_round ladder STATIC=runs/sst2/static
}
