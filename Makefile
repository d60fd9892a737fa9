# Two commands matter: `make demo` and `make test`. Both do all set-up themselves.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: help setup demo test check audit bench soak memory fuzz screenshots clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## install what is missing
	@scripts/setup.sh demo

demo: setup  ## the whole product on this machine (CAMERAS=64 HEADLESS=1 SECONDS_TO_RUN=60 LAN=1)
	@CAMERAS=$(CAMERAS) HEADLESS=$(HEADLESS) SECONDS_TO_RUN=$(SECONDS_TO_RUN) LAN=$(LAN) $(PY) scripts/demo.py

test:  ## every test
	@scripts/setup.sh test
	@$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not realtime" $(ARGS) || [ $$? -eq 5 ]
	@$(PY) -m pytest -m realtime $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS names none of these

check:  ## format, lint, types, and the dependency audit (which says so when it can't ask; AUDIT=--require fails then)
	@scripts/setup.sh test
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy
	@$(PY) scripts/audit.py $(AUDIT) || [ $$? -eq 3 ]

audit:  ## known vulnerabilities of locked dependencies; fails when nobody can be asked
	@scripts/setup.sh test
	@$(PY) scripts/audit.py --require

fuzz:  ## every parser for longer (FUZZ_EXAMPLES=20000)
	@scripts/setup.sh test
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),20000) $(PY) -m pytest --timeout 0 tests/test_fuzz_parsers.py tests/streams/test_fuzz_whep.py tests/http/test_schema.py $(ARGS)

bench: setup  ## the figures in the README
	@$(PY) -m benchmarks $(ARGS)

soak:  ## joins, leaves and faults for SECONDS=600: memory flat, nothing left behind
	@scripts/setup.sh test
	@$(PY) tests/soak/soak.py --seconds $(or $(SECONDS),600)

memory:  ## the wall's heap under alarms for SECONDS=1200: flat once its lists are full
	@scripts/setup.sh test
	@PYTHONPATH=tests/e2e $(PY) tests/e2e/page_memory.py --seconds $(or $(SECONDS),1200) $(ARGS)

screenshots:  ## pictures of every screen of a running `make demo` into docs/images
	@scripts/setup.sh test
	@$(PY) scripts/screenshots.py $(ARGS)

clean:  ## forget set-up and build results (not var/)
	rm -rf .venv .setup gateway/web/node_modules gateway/web/dist gateway/streams/*.so build *.egg-info
