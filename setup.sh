#!/bin/sh
# Installs scoregen with its development tools: sh setup.sh PYTHON. Called by make.
# torch comes first and pinned: left to itself, pip would fetch the newest CUDA build also where there is no GPU.
set -eu
python=$1
torch() { "$python" -m pip install -qq --disable-pip-version-check -c constraints.txt torch "$@"; }
echo "setting up .venv (a minute or two; 2.2 GB)"
if [ "$(uname)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then
    torch --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15 2>/dev/null || torch
else
    torch
fi
"$python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
