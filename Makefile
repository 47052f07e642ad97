# make demo          the whole recipe on movie reviews; QUICK=1: 900 labels, other texts without
# make ladder DATA=data/NAME     the same on a data set of your own, into runs/NAME and results/NAME;
#                    COLUMNS="--text_column=... --label_column=..." for files with columns;
#                    AUGMENT=6 for 6 variants of each row, from which the pruned models learn, too (demo: 2), and with
#                    STUDENT_ROWS=--augmented the student they are cut from;
#                    texts in data/NAME/unlabelled.txt, .csv, ... are learned from as well;
#                    TEACHER=all-mpnet-base-v2 for a larger teacher: an encoder of embeddings/, of any family;
#                    CONFIG=configs/config-bert-multi-label.json or -regression.json for another task, where a larger
#                    teacher needs TEACHER_CONFIG=..., the file of its family with the same "task";
#                    STATIC=FOLDER for a classifier of model2vec to compare with;
#                    TEACHER_OPTIONS="...", STUDENT_OPTIONS="...", CASCADE_OPTIONS="...", FAST_CASCADE_OPTIONS="...",
#                    SHAPE_small="..." and EPOCHS_student=..., EPOCHS_small=... in the place of those below
# make test          the test suite
# make test-slow     the tests that need the default encoder
# make faults        kill, starve and mislead the scripts; print what was lost
# make lint          ruff and mypy

# A first import compiles each module once, instead of pip compiling all of the packages' files.
export PYTHONDONTWRITEBYTECODE =
VENV = .venv
PYTHON = $(VENV)/bin/python
# Not from the environment, where a shell keeps the width of the terminal under this name.
COLUMNS =

ifdef QUICK
DATA = data/movie-reviews-1000
RUN = runs/demo-quick
TEACHER_OPTIONS = --lr=1e-4 --epoch=2 --batch_size=32
EPOCHS_student = 3
else
ifeq ($(origin DATA),command line)
RUN = runs/$(notdir $(patsubst %/,%,$(DATA)))
EPOCHS_student = 4
else
DATA = data/movie-reviews
RUN = runs/demo
# All students learn from these variants, too, and from texts without labels.
AUGMENT = 2
STUDENT_ROWS = $(AUGMENTED_ROWS)
EPOCHS_student = 1
endif
TEACHER_OPTIONS = $(if $(TEACHER),--lr=3e-5 --epoch=2 --batch_size=32,--lr=1e-4 --epoch=2 --batch_size=64)
endif
STUDENT_OPTIONS = --kd_loss=mse --lr=4e-4 --batch_size=64 --dropout=0

# make splits names at spaces, and gives colons and % signs a meaning of its own.
ifneq ($(words $(subst :,x x,$(subst %,x x,$(DATA)))),1)
$(error DATA=$(DATA): give one folder, without spaces, colons and % signs in its name)
endif

# How much longer than the smallest model alone: on any machine there are cascades that do not take longer.
CASCADE_OPTIONS = --max_slowdown=$(if $(TEACHER),11,2)
FAST_CASCADE_OPTIONS = --max_slowdown=$(if $(TEACHER),2.2,1.5)

ENCODER = embeddings/all-MiniLM-L6-v2
CONFIG = configs/config-bert-cls.json
COMMON = --config=$(CONFIG) --data_dir=$(DATA)
# Several labels a text: chosen by what needs no thresholds, which are then tuned for each model.
TASK := $(shell sed -n 's/.*"task": *"\([^"]*\)".*/\1/p' $(CONFIG))
ifeq ($(TASK),multi_label)
MEASURE = --measure=mean_average_precision
TUNE = --tune_thresholds
endif
ifeq ($(filter-out single_label,$(TASK)),)
CALIBRATE = --calibrate
endif
DISTILL = fastformers.py $(COMMON) \
	--teacher_bert_model_name_or_path=$(RUN)/teacher --teacher_model_path=$(RUN)/teacher.pt
