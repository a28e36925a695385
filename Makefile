# make draw PROMPT="a dog in a suit"    from a bare clone to a picture
# make chat                             from a bare clone to a talk; with PROMPT="..." one answer
# make serve                            the endpoint and its address; ARGS="--port 9000" and more
# make test                             lint, types and the whole suite
# make test-narrow                      what depends on the processor, as on one with AVX2 and no more
# make clients                          others' SDKs, in an environment of their own, against a live server
#
# PIP_ARGS goes to every pip call, for example an index of CPU-only wheels of PyTorch (README, Install).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_ARGS)
export PROMPT

.PHONY: draw chat serve test test-narrow lint types suite slow browser gpu clients peers clean

draw: .venv/installed
	@.venv/bin/qkv draw "$${PROMPT:-a dog in a suit}"
	@echo 'Go on with:  . .venv/bin/activate  and then  qkv draw "a red apple, 3d style" --count 4  or  qkv --help' >&2

chat: .venv/installed
	@.venv/bin/qkv chat $${PROMPT:+"$$PROMPT"}

serve: .venv/installed-serve
	@.venv/bin/qkv serve $(ARGS)

test: lint types suite

# Each variable narrows one library: PyTorch's own kernels, oneDNN, MKL, and the kernels that are compiled here.
NARROW = ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 QKV_MARCH=x86-64-v3

test-narrow: .venv/installed-dev
	$(NARROW) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m 'processor and not slow and not gpu'

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-dev
	.venv/bin/mypy

suite: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow

browser: .venv/installed-dev
	.venv/bin/python -m pytest -m browser

gpu: .venv/installed-dev
	.venv/bin/python -m pytest -m gpu

clients: .venv/installed-dev .venv-clients/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m clients tests/clients

.venv-clients/installed: Makefile
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS) 'sagemaker<3'
	@touch $@

# llama.cpp for bench/text_vs_peers.py: built for this machine, and the wheel that brings its server.
peers:
	$(PYTHON) -m venv .venv-peers
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peers/bin/python -m pip --disable-pip-version-check install --quiet \
		-c constraints.txt $(PIP_ARGS) llama-cpp-python xllamacpp

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e .
	@touch $@

.venv/installed-serve: .venv/installed
	$(PIP) -e '.[serve]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-clients .venv-peers build *.egg-info .mypy_cache .pytest_cache .ruff_cache
