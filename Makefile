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
APT_QGIS := qgis python3-qgis qgis-providers python3-gdal python3-venv xvfb xauth
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo || true)
APT_GET := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600

.PHONY: help env env-qgis

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---------------------------------------------------------------- environments

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