# What pruning leaves of the student, in two sizes, and for how many epochs each is distilled once more. Where there are
# more rows to learn from, fewer epochs will do, but for rows that the student has seen already.
SHAPE_medium = --target_num_heads=6 --target_ffn_dim=768
SHAPE_small = --keep_layers=0,2 --target_num_heads=4 --target_ffn_dim=384
ifdef AUGMENT
AUGMENTED = $(DATA)/augmented.txt
AUGMENTED_ROWS = --augmented
EPOCHS_medium = $(if $(STUDENT_ROWS),2,1)
EPOCHS_small = 2
else
EPOCHS_medium = 2
EPOCHS_small = $(EPOCHS_student)
endif

.SECONDARY: # keeps what pattern rules make on the way
.PHONY: demo ladder test test-slow faults lint

# The file to learn from, in whatever form preprocess.py reads, or the one that data/fetch.py writes. Where a folder has
# neither, preprocess.py says what is missing.
FETCHED = data/movie-reviews/train.txt data/movie-reviews-1000/train.txt data/sst2/train.txt
FORMS = txt tsv csv jsonl parquet
TRAIN = $(or $(firstword $(wildcard $(FORMS:%=$(DATA)/train.%))),$(filter $(FETCHED),$(DATA)/train.txt))
# Texts without labels, where there are some, from which all but the teacher learn, too.
FETCHED_UNLABELLED = data/movie-reviews/unlabelled.txt data/movie-reviews-1000/unlabelled.txt
UNLABELLED = $(firstword $(wildcard $(FORMS:%=$(DATA)/unlabelled.%)) \
	$(filter $(FETCHED_UNLABELLED),$(DATA)/unlabelled.txt))
UNLABELLED_ROWS = $(if $(UNLABELLED),--unlabelled)
ifeq ($(TRAIN)$(wildcard $(DATA)/.),)
$(error DATA=$(DATA): there is no such folder)
endif

demo ladder: $(RUN)/ladder.done
	@mkdir -p results/$(notdir $(RUN))
	@cp $(RUN)/ladder/* results/$(notdir $(RUN))
	@cat $(RUN)/ladder.txt

test: $(VENV)/installed-dev
	$(PYTHON) -m pytest -q -n 2 -m "not slow" tests

test-slow: $(VENV)/installed-dev $(ENCODER)/model.safetensors data/movie-reviews-1000/train.txt
	$(PYTHON) -m pytest -q -m slow tests

faults: $(VENV)/installed-dev
	PYTHONPATH=.:tests $(PYTHON) -m faults

lint: $(VENV)/installed-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

$(VENV)/installed: requirements.txt
	@python3 -c "import sys; (3, 11) <= sys.version_info < (3, 15) or sys.exit('Python 3.11 to 3.14 is needed')"
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --no-compile --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PYTHON) -m pip install --no-compile --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(ENCODER)/model.safetensors: | $(VENV)/installed
	$(PYTHON) embeddings/fetch.py all-MiniLM-L6-v2

data/sst2/train.txt: | $(VENV)/installed
	$(PYTHON) data/fetch.py sst2

data/movie-reviews/unlabelled.txt: | $(VENV)/installed
	$(PYTHON) data/fetch.py movie-reviews

data/movie-reviews-1000/unlabelled.txt: | $(VENV)/installed
	$(PYTHON) data/fetch.py movie-reviews --num_rows 1000

# Fetched with the texts without labels.
data/movie-reviews/train.txt data/movie-reviews-1000/train.txt: %/train.txt: | %/unlabelled.txt ;

$(DATA)/augmented.txt: $(TRAIN) $(ENCODER)/model.safetensors
	$(PYTHON) augment_data.py --data_dir=$(DATA) --bert_model_name_or_path=$(ENCODER) --n_iter=$(AUGMENT) \
		$(if $(TASK),--config=$(CONFIG)) $(COLUMNS)

$(DATA)/tokenized/meta.json: $(TRAIN) $(AUGMENTED) $(UNLABELLED) $(ENCODER)/model.safetensors
	$(PYTHON) preprocess.py $(COMMON) --bert_model_name_or_path=$(ENCODER) $(COLUMNS)

# A step's .done is made when it has ended, so a step that was stopped is run again, and continues.

# A larger teacher has a tokenizer of its own, and learns from a folder of its own with links to the files; the students'
# rows fastformers.py tokenizes for it. From it, the default encoder learns first, to give its layers to the students.
ifdef TEACHER
LARGE = embeddings/$(TEACHER)
TEACHER_CONFIG = configs/config-$(shell sed -n 's/.*"model_type": *"\([^"]*\)".*/\1/p' $(LARGE)/config.json)-cls.json
ifneq ($(filter-out single_label,$(TASK)),)
ifneq ($(origin TEACHER_CONFIG),command line)
$(error CONFIG=$(CONFIG): its task is $(TASK): give TEACHER_CONFIG, the file of the family of $(TEACHER) with that task)
endif
endif
TEACHER_COMMON = --config=$(TEACHER_CONFIG) --data_dir=$(RUN)/teacher-data
LAYERS_OF = assistant

