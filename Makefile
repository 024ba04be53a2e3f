# Everything a visitor, a developer or CI needs. `make` alone lists it.
VENV   ?= .venv
PYTHON ?= python3
KIND   ?=
DEMO   ?= demo
SERVE  ?= 1
PORT   ?= 8080
DATA   ?=
bin    := $(VENV)/bin
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup demo check test bench soak gpu lock openapi clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 14

setup: ## make .venv with dexml in it (KIND=cpu|gpu; default: by the machine)
	@PYTHON=$(PYTHON) requirements/install.sh $(VENV) $(KIND)

demo: setup ## build the demo set, train, measure, search, and serve on 127.0.0.1:8080 (SERVE=0: do not serve)
	@$(bin)/dexml data pydocs $(DEMO)/data
	@$(bin)/dexml train training/configs/demo.toml --set data.path=$(DEMO)/data --set out=$(DEMO)/run --if-needed
	@$(bin)/dexml evaluate $(DEMO)/run --split test --json $(DEMO)/test.json
	@$(bin)/dexml evaluate $(DEMO)/run --split unseen --json $(DEMO)/unseen.json
	@for query in "singular value decomposition of a matrix" "fit a polynomial to data by least squares" \
	  "split arrays into random train and test subsets"; do \
	  echo; echo "? $$query"; $(bin)/dexml search $(DEMO)/run "$$query" -k 3; done
	@if [ "$(SERVE)" != 0 ]; then $(bin)/dexml serve $(DEMO)/run --port $(PORT); fi

check: setup ## format, lint, types and import contracts
	@$(bin)/ruff format --check --quiet .
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-logo

test: setup ## all tests, two files at a time (under seven minutes on two cores)
	@$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs

bench: setup ## time kernels and losses beside their peers; with DATA=DIR also PECOS, omikuji and the loss ablation on that set
	@for file in search softmax losses; do echo "== $$file"; $(bin)/python benchmarks/bench_$$file.py || exit 1; done
	@if [ -n "$(DATA)" ]; then for file in peers ablation; do echo "== $$file"; \
	  $(bin)/python benchmarks/bench_$$file.py $(DATA) || exit 1; done; fi

soak: setup ## half an hour of faults: kills, flipped bits, threads, overload, swaps, signals; fails if anything is wrong
	@for file in kill_store soak_store soak_serve; do echo "== $$file"; $(bin)/python benchmarks/$$file.py || exit 1; done

gpu: ## on a machine with an NVIDIA GPU: every kernel against the reference, then the benchmarks
	@python3 benchmarks/gpu.py

lock: ## write the lock files anew from pyproject.toml
	@requirements/lock.sh

openapi: setup ## write docs/openapi.json anew from the routes
	@$(bin)/python -m serve.spec > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

clean: ## remove what the demo made
	@rm -rf $(DEMO)
