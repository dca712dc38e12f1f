# Everything runs in .venv, which is created on first use and recreated when a lock changes. `demo`
# needs only what ships; the tools are added for the other targets.
# PYTHON=... names the interpreter to try first. ARGS=... is passed to demo, test, bench,
# bench-peers and fuzz.

VENV    := .venv
BIN     := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
STAMP   := $(VENV)/.installed
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3
PIP     := -m pip --disable-pip-version-check install

# Sets the shell's $$py to the first usable Python, or stops with the reason why there is none.
# Each candidate is run, not just looked up, because a version manager's shim may be broken.
define FIND_PYTHON
py=; bare=; \
for p in $(PYTHONS); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	if "$$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then py=$$p; break; fi; \
	bare=$${bare:-$$p}; \
done; \
if [ -z "$$py" ] && [ -n "$$bare" ]; then \
	echo "error: $$bare has no venv or ensurepip module: install it (on Debian and Ubuntu" \
		"the package python3-venv) or name another Python: make PYTHON=/path/to/python" >&2; exit 1; \
elif [ -z "$$py" ]; then \
	echo "error: no Python 3.11 or newer among: $(strip $(PYTHONS))." \
		"Install one or name it: make PYTHON=/path/to/python" >&2; exit 1; \
fi
endef

# Installs $(1), and names each package as pip comes to it; pip's errors are on standard error. The
# pipe ends with pip's exit code, because sh has no pipefail.
define INSTALL
{ $(BIN)/python -u $(PIP) $(1); echo "exit $$?"; } | { while read -r word rest; do \
	case $$word in \
	Collecting) echo "  $${rest%% *}" ;; \
	Installing) echo "  writing files" ;; \
	exit) exit "$$rest" ;; \
	esac; \
done; exit 1; }
endef

.PHONY: help demo test test-fast test-slow lint check nightly fmt bench bench-peers fuzz lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s%s\n", $$1, $$2 }'

demo: $(RUNTIME) ## run the demo
	@$(BIN)/sidecar demo $(ARGS)

test: $(STAMP) ## run the tests, except the slow ones
	@$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-fast: $(STAMP) ## run the modules' own tests, quick enough for every edit
	@$(BIN)/python -m pytest -q -m "not slow and not process" --ignore=tests/faults $(ARGS)

# Hypothesis itself marks the tests with generated examples as `hypothesis`.
test-slow: $(STAMP) ## run the slow tests, and generated tests with more examples
	@HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest -q -m "(slow or hypothesis) and not nightly" $(ARGS)

lint: $(STAMP) ## check formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict sidecar client/trace_sidecar_client examples tests tools/metrics_page.py tools/panel.py tools/panels.py tools/helm_readme.py tools/kustomize_files.py tools/openapi.py tools/openapi_schemas.py tools/config_schema.py tools/sizing.py

check: lint test test-slow ## lint and run all tests: every change must pass this

nightly: $(STAMP) ## run the tests and every end-to-end test, with many generated examples
	@export HYPOTHESIS_PROFILE=nightly E2E_REQUIRED=1; failed=0; \
	$(BIN)/python -m pytest -q $(ARGS) || failed=1; \
	$(BIN)/python -m pytest -q tests/e2e $(ARGS) || failed=1; \
	exit $$failed

fmt: $(STAMP) ## format, and fix what ruff can fix
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(STAMP) ## run the load benchmark
	@$(BIN)/python -m tests.load.bench $(ARGS)

bench-peers: $(STAMP) ## compare with the SDK and OpenTelemetry
	@$(BIN)/python -m tests.load.peers $(ARGS)

fuzz: $(STAMP) ## run every test with many more generated examples, and compare HTTP with h11
	@$(BIN)/python -m tests.http.second_opinion 1000000
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -m "" tests $(ARGS)

# setuptools comes from the dev lock, so that nothing is fetched without a hash. --clear removes
# packages from an older lock, and the stamps with them.
$(RUNTIME): requirements.lock requirements-dev.lock
	@$(FIND_PYTHON); \
	echo "Creating $(VENV) with $$("$$py" --version)"; \
	"$$py" -m venv --clear $(VENV)
	@echo "Installing what the sidecar needs:"
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements-dev.lock >$(VENV)/build.lock
	@$(call INSTALL,--require-hashes -r requirements.lock -r $(VENV)/build.lock)
	@echo "Installing the sidecar and its client:"
	@$(call INSTALL,--no-deps --no-build-isolation -e . -e client)
	@touch $@

$(STAMP): $(RUNTIME)
	@echo "Installing the tools for development:"
	@$(call INSTALL,--require-hashes -r requirements-dev.lock)
	@touch $@

# In a venv of its own, because .venv can't be created while a lock is broken.
# The runtime lock constrains the dev lock, so that what is tested is what ships.
LOCK := .venv-lock/bin/uv --no-config pip compile --quiet --universal --upgrade \
	--python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml

lock: ## update both locks to the newest versions
	@$(FIND_PYTHON); "$$py" -m venv --clear .venv-lock
	@.venv-lock/bin/python $(PIP) --quiet uv
	@$(LOCK) -o requirements.lock >/dev/null
	@$(LOCK) --group dev -c requirements.lock -o requirements-dev.lock >/dev/null
	@rm -rf .venv-lock

clean: ## remove .venv, caches and build output
	@rm -rf $(VENV) .venv-lock .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info client/build client/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
