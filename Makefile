# HyperSharp: every step that a fresh machine needs, safe to repeat.
#   make demo    the main job: sample scene -> fused through QGIS -> demo/
#   make test    every test: lint, backend, real QGIS, packaging
#   make help    all targets

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
VENV_QGIS := .venv-qgis
PY := $(VENV)/bin/python
PYQ := $(VENV_QGIS)/bin/python
STAMPS := .stamps
# Names of Debian's packages: QGIS with PyQGIS, a virtual screen, and the peer that benchmarks compare with.
APT_QGIS := qgis python3-qgis qgis-providers python3-gdal python3-venv xvfb xauth procps
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo || true)
APT_GET := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600

.PHONY: help env env-qgis mamba-reference demo test test-backend test-qgis test-packaging lint format bench quality ranking learned-table robustness screenshots package gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---------------------------------------------------------------- the main job

demo: env env-qgis  ## fuse the sample scene through QGIS into demo/ (or HS=... GUIDE=... METHOD=...)
	@HS="$(HS)" GUIDE="$(GUIDE)" METHOD="$(METHOD)" $(PY) .ci/demo.py

# ---------------------------------------------------------------- tests

test: lint test-backend test-packaging test-qgis  ## every test

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# As many processes as cores, of one thread each: twice as quick as one process of many threads.
test-backend: env  ## the engine, without QGIS
	OMP_NUM_THREADS=1 $(PY) -m pytest -p no:pytest_qgis -q -n $$(nproc) --maxprocesses 4 tests/backend

test-packaging: env  ## import rules, plugin zip, the site's scan
	$(PY) -m pytest -p no:pytest_qgis -q tests/packaging

test-qgis: env env-qgis  ## the plugin in a real QGIS
	QT_QPA_PLATFORM=offscreen HYPERSHARP_PYTHON=$(abspath $(PY)) $(PYQ) -m pytest -q tests/qgis

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# ---------------------------------------------------------------- figures and pictures

bench: env env-qgis  ## seconds and peak memory beside plain writing and gdal_pansharpen.py
	$(PY) tests/bench/bench_fusion.py
	$(PY) tests/bench/bench_metrics.py
	$(PY) .ci/scan_bench.py --least 5
	$(PY) .ci/learned_bench.py

ranking: env  ## do the indices rank right? writes the section of docs/metrics.md (15 minutes from nothing)
	$(PY) .ci/ranking_table.py

quality: env  ## the table of methods on the cubes of the data folder
	$(PY) .ci/quality_table.py

learned-table: env  ## what the shipped weights gain over lmmse, into docs/benchmarks.md
	$(PY) .ci/learned_table.py --adapt 120 --into docs/benchmarks.md

robustness: env  ## how far methods fall with noise and with a wrong PSF, into docs/benchmarks.md
	$(PY) .ci/robustness_table.py --into docs/benchmarks.md

gpu: env  ## what needs CUDA: parity tests, and the networks' speed; skipped with a reason elsewhere
	$(PY) -m pytest -p no:pytest_qgis -q -m gpu tests/backend
	$(PY) .ci/learned_bench.py --device cuda

screenshots: env env-qgis  ## pictures of the plugin in the real QGIS desktop, into docs/images/
	$(PY) .ci/screenshots.py

package: env  ## the plugin zip, into dist/
	$(PY) .ci/build_zip.py

clean:  ## remove what was built, environments included
	rm -rf $(VENV) $(VENV_QGIS) $(STAMPS) build dist demo *.egg-info

# ---------------------------------------------------------------- environments

# Without nvcc only its Python reference is usable, which is what the parity tests want. May fail: they then skip.
mamba-reference: env  ## install mamba-ssm's reference scan into .venv, for its parity tests (optional)
	-$(PY) -m pip install --quiet --disable-pip-version-check --no-deps setuptools einops==0.8.2
	-MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps "mamba-ssm<2.3.1"

env: $(STAMPS)/env  ## build .venv, the backend's Python environment
env-qgis: $(STAMPS)/env-qgis  ## install QGIS (Debian packages) and build .venv-qgis, for the QGIS tests and the demo

$(STAMPS)/env: pyproject.toml .ci/constraints.txt
	@python=$$(.ci/find-python) || { $(APT_GET) update && $(APT_GET) install -y --no-install-recommends python3 python3-venv; python=$$(.ci/find-python); }; \
	echo "env: building $(VENV) with $$python"; \
	[ -x $(PY) ] && $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { rm -rf $(VENV); "$$python" -m venv $(VENV); }
	$(PY) -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[test]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/env-qgis: Makefile
	@missing=$$(for p in $(APT_QGIS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "env-qgis: installing" $$missing; $(APT_GET) update -qq && $(APT_GET) install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@[ -x $(PYQ) ] || /usr/bin/python3 -m venv --system-site-packages $(VENV_QGIS)
	$(PYQ) -m pip install --quiet --disable-pip-version-check pytest==9.2.0 pytest-qgis==5.0.2
	@mkdir -p $(STAMPS) && touch $@