$(LARGE)/config.json: | $(VENV)/installed
	$(PYTHON) embeddings/fetch.py $(TEACHER)

$(RUN)/teacher-data/tokenized/meta.json: $(DATA)/tokenized/meta.json $(LARGE)/config.json
	@mkdir -p $(RUN)/teacher-data
	@ln -sf $(abspath $(wildcard $(foreach split,train valid test,$(FORMS:%=$(DATA)/$(split).%)))) $(RUN)/teacher-data
	$(PYTHON) preprocess.py $(TEACHER_COMMON) --bert_model_name_or_path=$(LARGE) $(COLUMNS)

$(RUN)/teacher.done: $(RUN)/teacher-data/tokenized/meta.json
	$(PYTHON) train.py $(TEACHER_COMMON) --bert_model_name_or_path=$(LARGE) \
		--bert_output_dir=$(RUN)/teacher --save_path=$(RUN)/teacher.pt $(MEASURE) $(TEACHER_OPTIONS)
	@touch $@

$(RUN)/assistant.done: $(RUN)/teacher.done
	$(PYTHON) $(DISTILL) --bert_model_name_or_path=$(ENCODER) \
		--bert_output_dir=$(RUN)/assistant --save_path=$(RUN)/assistant.pt --epoch=$(EPOCHS_student) \
		$(MEASURE) $(STUDENT_OPTIONS) $(UNLABELLED_ROWS)
	@touch $@

$(RUN)/int8-teacher.done $(RUN)/int8-pruned-teacher.done: private COMMON = $(TEACHER_COMMON)
else
LAYERS_OF = teacher
TEACHER_COMMON = $(COMMON)

$(RUN)/teacher.done: $(DATA)/tokenized/meta.json
	$(PYTHON) train.py $(COMMON) --bert_model_name_or_path=$(ENCODER) \
		--bert_output_dir=$(RUN)/teacher --save_path=$(RUN)/teacher.pt $(MEASURE) $(TEACHER_OPTIONS)
	@touch $@
endif

# The teacher with three fifths of its multiplications, and not trained again.
$(RUN)/pruned-teacher.done: $(RUN)/teacher.done
	$(PYTHON) prune.py $(TEACHER_COMMON) --bert_output_dir=$(RUN)/teacher --model_path=$(RUN)/teacher.pt \
		--target_macs=0.6 --bert_output_dir_pruned=$(RUN)/pruned-teacher --save_path_pruned=$(RUN)/pruned-teacher.pt
	@touch $@

# Half of 6 layers, as a student to start from.
$(RUN)/student-start.done: $(RUN)/$(LAYERS_OF).done
	$(PYTHON) prune.py $(COMMON) --bert_output_dir=$(RUN)/$(LAYERS_OF) --model_path=$(RUN)/$(LAYERS_OF).pt \
		--keep_layers=1,3,5 \
		--bert_output_dir_pruned=$(RUN)/student-start --save_path_pruned=$(RUN)/student-start.pt
	@touch $@

$(RUN)/student.done: $(RUN)/student-start.done
	$(PYTHON) $(DISTILL) --bert_model_name_or_path=$(RUN)/student-start \
		--bert_output_dir=$(RUN)/student --save_path=$(RUN)/student.pt --epoch=$(EPOCHS_student) \
		$(MEASURE) $(STUDENT_OPTIONS) $(STUDENT_ROWS) $(UNLABELLED_ROWS)
	@touch $@

