# `make demo`, `make test` and `make install` do all their set-up themselves. README.md tells what each is for.
SHELL := /bin/bash
CACHE := $(or $(HPK_CACHE),$(if $(filter 0,$(shell id -u)),/var/cache/hpk,$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hpk))
VENV := $(CACHE)/test-venv
RUN := PYTHONPATH=$(CURDIR) $(VENV)/bin/python -m

BENCH ?=
.PHONY: bench help demo demo-down install test unit component e2e faults check fmt venv
help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a cluster of one's own and a Job on it, on this machine (as root: installs what is missing)
	@scripts/with-python -m scripts.demo up
demo-down: ## end what `make demo` started
	@scripts/with-python -m scripts.demo down
install: ## HPK for this user: ~/.hpk/venv and ~/.local/bin/hpk
	@scripts/install.sh
test: ## all tests, all set-up included (as root)
	@scripts/test.sh
unit: venv ## tests that need neither root nor a cluster
	$(RUN) pytest tests/unit
component: venv ## tests against a real API server (after `make test` or `hpk image build` made the programs)
	$(RUN) pytest tests/component
e2e: venv ## tests on the virtual cluster (as root)
	$(RUN) pytest tests/e2e
faults: venv ## 300 faults injected in a row on the virtual cluster, FAULTS="--count N --seed N" for others (as root; docs/faults.md)
	$(RUN) tests.faults $(FAULTS)
bench: venv ## what Pods cost beside plain jobs, as in docs/performance.md (as root, on a quiet machine; BENCH="start --rounds 5")
	$(RUN) tests.bench $(BENCH)
check: venv ## linters; changes nothing
	$(RUN) pytest -q tests/unit/test_linters.py
fmt: venv ## format and mend what linters can mend
	$(VENV)/bin/ruff format && $(VENV)/bin/ruff check --fix
venv:
	@scripts/with-python scripts/venv.py $(VENV) >/dev/null
