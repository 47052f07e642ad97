# make demo          the whole recipe on 10,070 movie reviews; QUICK=1: on 1,000 of them
# make test          the test suite
# make test-slow     the tests that need the default encoder
# make faults        kill, starve and mislead the scripts; print what was lost
# make lint          ruff and mypy

# A first import compiles each module once, instead of pip compiling all of the packages' files.
export PYTHONDONTWRITEBYTECODE =
VENV = .venv
PYTHON = $(VENV)/bin/python

ifdef QUICK
DATA = data/movie-reviews-1000
RUN = runs/demo-quick
TEACHER_OPTIONS = --lr=1e-4 --epoch=2 --batch_size=32
STUDENT_OPTIONS = --lr=1e-4 --epoch=2 --batch_size=32
else
DATA = data/movie-reviews
RUN = runs/demo
TEACHER_OPTIONS = --lr=1e-4 --epoch=2 --batch_size=64
STUDENT_OPTIONS = --lr=1e-4 --epoch=3 --batch_size=64
endif

ENCODER = embeddings/all-MiniLM-L6-v2
CONFIG = configs/config-bert-cls.json
COMMON = --config=$(CONFIG) --data_dir=$(DATA)

.PHONY: demo test test-slow faults lint
.DELETE_ON_ERROR:

demo: $(RUN)/report.json
	@mkdir -p results
	@cp $(RUN)/report.json results/demo.json
	@cat $(RUN)/report.txt

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
	@python3 -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed')"
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --no-compile --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PYTHON) -m pip install --no-compile --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(ENCODER)/model.safetensors: | $(VENV)/installed
	$(PYTHON) embeddings/fetch.py all-MiniLM-L6-v2

data/movie-reviews/train.txt: | $(VENV)/installed
	$(PYTHON) data/fetch.py movie-reviews

data/movie-reviews-1000/train.txt: | $(VENV)/installed
	$(PYTHON) data/fetch.py movie-reviews --num_rows 1000

$(DATA)/tokenized/meta.json: $(DATA)/train.txt $(ENCODER)/model.safetensors
	$(PYTHON) preprocess.py $(COMMON) --bert_model_name_or_path=$(ENCODER)

$(RUN)/teacher.pt: $(DATA)/tokenized/meta.json
	$(PYTHON) train.py $(COMMON) --bert_model_name_or_path=$(ENCODER) \
		--bert_output_dir=$(RUN)/teacher --save_path=$@ $(TEACHER_OPTIONS)

# Half of the teacher's layers, as a student to start from.
$(RUN)/student-start.pt: $(RUN)/teacher.pt
	$(PYTHON) prune.py $(COMMON) --bert_output_dir=$(RUN)/teacher --model_path=$< --keep_layers=1,3,5 \
		--bert_output_dir_pruned=$(RUN)/student-start --save_path_pruned=$@

$(RUN)/student.pt: $(RUN)/student-start.pt
	$(PYTHON) fastformers.py $(COMMON) --teacher_config=$(CONFIG) \
		--teacher_bert_model_name_or_path=$(RUN)/teacher --teacher_model_path=$(RUN)/teacher.pt \
		--bert_model_name_or_path=$(RUN)/student-start --bert_output_dir=$(RUN)/student --save_path=$@ \
		--kd_loss=mse $(STUDENT_OPTIONS)

$(RUN)/pruned.pt: $(RUN)/student.pt
	$(PYTHON) prune.py $(COMMON) --bert_output_dir=$(RUN)/student --model_path=$< \
		--target_num_heads=8 --target_ffn_dim=1024 --bert_output_dir_pruned=$(RUN)/pruned --save_path_pruned=$@

$(RUN)/pruned.int8.onnx: $(RUN)/pruned.pt
	$(PYTHON) quantize.py $(COMMON) --bert_output_dir=$(RUN)/pruned --model_path=$< \
		--onnx_path=$(RUN)/pruned.onnx --quantized_onnx_path=$@ --output_dir=$(RUN)/model

$(RUN)/report.json: $(RUN)/pruned.int8.onnx
	$(PYTHON) report.py $(COMMON) --output_json=$@ \
		--rung "teacher, padded to n_ctx" pytorch_fixed $(RUN)/teacher \
		--rung "teacher" pytorch $(RUN)/teacher \
		--rung "student, 3 layers" pytorch $(RUN)/student \
		--rung "pruned student" pytorch $(RUN)/pruned \
		--rung "pruned student, ONNX" onnx $(RUN)/pruned.onnx \
		--rung "pruned student, ONNX int8" onnx $(RUN)/pruned.int8.onnx > $(RUN)/report.txt
