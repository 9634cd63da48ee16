# Each target makes .venv first where it is absent or older than what it is made from.

PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench proto readme

demo: $(READY)
	$(VENV)/python examples/demo.py

test: $(READY)
	$(VENV)/python -m pytest -q -n auto

lint: $(READY)
	$(VENV)/ruff check .
	$(VENV)/ruff format --check caffeport tests examples
	$(VENV)/mypy

# Benchmarks want the machine to themselves, so they are no part of `make test`. They read ../shared.
bench: $(READY) build/memnet.caffemodel
	$(VENV)/python tests/bench/load.py build/memnet.caffemodel
	$(VENV)/python tests/bench/forward.py build/memnet.caffemodel
	$(VENV)/python tests/bench/layers.py

build/memnet.caffemodel: | $(READY)
	mkdir -p build
	$(VENV)/python ../shared/nets/memnet/make_weights.py $@

proto: $(READY)
	$(VENV)/python -m grpc_tools.protoc -Iproto --descriptor_set_out=caffeport/formats/caffe.binpb proto/caffe.proto

# The support table in the README, from the layers' docstrings.
readme: $(READY)
	$(VENV)/python tests/test_readme.py

# constraints.txt pins torch, so that pip cannot move to another build of it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "caffeport needs Python 3.11 or later; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
