# Two commands for a newcomer: `make demo` and `make test`. The others are for those who build the house.
# Assumed: python3 >= 3.10, a C++17 compiler, make. Everything else comes from pip, into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# Where the CPU build of torch is looked up if the configured package index does not offer one: on Linux, PyPI's
# default build brings gigabytes of nvidia packages. `make demo TORCH_INDEX=` leaves the choice to pip's own index.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname)),https://download.pytorch.org/whl/cpu)
# Compiler warnings stop a build in our own CI, not on the machine of somebody with a newer compiler.
WERROR ?= $(if $(CI),ON,OFF)
JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
# The editable install knows the Python files it was made with: another set of names is another install.
FILES := $(shell find devinterp_fast -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
CPP := $(shell find csrc tests/native tests/cuda -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' -o -name 'cuda_runtime.h')
CMAKE_FILES := CMakeLists.txt csrc/CMakeLists.txt csrc/cuda.cmake tests/native/CMakeLists.txt

export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CMAKE_ARGS := $(CMAKE_ARGS) -DDIF_WERROR=$(WERROR)
# Where nvcc is found: machine code for Turing and Ampere and the PTX that serves what came later are quickly compiled.
# `make wheels` takes the whole list of csrc/cuda.cmake.
export CUDAARCHS ?= 75-real;80
# gersemi, auditwheel and ctest call tools that pip put there
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test check lint types stubs stubs-check docs native symbols cuda-check wheels bench clean
.NOTPARALLEL:

demo: $(VENV)/.package-$(FILES)
	$(BIN)/devinterp-fast watch digits --out runs/digits

test: $(VENV)/.test
	$(BIN)/python -m pytest -m 'not cuda_check'

check: lint types stubs-check docs native symbols cuda-check
	@echo "check: all passed"

# --- the environment ------------------------------------------------------------------------------------------

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "PYTHON: expected Python >= 3.10, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt $(VENV)/.venv
	@echo "torch $(TORCH): looking for a CPU build"
	$(INSTALL) "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(INSTALL) torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/python tools/cpu_only.py
	@touch $@

# One editable install serves all: run in the repository's root, the folder devinterp_fast/ would hide a wheel.
$(VENV)/.package-$(FILES): $(NATIVE) $(VENV)/.torch
	$(INSTALL) --editable '.[demo]'
	$(BIN)/python tools/cpu_only.py
	@rm -f $(VENV)/.package-*
	@touch $@

$(VENV)/.test: $(VENV)/.package-$(FILES)
	$(INSTALL) 'devinterp-fast[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) 'devinterp-fast[dev]'
	$(BIN)/python tools/cpu_only.py
	@touch $@

# --- checks ---------------------------------------------------------------------------------------------------

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/gersemi --check --indent 2 --line-length 120 --no-warn-about-unknown-commands $(CMAKE_FILES)
	$(BIN)/codespell
	$(BIN)/python tools/tables.py --check

types: $(VENV)/.dev
	$(BIN)/mypy

stubs: $(VENV)/.dev
	$(BIN)/python tools/stubs.py

stubs-check: $(VENV)/.dev
	$(BIN)/python tools/stubs.py --check

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "docs: build/docs/index.html"

# The native tests three times: as shipped, under the address and undefined-behavior sanitizers, under the
# thread sanitizer.
native: $(VENV)/.dev
	$(call native_tests,plain,)
	$(call native_tests,address,-DDIF_SANITIZE=address$(comma)undefined $(LIGHT))
	$(call native_tests,thread,-DDIF_SANITIZE=thread $(LIGHT))

comma := ,
# any optimization of the unrolled lanes with address checks in them takes minutes to compile
LIGHT := -DCMAKE_CXX_FLAGS_RELEASE=-O0
define native_tests
	$(BIN)/cmake -S . -B build/native/$(1) -G Ninja -DDIF_NATIVE_TESTS=ON -DDIF_WERROR=ON $(2)
	$(BIN)/cmake --build build/native/$(1)
	$(BIN)/ctest --test-dir build/native/$(1) --output-on-failure --no-tests=error
endef

symbols: native
	$(BIN)/python tools/symbols.py build/native/plain

# The CUDA kernels without a GPU: on the CPU under sanitizers, as PTX in an interpreter, planted mistakes, budgets.
# Says what it had to leave out for want of nvcc.
cuda-check: $(VENV)/.test
	$(BIN)/python -m pytest -q -m cuda_check tests

# --- what we ship ---------------------------------------------------------------------------------------------

# A wheel that names its ABI and a manylinux tag, then a fresh environment that runs it without a compiler. Built apart
# from the editable install, whose two architectures CMake's cache would remember.
wheels: $(VENV)/.dev
	rm -rf build/wheel dist
	env -u CUDAARCHS $(PIP) wheel --quiet --no-deps --config-settings=build-dir=build/release --wheel-dir build/wheel .
	$(if $(filter Linux,$(shell uname)),$(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl,mkdir dist && cp build/wheel/*.whl dist)
	$(BIN)/python tools/try_wheel.py dist/*.whl

# In an environment of its own: the packages we compare with have requirements of their own.
bench:
	$(MAKE) VENV=$(VENV)-bench run-bench

.PHONY: run-bench
run-bench: $(VENV)/.package-$(FILES)
	$(INSTALL) 'devinterp-fast[bench]'
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py'
	$(BIN)/python benchmarks/bench_engine.py
	$(BIN)/python benchmarks/bench_peers.py

clean:
	rm -rf build dist $(VENV) $(VENV)-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