# The student cut to one of the shapes above, and distilled once more.
$(RUN)/cut-%.done: $(RUN)/student.done
	$(PYTHON) prune.py $(COMMON) --bert_output_dir=$(RUN)/student --model_path=$(RUN)/student.pt \
		$(SHAPE_$*) --bert_output_dir_pruned=$(RUN)/cut-$* --save_path_pruned=$(RUN)/cut-$*.pt
	@touch $@

$(RUN)/pruned-%.done: $(RUN)/cut-%.done
	$(PYTHON) $(DISTILL) --bert_model_name_or_path=$(RUN)/cut-$* \
		--bert_output_dir=$(RUN)/pruned-$* --save_path=$(RUN)/pruned-$*.pt --epoch=$(EPOCHS_$*) \
		$(MEASURE) $(STUDENT_OPTIONS) $(AUGMENTED_ROWS) $(UNLABELLED_ROWS)
	@touch $@

$(RUN)/int8-%.done: $(RUN)/%.done
	$(PYTHON) quantize.py $(COMMON) --bert_output_dir=$(RUN)/$* --model_path=$(RUN)/$*.pt \
		--output_dir=$(RUN)/models/$* $(CALIBRATE) $(TUNE)
	@touch $@

# The smallest model, which asks larger ones where it is not sure. Served by processes of one thread, so measured so.
STAGES = pruned-small $(if $(TEACHER),student assistant,pruned-medium student) teacher
$(RUN)/cascades.done: $(STAGES:%=$(RUN)/int8-%.done)
	$(PYTHON) cascade.py --data_dir=$(DATA) $(COLUMNS) $(STAGES:%=$(RUN)/models/%) --num_threads=1 \
		$(FAST_CASCADE_OPTIONS) --output_dir=$(RUN)/models/fast-cascade \
		$(CASCADE_OPTIONS) --output_dir=$(RUN)/models/cascade
	@touch $@

STUDENTS = student pruned-medium pruned-small
ifdef TEACHER
RUNGS = --rung "teacher, padded to n_ctx" pytorch_fixed $(RUN)/teacher \
		--rung "+ dynamic length" pytorch $(RUN)/teacher \
		--rung "+ fused graph, int8" onnx $(RUN)/models/teacher \
		--rung "+ pruning without training" onnx $(RUN)/models/pruned-teacher \
		--rung "+ distillation, 6 small layers" onnx $(RUN)/models/assistant \
		--rung "+ distillation, 3 layers" onnx $(RUN)/models/student
LADDER_MODELS = teacher pruned-teacher assistant $(STUDENTS)
else
RUNGS = --rung "teacher, padded to n_ctx" pytorch_fixed $(RUN)/teacher \
		--rung "+ dynamic length" pytorch $(RUN)/teacher \
		--rung "+ distillation, 3 layers" pytorch $(RUN)/student \
		--rung "+ fused graph, int8" onnx $(RUN)/models/student
LADDER_MODELS = $(STUDENTS)
BASELINE = --rung "BERT-base, random, padded" bert_base -
endif

ifdef STATIC
STATIC_RUNG = --rung "model2vec, static embeddings" model2vec $(STATIC)
endif

# A score does not say how sure it is.
ifneq ($(TASK),regression)
CASCADES = $(RUN)/cascades.done
CASCADE_RUNGS = --rung "cascade, which asks rarely" onnx_instances $(RUN)/models/fast-cascade \
		--rung "cascade, which asks often" onnx_instances $(RUN)/models/cascade
endif

$(RUN)/ladder.done: $(LADDER_MODELS:%=$(RUN)/int8-%.done) $(CASCADES)
	$(PYTHON) report.py $(COMMON) $(COLUMNS) --output_dir=$(RUN)/ladder $(TUNE) \
		$(RUNGS) \
		--rung "+ an instance a core" onnx_instances $(RUN)/models/student \
		--rung "+ pruning, half of each layer" onnx_instances $(RUN)/models/pruned-medium \
		--rung "+ pruning, 2 small layers" onnx_instances $(RUN)/models/pruned-small $(CASCADE_RUNGS) \
		--rung "TF-IDF, logistic regression" linear - $(STATIC_RUNG) $(BASELINE) > $(RUN)/ladder.txt
	@touch $@
