# Each target does all of its own set-up in .venv (and .venv-generate for the code generators).
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --require-hashes --requirement

.PHONY: help demo test versions jax check bench bench-tensors attacks interop conformance generate baseline requirements clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      install the runtime and show a prompt going in and tokens streaming out"
	@echo "make test      install everything, then check and test"
	@echo "make jax       tensors of JAX (and of torch, where it is) in and out without a copy"
	@echo "make check     ruff, mypy, import contracts, buf"
	@echo "make bench     CPU time against bare grpc.aio, connectrpc and json_format, in ratios; some four minutes"
	@echo "make conformance  the official Connect conformance suite, server and clients; some five minutes, needs Go"
	@echo "make bench-tensors  tensors against raw TCP, stubs, Arrow Flight and tritonclient; some ten minutes"
	@echo "make interop   clients and servers in other languages, and a browser, against Quill; some ten minutes"
	@echo "make attacks   hostile tensors: a million through the decoder, a hundred thousand calls; half an hour"
	@echo "make versions  the lowest and the highest versions of the dependencies, each with the tests that would notice"
	@echo "make generate  write quill/_gen from proto/"
	@echo "make requirements  resolve the pinned dependencies anew"

# What a user of quill-rpc[shard] gets: with it the demo goes the whole way.
.venv/runtime.stamp: requirements/runtime.txt pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) requirements/runtime.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/test.stamp: requirements/test.txt .venv/runtime.stamp
	.venv/bin/python $(PIP_INSTALL) requirements/test.txt
	touch $@

# Apart from the rest: the generators are the oldest that Quill supports.
.venv-generate/stamp: requirements/generate.txt
	test -x .venv-generate/bin/python || $(PYTHON) -m venv .venv-generate
	.venv-generate/bin/python $(PIP_INSTALL) requirements/generate.txt
	touch $@

# Whom tensors are compared with.
.venv-peers/stamp: requirements/peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP_INSTALL) requirements/peers.txt
	touch $@

# JAX besides what the tests need.
.venv-jax/stamp: requirements/test.txt requirements/jax.txt pyproject.toml
	test -x .venv-jax/bin/python || $(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python $(PIP_INSTALL) requirements/test.txt
	.venv-jax/bin/python $(PIP_INSTALL) requirements/jax.txt
	.venv-jax/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: .venv/runtime.stamp
	.venv/bin/quill demo

check: .venv/test.stamp .venv-generate/stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy --strict benchmarks
	.venv/bin/mypy --strict interop --exclude interop/conformance
	.venv/bin/lint-imports
	.venv-generate/bin/buf lint
	.venv-generate/bin/buf format --diff --exit-code
	.venv-generate/bin/buf breaking --against proto/baseline.binpb
	.venv-generate/bin/python tools/generate.py --check
	.venv/bin/python tools/build_ngram.py --check

bench: .venv/test.stamp
	.venv/bin/python benchmarks/run.py $(BENCH)

# The runner, a Go program, and its messages as Python modules; neither is committed.
interop/conformance/gen/stamp: interop/conformance/prepare.py .venv-generate/stamp
	.venv-generate/bin/python interop/conformance/prepare.py
	touch $@

conformance: .venv/test.stamp interop/conformance/gen/stamp
	.venv/bin/mypy --strict interop/conformance
	.venv/bin/python interop/conformance/run.py $(CONFORMANCE)

bench-tensors: .venv/test.stamp .venv-peers/stamp
	.venv/bin/python benchmarks/tensors.py $(BENCH)

# What hostile peers send: a million messages through the decoder, a hundred thousand calls over sockets.
attacks: .venv/test.stamp
	.venv/bin/python benchmarks/tensor_fuzz.py --inputs 1000000
	.venv/bin/python benchmarks/tensor_attacks.py --inputs 100000

# Not part of `make test`. The registry's torch brings gigabytes of CUDA: where somebody has put one there, it is tried.
jax: .venv-jax/stamp
	.venv-jax/bin/python -m pytest tests/frameworks/jax_arrays.py
	if .venv-jax/bin/python -c "import torch" 2>/dev/null; \
		then .venv-jax/bin/python -m pytest tests/frameworks/torch_tensors.py; \
		else echo "torch is not in .venv-jax: its tests were not run"; fi

test: check
	.venv/bin/python -m pytest --numprocesses 3 --dist loadfile

# Debian's browser, for pages that call a server; Playwright brings none of its own.
/usr/bin/chromium:
	timeout 300 apt-get update --quiet=2
	DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install --yes --quiet=2 --no-install-recommends chromium

interop: .venv/test.stamp .venv-generate/stamp | /usr/bin/chromium
	.venv/bin/python interop/run.py $(INTEROP)

# The lowest and the highest versions of what Quill stands on, each with the tests that would notice.
.venv-%/stamp: requirements/%.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) requirements/$*.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

VERSIONED = tests/wire tests/tensor tests/token tests/test_dtype.py \
	$(addprefix tests/llm/test_,generate.py validate.py journal.py cancellation.py embedding.py) \
	$(addprefix tests/client/test_,calls.py streams.py reflection.py compression.py h2c.py health.py) \
	$(addprefix tests/server/test_,unary.py streaming.py reflection.py connect_get.py reply_compression.py)
# The upb of the lowest protobuf reads lengths of more than 32 bits, as newer ones and Quill do not.
NEWER_UPB = --deselect tests/wire/test_tensor_codec.py::test_hostile_bytes_are_read_or_refused_as_upb_does
versions: .venv-lowest/stamp .venv-highest/stamp
	.venv-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile $(VERSIONED) $(NEWER_UPB)
	.venv-highest/bin/python -m pytest --numprocesses 2 --dist loadfile $(VERSIONED)

generate: .venv-generate/stamp
	.venv-generate/bin/python tools/generate.py

# At each release: what the next one must not break.
baseline: .venv-generate/stamp
	.venv-generate/bin/buf build --exclude-source-info --output proto/baseline.binpb

# Resolve the pins anew, with hashes and without addresses.
COMPILE = .venv-pins/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --upgrade
requirements:
	test -x .venv-pins/bin/python || $(PYTHON) -m venv .venv-pins
	.venv-pins/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --extra shard pyproject.toml --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml requirements/test.in --constraint requirements/runtime.txt \
		--output-file requirements/test.txt
	$(COMPILE) requirements/jax.in --constraint requirements/test.txt --output-file requirements/jax.txt
	$(COMPILE) requirements/generate.in --output-file requirements/generate.txt
	$(COMPILE) requirements/peers.in --output-file requirements/peers.txt
	$(COMPILE) --extra one-port pyproject.toml --constraint requirements/runtime.txt \
		--output-file requirements/one_port.txt
	$(COMPILE) --resolution lowest-direct --extra shard --extra http2 pyproject.toml --output-file .venv-pins/lowest.txt
	$(COMPILE) --extra shard --extra http2 pyproject.toml requirements/versions.in \
		--constraint .venv-pins/lowest.txt --output-file requirements/lowest.txt
	$(COMPILE) --extra shard --extra http2 pyproject.toml requirements/versions.in \
		--output-file requirements/highest.txt

clean:
	rm -rf .venv .venv-* interop/*/.tools interop/*/gen interop/*/node_modules interop/*/target dist gen
