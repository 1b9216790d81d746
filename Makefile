# make demo   train and score on a real set, see examples/demo.py
# make test   the test suite, in two processes with a Spark session each
# make test-quality, test-gpu-simulator, test-processes, test-connect, test-cluster, test-wheel, test-site
#             stages of what is long and rare: docs/testing.md; .ci/run runs them all
# make test-matrix  every Python at hand, oldest and newest PySpark; no part of .ci/run
# make docs   the documentation as a site, site/index.html
# All make a virtual environment in .venv and find, or install, Java 17 or newer.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SITE_VENV ?= .venv-site
CLASSES := $(VENV)/spark-classes.jsa
DEMO_OUT ?= demo-output
# A file's tests stay in one process, a class's where there are classes. PARALLEL= runs all in one.
PARALLEL ?= -n 2 --dist loadscope --no-loadscope-reorder
PYTEST_ARGS ?=

RUN_TESTS = . ./.java-home && $(BIN)/python -m pytest $(PARALLEL)

.PHONY: demo test test-quality test-gpu-simulator test-processes test-connect test-cluster test-wheel test-matrix test-site docs lint spark-classes bench-quality fuzz params proto java clean

demo: $(STAMP) java
	. ./.java-home && $(BIN)/python -W 'ignore:PySpark does not:FutureWarning' -m examples.demo --out "$(DEMO_OUT)"

test: $(CLASSES) java
	$(RUN_TESTS) $(PYTEST_ARGS)

test-quality: $(CLASSES) java
	$(RUN_TESTS) -m quality $(PYTEST_ARGS)

test-gpu-simulator: $(CLASSES) java
	$(RUN_TESTS) -m simulator $(PYTEST_ARGS)

test-processes: $(CLASSES) java
	$(RUN_TESTS) -m processes $(PYTEST_ARGS)

test-connect: $(CLASSES) java
	SPARK_FM_TEST_MODE=connect; export SPARK_FM_TEST_MODE; $(RUN_TESTS) -m connect $(PYTEST_ARGS)

test-cluster: $(CLASSES) java
	$(RUN_TESTS) -m cluster $(PYTEST_ARGS)

# The wheel by itself: without PySpark, then with the oldest.
test-wheel: $(STAMP) java
	. ./.java-home && VENV=$(VENV) PYTHON=$(PYTHON) conf/test-wheel.sh $(PARALLEL) $(PYTEST_ARGS)

# On each Python at hand with the oldest and the newest PySpark, then with all floors of pyproject.toml.
test-matrix: $(STAMP) java
	. ./.java-home && VENV=$(VENV) conf/test-matrix.sh

docs: $(SITE_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --quiet

# Warnings are errors: links that lead nowhere, pages that the menu leaves out.
test-site: docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-quality: $(STAMP) java
	. ./.java-home && $(BIN)/python -W ignore -m benchmarks.quality --out docs/quality.md

fuzz: $(STAMP)
	$(BIN)/python -m tests.formats.mutations --cases 200000
	$(BIN)/python -m tests.serving.malformed --cases 500000

# After a change of the table in spark_fm/ml/params.py.
params: $(STAMP)
	PYTHONPATH=. $(BIN)/python conf/write_stubs.py

# The oldest compiler whose modules every supported protobuf runtime takes.
proto:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet 'grpcio-tools==1.62.3' 'setuptools<81'
	.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. spark_fm/formats/recordio/record.proto
	rm -rf .venv-proto

$(STAMP): pyproject.toml spark_fm/_version.py
	@echo "Installing spark-fm and what it needs into $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

# What generates pages imports the package, with what $(VENV) has of its dependencies.
$(SITE_VENV)/.installed: $(STAMP)
	$(PYTHON) -m venv $(SITE_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(SITE_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(SITE_VENV)/bin/python -m pip install --quiet -e '.[docs]'
	touch $@

spark-classes: $(CLASSES)

# Where none can be made, an empty one: the tests take longer, no more.
$(CLASSES): $(STAMP) conf/archive_classes.py | java
	@echo "Archiving Spark's classes, so that the JVMs of tests start sooner ..."
	. ./.java-home && $(BIN)/python conf/archive_classes.py $@ 2>$@.log || touch $@

java:
	@sh conf/find-java.sh > .java-home

clean:
	rm -rf $(VENV) $(SITE_VENV) .java-home $(DEMO_OUT) build dist site
