# `make demo` does the main job, `make test` runs the tests; both set everything up in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# A tumor of about median size (93 ml; the median of 123 BraTS tumors is 87 ml).
CASE := demo/Phantom_20287/Phantom_20287

.PHONY: demo test test-all lint fuzz licenses sbom clean

demo: .venv/ready
	$(BIN)/medmap phantom demo --seed 20287 --overwrite
	$(BIN)/medmap segment --t1ce $(CASE)_t1ce.nii.gz --flair $(CASE)_flair.nii.gz --truth $(CASE)_seg.nii.gz \
		--device cpu --output demo/result --overwrite

# A process a core, each with one thread: several threads in several processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest Testing --numprocesses auto --dist loadfile

test: .venv/ready
	$(PYTEST) -m "not slow"

test-all: .venv/ready
	$(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An hour of malformed files; what goes wrong is kept in fuzz-findings/.
fuzz: .venv/ready
	$(BIN)/python Testing/hardening/fuzz.py --minutes 60 --seed $$(date +%s)

# Whose work is in it: an inventory of licenses, and a software bill of materials (CycloneDX), of what is in .venv.
licenses: .venv/ready .tools/ready
	.tools/bin/pip-licenses --python $(BIN)/python --from=mixed --order=license --format=markdown \
		--output-file=licenses.md

sbom: .venv/ready .tools/ready
	.tools/bin/cyclonedx-py environment --pyproject MedMAPTraining/pyproject.toml --output-reproducible \
		--output-file sbom.cdx.json $(BIN)/python

# Apart from .venv, so that the tools do not list themselves.
.tools/ready:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet "pip-licenses>=5" "cyclonedx-bom>=7"
	touch $@

# The marker file is renewed when the dependencies change.
.venv/ready: MedMAPTraining/pyproject.toml MedMAPTraining/constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'MedMAP needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint MedMAPTraining/constraints.txt --editable "MedMAPTraining[test]"
	touch $@

clean:
	rm -rf .venv .tools demo
