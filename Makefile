# make demo   sets up, then runs the whole pipeline on the bundled checkpoints and audio
# make test   sets up, then runs every test that this machine can run
#
# lint, wheel   what CI checks besides; gpu: the GPU tests, on a GPU host; full-size: a random 0.6B checkpoint;
#              parity: every kind of model against NeMo

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
CLIPS := examples/demo/manifest.json

.PHONY: demo test lint wheel gpu full-size parity clean

demo: $(VENV)/.run
	$(BIN)/nemotrt doctor
	$(BIN)/nemotrt run examples/demo/parakeet-style-tdt.nemo -o $(OUT)/tdt --audio $(CLIPS) --profile demo
	$(BIN)/nemotrt run examples/demo/fastconformer-hybrid-streaming.nemo -o $(OUT)/hybrid --audio $(CLIPS) --profile demo
	$(BIN)/nemotrt transcribe $(OUT)/hybrid examples/demo/clips/00000.wav --decoder ctc

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not gpu and not full_size and not matrix"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel, installed into an environment of its own, answers.
wheel: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(PYTHON) -m venv --clear build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && wheel-check/bin/nemotrt --version && wheel-check/bin/nemotrt doctor

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

full-size: $(VENV)/.dev
	$(BIN)/python -m pytest -m full_size

# Every family, head, norm and context against NeMo, as a table.
parity: $(VENV)/.dev
	$(BIN)/python -m pytest -m matrix

clean:
	rm -rf build dist $(OUT)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: nemotrt needs Python 3.11 or newer; name one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[rtx]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.run
