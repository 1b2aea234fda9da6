# Cortex: every target sets up what it needs. Start with `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
VLLM   := $(or $(CORTEX_VLLM),.vllm)
LITELLM := $(or $(CORTEX_LITELLM),.litellm)
CONFIG ?= config.yaml
JOBS   ?= 2
TESTERS ?= 3
CLIENTS := .clients

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-vllm serve test vllm test-slow test-vllm test-box providers test-providers test-clients record-clients test-agents check format bench-policies bench-policies-quick bench-isolation bench-isolation-quick dashboards lock lock-clients clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## 60 questions through an NL2SQL agent, under four pool layouts, with a table at the end
	@$(BIN)/cortex demo

demo-vllm: $(VENV)/.run $(VLLM)/bin/vllm ## 20 of them on two real vLLM servers with a small model of random weights, in about 5 minutes
	@$(BIN)/cortex demo --vllm $(VLLM)

serve: $(VENV)/.run data/sales.duckdb ## start the gateway with config.yaml on 127.0.0.1:8080 and leave it running
	@$(BIN)/cortex serve --config $(CONFIG)

data/sales.duckdb: examples/nl2sql/database.sql | $(VENV)/.run
	@$(BIN)/python -m examples.nl2sql.database $@
	@touch $@

# Three at once on two cores: tests that start servers wait more than they compute. What has been compiled is kept,
# whatever the environment says: hundreds of the processes that are started read the same modules.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev ## run the tests and check branch coverage, in under 10 minutes on 2 cores
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -n $(TESTERS) --dist loadfile -m "not slow"
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --include='policies/*' --fail-under=95 --skip-covered
	@$(BIN)/coverage report --omit='policies/*' --fail-under=85 --skip-covered

test-slow: $(VENV)/.dev ## the tests that are too heavy for every change: storms, layers of the sandbox switched off, whole benches
	@$(BIN)/pytest -n $(TESTERS) --dist loadfile -m slow

vllm: $(VLLM)/bin/vllm ## vLLM's CPU build in .vllm, an environment of its own (3 GB; with GPUs see docs/vllm.md)

test-vllm: $(VENV)/.dev $(VLLM)/bin/vllm ## the tests on real vLLM servers, in about 6 minutes with 2 cores and 8 GB (CORTEX_VLLM: the environment)
	@$(BIN)/pytest tests/vllm

test-box: $(VENV)/.dev ## build what the container holds and run it read-only, in under 2 minutes (as root; docs/deploy.md)
	@$(BIN)/pytest tests/box -rs

providers: $(LITELLM)/.done ## LiteLLM in .litellm, an environment of its own, for pools of hosted models (250 MB; docs/providers.md)

test-providers: $(VENV)/.dev $(LITELLM)/.done ## the tests of hosted models with LiteLLM itself, in about 7 minutes (not part of make test)
	@$(BIN)/pytest tests/providers

$(LITELLM)/.done: requirements-litellm.lock | $(VENV)/bin/python
	@echo "setting up $(LITELLM) ..."
	@$(PYTHON) -m venv --clear $(LITELLM)
	@$(LITELLM)/bin/pip install -q --no-compile --disable-pip-version-check --require-hashes -r requirements-litellm.lock
	@touch $@

test-clients: $(VENV)/.dev ## the examples of ten agent frameworks against a live gateway, in under 10 minutes (needs node; 1.4 GB; not part of make test)
	@$(MAKE) --no-print-directory -j 4 $(patsubst %,$(CLIENTS)/%/.done,openai3 openai2 litellm node)
	@$(BIN)/pytest tests/clients

record-clients: $(VENV)/.dev $(patsubst %,$(CLIENTS)/%/.done,openai3 openai2 litellm node) ## what those examples send, for bench/inference, in under 15 minutes
	@$(BIN)/python -m tests.clients.record

test-agents: $(VENV)/.dev $(CLIENTS)/agents/.done ## Claude Code, Codex and opencode against a live gateway, in under 3 minutes (needs node; 1.1 GB; not part of make test)
	@$(BIN)/pytest tests/agents

$(VLLM)/bin/vllm:
	@PYTHON=$(PYTHON) deploy/vllm/install-cpu.sh $(VLLM)

check: $(VENV)/.dev ## ruff, mypy --strict and the import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## let ruff format and mend the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench-policies: $(VENV)/.run ## Cortex against every baseline on five workloads, in under 25 minutes (ARGS="--out DIR")
	@$(BIN)/python -m bench.policies --jobs $(JOBS) $(ARGS)

bench-policies-quick: $(VENV)/.run ## the same with fewer seeds, runs and loads, in under 3 minutes
	@$(BIN)/python -m bench.policies --quick --jobs $(JOBS) $(ARGS)

bench-isolation: $(VENV)/.dev $(VLLM)/bin/vllm ## stage isolation against its rivals on two real vLLM servers, in under 100 minutes
	@$(BIN)/python -m bench.isolation --vllm $(VLLM) --calibrate --out docs/isolation $(ARGS)
	@$(BIN)/python -m bench.fidelity docs/isolation

bench-isolation-quick: $(VENV)/.dev $(VLLM)/bin/vllm ## two of its six cells, once, in under 10 minutes
	@$(BIN)/python -m bench.isolation --vllm $(VLLM) --quick $(ARGS)

dashboards: $(VENV)/.dev ## write the Grafana boards in dashboards/ anew from the code that makes them
	@$(BIN)/python -m dashboards

lock: ## resolve the dependencies anew into the three lock files (needs uv)
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --group litellm -o requirements-litellm.lock
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --extra demo --group build pyproject.toml -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --group dev --group build --extra demo --extra simulate -c requirements.lock pyproject.toml -o requirements-dev.lock

lock-clients: ## the same for the frameworks of test-clients (needs uv and npm)
	for one in openai3 openai2 litellm; do uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 tests/clients/$$one.in -o tests/clients/$$one.lock; done
	for one in clients/node agents; do (cd tests/$$one && npm install --package-lock-only --omit-lockfile-registry-resolved --no-fund --no-audit); done

clean: ## remove the environments and everything that was generated
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* .import_linter_cache data

# The environment: a run-time one for demo and serve, the developer's tools on top of it for test and check.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Cortex needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "The venv module is missing: install it with  apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# The environments of frameworks, because their versions of openai clash; each is made anew when its lock changes.
$(CLIENTS)/%/.done: tests/clients/%.lock
	@echo "setting up $(@D) ..."; begun=$$(date +%s); \
	  $(PYTHON) -m venv --clear $(@D) \
	  && $(@D)/bin/pip install -q --no-deps --no-compile --disable-pip-version-check --require-hashes -r $< \
	  && echo "$(@D): $$(($$(date +%s) - begun)) s, $$(du -sh $(@D) | cut -f1)"
	@touch $@

$(CLIENTS)/node/.done: tests/clients/node/package-lock.json
$(CLIENTS)/agents/.done: tests/agents/package-lock.json
$(CLIENTS)/node/.done $(CLIENTS)/agents/.done:
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js 20 or newer"; exit 1; }
	@echo "setting up $(@D) ..."; begun=$$(date +%s); rm -rf $(@D); mkdir -p $(@D); cp $(<D)/package*.json $(@D) \
	  && cd $(@D) && npm install --no-fund --no-audit --no-update-notifier --loglevel=error \
	  && echo "$(@D): $$(($$(date +%s) - begun)) s, $$(du -sh . | cut -f1)"
	@touch $@
