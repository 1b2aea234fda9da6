#!/bin/sh
# What the container's image holds, put together without a container: build.sh SOURCE TARGET. The Dockerfile runs it,
# and so does `make test-box`. The environment in TARGET stays where it is: its commands name it by its path.
set -eu

source=${1:?usage: build.sh SOURCE TARGET}
target=${2:?usage: build.sh SOURCE TARGET}

"${PYTHON:-python3}" -m venv "$target/venv"
pip() { "$target/venv/bin/pip" --disable-pip-version-check --quiet "$@"; }
pip install --require-hashes --only-binary :all: -r "$source/requirements.lock"
pip install --no-deps --no-build-isolation "$source"
pip uninstall --yes hatchling editables # built with, not run with

# The sample workflow of deploy/config.yaml, which finds its files here as it does in the repository.
mkdir -p "$target/deploy" "$target/examples/nl2sql/prompts"
cp "$source/deploy/config.yaml" "$source/deploy/probe.py" "$target/deploy/"
cp "$source/examples/nl2sql/prompts/"*.md "$target/examples/nl2sql/prompts/"
cp "$source/examples/nl2sql/script.json" "$target/examples/nl2sql/"
cd "$source" && PYTHONDONTWRITEBYTECODE=1 "$target/venv/bin/python" -m examples.nl2sql.database "$target/data/sales.duckdb"

chmod -R a-w,a+rX "$target"
