# make demo: ask the built-in model about pictures and a clip, and over HTTP.  make test: lint, types,
# tests.  Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := CMakeLists.txt $(wildcard src/qwen25vl/kernels/native/*)

.PHONY: demo test test-clients test-fuzz test-ray peers test-slow test-web sanitize tiles train-demo evaluate lint types clean

demo: $(VENV)/installed
	$(BIN)/qwen25vl run "Describe the picture." -i examples/scene.png
	$(BIN)/qwen25vl run "Detect every animal in JSON." -i examples/boxes.png -m src/qwen25vl/demo
	$(BIN)/qwen25vl run "When does the apple appear?" -v examples/appears.gif -m src/qwen25vl/demo
	$(BIN)/python examples/ask_server.py

test: lint types $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto -m "not slow and not web"

# the assertions of other packages' tests: how many hold, and how many are refused on purpose
peers: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/peers

# an environment in the folder of the target, which borrows the packages of .venv
define BORROWING_VENV
$(PYTHON) -m venv $(@D)
echo "import site; site.addsitedir('$(CURDIR)/$$(echo $(VENV)/lib/python3*/site-packages)')" > \
	"$$(echo $(@D)/lib/python3*/site-packages)/of_venv.pth"
endef

# real clients against a live server, in an environment of their own that borrows the packages of .venv
CLIENTS := langchain-openai llama-index-llms-openai-like litellm docling-slim mineru-vl-utils
test-clients: build/clients/installed
	build/clients/bin/python -m pytest tests/clients -v -rs

build/clients/installed: $(VENV)/installed-dev
	$(BORROWING_VENV)
	build/clients/bin/pip install --quiet $(CLIENTS)
	build/clients/bin/pip install --quiet --no-deps lm-eval  # its API clients need none of its packages
	npm install --silent --prefix build/clients openai @anthropic-ai/sdk || echo "npm cannot install openai: skipped"
	touch $@

# a local cluster, in an environment of its own
test-ray: build/ray/installed
	build/ray/bin/python -m pytest tests/cluster -v -rs

build/ray/installed: $(VENV)/installed-dev
	$(BORROWING_VENV)
	build/ray/bin/pip install --quiet "ray[data,serve] >= 2.50"
	touch $@

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "slow and not ray"

# the page in a browser that the system has (Debian: chromium-headless-shell); axe-core looks for what
# keeps people out
test-web: $(VENV)/installed-browser build/web/node_modules/axe-core/axe.min.js
	$(BIN)/python -m pytest tests/web

build/web/node_modules/axe-core/axe.min.js:
	npm install --silent --no-audit --no-fund --prefix build/web axe-core@4

# requests made from /openapi.json, valid and invalid, against a live server: so many for each route
FUZZ_CASES ?= 80
test-fuzz: $(VENV)/installed-dev
	QWEN25VL_FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -m slow tests/serving/test_api_fuzz.py

# the pictures and fonts for the training, the training itself (resumes where it was ended), and what it reached
train-demo: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --editable ".[train]"
	test -d train_demo/runs/things/fonts || $(BIN)/python -m train_demo.things
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/torchrun --nproc-per-node 2 -m train_demo.train \
		--folder train_demo/runs/first

evaluate: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --editable ".[train]"
	test -d train_demo/runs/things/fonts || $(BIN)/python -m train_demo.things
	$(BIN)/python -m train_demo.evaluate

# every kernel under the sanitizers for addresses and undefined behaviour, with so many random calls for
# each instruction set; libstdc++ is loaded with them because torch throws
FUZZ_CALLS ?= 20000
sanitize: $(VENV)/installed-dev
	cmake -S . -B build/sanitize -DSANITIZE=address,undefined
	cmake --build build/sanitize --parallel 2
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	QWEN25VL_FUZZ_CALLS=$(FUZZ_CALLS) \
	QWEN25VL_KERNEL_LIBRARY="$(CURDIR)/build/sanitize/libqwen25vl_kernels.so" \
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/kernels

# the kernels for AMX: on its tiles where the processor has them, else with the tiles imitated, on any
# machine with AVX-512
tiles: $(VENV)/installed-dev
	cmake -S . -B build/tiles -DTILE_MODEL=$$(grep -q amx_int8 /proc/cpuinfo && echo OFF || echo ON)
	cmake --build build/tiles --parallel 2
	QWEN25VL_KERNEL_LIBRARY="$(CURDIR)/build/tiles/libqwen25vl_kernels.so" \
	$(BIN)/python -m pytest -n 2 -m "not slow" -k amx tests/kernels

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# the kernels are compiled at each installation, so what changes them installs again
$(VENV)/installed: $(BIN)/python pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --editable ".[serve]"
	touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/installed

$(VENV)/installed-browser: $(VENV)/installed-dev
	$(BIN)/pip install --quiet "playwright >= 1.50"
	touch $@
