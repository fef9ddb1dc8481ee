# `make demo` does the main job, `make test` runs the tests. Every target first sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
# A tumor of about median size (93 ml; the median of 123 BraTS tumors is 87 ml).
CASE := demo/Phantom_20287/Phantom_20287

.PHONY: demo test test-all gpu coverage lint types docs wheel resolve fuzz licenses sbom clean

demo: .venv/ready
	$(BIN)/medmap phantom demo --seed 20287 --overwrite
	$(BIN)/medmap segment --t1ce $(CASE)_t1ce.nii.gz --flair $(CASE)_flair.nii.gz --truth $(CASE)_seg.nii.gz \
		--device cpu --output demo/result --overwrite

# One process per core with one thread each: several threads in several processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest Testing --numprocesses auto --dist loadfile

test: .venv/ready-test
	$(PYTEST) -m "not slow"

test-all: .venv/ready-test
	$(PYTEST)

# Speed, memory, drills and tests of one GPU in six minutes: make gpu PYTHON=python3. Needs PyTorch and NumPy and
# installs nothing. CASES is a file of prepared cases (python -m gpu pack, see MedMAPTraining/experiments/gpu/__main__.py).
gpu:
	PYTHONPATH=MedMAPTraining:MedMAPTraining/experiments $(PYTHON) -m gpu --output build/gpu.md \
		$(if $(CASES),--cases $(CASES))

# At least 85 % of the lines of the package (MedMAPTraining/pyproject.toml).
coverage: .venv/ready-test
	$(PYTEST) -m "not slow" --cov --cov-config=MedMAPTraining/pyproject.toml --cov-report=term

lint: .venv/ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy --config-file MedMAPTraining/pyproject.toml

types: .venv/ready-lint
	$(BIN)/mypy --config-file MedMAPTraining/pyproject.toml

# Strict: a link or an anchor that leads nowhere is an error. The website lies in build/site.
docs: .venv/ready-docs
	$(BIN)/python docs/_tools/site.py

wheel: .venv/ready
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel ./MedMAPTraining

# Whether all dependencies have wheels for Linux (x86-64, arm64), macOS and Windows, Python 3.11 to 3.14; needs a network.
resolve: .venv/ready-test
	$(BIN)/python -m pytest Testing/house/test_distribution.py -m slow -k platforms

# An hour of malformed files; what goes wrong is kept in fuzz-findings/.
fuzz: .venv/ready-test
	$(BIN)/python Testing/hardening/fuzz.py --minutes 60 --seed $$(date +%s)

# An inventory of licenses and a software bill of materials (CycloneDX) of everything in .venv.
licenses: .venv/ready-test .tools/ready
	.tools/bin/pip-licenses --python $(BIN)/python --from=mixed --order=license --format=markdown \
		--output-file=licenses.md

sbom: .venv/ready-test .tools/ready
	.tools/bin/cyclonedx-py environment --pyproject MedMAPTraining/pyproject.toml --output-reproducible \
		--output-file sbom.cdx.json $(BIN)/python

# Apart from .venv, so that the tools do not list themselves.
.tools/ready:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet "pip-licenses>=5" "cyclonedx-bom>=7"
	touch $@

# The marker files are renewed when the dependencies change.
INSTALL := $(BIN)/python -m pip install --quiet --constraint MedMAPTraining/constraints.txt --editable
.venv/ready: MedMAPTraining/pyproject.toml MedMAPTraining/constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'MedMAP needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) MedMAPTraining
	touch $@

.venv/ready-%: .venv/ready
	$(INSTALL) "MedMAPTraining[$*]"
	touch $@

clean:
	rm -rf .venv .tools build demo
