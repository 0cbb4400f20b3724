# The words of the project; CI uses the same ones.
#   make setup build test lint peers parity asan bench bench-avx2 proportion mix

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin

# cmake, ninja and pybind11 come with the extra `lint`.
CMAKE = PATH="$(BIN):$$PATH" cmake
CPP_FILES = $(wildcard cpp/*/*.h cpp/*/*/*.h cpp/*/*.cc cpp/*/*/*.cc)

# llama.cpp is built from source, for this machine and without what a comparison does not need. GCC 12
# does not know that LDTILECFG reads the shapes of tiles and drops what it takes for dead stores:
# where the processor has tile registers (AMX), llama.cpp then dies of its first int8 product.
# Nothing comes from pip's cache: it hands out what was once built with other arguments, or on
# another machine.
PEER_CMAKE_ARGS = -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'

.PHONY: setup build test lint peers parity asan bench bench-avx2 proportion mix clean

setup: $(BIN)/pip
	$(BIN)/pip install --quiet '.[test,lint]'

build: $(BIN)/pip
	$(BIN)/pip install --quiet --no-deps --force-reinstall .

test:
	$(BIN)/pytest

# The dev preset makes warnings errors and gives clang-tidy its flags; what a tier's object exports
# is checked on an unoptimised build too, where inline functions are not inlined.
lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(CMAKE) --preset dev -DPython_EXECUTABLE=$(BIN)/python
	$(CMAKE) --build --preset dev
	$(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -p build/dev -quiet '/cpp/.*\.cc$$'
	$(CMAKE) --preset debug -DPython_EXECUTABLE=$(BIN)/python
	$(CMAKE) --build --preset debug
	$(BIN)/pytest tests/test_codebase.py

# torch, transformers, llama.cpp and OpenVINO, which `make parity` and `make bench` compare with.
peers: $(BIN)/pip
	CMAKE_ARGS="$(PEER_CMAKE_ARGS)" $(BIN)/pip install --quiet --no-cache-dir '.[test,parity,peers]'

# The tests that `make test` leaves out: the real model, here and in other engines.
parity:
	$(BIN)/pytest -m "parity or model or network"

# AddressSanitizer and UBSan: a copy of the package with instrumented extension modules, put in
# front of the installed one. Python itself leaks on purpose, so leaks are not counted; what memory
# takes is not tested, because freed blocks are kept to find those who still use them.
ASAN_STAGE = build/asan/stage
ASAN_TESTS ?= tests/kernels tests/unit tests/laws --ignore=tests/unit/test_engine_memory.py
asan:
	$(CMAKE) --preset asan -DPython_EXECUTABLE=$(BIN)/python
	$(CMAKE) --build --preset asan
	rm -rf $(ASAN_STAGE)
	mkdir -p $(ASAN_STAGE)
	cp -r python/slimformer $(ASAN_STAGE)/slimformer
	rm -f $(ASAN_STAGE)/slimformer/*.so
	$(CMAKE) --install build/asan --prefix $(ASAN_STAGE)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	PYTHONPATH=$(ASAN_STAGE) $(BIN)/python -m pytest $(ASAN_TESTS)

bench:
	PYTHONPATH=tests $(BIN)/python bench/run.py --output bench/RESULTS.md $(BENCH_OPTIONS)

# The AVX2 kernels against a llama.cpp that was built for AVX2 only.
AVX2_PEER = build/llama_cpp_avx2
AVX2_CMAKE_ARGS = -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON \
	-DGGML_BMI2=ON -DGGML_AVX512=OFF
bench-avx2: $(AVX2_PEER)
	SLIMFORMER_ISA=avx2 PYTHONPATH=tests:$(AVX2_PEER) $(BIN)/python bench/run.py \
		--only prefill,decode --peers llama.cpp --output bench/RESULTS-AVX2.md $(BENCH_OPTIONS)

$(AVX2_PEER):
	CMAKE_ARGS="$(PEER_CMAKE_ARGS) $(AVX2_CMAKE_ARGS)" $(BIN)/pip install --quiet --no-deps \
		--no-cache-dir --no-binary llama-cpp-python --target $@ 'llama-cpp-python>=0.3.36,<0.4'

# What pruning gains against what it removes: bench/PROPORTION.md and proportion.svg.
proportion:
	$(BIN)/python bench/proportion.py

# Mixes of structure, zeros and bits; the text and the calibration are yours to give.
mix:
	PYTHONPATH=tests $(BIN)/python bench/mix.py $(MIX_OPTIONS)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
