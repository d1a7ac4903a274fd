# Two commands on a bare machine: `make demo` and `make test`. Both set up what they need themselves.

# One thread a process: two single-thread processes side by side beat one with two threads on small models.
export OMP_NUM_THREADS ?= 1
export MUJOCO_GL ?= egl
export HF_HUB_OFFLINE ?= 1
# A CUDA build of torch is large; a slow mirror must not end the installation.
export UV_HTTP_TIMEOUT ?= 600

PYTHON := .venv/bin/python
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
STAMP := .venv/.installed

.PHONY: install demo test test-slow lint requirements system-libraries

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml .python-version | system-libraries
	@test -x "$(UV)" || { python3 -m venv .uv && .uv/bin/pip install --quiet uv; }
	@test -x $(PYTHON) || "$(UV)" venv --quiet .venv
	VIRTUAL_ENV=.venv "$(UV)" pip install --quiet -r requirements.txt
	VIRTUAL_ENV=.venv "$(UV)" pip install --quiet --no-deps -e .
	@touch $@

# MuJoCo draws off-screen through EGL.
system-libraries:
	@ldconfig -p | grep -q 'libEGL\.so\.1' && ldconfig -p | grep -q 'libEGL_mesa\|libEGL_nvidia' \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	     && apt-get update -qq && apt-get install -y -qq --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri >/dev/null; } \
	|| { echo "MuJoCo needs EGL. Install it: sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri"; exit 1; }

demo: install
	.venv/bin/pi05-rl demo

test: install
	$(PYTHON) -m pytest

test-slow: install
	$(PYTHON) -m pytest -m slow

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# Pins for every platform; written without registry addresses.
requirements:
	"$(UV)" pip compile pyproject.toml --extra demo --extra dev --python-version 3.12 --universal --upgrade \
	  --no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.txt
