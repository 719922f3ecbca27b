# make test     run everything that is checked, on every Python here from 3.11 on
# make quick    run the tests on the newest Python here, and check style and types
# make demo     see the library work, without a network
# make docs     build the documentation
# make man      write the manual page, build/multicast.1
# make bench    measure
# make dist     build and check what is uploaded for a release: source, wheels for four targets, the pure wheel
# make fuzz     look for input that breaks a promise, FUZZ_SECONDS for each target (600)
# make mutants  see whether the tests notice small changes of the package; MODULES='filters.py ...' for some modules
# make clean    remove what these made
#
# Each makes the virtual environment it needs, in .venv; nothing is installed outside this directory.

PYTHONS := $(shell tools/interpreters)
PYTHON ?= $(firstword $(PYTHONS))
NEWEST := $(shell for python in $(PYTHONS); do :; done; \
    $$python -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
TOX = .venv/tox/bin/tox run --discover $(PYTHONS)

.PHONY: test quick demo docs man bench dist fuzz mutants clean python

test: .venv/tox/done
	$(TOX)

# Style and types are looked at while the tests wait for the network.
quick: .venv/tox/done
	.venv/tox/bin/tox run-parallel --parallel 3 --parallel-live --discover $(PYTHONS) -e $(NEWEST),lint,types

docs: .venv/tox/done
	$(TOX) -e docs

demo: .venv/demo/done
	.venv/demo/bin/multicast demo

man: .venv/demo/done
	mkdir -p build
	.venv/demo/bin/python tools/manpage > build/multicast.1

# In a network namespace of its own: what is measured are our own packets, and nobody else sees them.
# The charts and the table of the documentation are made anew; `make bench BENCH=--quick` takes a minute.
bench: .venv/bench/done
	.venv/bench/bin/python tests/netns.py .venv/bench/bin/python benchmarks/run.py --charts docs/charts $(BENCH)

# Without a compiler of this machine and without containers: ziglang is a C compiler for all targets.
dist: .venv/dist/done
	.venv/dist/bin/python tools/dist

.venv/dist/done: | python
	$(PYTHON) -m venv .venv/dist
	.venv/dist/bin/python -m pip install --quiet --disable-pip-version-check \
	    abi3audit auditwheel build check-wheel-contents setuptools twine ziglang
	touch $@

# The targets in Python need atheris, that of the C module clang (see fuzz/README.rst).
fuzz: .venv/fuzz/done
	.venv/fuzz/bin/python fuzz/run.py

# On one core; the changes are made in a copy of the tree.
mutants: .venv/mutants/done
	.venv/mutants/bin/python tools/mutants $(MODULES)

.venv/tox/done: | python
	$(PYTHON) -m venv .venv/tox
	.venv/tox/bin/python -m pip install --quiet --disable-pip-version-check 'tox >= 4.12'
	touch $@

# Editable, so that changes of the package are seen at once; made anew when what is installed with it changes.
.venv/demo/done: setup.cfg setup.py $(wildcard multicast/*.c) | python
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cli]'
	touch $@

# With the peers that are measured, and the C module, which is what most of it is about.
.venv/bench/done: setup.cfg setup.py benchmarks/requirements.txt $(wildcard multicast/*.c) | python
	$(PYTHON) -m venv .venv/bench
	MULTICAST_REQUIRE_EXT=1 .venv/bench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[secure]'
	for peer in $$(sed 's/#.*//' benchmarks/requirements.txt); do \
	    .venv/bench/bin/python -m pip install --quiet --disable-pip-version-check "$$peer" \
	    || echo "$$peer cannot be installed here, and is left out"; \
	done
	touch $@

.venv/fuzz/done: setup.cfg setup.py $(wildcard multicast/*.c) | python
	$(PYTHON) -m venv .venv/fuzz
	.venv/fuzz/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[capture,cli]' atheris
	touch $@

.venv/mutants/done: setup.cfg setup.py $(wildcard multicast/*.c) | python
	$(PYTHON) -m venv .venv/mutants
	.venv/mutants/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' 'mutmut >= 3.8'
	touch $@

python:
	@test -n '$(PYTHON)' || { \
	    echo 'No Python from 3.11 on with the modules venv and ensurepip was found.' >&2; \
	    echo 'Install one (Debian: apt-get install python3-venv), or name yours: make PYTHON=/path/to/python' >&2; \
	    exit 1; }

clean:
	rm -rf .venv .tox build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f multicast/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
